"""AILO on a scripted model: what it may know, what it may say, and what becomes of messages that fail a check."""

import re
from functools import cache

import pytest
from scripted_models import FULL, ITEMS, NARROW, PERSONA, FakeEmbedder, choice, in_turn, make_task, policy_json

from ecpo_utils.core.errors import EndpointError, ParseError
from ecpo_utils.core.matching import hide_title, mentions_title
from ecpo_utils.core.schema import Item
from ecpo_utils.data.builtin import load_builtin
from ecpo_utils.dialogue.confirmation import Confirmer
from ecpo_utils.dialogue.simulator import ATTEMPT_HEAT, Simulator, tidy_message
from ecpo_utils.dialogue.wishes import target_wishes
from ecpo_utils.llm.client import Meter

TITLE = ITEMS[0].title
CLOSING = "end_conversation"
CHOICES = ("respond_to_clarification", "provide_feedback_on_recommendation", CLOSING)
PROMPTS = ("policy", "choice", "message", "confirmation", "asked_flexibility", "asked_coherence", "asked_guidance")

load = cache(load_builtin)
both_modes = pytest.mark.parametrize("mode", [FULL, NARROW])


@pytest.fixture
def make_simulator(study):
    def make(mode=FULL, *, temperature=0.0, **task):
        client = study.client("simulator")
        confirmer = Confirmer(client, FakeEmbedder(), mode)
        return Simulator(client, make_task(**task), temperature=temperature, confirmer=confirmer, meter=Meter())

    return make


def prompts(study, *kinds):
    """All that the simulator's model was shown, one text per request."""
    bodies = [body for kind in kinds or PROMPTS for body in study.requests(kind)]
    return ["\n".join(message["content"] for message in body["messages"]) for body in bodies]


def talk(study, simulator, *replies):
    """Opens, and answers each of the agent's replies; returns the user's turns."""

    async def everything():
        turns = [await simulator.open()]
        for reply in replies:
            simulator.hear(reply)
            await simulator.confirm()
            turns.append(await simulator.respond())
        return turns

    return study.run(everything())


# what it wishes


def test_wishes_go_from_vague_to_telling_and_the_byline_comes_last():
    assert target_wishes(ITEMS[0]) == [
        "Simulation / City Building", "Lay out a foggy port town, brick by brick.", "Trade salt and lamp oil with passing ships.",
        "By Marta Quill (2011)."]  # fmt: skip


def test_wishes_of_an_item_without_a_description_or_categories():
    assert target_wishes(Item(item_id="x", title="X", categories=["Books"])) == ["anything good"]


@pytest.mark.parametrize("domain", ["book", "game", "yelp"])
def test_wishes_of_the_builtin_items_open_with_categories_and_hold_all_sentences(domain):
    for item in load(domain)[0].values():
        first, *rest = target_wishes(item)
        assert set(first.split(" / ")) <= set(item.categories), item.title
        assert sorted(" ".join(rest).split()) == sorted(item.description.split()), item.title
        assert len(rest) >= 2


@pytest.mark.parametrize("domain", ["book", "game", "yelp"])
def test_no_wish_of_a_builtin_item_holds_its_title(domain):
    assert [item.title for item in load(domain)[0].values() if any(mentions_title(wish, item.title) for wish in target_wishes(item))] == []


def test_author_and_year_of_a_builtin_book_are_told_last():
    early = []
    for item in load("book")[0].values():
        author, year = re.match(r"By (.+?) \((\d+)\)\.", item.description).groups()
        *before, last = target_wishes(item)
        if f"({year})" in " ".join(before) or author.split()[-1] not in last:
            early.append(item.title)
    assert early == []


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Emma", "Emma meddles, and EMMA errs.", "it meddles, and it errs."),
        ("It (1)", "It (1) is odd.", "it (1) is odd."),
        ("Emma", "x", "x"),
    ],
)
def test_a_title_is_hidden(title, text, expected):
    assert hide_title(text, title) == expected


