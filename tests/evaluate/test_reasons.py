"""What goes with deductions, from hand-made dialogues."""

import pytest

from ecpo_utils.core.schema import Action, Confirmation, Item, Persona, Retrieval, Step, Trajectory, Turn
from ecpo_utils.dialogue.agents.base import SYSTEM_ERROR
from ecpo_utils.evaluate.reasons import CAUSES, reason_table, short_reason_table


def turn(index, reply="Shall it be Persuasion?", found=("2",), confirmation=None):
    step = Step(messages=[], output="x", action=Action(type="recommend", argument="x"))
    search = Step(messages=[], output="x", retrieval=Retrieval(query="a novel", item_ids=list(found or ())))
    confirmation = confirmation or (Confirmation(flexibility=2, coherence=2, guidance=1) if reply else None)
    return Turn(index=index, policy="ask_recommendation", user_message="Hi.", reply=reply, steps=[search, step] if found else [step],
                confirmation=confirmation)  # fmt: skip


def dialogue(*turns, retrieved_at=None):
    return Trajectory(task_id="book/u/i", domain="book", system="actcrs_sgpt", config="c", target=Item(item_id="1", title="Emma"),
                      persona=Persona(activities="a", language="l"), status="complete", turns=list(turns),
                      retrieved_at=retrieved_at)  # fmt: skip


def causes(row, index):
    return [cause for cause, holds in CAUSES.items() if holds(row, row.turns[index])]


@pytest.mark.parametrize(
    ("reply", "found", "expected"),
    [
        ("Shall it be Emma?", ("1", "2"), []),
        ("Shall it be Emma？ ", ("1",), []),
        ("Shall it be Persuasion?", ("2",), ["its search misses the target"]),
        ("Gladly.", None, ["no question at its end", "no search in this turn"]),
        ("Shall it be Persuasion?", ("1", "2"), ["target found, not named"]),
        (SYSTEM_ERROR, None, ["error notice", "no search in this turn"]),
    ],
)
def test_causes_of_a_first_reply_by_hand(reply, found, expected):
    assert causes(dialogue(turn(0, reply, found), retrieved_at=0 if found and "1" in found else None), 0) == expected


def test_a_reply_is_held_against_those_before_it_and_a_target_found_once_stays_found():
    row = dialogue(turn(0), turn(1, found=("1",)), turn(2, "Another one, or more of this?", None), retrieved_at=1)
    assert causes(row, 0) == ["its search misses the target"]
    assert causes(row, 1) == ["said the same before", "target found, not named"]
    assert causes(row, 2) == ["no search in this turn", "target found, not named"]


def test_a_search_in_two_steps_misses_the_target_only_if_both_do():
    row = dialogue(turn(0), retrieved_at=0)
    row.turns[0].steps.insert(0, Step(messages=[], output="x", retrieval=Retrieval(query="q", item_ids=["1"])))
    assert causes(row, 0) == ["target found, not named"]


def test_shares_of_deductions_with_a_cause_and_without_it_by_hand():
    rows = [dialogue(turn(0, "Gladly.", confirmation=Confirmation(flexibility=1, coherence=2, guidance=0))),
            dialogue(turn(0, "Gladly.", confirmation=Confirmation(flexibility=2, coherence=2, guidance=0))),
            dialogue(turn(0, confirmation=Confirmation(flexibility=0, coherence=2, guidance=1))), dialogue(turn(0)),
            dialogue(turn(0, "Gladly.", confirmation=Confirmation(error="unscored")), turn(1, None))]  # fmt: skip
    table = reason_table({"book": {"actcrs_sgpt": rows}}, "cpu")
    assert len(table) == len(CAUSES) * 3
    part = table[table["cause"] == "no question at its end"].set_index("dimension")
    assert part[["n", "deducted", "deducted_n", "without", "without_n"]].T.to_dict("list") == {
        "flexibility": [2, 0.5, 2, 0.5, 2], "coherence": [2, 0.0, 2, 0.0, 2], "guidance": [2, 1.0, 2, 0.0, 2]}  # fmt: skip
    assert 0 < part.loc["guidance", "deducted_low"] < 1 == part.loc["guidance", "deducted_high"]
    short = short_reason_table(table).set_index("cause")
    assert short.loc["no question at its end", ["n", "guidance"]].tolist() == [2, "1.00 [0.34, 1.00] | 0.00"]
    assert list(short.index) == list(CAUSES) and short.loc["error notice", "guidance"] == "none | 0.50"
    assert short.loc["its search misses the target", "coherence"] == "0.00 [0.00, 0.49] | none"


def test_without_a_scored_reply_there_is_no_share():
    table = reason_table({"book": {"actcrs_sgpt": [dialogue(turn(0, confirmation=Confirmation(error="unscored")))]}}, "cpu")
    assert table["n"].eq(0).all() and table["deducted"].isna().all() and set(short_reason_table(table)["guidance"]) == {"none | none"}
