"""What in a turn goes with points deducted from its reply: observable causes against the dimensions of the confirmation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from ..core.matching import mentions_title, says_again
from ..core.schema import Trajectory, Turn
from ..dialogue.agents.base import is_system_error
from ..dialogue.confirmation import MAXIMA
from .statistics import proportion
from .tables import Played, rate_cell, rate_columns
from .transcripts import QUESTION_MARKS


def _searches(turn: Turn) -> list[list[str]]:
    return [step.retrieval.item_ids for step in turn.steps if step.retrieval]


def _misses_target(row: Trajectory, turn: Turn) -> bool:
    found = _searches(turn)
    return bool(found) and not any(row.target.item_id in item_ids for item_ids in found)


def _keeps_target_back(row: Trajectory, turn: Turn) -> bool:
    found = row.retrieved_at is not None and row.retrieved_at <= turn.index
    return found and not mentions_title(turn.reply or "", row.target.title)


# of a reply, told from the dialogue and the turn alone, whatever the user said of it; one reply may have several
CAUSES: dict[str, Callable[[Trajectory, Turn], bool]] = {
    "error notice": lambda row, turn: is_system_error(turn),
    "said the same before": lambda row, turn: says_again(turn.reply or "", row.turns[: turn.index]),
    "no question at its end": lambda row, turn: not (turn.reply or "").rstrip().endswith(QUESTION_MARKS),
    "no search in this turn": lambda row, turn: not _searches(turn),
    "its search misses the target": _misses_target,
    "target found, not named": _keeps_target_back,
}


def reason_table(played: Played, profile: str) -> pd.DataFrame:
    """Per cause and dimension the share of replies with points deducted, among those that have the cause and among the others.

    Returns:
        Per domain, system, cause and dimension: `n`, scored replies that have the cause, `deducted`, the share of them that lost
        points in the dimension, and `without`, the same share of the scored replies that lack it. The intervals take replies as
        independent, though one dialogue has several.
    """
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():
            scored = [(row, turn) for row in trajectories for turn in row.turns if turn.satisfaction is not None]
            for cause, holds in CAUSES.items():
                having = [turn for row, turn in scored if holds(row, turn)]
                lacking = [turn for row, turn in scored if not holds(row, turn)]
                for dimension in MAXIMA:
                    rows.append(
                        {"domain": domain, "system": name, "profile": profile, "cause": cause, "dimension": dimension, "n": len(having)}
                        | _deducted("deducted", having, dimension)
                        | _deducted("without", lacking, dimension)
                    )
    return pd.DataFrame(rows)


def _deducted(column: str, turns: Sequence[Turn], dimension: str) -> dict[str, float | None]:
    lost = sum(getattr(turn.confirmation, dimension) < MAXIMA[dimension] for turn in turns)
    return rate_columns(column, proportion(lost, len(turns)))


def short_reason_table(table: pd.DataFrame) -> pd.DataFrame:
    """`reason_table` for reading: one row per cause, and per dimension the share with the cause against that without it."""
    keys = ["domain", "system", "cause", "n"]
    return pd.DataFrame(
        [
            dict(zip(keys, key, strict=True)) | {row["dimension"]: _against(row) for _, row in rows.iterrows()}
            for key, rows in table.groupby(keys, sort=False)
        ]
    )


def _against(row: pd.Series) -> str:
    without = "none" if pd.isna(row["without"]) else f"{row['without']:.2f}"
    return f"{rate_cell(row, 'deducted', missing='none')} | {without}"
