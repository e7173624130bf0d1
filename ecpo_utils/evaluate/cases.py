"""Two agents on the same task, side by side: where they part and what became of it. Paper: section C.3, Figures 8 and 9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import pandas as pd

from ..core.schema import Trajectory, Verdict
from .dialogues import render_dialogue
from .metrics import mean_score
from .win_rates import EVEN, group_pairs, preference


@dataclass(frozen=True)
class Case:
    """One task as two agents played it.

    Attributes:
        before: The dialogue of the agent that the other was trained from.
        after: The dialogue of the tuned agent.
        verdicts: Of `after` against `before` on this task; may be empty.
    """

    before: Trajectory
    after: Trajectory
    verdicts: Sequence[Verdict] = ()

    @property
    def first_difference(self) -> int | None:
        """Number, from 1, of the first turn whose reply differs, or that one of the two alone replies in; None if there is none."""
        replies = ([turn.reply for turn in row.turns] for row in (self.before, self.after))
        return next((number for number, (one, other) in enumerate(zip_longest(*replies), 1) if one != other), None)

    @property
    def judgement(self) -> float | None:
        """From 1, the judge prefers `after`, to -1, with 0 for a tie; None where there is no verdict."""
        pairs = group_pairs(self.verdicts)
        value = preference(pairs[0], "final") if pairs else None
        return 0.0 if value is not None and abs(value) < EVEN else value


def case_table(cases: Sequence[Case]) -> pd.DataFrame:
    """One row per case, in their order: success, mean confirmation 0-5, the judge's preference, the turn (from 1) in which they part."""
    rows = []
    for case in cases:
        before, after = (mean_score(row, "satisfaction") for row in (case.before, case.after))
        rows.append(
            {
                "domain": case.before.domain,
                "task": case.before.task_id,
                "target": case.before.target.title,
                "success_before": case.before.is_success,
                "success_after": case.after.is_success,
                "confirmation_before": before,
                "confirmation_after": after,
                "confirmation_gain": None if before is None or after is None else after - before,
                "judge": case.judgement,
                "first_difference": case.first_difference,
            }
        )
    return pd.DataFrame(rows).astype({"judge": float, "confirmation_gain": float, "first_difference": "Int64"})


def clearest_case(table: pd.DataFrame, *, gain: bool) -> int | None:
    """Row of `case_table` with the largest gain, or loss, in the judge's verdict, then in confirmation; None if the judge sees none."""
    ranked = table[table["judge"] > 0 if gain else table["judge"] < 0]
    ranked = ranked.sort_values(["judge", "confirmation_gain"], ascending=not gain)  # without a score: last
    return ranked.index[0] if len(ranked) else None


def render_case(case: Case) -> str:
    """Both dialogues as text, one after the other, with the turn at which they part."""
    part = case.first_difference
    between = "the replies are the same in every turn" if part is None else f"the replies part in turn {part}"
    return f"BEFORE\n{render_dialogue(case.before)}\n\nAFTER ({between})\n{render_dialogue(case.after)}"
