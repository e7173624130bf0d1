"""iEvaLM's simulator on a scripted model: one call a message, the target's record in view, no persona, no policy, no scores."""

import re

import pandas as pd
import pytest
from scripted_models import FULL, ITEMS, NARROW, PERSONA, FakeEmbedder, in_turn, make_task

from ecpo_utils.core.matching import mentions_title
from ecpo_utils.core.params import load_profile
from ecpo_utils.core.paths import repository_root
from ecpo_utils.core.schema import Item, Trajectory
from ecpo_utils.dialogue.confirmation import Confirmer
from ecpo_utils.dialogue.ievalm import IEvaLMSimulator, is_told, shorten_reply, stems
from ecpo_utils.dialogue.rollout import System, dialogue_config, rollout
from ecpo_utils.dialogue.simulator import ATTEMPT_HEAT, Simulator
from ecpo_utils.dialogue.simulators import SIMULATORS, make_simulator
from ecpo_utils.dialogue.wishes import target_wishes
from ecpo_utils.evaluate.dialogues import render_dialogue
from ecpo_utils.evaluate.figures import plot_scores, plot_simulation
from ecpo_utils.evaluate.metrics import metrics_json, summarize
from ecpo_utils.evaluate.tables import score_table, short_simulation_table, simulation_table
from ecpo_utils.llm.client import Meter

TITLE = ITEMS[0].title
TASKS = [make_task()]
FEEDBACK, CLOSING = "provide_feedback_on_recommendation", "end_conversation"
PARAMS = load_profile(repository_root() / "params" / "quick.yaml").model_copy(update={"max_turns": 3, "simulator_mode": FULL})


@pytest.fixture
def make(study):
    def make(kind="ievalm", mode=FULL, *, temperature=0.0, **task):
        client = study.client("simulator")
        confirmer = Confirmer(client, FakeEmbedder(), mode)
        return make_simulator(kind, client, make_task(**task), temperature=temperature, confirmer=confirmer, meter=Meter())

    return make


def talk(study, simulator, *replies):
    """Opens, and answers each of the agent's replies; returns the user's turns."""

    async def everything():
        turns = [await simulator.open()]
        for reply in replies:
            simulator.hear(reply)
            assert await simulator.confirm() is None
            turns.append(await simulator.respond())
        return turns

    return study.run(everything())


def prompts(study):
    """The last message of each request, and all that was shown."""
    bodies = [chat.body["messages"] for chat in study.endpoint.chats]
    return [body[-1]["content"] for body in bodies], ["\n".join(m["content"] for m in body) for body in bodies]


def test_the_two_simulators_have_names(make):
    assert {kind: type(make(kind)) for kind in SIMULATORS} == {"ailo": Simulator, "ievalm": IEvaLMSimulator}


def test_every_message_is_one_call_and_there_is_no_other(study, make):
    simulator = make()
    turns = talk(study, simulator, "Alone or together?", "How about Iron Orchard?", "And Quiet Orbit?")
    assert [turn.policy for turn in turns] == ["ask_recommendation", FEEDBACK, FEEDBACK, FEEDBACK]
    assert len(study.endpoint.chats) == len(study.requests("message")) == len(turns) == simulator.meter.by_role["simulator"].calls
    assert not any(body.get("logprobs") or body.get("response_format") for body in study.requests("message"))


@pytest.mark.parametrize(("mode", "expected"), [(FULL, [1, 1, 1]), (NARROW, [0, 0, 1])])
def test_it_reads_the_agents_last_reply_and_large_models_all_that_was_said(study, make, mode, expected):
    talk(study, make(mode=mode), "Alone or together?", "How about Iron Orchard?")
    last = prompts(study)[0][-1]
    said = ("Alone or together?", "I would like something of kind 2.", "How about Iron Orchard?")
    assert [last.count(text) for text in said] == expected
    assert sorted(said, key=last.find) == list(said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fast or slow?", "Fast or slow?"),
        ("I see. Fast or slow?", "I see. Fast or slow?"),
        ('How about "X"? It is good,\nand long! Does it fit?', 'How about "X"? ... Does it fit?'),
        ("a b c d e f g h i j k l m n o", "a b c d e f g h i j k l ..."),
        ("a b c d e f g h i j k l m n. Well?", "a b c d e f g h i j k l ... Well?"),
        ("", ""),
    ],
)
def test_small_models_read_how_a_reply_begins_and_ends(text, expected):
    assert shorten_reply(text) == expected


