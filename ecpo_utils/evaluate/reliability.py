"""What a judge's verdicts are worth: pairs whose order is known. Paper: section B.5 names no such check."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import pandas as pd

from ..core.schema import Verdict
from .comparison import RankCorrelation, paired_difference, rank_correlation
from .damage import SEVERITIES
from .judges import DIMENSIONS
from .paper import paper_results
from .statistics import Rate, proportion
from .tables import rate_columns
from .win_rates import outcomes, win_rate

Released = Mapping[str, Mapping[str, Sequence[Verdict]]]  # key of FORMS -> log -> verdicts against the expert's log
FORMS = {"whole": "whole dialogues", "cut": "cut dialogues", "rule": "a rule without a model"}
Damaged = Mapping[tuple[str, str], Sequence[Verdict]]  # (flaw, severity) -> verdicts on originals against damaged twins
DAMAGED = {"one": "one reply damaged", "half": "half of them", "all": "all of them"}


def released_table(released: Released, profile: str) -> pd.DataFrame:
    """Win rate of every released system against the expert, per dimension and form, beside the published one."""
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
                    "ties": final.ties,
                    "undecided": final.is_undecided,
                    "flips": final.flips.value,
                    "first_shown": final.first_shown.value,
                    "unscored_pairs": final.num_unscored,
                    "paper_WR": published.get(name),
                }
            )
    return pd.DataFrame(rows)


def released_correlations(released: Released) -> dict[str, RankCorrelation]:
    """Spearman's rho between our win rates and the published ones over systems, by form; its interval resamples users.

    A form none of whose logs has a published win rate is left out.
    """
    published, found = paper_results()["released_book_win_rates"], {}
    for form, logs in released.items():
        values = {name: outcomes(verdicts) for name, verdicts in logs.items()}
        if values.keys() & published.keys():
            users = {task: released_user(task) for each in values.values() for task in each}
            found[form] = rank_correlation(values, published, groups=users)
    return found


def released_user(task_id: str) -> str:
    """Whom a released task is of: rows 2k and 2k + 1, all that the logs have, are two personas of one user with one target."""
    row = re.fullmatch(r"user (\d+) item \d+", task_id)
    return str(int(row[1]) // 2) if row else task_id


def correlation_table(correlations: Mapping[str, RankCorrelation], profile: str) -> pd.DataFrame:
    """Rho with its interval and p value, by form."""
    return pd.DataFrame(
        [
            {"dialogues": form, "profile": profile, **rate_columns("rho", found.rho), "p_value": found.p_value, "tasks": found.num_tasks}
            for form, found in correlations.items()
        ]
    )


def damage_table(judged: Damaged, profile: str, ruled: Damaged | None = None) -> pd.DataFrame:
    """How often the original is preferred to itself with a planted flaw, by flaw and severity; 0.5 is a coin.

    The row "none" holds each dialogue against itself: there everything but 0.5 would be a fault.

    Args:
        judged: The judge's verdicts by (flaw, severity).
        profile: Marks the rows.
        ruled: Those of `rule_verdicts` on the same pairs, for the columns `rule_preferred`.
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
                "wins": final.wins,
                "ties": final.ties,
                "undecided": final.is_undecided and flaw != "none",
                "flips": final.flips.value,
                "first_shown": final.first_shown.value,
                "unscored_pairs": final.num_unscored,
                **rate_columns("rule_preferred", win_rate((ruled or {}).get((flaw, severity), [])).rate),
            }
        )
    return pd.DataFrame(rows)


