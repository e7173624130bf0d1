"""Unsatisfactory replies go to the rewriter with their reason; what comes back becomes a pair or says why not."""


import pytest
from scripted_models import ITEMS, choice
from stub_endpoint import Reply

from ecpo_utils.core.artifacts import load_jsonl
from ecpo_utils.core.errors import EndpointError, TrainingError
from ecpo_utils.core.schema import Confirmation, Rewrite
from ecpo_utils.dialogue.agents.base import SYSTEM_ERROR
from ecpo_utils.dialogue.confirmation import Confirmer
from ecpo_utils.llm.prompts import load_prompt
from ecpo_utils.method.rewriting import build_pairs, index_titles, invents_title, kept_words, rewrite_turns, select_turns, unsaid_names

CATALOGUE = {item.item_id: item for item in ITEMS}
ASK = "Change: take it up.\nAction: Ask[Alone, I see! Short or long sessions?]"


@pytest.fixture
def rewrite(study, tmp_path):
    """Rewrites of some dialogues by a rewriter that always gives this answer."""

    def rewrite(rows, answer, threshold=4, **options):
        study.endpoint.answer = (lambda body: answer) if isinstance(answer, str | Reply) else answer
        path = tmp_path / "rewrites.jsonl"
        client = study.client("rewriter", max_concurrency=1)
        return study.run(rewrite_turns(rows, client, CATALOGUE, threshold=threshold, path=path, **options))

    return rewrite


def test_turns_at_or_under_lambda_are_selected(make_row):
    row = make_row()  # satisfactions 4 and 5
    assert [turn.index for _, turn in select_turns([row], 4)] == [0]
    assert [turn.index for _, turn in select_turns([row], 5)] == [0, 1]
    row.turns[0].confirmation = Confirmation(error="unscored")
    assert [turn.index for _, turn in select_turns([row], 5)] == [1]


def test_no_turn_under_lambda_says_how_low_the_scores_are(make_row):
    found = r"no turn of 1 dialogues \(game/trajectories/actcrs_expert.jsonl\) is scored at or under 3 \(lowest: 4\)"
    with pytest.raises(TrainingError, match=f"{found}; raise satisfaction_threshold"):
        select_turns([make_row()], 3)


def test_where_no_turn_is_scored_no_threshold_is_advised(make_row):
    row = make_row()
    for turn in row.turns:
        turn.confirmation = Confirmation(error="no 'flexibility' in the reply")
    expected = r"no turn of 2 dialogues \(game/trajectories/actcrs_expert.jsonl\) is scored at all; 'error' there.* mend the simulator"
    with pytest.raises(TrainingError, match=expected) as told:
        select_turns([row, make_row("game/u2/g1", status="failed", turns=[], error="HTTP 500")], 5)
    assert "satisfaction_threshold" not in str(told.value)


def test_a_rewrite_becomes_a_pair_in_the_exact_state(make_row, rewrite, study):
    row = make_row(example=False)
    (record,) = rewrite([row], ASK)
    (pair,) = build_pairs([record])
    assert pair.prompt == row.turns[0].steps[-1].messages
    assert pair.chosen == [{"role": "assistant", "content": "Ask[Alone, I see! Short or long sessions?]"}]
    assert pair.rejected == [{"role": "assistant", "content": "Ask[Alone or together?]"}]
    assert (pair.score, pair.turn, pair.task_id) == (4, 0, "game/u1/g1") and "guidance is lacking" in pair.reason
    assert record.thought == "take it up." and record.dropped is None and record.usage["rewriter"].calls == 1
    request = study.endpoint.chats[-1].body["messages"][-1]["content"]
    assert "User: A game, please." in request and "Ask[Alone or together?]" in request and "guidance is lacking" in request


def test_without_the_confirmation_the_rewriter_reads_one_instruction_for_all(make_row, rewrite, study):
    (record,) = rewrite([make_row(example=False)], ASK, reads="instruction")
    request = study.endpoint.chats[-1].body["messages"][-1]["content"]
    assert load_prompt("rewrite_instruction") in request and "guidance is lacking" not in request
    assert "guidance is lacking" in record.reason and record.dropped is None
    rewrite([make_row(example=False)], ASK)
    assert "guidance is lacking" in study.endpoint.chats[-1].body["messages"][-1]["content"]  # the other's records are not reused