def wanted(study):
    """The record as each request shows it."""
    return [re.search(r"^Note: .* a video game\. (.*)$", text, re.MULTILINE).group(1) for text in prompts(study)[0]]


def test_the_record_is_in_view_without_what_was_told_and_whole_again_when_hardly_anything_is_left(study, make):
    category, place, trade, byline = (wish.rstrip(".") for wish in target_wishes(ITEMS[0]))
    study.scripts["message"] = in_turn(
        "A foggy port town, brick by brick.", "City building, a simulation.", "I would trade salt with passing ships.", "Hm."
    )
    talk(study, make(), "What else?", "Really?", "Go on?")
    whole = f"{category}. {place}. {trade}. {byline}."
    assert wanted(study) == [whole, f"{category}. {trade}. {byline}.", f"{trade}. {byline}.", whole]


@pytest.mark.parametrize(
    ("wish", "said", "expected"),
    [
        ("A physicist from a poor moon travels to a rich planet.", "the physicist who travelled to a planet", True),
        ("A physicist from a poor moon travels to a rich planet.", "a physicist travels", False),
        ("Dry, quick.", "quick", True),
        ("Dry.", "dry", False),
        ("They argue about things.", "I think about things", False),
    ],
)
def test_a_sentence_is_told_by_three_of_its_telling_words(wish, said, expected):
    assert is_told(wish, stems(said)) == expected


@pytest.mark.parametrize(
    ("message", "grounded"),
    [
        ("One with ships.", True),
        ("City building, please.", True),
        ("An orchard it is.", False),
        ("Something slow.", False),
        ("No, thanks.", False),
    ],
)
def test_a_small_models_message_without_a_word_of_the_record_is_written_again(study, make, message, grounded):
    study.scripts["message"] = in_turn("A foggy port.", message, "Salt and lamps for ships.")
    turn = talk(study, make(mode=NARROW), "How about Iron Orchard, a racing game with an orchard?")[-1]
    assert (turn.message, turn.retries) == ((message, 0) if grounded else ("Salt and lamps for ships.", 1))


def test_a_wish_that_was_made_up_to_the_last_is_recorded(study, make):
    study.scripts["message"] = in_turn("A foggy port, brick by brick.", "Something slow.")
    assert talk(study, make(mode=NARROW), "Fast or slow?")[-1].faults == ("ungrounded",)


def test_large_models_may_answer_without_telling_anything(study, make):
    study.scripts["message"] = in_turn("A port town.", "I do not mind.")
    assert talk(study, make(mode=FULL), "Fast or slow?")[-1].retries == 0


def test_an_item_without_a_description_can_be_sought(study, make):
    turns = talk(study, make(target=Item(item_id="x", title="X")), "Alone or together?", "What else?")
    assert not any(turn.faults for turn in turns)


def test_no_part_of_the_persona_is_in_a_prompt(study, make):
    talk(study, make(), "Alone or together?")
    assert not any(value in text for text in prompts(study)[1] for value in PERSONA.model_dump().values())


def test_the_title_is_in_no_prompt_before_the_agent_names_it(study, make):
    talk(study, make(), "Alone or together?", "How about Iron Orchard?", "Quiet Orbit, then?")
    assert not any(mentions_title(text, TITLE) for text in prompts(study)[1])


def test_it_accepts_and_ends_once_the_target_was_recommended_and_not_before(study, make):
    study.scripts["message"] = in_turn("A port town.", "No, one with ships.", f"Yes, {TITLE} it is.")
    simulator = make()
    turns = talk(study, simulator, "How about Iron Orchard?", f"{TITLE}, perhaps?")
    assert [turn.policy for turn in turns] == ["ask_recommendation", FEEDBACK, CLOSING]
    assert (turns[-1].message, turns[-1].faults, simulator.named_at) == (f"Yes, {TITLE} it is.", (), 2)
    assert f"found. {TITLE} is exactly the video game" in prompts(study)[0][-1]