@pytest.mark.parametrize(
    ("title", "text"),
    [("Emma", "A dilemma."), ("Emma (Kindle Edition)", "Emma meddles."), ("Pride & Prejudice", "Pride and Prejudice."), ("Café", "Cafe.")],
)
def test_a_title_is_hidden_wherever_it_would_count_as_a_leak_and_nowhere_else(title, text):
    hidden = hide_title(text, title)
    assert not mentions_title(hidden, title)
    assert (hidden == text) == (not mentions_title(text, title))


@both_modes
def test_each_turn_lets_out_one_more_wish(study, make_simulator, mode):
    talk(study, make_simulator(mode), "Alone or together?", "What else?", "Anything else?")
    texts = [body["messages"][-1]["content"] for body in study.requests("message")]
    instructions = [text[text.rfind("\n#") :] if mode == FULL else text for text in texts]
    for turn, wish in enumerate(target_wishes(ITEMS[0])):
        assert wish.rstrip(".") in instructions[turn]
        assert not any(later.rstrip(".") in instructions[turn] for later in target_wishes(ITEMS[0])[turn + 1 :])


@both_modes
def test_when_all_wishes_are_told_the_dialogue_goes_on(study, make_simulator, mode):
    turns = talk(study, make_simulator(mode), *[f"Question {n}?" for n in range(8)])
    assert len(turns) == 9 and not any(turn.faults for turn in turns)


# what it must not know


@both_modes
def test_the_title_is_in_no_prompt_before_the_agent_names_it(study, make_simulator, mode):
    talk(study, make_simulator(mode), "Alone or together?", "How about Iron Orchard?", "Quiet Orbit, then?")
    shown = prompts(study)
    assert len(shown) > 8
    assert not any(mentions_title(text, TITLE) for text in shown)


@both_modes
def test_a_title_in_the_persona_is_in_no_prompt(study, make_simulator, mode):
    persona = PERSONA.model_copy(update={"interests": f"Loves {TITLE}.", "language": f"Writes as in {TITLE}."})
    talk(study, make_simulator(mode, persona=persona), "Alone or together?")
    assert not any(mentions_title(text, TITLE) for text in prompts(study))


@both_modes
def test_the_model_is_told_that_the_agent_has_named_the_target(study, make_simulator, mode):
    """Two dialogues whose replies differ in one title only; the target's makes a difference beyond the reply itself."""
    shown = []
    for title in (TITLE, ITEMS[1].title):
        simulator = make_simulator(mode)
        before = len(study.endpoint.chats)
        talk(study, simulator, f"How about {title}?")
        texts = [str(chat.body["messages"]) for chat in study.endpoint.chats[before:]]
        shown.append([text.replace(title, "TITLE") for text in texts])
        assert (simulator.named_at is not None) == (title == TITLE)
    assert shown[0] != shown[1]


# policies


@both_modes
def test_the_first_policy_is_fixed_and_needs_no_choice(study, make_simulator, mode):
    (turn,) = talk(study, make_simulator(mode))
    assert (turn.policy, turn.retries, turn.faults) == ("ask_recommendation", 0, ())
    assert len(study.endpoint.chats) == 1


@pytest.mark.parametrize("policy", CHOICES)
def test_the_chosen_policy_and_its_reason_are_kept(study, make_simulator, policy):
    study.scripts["policy"] = in_turn(policy_json(policy, "because so"))
    turn = talk(study, make_simulator(), "Alone or together?")[-1]
    assert (turn.policy, turn.reason) == (policy, "because so")


def test_messages_under_different_policies_are_asked_for_differently(study, make_simulator):
    asked = set()
    for policy in CHOICES:
        study.scripts["policy"] = in_turn(policy_json(policy))
        study.cache._db.execute("DELETE FROM responses")
        talk(study, make_simulator(), "Alone or together?")
        asked.add(study.requests("message")[-1]["messages"][-1]["content"].partition("I would like")[2].partition("\n")[2])
    assert len(asked) == 3


@pytest.mark.parametrize("policy", ["ask_recommendation", "recommend", "", 3])
def test_a_policy_that_does_not_exist_is_sent_back(study, make_simulator, policy):
    study.scripts["policy"] = in_turn(f'{{"reason": "x", "policy": "{policy}", "message": ""}}', policy_json(CLOSING))
    assert talk(study, make_simulator(), "Alone or together?")[-1].policy == CLOSING
    assert len(study.requests("policy")) == 2


