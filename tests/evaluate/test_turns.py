"""What replies did turn by turn, counted by hand."""

import pandas as pd
import pytest

from ecpo_utils.core.schema import Action, Confirmation, Item, Persona, Retrieval, Step, Trajectory, Turn
from ecpo_utils.evaluate.turns import reach_table, turn_table

TITLES = {"1": "Emma", "2": "Ivanhoe", "3": "Dune", "4": "Dune"}


def search(*ids, query="q"):
    return Step(messages=[], output="x", action=Action(type="search", argument=query),
                retrieval=Retrieval(query=query, item_ids=list(ids)), attempts=1)  # fmt: skip


def turn(index, reply, *searches, score=None):
    steps = [step if isinstance(step, Step) else search(*step) for step in searches]
    given = score and Confirmation(flexibility=min(score, 2), coherence=min(max(score - 2, 0), 2), guidance=max(score - 4, 0))
    return Turn(index=index, policy="ask_recommendation", user_message="Hi.", reply=reply, steps=steps, confirmation=given)


def dialogue(task, *turns, recommended_at=None, retrieved_at=None, status="complete"):
    return Trajectory(
        task_id=f"book/u{task}/1", domain="book", system="actcrs_sgpt", config="c", target=Item(item_id="1", title="Emma"),
        turns=list(turns), persona=Persona(activities="a", language="l"), status=status,
        recommended_at=recommended_at, retrieved_at=retrieved_at,
    )  # fmt: skip


@pytest.fixture
def table():
    rows = [
        dialogue(
            1,
            turn(0, "Try Emma or Ivanhoe.", ["2"], ["1", "2"], score=4),  # two searches: found, named, two titles
            turn(1, "Emma it is.", ["1"], score=5),  # named before: not found again
            turn(2, "Emma and Ivanhoe.", score=3),  # no search: its titles do not count
            recommended_at=0,
        ),
        dialogue(
            2,
            turn(0, "Ivanhoe, perhaps?", ["1", "2"], score=2),  # found, not named
            turn(1, "Or Dune?", ["3", "4"]),  # one title of two items; not found here
            turn(2, None),
        ),
        dialogue(3, turn(0, "What do you like?")),
    ]
    return turn_table({"book": {"actcrs_sgpt": rows}}, TITLES, "cpu").set_index("turn")


def test_a_target_counts_as_found_where_its_search_was_and_until_it_is_named(table):
    assert table["replies"].to_dict() == {1: 3, 2: 2, 3: 1}  # a message without a reply is none
    assert table["found"].to_dict() == {1: 2, 2: 0, 3: 0}
    assert table.loc[1, "named"] == pytest.approx(0.5) and table.loc[1, "named_n"] == 2
    assert pd.isna(table.loc[2, "named"]) and table.loc[2, "named_n"] == 0


def test_titles_are_counted_after_a_search_and_once_each(table):
    assert table.loc[1, "searched"] == pytest.approx(2 / 3) and table.loc[2, "searched"] == 1 and table.loc[3, "searched"] == 0
    assert table.loc[1, "titles"] == pytest.approx(1.5) and table.loc[1, "two_titles"] == pytest.approx(0.5)
    assert table.loc[2, "titles"] == 1 and table.loc[2, "two_titles"] == 0
    assert pd.isna(table.loc[3, "titles"]) and pd.isna(table.loc[3, "two_titles"])


def test_satisfaction_is_the_mean_of_the_scored_replies(table):
    assert table["satisfaction"].to_dict() == {1: 3, 2: 5, 3: 3}


def test_no_dialogues_no_rows():
    assert turn_table({"book": {"actcrs_sgpt": []}}, {}, "cpu").empty


def test_reach_of_dialogues_by_hand():
    rows = [
        dialogue(
            1,
            turn(0, "Ivanhoe?", search("1", "2", query="a"), search("2", query="b")),
            turn(1, "Emma, Ivanhoe or Dune.", search("3", "4", query="a")),  # asked before; Dune once, of two items
            retrieved_at=0, recommended_at=1,
        ),
        dialogue(2, turn(0, "Dune, though I have not looked.")),  # named, but not retrieved
        dialogue(3, turn(0, "What else?", search("1", query="a")), turn(1, None, search("2", query="c")), retrieved_at=0),
        dialogue(4, turn(0, "Emma.", search("1", query="a")), retrieved_at=0, recommended_at=0, status="leak"),  # counts as not found
    ]  # fmt: skip
    table = reach_table({"book": {"actcrs_sgpt": rows}}, TITLES, "cpu")
    assert table.loc[0, ["n", "searches", "items", "titles"]].tolist() == [4, 1.5, 1.75, 1.0]
    assert table.loc[0, "repeated"] == pytest.approx(1 / 6)
    assert table.loc[0, ["named", "named_n"]].tolist() == [0.5, 2]
    assert table.loc[0, ["asks", "asks_n"]].tolist() == [0.375, 4]  # one reply of two, none, the only one, none


def test_a_system_that_never_searches_has_no_share_of_repeated_queries():
    table = reach_table({"book": {"actcrs_base": [dialogue(1, turn(0, "Hi."))]}}, {}, "cpu")
    assert pd.isna(table.loc[0, "repeated"]) and pd.isna(table.loc[0, "named"])
    assert table.loc[0, ["searches", "items", "titles"]].tolist() == [0, 0, 0]


def test_a_dialogue_without_a_reply_asks_nothing_and_is_no_answer_to_how_often():
    table = reach_table({"book": {"actcrs_base": [dialogue(1, turn(0, None)), dialogue(2, turn(0, "Which one?"))]}}, {}, "cpu")
    assert table.loc[0, ["asks", "asks_n"]].tolist() == [1.0, 1]
