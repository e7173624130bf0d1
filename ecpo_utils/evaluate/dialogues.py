"""Dialogues to read, and how the simulator behaved in them."""

from __future__ import annotations

import pandas as pd

from ..core.schema import Action, Step, Trajectory, Turn
from ..dialogue.agents.actions import render_action
from .statistics import proportion
from .tables import Played

SHOWN_CHARACTERS = 160


def _step_lines(row: Trajectory, step: Step) -> list[str]:
    """What the user does not see: thoughts and plans, searches and whether they hit, answers that could not be used."""
    lines = []
    if step.is_unusable:
        article = "an" if step.purpose == "action" else "a"
        lines.append(f"not {article} {step.purpose}, after {step.attempts} attempts: {_short(step.output)!r}")
    elif step.purpose not in ("action", "query", "reply"):
        lines.append(f"{step.purpose}: {_short(step.output)}")
    if step.retrieval:
        hit = "target found" if row.target.item_id in step.retrieval.item_ids else "target not found"
        search = render_action(Action(type="search", argument=_short(step.retrieval.query)))
        lines.append(f"{search} -> {len(step.retrieval.item_ids)} items, {hit}")
    return lines


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + " ..."


def _turn_lines(row: Trajectory, turn: Turn) -> list[str]:
    marks = f" [still: {', '.join(turn.user_faults)}]" if turn.user_faults else ""
    lines = [f"USER   ({turn.policy}{marks}) {turn.user_message}"]
    lines += [f"         {line}" for step in turn.steps for line in _step_lines(row, step)]
    if turn.reply is not None:
        lines.append(f"AGENT  {turn.reply}")
    if (ec := turn.confirmation) is not None:
        scores = f"flexibility {ec.flexibility}/2, coherence {ec.coherence}/2, guidance {ec.guidance}/1"
        lines.append(f"         EC {ec.satisfaction}/5 ({scores}) {ec.reason}" if ec.error is None else f"         EC unscored: {ec.error}")
    return lines


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
    reached = "never" if row.recommended_at is None else f"in turn {row.recommended_at + 1}"
    lines += ["", f"status {row.status}{': ' + row.error if row.error else ''}; target recommended {reached}"]
    return "\n".join(lines)


def simulator_conduct(played: Played) -> pd.DataFrame:
    """Per domain and system the share of dialogues with a leak, a role reversal, a parroted message or a failure."""
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():

            def share(fault: str, trajectories: list[Trajectory] = trajectories) -> float | None:
                return proportion(sum(any(fault in t.user_faults for t in row.turns) for row in trajectories), len(trajectories)).value

            policies = [turn.policy for row in trajectories for turn in row.turns[1:]]
            rows.append(
                {
                    "domain": domain,
                    "system": name,
                    "n": len(trajectories),
                    "leak": share("leak"),
                    "role reversal": share("role_reversal"),
                    "parrot": share("parrot"),
                    "empty": share("empty"),
                    "failed": sum(row.status == "failed" for row in trajectories) / max(1, len(trajectories)),
                    "ended by user": sum(row.status == "ended_by_user" for row in trajectories) / max(1, len(trajectories)),
                    "retries per message": sum(turn.user_retries for row in trajectories for turn in row.turns)
                    / max(1, sum(len(row.turns) for row in trajectories)),
                    "answers": policies.count("respond_to_clarification"),
                    "feedback": policies.count("provide_feedback_on_recommendation"),
                    "closings": policies.count("end_conversation"),
                }
            )
    return pd.DataFrame(rows)
