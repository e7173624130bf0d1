"""SGPT: dialogues in which the expert named the target become supervised examples. Paper: sections 2.2, B.3."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from ..core.errors import SchemaError, TrainingError
from ..core.schema import Domain, Message, PreferencePair, SFTExample, Trajectory
from ..dialogue.agents.actions import render_action
from ..dialogue.agents.base import SYSTEM_ERROR
from ..llm.prompts import load_prompt

E = TypeVar("E", SFTExample, PreferencePair)


def without_example(messages: Sequence[Message], domain: Domain) -> list[Message]:
    """The same state as an ActCRS agent without the worked example sees it; a tuned agent runs zero-shot."""
    example = "\n\n" + load_prompt(f"actcrs_example_{domain}")
    return [{**each, "content": each["content"].replace(example, "")} if each["role"] == "system" else dict(each) for each in messages]


def build_sft_examples(trajectories: Sequence[Trajectory]) -> list[SFTExample]:
    """Every usable action, searches included, of every successful dialogue of the expert's ActCRS.

    Raises:
        TrainingError: If no dialogue succeeded; names the file that was looked through.
        SchemaError: If a step is not ActCRS's; names the dialogue.
    """
    examples = []
    for row in (row for row in trajectories if row.is_success):
        for turn in row.turns:
            for step in turn.steps:
                if step.purpose != "action":
                    raise SchemaError(f"dialogue {row.task_id} turn {turn.index}: a '{step.purpose}' step; SGPT takes dialogues of ActCRS")
                is_refused = step.action is not None and step.action.type == "search" and step.retrieval is None  # one search too many
                if step.action is None or step.is_unusable or is_refused or step.action.argument == SYSTEM_ERROR:
                    continue
                examples.append(
                    SFTExample(
                        prompt=without_example(step.messages, row.domain),
                        completion=[{"role": "assistant", "content": render_action(step.action)}],
                        task_id=row.task_id,
                        turn=turn.index,
                    )
                )
    if not examples:
        raise TrainingError(
            f"none of {len(trajectories)} expert dialogues recommended its target ({trajectory_files(trajectories)}), "
            f"so there is nothing to learn from; raise num_sgpt_tasks or max_turns, or take a stronger expert"
        )
    return examples


def trajectory_files(rows: Sequence[Trajectory]) -> str:
    """Where dialogues stand in a run's folder, domain first; for messages."""
    return ", ".join(sorted({f"{row.domain}/trajectories/{row.system}.jsonl" for row in rows})) or "no file"


def draw_validation_users(users: Collection[str], *, share: float, seed: int) -> set[str]:
    """The users whose rows only watch the trainings; the same ones for every training on the same users.

    Args:
        users: All users who train.
        share: Of them; at least one user if it is above 0 and there are two, and never all.
        seed: Of the draw.
    """
    names = sorted(set(users))
    number = min(max(round(share * len(names)), 1), len(names) - 1) if share > 0 else 0
    return set(random.Random(seed).sample(names, number))


def split_by_user(rows: Sequence[E], users: Mapping[str, str], held_out: Collection[str]) -> tuple[list[E], list[E]]:
    """Training and validation rows that share no user.

    Args:
        rows: Examples or pairs.
        users: User id by task id.
        held_out: From `draw_validation_users`.

    Raises:
        SchemaError: If a row's task is unknown.
        TrainingError: If all rows are the validation users'.
    """
    unknown = next((row.task_id for row in rows if row.task_id not in users), None)
    if unknown:
        raise SchemaError(f"no user is known for task {unknown}; are these rows of another task file?")
    train = [row for row in rows if users[row.task_id] not in held_out]
    if rows and not train:
        raise TrainingError(f"all {len(rows)} rows are of the {len(held_out)} validation users; lower validation_share (0: none)")
    return train, [row for row in rows if users[row.task_id] in held_out]
