"""What a judge's verdicts are worth: pairs whose order is known. Paper: section B.5 names no such check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..core.schema import Verdict
from .comparison import RankCorrelation, rank_correlation
from .judges import DIMENSIONS
from .paper import paper_results
from .tables import rate_columns
from .win_rates import group_pairs, outcome, win_rate

Released = Mapping[str, Mapping[str, Sequence[Verdict]]]  # "whole" or "cut" -> log -> verdicts against the expert's log


def released_table(released: Released, profile: str) -> pd.DataFrame:
    """Win rate of every released system against the expert, per dimension, dialogues whole and cut, beside the published one."""
    published, rows = paper_results()["released_book_win_rates"], []
    for form, logs in released.items():
        for name, verdicts in logs.items():
            final = win_rate(verdicts)
            rows.append(
                {
                    "dialogues": form,
                    "system": name,
                    "profile": profile,
                    **rate_columns("win_rate", final.rate),
                    **{f"win_rate_{d}": win_rate(verdicts, dimension=d).rate.value for d in DIMENSIONS if d != "final"},
                    "flips": final.flips.value,
                    "first_shown": final.first_shown.value,
                    "unscored_pairs": final.num_unscored,
                    "paper_WR": published.get(name),
                }
            )
    return pd.DataFrame(rows)


def released_correlations(released: Released) -> dict[str, RankCorrelation]:
    """Spearman's rho between our win rates and the published ones over systems, for whole and for cut dialogues."""
    published = paper_results()["released_book_win_rates"]
    return {
        form: rank_correlation({name: _outcomes(verdicts) for name, verdicts in logs.items()}, published) for form, logs in released.items()
    }


def _outcomes(verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    return {pair[0].task_id: outcome(pair, "final") for pair in group_pairs(verdicts)}


def correlation_table(correlations: Mapping[str, RankCorrelation], profile: str) -> pd.DataFrame:
    """Rho with its interval and p value, dialogues whole and cut."""
    return pd.DataFrame(
        [
            {"dialogues": form, "profile": profile, **rate_columns("rho", found.rho), "p_value": found.p_value, "tasks": found.num_tasks}
            for form, found in correlations.items()
        ]
    )


def damage_table(judged: Mapping[tuple[str, str], Sequence[Verdict]], profile: str) -> pd.DataFrame:
    """How often the original is preferred to itself with a planted flaw, by flaw and severity; 0.5 is a coin.

    The row "none" holds each dialogue against itself: there everything but 0.5 would be a fault.
    """
    rows = []
    for (flaw, severity), verdicts in judged.items():
        final = win_rate(verdicts)
        rows.append(
            {
                "flaw": flaw,
                "severity": severity,
                "profile": profile,
                **rate_columns("original_preferred", final.rate),
                **{f"in_{d}": win_rate(verdicts, dimension=d).rate.value for d in DIMENSIONS if d != "final"},
                "ties": final.ties,
                "flips": final.flips.value,
                "first_shown": final.first_shown.value,
                "unscored_pairs": final.num_unscored,
            }
        )
    return pd.DataFrame(rows)


def reliability_note(damaged: pd.DataFrame, correlations: Mapping[str, RankCorrelation]) -> str:
    """One line for every place that shows a win rate: how far the judge can be trusted."""
    worst = [row for row in damaged.itertuples() if row.severity == "all" and row.original_preferred_n]
    wins = sum(row.original_preferred * row.original_preferred_n for row in worst)
    n = sum(row.original_preferred_n for row in worst)
    parts = [f"the judge prefers an original to its wholly damaged twin in {wins:.0f} of {n} pairs"] if n else []
    for form, found in correlations.items():
        if found.rho.value is not None:
            parts.append(f"ranks {found.rho.n} released systems with rho {found.rho.value:.2f} ({form} dialogues)")
    return "; ".join(parts) or "the judge was not checked"
