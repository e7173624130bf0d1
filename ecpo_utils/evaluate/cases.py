"""Two agents on the same task: where they part, in the same state or not, and what became of it. Paper: section C.3, Figures 8 and 9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import pandas as pd

from ..core.schema import Trajectory, Verdict
from .comparison import paired_difference
from .metrics import mean_score
from .transcripts import user_of
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

    def in_same_state(self, number: int) -> bool:
        """Whether both dialogues have a turn of this number, from 1, and hold the same messages before the agent's reply in it."""
        if number > min(len(self.before.turns), len(self.after.turns)):
            return False
        one, other = (row.turns[:number] for row in (self.before, self.after))
        asked = [turn.user_message for turn in one] == [turn.user_message for turn in other]
        return asked and [turn.reply for turn in one[:-1]] == [turn.reply for turn in other[:-1]]

    @property
    def judgement(self) -> float | None:
        """From 1, the judge prefers `after`, to -1, with 0 for a tie; None where there is no verdict."""
        pairs = group_pairs(self.verdicts)
        value = preference(pairs[0], "final") if pairs else None
        return 0.0 if value is not None and abs(value) < EVEN else value


def case_table(cases: Sequence[Case]) -> pd.DataFrame:
    """One row per case, in their order: success, mean confirmation 0-5, the judge's preference, the turn (from 1) in which they part.

    `same_state` says whether both had read the same messages there; if so, `score_before` and `score_after` are what the user
    gave to these two replies, 0-5: what the tuning changed, with nothing before it that differs.
    """
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
                **_parting(case),
            }
        )
    whole = dict.fromkeys(("first_difference", "score_before", "score_after"), "Int64")
    return pd.DataFrame(rows).astype({"judge": float, "confirmation_gain": float, "same_state": "boolean", **whole})


def _parting(case: Case) -> dict[str, bool | int | None]:
    number = case.first_difference
    same = None if number is None else case.in_same_state(number)
    before, after = (row.turns[number - 1].satisfaction if same else None for row in (case.before, case.after))
    return {"same_state": same, "score_before": before, "score_after": after}


def clearest_case(table: pd.DataFrame, *, gain: bool) -> int | None:
    """Row of `case_table` with the largest gain, or loss, in the judge's verdict, then in confirmation; None if the judge sees none."""
    ranked = table[table["judge"] > 0 if gain else table["judge"] < 0]
    ranked = ranked.sort_values(["judge", "confirmation_gain"], ascending=not gain)  # without a score: last
    return ranked.index[0] if len(ranked) else None


def clearest_reply(table: pd.DataFrame) -> int | None:
    """Row of `case_table` whose reply, in the same state, gained most in the user's score, then by the judge; None if none gained."""
    gains = (table["score_after"] - table["score_before"]).astype(float)
    ranked = table.assign(gain=gains)[gains > 0].sort_values(["gain", "judge"], ascending=False)
    return ranked.index[0] if len(ranked) else None


def describe_changes(cases: Sequence[Case]) -> str:
    """How the user scored the replies that the tuning changed in the same state: a sentence, its interval over users."""
    changed = [(case, _parting(case)) for case in cases if case.first_difference and case.in_same_state(case.first_difference)]
    sentence = f"In {len(changed)} of {len(cases)} tasks the first reply that differs was written in the same state"
    before, after = ({case.before.task_id: parting[side] for case, parting in changed} for side in ("score_before", "score_after"))
    if all(None in scores for scores in zip(before.values(), after.values(), strict=True)):
        return f"{sentence}; of none are both replies scored."
    rows = [case.before for case, _ in changed]
    paired = paired_difference(after, before, groups={row.task_id: user_of(row.task_id, row.target.item_id) for row in rows})
    return (
        f"{sentence}: the user gave {paired.second.value:.2f} of 5 to those before and {paired.first.value:.2f} to those after, "
        f"a difference of {paired.difference.text()}, more in {paired.num_higher} and less in {paired.num_lower}."
    )
