"""Dialogues rendered for reading, and the table of the simulator's conduct."""

import pytest

from ecpo_utils.core.schema import Action, Confirmation, Item, Persona, Retrieval, Step, Trajectory, Turn
from ecpo_utils.evaluate.dialogues import render_dialogue, simulator_conduct
from ecpo_utils.evaluate.tables import short_conduct_table

TARGET = Item(item_id="g1", title="Harbour of Glass", categories=["Video Games", "Simulation"])


def step(kind="search", argument="port town", found=None, output="", attempts=1):
    retrieval = None if found is None else Retrieval(query=argument, item_ids=list(found))
    return Step(messages=[], output=output, action=Action(type=kind, argument=argument), retrieval=retrieval, attempts=attempts)


def turn(index, policy="provide_feedback_on_recommendation", **fields):
    return Turn(**{"index": index, "policy": policy, "user_message": f"Message {index}.", **fields})


def dialogue(turns, status="complete", **fields):
    values = {"task_id": "game/u1/g1", "domain": "game", "system": "actcrs_expert", "config": "c", "target": TARGET,
              "persona": Persona(activities="Quick.", language="Plain.")}  # fmt: skip
    return Trajectory(**{**values, "turns": turns, "status": status, **fields})


@pytest.fixture
def whole():
    scored = Confirmation(flexibility=2, coherence=1, guidance=0, reasons={"flexibility": "", "coherence": "Off.", "guidance": "Dull."})
    return dialogue([
        turn(0, "ask_recommendation", steps=[step(found=["g2", "g1"]), step("recommend", "Try it.")], reply="Try it.", confirmation=scored),
        turn(1, steps=[step(found=["g2"]), step("ask", "Why?")], reply="Why?", confirmation=Confirmation(error="no JSON")),
        turn(2, steps=[step("invalid", "mumble", output="mumble", attempts=3)], reply="Sorry.", user_faults=["parrot"]),
        turn(3, "end_conversation"),
    ], "ended_by_user", recommended_at=0)  # fmt: skip


def test_a_rendered_dialogue_says_everything_in_order(whole):
    text = render_dialogue(whole)
    expected = [
        "actcrs_expert on game/u1/g1", "Harbour of Glass (Video Games, Simulation)", "Quick. Plain.",
        "ask_recommendation", "Message 0.", "Search[port town]", "2 items, target found", "Recommend[...]", "Try it.", "3/5",
        "coherence 1/2", "Off.", "Message 1.", "1 items, target not found", "Ask[...]", "Why?", "unscored: no JSON",
        "parrot", "Message 2.", "3 attempts", "mumble", "Sorry.",
        "end_conversation", "Message 3.", "status ended_by_user", "in turn 1",
    ]  # fmt: skip
    position = 0
    for part in expected:
        assert part in text[position:], part
        position = text.index(part, position)


def test_a_failed_dialogue_shows_its_error_and_the_turns_so_far():
    text = render_dialogue(dialogue([turn(0, "ask_recommendation")], "failed", error="EndpointError: gone"))
    assert "Message 0." in text and "status failed: EndpointError: gone" in text and "never" in text
    assert "status failed" in render_dialogue(dialogue([], "failed", error="x"))


def test_conduct_by_hand(whole):
    leak = dialogue([turn(0, "ask_recommendation", user_faults=["leak"], user_retries=2)], "leak")
    reversal = dialogue([turn(0, "ask_recommendation", user_retries=1), turn(1, "respond_to_clarification", user_faults=["role_reversal"])])
    broken = dialogue([], "failed", error="x")
    table = simulator_conduct({"game": {"actcrs_expert": [whole, leak, reversal, broken]}})
    row = table.iloc[0].to_dict()
    values = {name: value for name, value in row.items() if not name.endswith(("_low", "_high", "_n"))}
    assert values | {"retries per message": None} == {
        "domain": "game", "system": "actcrs_expert", "n": 4, "leak": 0.25, "role reversal": 0.25, "parrot": 0.25, "empty": 0.0,
        "failed": 0.25, "ended by user": 0.25, "retries per message": None, "answers": 1, "feedback": 2, "closings": 1,
    }  # fmt: skip
    assert row["retries per message"] == pytest.approx((0 + 2 + 1 / 2) / 3) and row["retries per message_n"] == 3
    for name in ("leak", "role reversal", "parrot", "empty", "failed", "ended by user", "retries per message"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] and row[f"{name}_n"] in (3, 4)
    short = short_conduct_table(table)
    assert list(short) == list(values) and short.iloc[0]["leak"] == "0.25 [0.05, 0.70]" and short.iloc[0]["closings"] == 1
    assert short.iloc[0]["retries per message"].startswith("0.83 [") and short.iloc[0]["retries per message"].endswith("] n=3")


def test_a_fault_counts_once_per_dialogue():
    twice = dialogue([turn(0, "ask_recommendation", user_faults=["parrot"]), turn(1, user_faults=["parrot"])])
    assert simulator_conduct({"game": {"a": [twice, dialogue([turn(0)])]}}).iloc[0]["parrot"] == 0.5


def test_conduct_has_a_row_per_domain_and_system():
    played = {domain: {name: [dialogue([turn(0)])] for name in ("a", "b")} for domain in ("book", "game")}
    assert simulator_conduct(played)[["domain", "system"]].values.tolist() == [["book", "a"], ["book", "b"], ["game", "a"], ["game", "b"]]
