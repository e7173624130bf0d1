"""A search against the reply that came too early."""

from ecpo_utils.core.schema import PreferencePair
from ecpo_utils.method.search_pairs import search_pairs


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
