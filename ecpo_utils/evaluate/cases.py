"""Two agents on the same task, side by side: where they part and what became of it. Paper: section C.3, Figures 8 and 9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ..core.schema import Trajectory, Verdict
from .dialogues import render_dialogue
from .metrics import mean_score
from .win_rates import group_pairs, preference


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
        """Index of the first turn whose reply differs, None if none does."""
        pairs = zip(self.before.turns, self.after.turns, strict=False)
        return next((one.index for one, other in pairs if one.reply != other.reply), None)

    @property
    def judgement(self) -> float | None:
        """From 1, the judge prefers `after`, to -1; None where there is no verdict."""
        pairs = group_pairs(self.verdicts)
        return preference(pairs[0], "final") if pairs else None


def case_table(cases: Sequence[Case]) -> pd.DataFrame:
    """One row per case, in their order: success, mean confirmation 0-5, the judge's preference, where the dialogues part."""
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
    return pd.DataFrame(rows).astype({"judge": float, "confirmation_gain": float})


def render_case(case: Case) -> str:
    """Both dialogues as text, one after the other, with the turn at which they part."""
    part = case.first_difference
    between = "the replies are the same in every turn" if part is None else f"the replies part in turn {part + 1}"
    return f"BEFORE\n{render_dialogue(case.before)}\n\nAFTER ({between})\n{render_dialogue(case.after)}"