def cannot_tell(damaged: pd.DataFrame, released: Released, *, seed: int = 0) -> pd.DataFrame:
    """What the judge cannot tell apart, or too few pairs to say.

    These are flaws whose interval holds 0.5 or lies below it, and released systems next to each other in win rate whose paired
    difference over users has an interval that holds 0.

    Args:
        damaged: As `damage_table` makes it.
        released: Verdicts as for `released_table`; may be empty.
        seed: Of resampling.
    """
    rows = [
        {"among": "planted flaws", "one": "original", "other": f"{row.flaw} ({row.severity})", "win rates": _preferred(row).text(),
         "why": why}
        for row in damaged.itertuples()
        if (why := _doubt(row))
    ]  # fmt: skip
    for form, logs in released.items():
        rates = {name: win_rate(verdicts).rate for name, verdicts in logs.items()}
        ranked = sorted((name for name in rates if rates[name].n), key=lambda name: -rates[name].value)
        for one, other in itertools.pairwise(ranked):
            values = outcomes(logs[one]), outcomes(logs[other])
            users = {task: released_user(task) for each in values for task in each}
            paired = paired_difference(*values, seed, groups=users, names=(one, other))
            if paired.difference.low is None or paired.difference.low <= 0:
                p_value = "" if paired.p_value is None else f", p {paired.p_value:.2g}"
                rows.append({"among": f"released logs, {FORMS[form]}", "one": one, "other": other,
                             "win rates": f"{rates[one].text()} and {rates[other].text()}",
                             "why": f"difference {paired.difference.text()} over users{p_value}"})  # fmt: skip
    return pd.DataFrame(rows, columns=["among", "one", "other", "win rates", "why"])


def _preferred(row: tuple) -> Rate:
    return Rate(row.original_preferred, row.original_preferred_low, row.original_preferred_high, row.original_preferred_n)


def _doubt(row: tuple) -> str:
    """Why a row of `damage_table` shows no preference for the original; "" where it does."""
    if row.flaw == "none" or not row.original_preferred_n:
        return ""
    if row.original_preferred_high < 0.5:
        return "prefers the damaged one"
    if row.original_preferred_low > 0.5:
        return ""
    return "too few pairs to tell" if row.wins == row.original_preferred_n else "interval holds 0.5"


def reliability_note(damaged: pd.DataFrame, correlations: Mapping[str, RankCorrelation]) -> str:
    """One line for every place that shows a win rate: how far the judge can be trusted, and what it cannot tell apart."""
    rows = [row for row in damaged.itertuples() if row.flaw != "none" and row.original_preferred_n]
    wins = [text for severity in SEVERITIES if (text := _wins([row for row in rows if row.severity == severity], severity))]
    parts = [f"the judge prefers an original to its damaged twin: {', '.join(wins)}"] if wins else []
    for doubt, words in (
        ("interval holds 0.5", "cannot tell"),
        ("too few pairs to tell", "too few pairs to tell, all won"),
        ("prefers the damaged one", "prefers the damaged one"),
    ):
        flaws: dict[str, list[str]] = {}
        for row in rows:
            if _doubt(row) == doubt:
                flaws.setdefault(row.flaw, []).append(row.severity)
        named = ", ".join(f"{flaw} ({', '.join(severities)})" for flaw, severities in flaws.items())
        parts += [f"{words}: {named}"] if named else []
    for form, found in correlations.items():
        if found.rho.value is not None:
            interval = "" if found.rho.low is None else f" [{found.rho.low:.2f}, {found.rho.high:.2f}]"
            counts = f"p {found.p_value:.2g}, {found.rho.n} released systems, {found.num_tasks} tasks"
            parts.append(f"rho {found.rho.value:.2f}{interval} with the published win rates, {counts} ({FORMS[form]})")
    return "; ".join(parts) or "the judge was not checked"


def _wins(rows: Sequence[tuple], severity: str) -> str:
    """Wins, without halves of ties, over all flaws of a severity; "" where nothing was scored."""
    wins, n = sum(row.wins for row in rows), sum(row.original_preferred_n for row in rows)
    rate = proportion(wins, n)
    return f"{wins} of {n} pairs with {DAMAGED[severity]} [{rate.low:.2f}, {rate.high:.2f}]" if n else ""
