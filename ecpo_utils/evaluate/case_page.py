"""Case studies as Markdown: both dialogues turn by turn, marked where the tuned agent replies otherwise. Paper: Figures 8 and 9."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from ..core.schema import Trajectory, Turn
from .cases import Case, clearest_case, clearest_reply, describe_changes
from .dialogues import confirmation_line, reached_when, step_lines
from .metrics import mean_score

_MARKUP = re.compile(r"[\\`*<&~]|(?<!\w)_|_(?!\w)|(?<=\])\(")  # within a word "_" is itself


def render_case(case: Case, titles: Mapping[str, str]) -> str:
    """One task: outcome, then per turn the user's message and what each agent did, found and said, with the user's scores and reasons.

    Args:
        case: Both dialogues and what the judge makes of them.
        titles: Of what was retrieved, by item id.
    """
    target, turns = case.before.target, max(len(case.before.turns), len(case.after.turns))
    judged = "no verdict" if case.judgement is None else f"{case.judgement:+.2f} (1: {case.after.system}, -1: {case.before.system})"
    lines = [
        f"Task {case.before.task_id}, target {target.title} ({', '.join(target.categories)}).",
        f"Persona: {case.before.persona.text()}",
        *map(_outcome, (case.before, case.after)),
        f"Judge: {judged}.",
    ]
    parts = ["\n\n".join(map(_plain, lines)), *(_render_turn(case, number, titles) for number in range(1, turns + 1))]
    return "\n\n".join(parts) + "\n"


def case_page(cases: Sequence[Case], table: pd.DataFrame, titles: Mapping[str, str], note: str) -> str:
    """A page with the clearest gain, the clearest loss and the reply that gained most, those of them that there are.

    Args:
        cases: As `table` has them.
        table: `case_table` of them.
        titles: Of what was retrieved, by item id.
        note: How reliable the judge is, by whose verdicts the dialogues are picked.
    """
    picks = {
        "The clearest gain": clearest_case(table, gain=True),
        "The clearest loss": clearest_case(table, gain=False),
        "The reply that gained most": clearest_reply(table),
    }
    shown = [f"## {title}\n\n{render_case(cases[row], titles)}" for title, row in picks.items() if row is not None]
    state = "In the same state all messages before a reply are the same; turns after the first reply that differs follow from it."
    head = ["# Case studies: the same task before and after", describe_changes(cases), state, _plain(note)]
    return "\n".join(["\n\n".join(head) + "\n", *shown])


def _outcome(row: Trajectory) -> str:
    score = mean_score(row, "satisfaction")
    confirmed = "no reply scored" if score is None else f"mean confirmation {score:.2f} of 5"
    return f"{row.system}: {row.status}, target recommended {reached_when(row)}, {confirmed}."


def _render_turn(case: Case, number: int, titles: Mapping[str, str]) -> str:
    sides = [(row, row.turns[number - 1]) for row in (case.before, case.after) if number <= len(row.turns)]
    told = [(row.system, _agent(row, turn, titles)) for row, turn in sides]
    lines = [f"### Turn {number}: {_mark(case, number)}", ""]
    if case.in_same_state(number):
        lines.append(f"- {_plain(_user(sides[0][1]))}")
        if told[0][1] == told[1][1]:  # scores and reasons too
            told = [("both", told[0][1])]
    else:
        told = [(system, [_user(turn), *said]) for (system, said), (_, turn) in zip(told, sides, strict=True)]
    for name, said in told:
        lines += [f"- **{_plain(name)}**", *(f"  - {_plain(line)}" for line in said)]
    return "\n".join(lines)


def _mark(case: Case, number: int) -> str:
    replies = [row.turns[number - 1].reply if number <= len(row.turns) else None for row in (case.before, case.after)]
    state = "the same state" if case.in_same_state(number) else "another state"
    if replies[0] == replies[1]:
        return f"the same reply, in {state}" if replies[0] is not None else "no reply"
    if None in replies:
        return f"only {_plain((case.before if replies[1] is None else case.after).system)} replies"
    return f"**{'the first reply that differs' if number == case.first_difference else 'another reply'}, in {state}**"


def _user(turn: Turn) -> str:
    return f"USER ({turn.policy}) {turn.user_message}"


def _agent(row: Trajectory, turn: Turn, titles: Mapping[str, str]) -> list[str]:
    lines = []
    for step in turn.steps:
        lines += step_lines(step)
        if step.retrieval:
            found = "; ".join(titles.get(item_id, item_id) for item_id in step.retrieval.item_ids)
            hit = "target found" if row.target.item_id in step.retrieval.item_ids else "target not found"
            lines[-1] += f" -> {hit}: {found}"
    lines += [f"AGENT {turn.reply}"] if turn.reply is not None else []
    return lines + ([confirmation_line(turn.confirmation)] if turn.confirmation else [])


def _plain(text: str) -> str:
    """One line whose characters mean themselves in Markdown: what models wrote makes no link, image or tag."""
    return _MARKUP.sub(lambda mark: "\\" + mark.group(), " ".join(text.split()))