@pytest.mark.parametrize(
    ("message", "fault"),
    [(f"Is it {TITLE}?", "leak"), ("How can I help you today?", "role_reversal"), ("How about Iron Orchard?", "parrot"), (" ", "empty")],
)
def test_messages_are_checked_and_written_again_as_ailos_are(study, make, message, fault):
    study.scripts["message"] = in_turn("A port town.", message, "With ships.")
    turn = talk(study, make(), "How about Iron Orchard?")[-1]
    assert (turn.message, turn.retries, turn.faults) == ("With ships.", 1, ())
    study.scripts["message"] = in_turn("A port town, please.", message)
    turn = talk(study, make(temperature=0.1), "How about Iron Orchard?")[-1]
    assert (turn.retries, turn.faults) == (len(ATTEMPT_HEAT) - 1, (fault,))


# in a rollout


@pytest.fixture
def play(study, database, tmp_path):
    def play(kind="ievalm", *, tasks=TASKS):
        system = System("actcrs_expert", "actcrs", study.client("expert"), {})
        settings = PARAMS.model_copy(update={"user_simulator": kind})
        return study.run(rollout(tasks, system, study.client("simulator"), database, settings, tmp_path / f"{kind}.jsonl"))

    return play


def test_the_parameter_chooses_who_talks_to_the_agent(study, play):
    (row,) = play()
    assert (row.status, len(row.turns), [turn.confirmation for turn in row.turns]) == ("complete", 3, [None] * 3)
    assert row.usage["simulator"].calls == 3 and not study.requests("confirmation") and not study.requests("policy")
    (row,) = play("ailo")
    assert all(turn.confirmation.satisfaction == 5 for turn in row.turns)


def test_a_dialogue_ends_when_the_target_was_recommended(study, play):
    study.scripts["agent"] = in_turn("Recommend[Iron Orchard?]", f"Recommend[{TITLE}?]")
    (row,) = play()
    assert (row.status, row.recommended_at, [turn.policy for turn in row.turns][-1]) == ("ended_by_user", 1, CLOSING)


def test_dialogues_of_one_simulator_are_not_taken_for_the_others(study, database):
    system = System("actcrs_expert", "actcrs", study.client("expert"), {})
    configs = {dialogue_config(system, study.client("simulator"), PARAMS.model_copy(update={"user_simulator": kind}), database)
               for kind in SIMULATORS}  # fmt: skip
    assert len(configs) == 2


def test_its_dialogues_are_unscored_and_never_zero(play):
    rows = play(tasks=[make_task(item, f"u{n}") for n, item in enumerate(ITEMS[:2])])
    metrics = summarize(rows)
    assert (metrics.mean_confirmation.value, metrics.mean_confirmation.n, metrics.mean_confirmation.num_unscored) == (None, 0, 2)
    assert metrics_json(metrics)["mean_confirmation"] is None
    assert {name: rate.value for name, rate in metrics.sub_scores.items()} == dict.fromkeys(("flexibility", "coherence", "guidance"))
    assert metrics.num_unscored_replies == metrics.num_replies == 6


def test_tables_figures_and_pages_show_them_as_unscored(play):
    rows = play()
    assert rows == [Trajectory.model_validate_json(row.model_dump_json()) for row in rows]
    played = {"game": {"actcrs_expert": rows}}
    table = simulation_table(played, "quick")
    assert pd.isna(table["mean_confirmation"][0]) and table["mean_confirmation_n"][0] == 0 and table["unscored_replies"][0] == 3
    assert short_simulation_table(table)["EC (0-5)"][0] == "unscored"
    scores = score_table(played).set_index("satisfaction")["replies"]
    assert scores["unscored"] == 3 and scores.drop("unscored").sum() == 0
    assert plot_simulation(table) and plot_scores(score_table(played), "quick")
    assert "EC " not in render_dialogue(rows[0])