def test_a_policy_that_stays_unreadable_is_a_parse_error(study, make_simulator):
    study.scripts["policy"] = in_turn('{"reason": "x", "policy": "ask_recommendation", "message": "x"}')
    with pytest.raises(ParseError):
        talk(study, make_simulator(), "Alone or together?")
    assert len(study.requests("policy")) == 3


def test_large_models_choose_and_speak_in_one_call(study, make_simulator):
    study.scripts["policy"] = in_turn(policy_json(CHOICES[1], "because so", '"No, something with ships."'))
    turn = talk(study, make_simulator(), "How about Iron Orchard?")[-1]
    assert (turn.policy, turn.reason, turn.message, turn.retries) == (CHOICES[1], "because so", "No, something with ships.", 0)
    assert len(study.requests("policy")) == len(study.requests("message")) == 1  # the message is the first one


@pytest.mark.parametrize("draft", [f"I want {TITLE}.", "How can I help you?", "A port town."])
def test_draft_that_fails_a_check_is_written_again_under_its_policy(study, make_simulator, draft):
    study.scripts["message"] = in_turn("A port town.", "With ships.")
    study.scripts["policy"] = in_turn(policy_json(CHOICES[0], message=draft))
    turn = talk(study, make_simulator(), "Alone or together?")[-1]
    assert (turn.policy, turn.message, turn.retries, turn.faults) == (CHOICES[0], "With ships.", 1, ())


@pytest.mark.parametrize("word", ["ask", "suggest", "other"])
def test_small_models_choose_by_the_probability_of_a_word(study, make_simulator, word):
    study.scripts["choice"] = lambda body: choice(**{word: 0.6, "ask" if word != "ask" else "other": 0.3})
    turn = talk(study, make_simulator(NARROW), "Alone or together?")[-1]
    assert turn.policy == ("respond_to_clarification" if word == "ask" else "provide_feedback_on_recommendation")
    assert word in turn.reason and study.requests("policy") == []


def test_small_models_are_not_asked_for_a_policy_once_an_efficient_user_has_what_it_wants(study, make_simulator):
    persona = PERSONA.model_copy(update={"activities": "Efficiency-seeking. Decides at once."})
    turn = talk(study, make_simulator(NARROW, persona=persona), f"How about {TITLE}?")[-1]
    assert turn.policy == CLOSING and study.requests("choice") == []


def test_without_log_probabilities_small_models_are_refused(study, make_simulator):
    study.scripts["choice"] = study.scripts["asked_flexibility"] = lambda body: "ask"
    with pytest.raises(EndpointError, match="returns no log-probabilities; set simulator_mode to") as error:
        talk(study, make_simulator(NARROW), "Alone or together?")
    assert error.value.fatal


# messages


def opening(study, make_simulator, *messages, **options):
    study.scripts["message"] = in_turn(*messages)
    simulator = make_simulator(**options)
    return talk(study, simulator)[0], simulator


@both_modes
def test_a_leak_is_written_again_with_more_heat(study, make_simulator, mode):
    messages = f"Is it {TITLE}?", f"{TITLE.upper()}!", "A port town, please."
    turn, simulator = opening(study, make_simulator, *messages, mode=mode, temperature=0.1)
    assert (turn.message, turn.retries, turn.faults) == ("A port town, please.", 2, ())
    heats = [body["temperature"] for body in study.requests("message")]
    assert heats == pytest.approx([0.1 + heat for heat in ATTEMPT_HEAT]) and heats == sorted(set(heats))
    assert simulator.history == [{"role": "user", "content": "A port town, please."}]


def test_a_leak_that_stays_is_recorded_and_not_said(study, make_simulator):
    turn, simulator = opening(study, make_simulator, f"I want {TITLE}.")
    assert (turn.message, turn.retries, turn.faults) == (f"I want {TITLE}.", len(ATTEMPT_HEAT) - 1, ("leak",))
    assert simulator.history == []


def test_a_title_without_its_edition_is_a_leak_too(study, make_simulator):
    target = ITEMS[0].model_copy(update={"title": "Emma (Kindle Edition)"})
    assert opening(study, make_simulator, "Emma, please.", target=target)[0].faults == ("leak",)
    assert opening(study, make_simulator, "A dilemma, please.", target=target, temperature=0.1)[0].faults == ()


