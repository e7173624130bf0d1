"""Successful dialogues of the expert become zero-shot examples, split by user."""

import pytest

from ecpo_utils.core.errors import SchemaError, TrainingError
from ecpo_utils.llm.prompts import load_prompt
from ecpo_utils.method.sgpt import build_sft_examples, draw_validation_users, split_by_user, without_example

FILE = "game/trajectories/actcrs_expert.jsonl"


def test_every_action_of_a_successful_dialogue_is_one_example(make_row):
    examples = build_sft_examples([make_row(), make_row("game/u2/g1", success=False)])
    assert [e.completion[0]["content"] for e in examples] == [
        "Ask[Alone or together?]",
        "Search[alone]",
        'Recommend[How about "Harbour of Glass"?]',
    ]
    assert {e.task_id for e in examples} == {"game/u1/g1"} and [e.turn for e in examples] == [0, 1, 1]


def test_the_worked_example_leaves_the_prompt_and_nothing_else_does(make_row):
    row = make_row()
    shown, zero_shot = row.turns[0].steps[0].messages, make_row(example=False).turns[0].steps[0].messages
    assert load_prompt("actcrs_example_game") in shown[0]["content"]
    assert build_sft_examples([row])[0].prompt == without_example(shown, "game") == zero_shot


@pytest.mark.parametrize("status", ["failed", "leak"])
def test_a_dialogue_that_failed_or_leaked_is_no_success(make_row, status):
    with pytest.raises(TrainingError, match=rf"none of 1 expert dialogues recommended its target \({FILE}\).*raise num_sgpt_tasks"):
        build_sft_examples([make_row(status=status)])


def test_an_action_that_cannot_be_read_is_no_example(make_row):
    row = make_row()
    row.turns[0].steps[0].action.type = "invalid"
    assert len(build_sft_examples([row])) == 2


def test_dialogues_of_another_framework_are_refused(make_row):
    row = make_row()
    row.turns[0].steps[0].purpose = "thought"
    with pytest.raises(SchemaError, match="game/u1/g1 turn 0: a 'thought' step"):
        build_sft_examples([row])


def test_validation_shares_no_user_with_training(make_row):
    rows = [e for user in range(10) for item in range(2) for e in build_sft_examples([make_row(f"game/u{user}/g{item}")])]
    users = {row.task_id: row.task_id.split("/")[1] for row in rows}
    held_out = draw_validation_users(users.values(), share=0.2, seed=3)
    train, validation = split_by_user(rows, users, held_out)
    seen = [{users[row.task_id] for row in part} for part in (train, validation)]
    assert not seen[0] & seen[1] and seen[1] == held_out and len(held_out) == 2 and len(train) + len(validation) == len(rows)
    assert draw_validation_users(set(users.values()), share=0.2, seed=3) == held_out
    assert draw_validation_users(users.values(), share=0.0, seed=3) == set()
    assert len(draw_validation_users(users.values(), share=0.99, seed=3)) == 9


def test_where_all_rows_are_held_out_there_is_nothing_to_train_on(make_row):
    rows, users = build_sft_examples([make_row()]), {"game/u1/g1": "u1"}
    assert split_by_user(rows, users, draw_validation_users({"u1"}, share=0.5, seed=0)) == (rows, [])
    with pytest.raises(TrainingError, match=r"all \d+ rows are of the 1 validation users; lower validation_share"):
        split_by_user(rows, users, {"u1"})
    with pytest.raises(SchemaError, match="no user is known for task game/u1/g1"):
        split_by_user(rows, {}, set())
