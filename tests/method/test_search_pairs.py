"""The agent's own searches as pairs beside the rewritten replies."""

import pytest

from ecpo_utils.core.schema import PreferencePair
from ecpo_utils.method.search_pairs import search_pairs
from ecpo_utils.method.training import TrainingSet, load_history, train_adapter


def rewritten(row, index, text="Recommend[Another one?]"):
    turn = row.turns[index]
    answers = [[{"role": "assistant", "content": content}] for content in (text, turn.steps[-1].output)]
    return PreferencePair(prompt=turn.steps[-1].messages, chosen=answers[0], rejected=answers[1], score=1, reason="r",
                          task_id=row.task_id, turn=index)  # fmt: skip


def test_the_search_is_chosen_and_the_rewrite_that_followed_it_rejected_in_the_state_before(make_row):
    row = make_row()
    asked, recommended = rewritten(row, 0), rewritten(row, 1)
    (found,) = search_pairs([asked, recommended], [make_row("game/u2/g1"), row])  # a turn without a search makes none
    assert found.prompt == row.turns[1].steps[0].messages and found.prompt[-1]["content"].startswith("User: Alone.")
    assert found.chosen == [{"role": "assistant", "content": "Search[alone]"}] and found.rejected == recommended.chosen
    assert (found.task_id, found.turn, found.score) == (row.task_id, 1, 1) and "before anything was looked up" in found.reason


def test_of_several_searches_in_a_turn_the_first_counts_and_unusable_ones_do_not(make_row):
    row = make_row()
    search, reply = row.turns[1].steps
    broken = search.model_copy(update={"action": search.action.model_copy(update={"type": "invalid"})})
    second = search.model_copy(update={"action": search.action.model_copy(update={"argument": "together"})})
    row.turns[1].steps = [broken, search, second, reply]
    (found,) = search_pairs([rewritten(row, 1)], [row])
    assert found.chosen[0]["content"] == "Search[alone]"


@pytest.mark.parametrize("method", ["dpo", "kto", "simpo"])
def test_searches_are_trained_on_beside_the_pairs_and_change_the_adapter(method, tiny, make_params, make_row, tmp_path):
    from ecpo_utils.method.sgpt import build_sft_examples

    rows = [make_row(f"game/u{number}/g1") for number in range(2)]
    sgpt = train_adapter("sft", make_params(), TrainingSet(build_sft_examples(rows)), tmp_path / "adapters" / "sgpt")
    pairs = [rewritten(row, 1) for row in rows]
    sets = [TrainingSet(pairs, searches=searches) for searches in ((), search_pairs(pairs, rows))]
    adapters = [train_adapter(method, make_params(), each, tmp_path / f"{method}{len(each.searches)}", start=sgpt) for each in sets]
    histories = [load_history(adapter) for adapter in adapters]
    assert [history["rows"] for history in histories] == [{"train": 2, "validation": 0}, {"train": 2, "validation": 0, "searches": 2}]
    assert [history["lengths"]["rows"] for history in histories] == [2, 4] and histories[0]["digest"] != histories[1]["digest"]
    assert histories[1]["steps"] == 2 * histories[0]["steps"]