@both_modes
def test_a_title_that_the_agent_has_named_is_no_leak(study, make_simulator, mode):
    study.scripts["message"] = in_turn("A port town.", f"Oh yes, {TITLE} it is.")
    turn = talk(study, make_simulator(mode), f"How about {TITLE}?")[-1]
    assert (turn.message, turn.faults) == (f"Oh yes, {TITLE} it is.", ())


@pytest.mark.parametrize(
    "message",
    [
        "How can I help you today?",
        "I recommend a racing game.",
        "I'd suggest a puzzle.",
        "Happy to help!",
        "Let me find you one.",
        "As an AI, no.",
        "Sure, I can look.",
        "np, what did you want?",
        "Sure! Enjoy the game! Have a great day.",
        "Nice story. Do you have any other questions?",
        "Should I look for something else?",
        "What kind of book are you after?",
        "I'm glad you liked it.",
    ],
)
def test_speaking_for_the_assistant_is_written_again(study, make_simulator, message):
    turn, _ = opening(study, make_simulator, message, "A port town.")
    assert (turn.message, turn.retries, turn.faults) == ("A port town.", 1, ())
    assert opening(study, make_simulator, message, temperature=0.2)[0].faults == ("role_reversal",)


@pytest.mark.parametrize(
    "message",
    [
        "Can you recommend a racing game?",
        "My sister suggested a puzzle.",
        "I need help choosing.",
        "I would enjoy the quiet.",
        "Would you say it is long?",
    ],
)
def test_asking_as_a_customer_is_no_role_reversal(study, make_simulator, message):
    assert opening(study, make_simulator, message)[0].faults == ()


@pytest.mark.parametrize("echo", ["A port town!", "a PORT town", "Alone, or together?"])
def test_repeating_a_message_of_either_side_is_written_again(study, make_simulator, echo):
    study.scripts["message"] = in_turn("A port town.", echo, "With ships.")
    turn = talk(study, make_simulator(), "Alone or together?")[-1]
    assert (turn.message, turn.retries, turn.faults) == ("With ships.", 1, ())


def test_a_repetition_that_stays_is_recorded_and_the_dialogue_goes_on(study, make_simulator):
    study.scripts["message"] = in_turn("A port town.")
    simulator = make_simulator()
    turn = talk(study, simulator, "Alone or together?")[-1]
    assert (turn.message, turn.retries, turn.faults) == ("A port town.", len(ATTEMPT_HEAT) - 1, ("parrot",))
    assert [message["role"] for message in simulator.history] == ["user", "assistant", "user"]


def test_an_empty_message_is_written_again(study, make_simulator):
    turn, _ = opening(study, make_simulator, "  ", "A port town.")
    assert (turn.message, turn.retries) == ("A port town.", 1)


def test_the_second_attempt_at_the_same_message_is_not_answered_from_the_cache(study, make_simulator):
    opening(study, make_simulator, f"{TITLE}?", "A port town.")
    assert len(study.requests("message")) == 2
    asked = len(study.endpoint.chats)
    turn, _ = opening(study, make_simulator, "never asked")
    assert turn.message == "A port town." and len(study.endpoint.chats) == asked


def test_calls_are_counted_in_the_dialogues_meter(study, make_simulator):
    simulator = make_simulator()
    talk(study, simulator, "Alone or together?")
    assert simulator.meter.by_role["simulator"].calls == len(study.endpoint.chats) == 4  # message, confirmation, policy, message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A port town.", "A port town."),
        ("  A port\n town. ", "A port town."),
        ("Customer: A port town.", "A port town."),
        ("user : A port town.", "A port town."),
        ('"A port town."', "A port town."),
        ('Customer: "A port town."', "A port town."),
        ('A "quiet" port.', 'A "quiet" port.'),
        ("Something with a foggy port. And also a", "Something with a foggy port."),
        ("Short. And", "Short. And"),
        ("no full stop at all", "no full stop at all"),
        ("Really?!", "Really?!"),
        ('"', '"'),
        ("", ""),
    ],
)
def test_tidy_message(text, expected):
    assert tidy_message(text) == expected