@pytest.mark.parametrize(
    ("answer", "dropped"),
    [
        ("I would ask about sessions.", "no valid action"),
        ("Change: look first.\nAction: Search[sessions]", "a search, which the user never reads"),
        ("Change: nothing.\nAction: Ask[Alone or together?]", "unchanged"),
        ("Change: name one.\nAction: Ask[Do you know Thorn Circuit?]", "a title that was never retrieved"),
        ('Change: name one.\nAction: Ask[Do you know "Moon Base Nine"?]', "a title that was never retrieved"),
        ("Change: more.\nAction: Ask[" + "word " * 81 + "?]", "longer than an agent may write"),
        ("Change: say it.\nAction: Ask[A game, please.]", "an error message, or the user's own words"),
        (f"Change: say it.\nAction: Response[{SYSTEM_ERROR}]", "an error message, or the user's own words"),
        ("Change: say no.\nAction: Ask[I'm sorry, I can't assist with that. Anything else?]", "a refusal"),
        ("Change: speak.\nAction: Response[Tell me more about it, then I will look.]", "another kind of action without a reason"),
    ],
)
def test_what_makes_no_pair_says_why(make_row, rewrite, answer, dropped):
    (record,) = rewrite([make_row()], answer)
    assert record.dropped == dropped and build_pairs([record]) == []


def test_another_kind_of_action_is_kept_where_the_original_said_nothing_new(make_row, rewrite):
    speak = "Change: speak.\nAction: Response[Tell me more about it, then I will look.]"
    row = make_row()
    row.turns[0].reply = SYSTEM_ERROR
    assert rewrite([row], speak)[0].dropped is None
    row = make_row("game/u2/g1")
    row.turns[1].confirmation, row.turns[0].reply = row.turns[0].confirmation, row.turns[1].reply
    row.turns[1].steps[-1].action.argument = row.turns[1].reply = "How about another one?"
    first, second = rewrite([row], speak)
    assert first.dropped == second.dropped == "another kind of action without a reason"
    row.turns[0].reply, row.task_id = row.turns[1].reply, "game/u3/g1"
    assert rewrite([row], speak)[1].dropped is None


def test_a_rewrite_keeps_the_target_that_was_named_and_brings_no_name_that_only_the_reason_holds(make_row, rewrite):
    row = make_row()
    (_, second) = rewrite([row], 'Action: Recommend[How about "Iron Orchard"? Does it fit?]', threshold=5)
    assert second.dropped == "the target is not named any more"
    row.turns[0].confirmation.reasons["guidance"] = "you had named the designer Halvard Moe."
    (first, *_) = rewrite([row], "Action: Ask[Alone, then something by Halvard Moe?]")
    assert first.dropped == "facts that only the reason holds"
    assert unsaid_names("Alone, then something by Halvard Moe?", "named Halvard Moe", "User: I like Halvard Moe") == set()


def test_no_rewrite_is_much_longer_than_its_original(make_row, rewrite):
    (record,) = rewrite([make_row()], "Action: Ask[" + " ".join(f"word{i}" for i in range(25)) + "?]")
    assert record.dropped == "much longer"


@pytest.mark.parametrize(("yes", "dropped"), [(0.99, None), (0.01, "no better score")])
def test_a_rewrite_that_the_user_likes_no_better_makes_no_pair(make_row, rewrite, study, monkeypatch, yes, dropped):
    monkeypatch.setattr("ecpo_utils.dialogue.confirmation.faultless_probability", lambda name, evidence: yes)
    monkeypatch.setattr("ecpo_utils.dialogue.confirmation.reply_similarities", lambda *args: {})
    row = make_row()
    row.turns[0].confirmation.flexibility = 1
    confirmer = Confirmer(study.client("simulator"), None, "narrow")
    answer = lambda body: choice(yes=0.5, no=0.5) if body.get("logprobs") else ASK  # noqa: E731
    (record,) = rewrite([row], answer, threshold=3, confirmer=confirmer)
    assert record.dropped == dropped and record.score == 3 and record.score_after == (5 if dropped is None else 0)
    assert record.usage["simulator"].calls >= 3


def test_rewrites_under_other_prompts_or_of_another_model_are_not_reused(make_row, rewrite, monkeypatch):
    (before,) = rewrite([make_row()], ASK)
    monkeypatch.setattr("ecpo_utils.method.rewriting.load_prompt", lambda name: "another text")
    (after,) = rewrite([make_row()], ASK)
    assert after.config != before.config


