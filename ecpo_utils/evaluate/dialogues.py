"""Dialogues to read, and how the simulator behaved in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from ..core.schema import Action, Confirmation, Step, Trajectory, Turn
from ..dialogue.agents.actions import render_action
from .statistics import Rate, average, mean, proportion
from .tables import Played, rate_columns

SHOWN_CHARACTERS = 200


def step_lines(step: Step) -> list[str]:
    """What the user does not see: thoughts and plans, answers that could not be used, and last a search or the kind of action."""
    lines = []
    if step.is_unusable:
        lines.append(f"{step.purpose} that cannot be read, after {step.attempts} attempts: {_short(step.output)!r}")
    elif step.purpose not in ("action", "query", "reply"):
        lines.append(f"{step.purpose}: {_short(step.output)}")
    action = Action(type="search", argument=step.retrieval.query) if step.retrieval else step.action
    if action and action.type != "invalid":
        shown = _short(action.argument) if action.type == "search" else "..."  # what was said follows as the reply
        lines.append(render_action(Action(type=action.type, argument=shown)))
    return lines


def _with_hit(row: Trajectory, step: Step) -> list[str]:
    lines = step_lines(step)
    if step.retrieval:
        hit = "target found" if row.target.item_id in step.retrieval.item_ids else "target not found"
        lines[-1] += f" -> {len(step.retrieval.item_ids)} items, {hit}"
    return lines


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + " ..."


def _turn_lines(row: Trajectory, turn: Turn) -> list[str]:
    marks = f" [still: {', '.join(turn.user_faults)}]" if turn.user_faults else ""
    lines = [f"USER   ({turn.policy}{marks}) {turn.user_message}"]
    lines += [f"         {line}" for step in turn.steps for line in _with_hit(row, step)]
    if turn.reply is not None:
        lines.append(f"AGENT  {turn.reply}")
    if turn.confirmation is not None:
        lines.append(f"         {confirmation_line(turn.confirmation)}")
    return lines


def confirmation_line(ec: Confirmation) -> str:
    """Scores and reason of a confirmation, or why it has none."""
    scores = f"flexibility {ec.flexibility}/2, coherence {ec.coherence}/2, guidance {ec.guidance}/1"
    return f"EC {ec.satisfaction}/5 ({scores}) {ec.reason}" if ec.error is None else f"EC unscored: {ec.error}"


def reached_when(row: Trajectory) -> str:
    """When the agent recommended the target: "never", or in which turn, from 1."""
    return "never" if row.recommended_at is None else f"in turn {row.recommended_at + 1}"


def render_dialogue(row: Trajectory) -> str:
    """A dialogue as text: persona, target, every message with actions and confirmations, how it ended."""
    target = row.target
    lines = [
        f"{row.system} on {row.task_id}",
        f"target: {target.title} ({', '.join(target.categories)})",
        f"persona: {row.persona.text()}",
        "",
    ]
    for turn in row.turns:
        lines += _turn_lines(row, turn)
    lines += ["", f"status {row.status}{': ' + row.error if row.error else ''}; target recommended {reached_when(row)}"]
    return "\n".join(lines)


def simulator_conduct(played: Played) -> pd.DataFrame:
    """How the simulator behaved, per domain and system, with 95% intervals.

    Shares are of dialogues: with a leak, a role reversal, a parroted or an empty message, a failure, a closing by the user.
    Retries per message are a mean over dialogues; answers, feedback and closings are counted.
    """
    return pd.DataFrame(
        [
            {"domain": domain, "system": name, "n": len(rows)}
            | {key: value for title, rate in _conduct(rows).items() for key, value in rate_columns(title, rate).items()}
            | _policies(rows)
            for domain, systems in played.items()
            for name, rows in systems.items()
        ]
    )


def _conduct(rows: Sequence[Trajectory]) -> dict[str, Rate]:
    def share(having: Iterable[bool]) -> Rate:
        return proportion(sum(having), len(rows))

    faults = {"leak": "leak", "role reversal": "role_reversal", "parrot": "parrot", "empty": "empty"}
    return {
        **{title: share(any(fault in turn.user_faults for turn in row.turns) for row in rows) for title, fault in faults.items()},
        "failed": share(row.status == "failed" for row in rows),
        "ended by user": share(row.status == "ended_by_user" for row in rows),
        "retries per message": mean(average(turn.user_retries for turn in row.turns) for row in rows),
    }


def _policies(rows: Sequence[Trajectory]) -> dict[str, int]:
    """How often each policy was chosen after the opening."""
    chosen = Counter(turn.policy for row in rows for turn in row.turns[1:])
    titles = {"respond_to_clarification": "answers", "provide_feedback_on_recommendation": "feedback", "end_conversation": "closings"}
    return {title: chosen[policy] for policy, title in titles.items()}