def test_the_rewriter_of_an_error_message_is_told_that_there_was_no_action(make_row, rewrite, study):
    row = make_row()
    row.turns[0].reply, row.turns[0].steps[0].action.type = SYSTEM_ERROR, "invalid"
    (record,) = rewrite([row], ASK)
    assert "Action of the agent: none, the user read an error message\n" in study.endpoint.chats[-1].body["messages"][-1]["content"]
    assert record.original == "Ask[Alone or together?]" and record.dropped is None


def test_a_title_that_was_retrieved_may_be_named(make_row, rewrite):
    first, second = rewrite([make_row(success=False)], 'Action: Recommend[Sorry! How about "Iron Orchard"? Does it fit?]', threshold=5)
    assert first.dropped == "a title that was never retrieved"  # nothing was searched by then
    assert second.dropped is None and second.rewritten.startswith("Recommend[Sorry!")


def test_titles_in_quotes_and_whole_titles_are_found():
    titles = index_titles(CATALOGUE)
    assert invents_title("Try Iron Orchard!", ["Quiet Orbit"], titles, "")
    assert not invents_title("Try Iron Orchard!", ["Iron Orchard"], titles, "")
    assert not invents_title("You said Iron Orchard.", [], titles, "User: I own Iron Orchard.")
    assert invents_title('Try "Nothing Real"!', ["Iron Orchard"], titles, "")
    assert not invents_title('A "quiet evening" it is.', [], titles, "User: a quiet evening")


def test_a_title_of_one_word_counts_where_it_is_written_as_a_name():
    names = "Mystery", "PROMETHEUS", "Piranesi (Kindle Edition)"
    titles = index_titles({name: ITEMS[0].model_copy(update={"title": name}) for name in names})
    for named in ("Then Mystery is for you.", "Prometheus, then?", "Then try Piranesi"):
        assert invents_title(named, [], titles, "")
    assert not invents_title("A slow mystery, then?", [], titles, "")


def test_kept_words_is_one_for_the_same_text_and_falls_with_changes():
    assert kept_words("a b c d", "a b c d") == 1.0
    assert kept_words("a b c d", "a b x d") == 0.75
    assert kept_words("a b", "c d") == 0.0


def test_finished_rewrites_are_not_asked_for_again(make_row, rewrite, study, tmp_path):
    rows = [make_row(f"game/u{i}/g1") for i in range(3)]
    before = rewrite(rows[:2], ASK)
    asked = len(study.endpoint.chats)
    after = rewrite(rows[:2], "Action: Ask[Something else?]")
    assert after == before and len(study.endpoint.chats) == asked
    assert load_jsonl(tmp_path / "rewrites.jsonl", Rewrite) == before


def test_a_reply_that_changed_since_is_rewritten_anew(make_row, rewrite):
    row = make_row()
    rewrite([row], ASK)
    row.turns[0].steps[0].output, row.turns[0].steps[0].action.argument = "Ask[With whom?]", "With whom?"
    (record,) = rewrite([row], "Action: Ask[With whom, and how long?]")
    assert record.original == "Ask[With whom?]" and record.rewritten == "Ask[With whom, and how long?]"


def test_an_endpoint_that_goes_stops_the_rewriting_and_what_is_finished_stays(make_row, rewrite, tmp_path):
    rows = [make_row(f"game/u{i}/g1") for i in range(8)]
    for number, row in enumerate(rows):
        row.turns[0].user_message = f"Something else, {number}."
    answers = iter([ASK, *[Reply("overloaded", status=503)] * 7])
    with pytest.raises(EndpointError, match=r"5 replies in a row failed, stopped; finished ones are kept in .*rewrites\.jsonl.*overloaded"):
        rewrite(rows, lambda body: next(answers))
    kept = load_jsonl(tmp_path / "rewrites.jsonl", Rewrite)
    assert [record.dropped for record in kept] == [None] + ["endpoint error"] * 5
    assert [record.dropped for record in rewrite(rows, ASK)] == [None] * 8


def test_an_endpoint_that_fails_once_costs_one_reply(make_row, rewrite):
    rows = [make_row(f"game/u{i}/g1") for i in range(2)]
    rows[1].turns[0].user_message = "Something else."
    answers = iter([Reply(status=500), ASK])
    records = rewrite(rows, lambda body: next(answers))
    assert [record.dropped for record in records] == ["endpoint error", None]
    assert [record.dropped for record in rewrite(rows, ASK)] == [None, None]
