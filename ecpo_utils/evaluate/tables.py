"""Tables as pure functions of records: one row per system and domain, the paper's value beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from ..core.schema import Domain, Trajectory
from .comparison import Comparison
from .diversity import DiversitySummary
from .metrics import AGENT_ROLES, summarize
from .paper import paper_results
from .statistics import Rate

Played = Mapping[Domain, Mapping[str, Sequence[Trajectory]]]  # by domain and system
EXPERT = "actcrs_expert"  # the system whose dialogues are the yardstick


def all_dialogues(played: Played) -> Iterator[Trajectory]:
    """The dialogues of every domain and system."""
    return (row for systems in played.values() for rows in systems.values() for row in rows)


def rate_columns(name: str, rate: Rate | None) -> dict[str, float | None]:
    """A value with its interval and the number of dialogues that it rests on."""
    if rate is None:
        return {name: None}
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high, f"{name}_n": rate.n}


def simulation_table(played: Played, profile: str) -> pd.DataFrame:
    """Success, recall, turns, confirmation, calls and tokens of each system, with 95% intervals. Paper: Table 1."""
    paper, rows = paper_results()["table1"], []
    summaries = {(domain, name): summarize(dialogues) for domain, systems in played.items() for name, dialogues in systems.items()}
    for (domain, name), metrics in summaries.items():
        published = paper.get(name, {}).get(domain, {})
        agent = next((metrics.calls[role] for role in AGENT_ROLES if role in metrics.calls), None)
        rows.append(
            {
                "domain": domain,
                "system": name,
                "profile": profile,
                "n": metrics.n,
                "failed": metrics.n_failed,
                **rate_columns("failed_share", metrics.failed_share),
                "leaks": metrics.statuses["leak"],
                **rate_columns("leak_share", metrics.leak_share),
                **rate_columns("success_rate", metrics.success_rate),
                "paper_SR": published.get("SR"),
                **rate_columns("recall", metrics.recall),
                "paper_R": published.get("R"),
                **rate_columns("mean_turns", metrics.mean_turns),
                **rate_columns("mean_confirmation", metrics.mean_confirmation),
                **{key: value for score, rate in metrics.sub_scores.items() for key, value in rate_columns(score, rate).items()},
                "replies": metrics.num_replies,
                "unscored_replies": metrics.num_unscored_replies,
                **rate_columns("system_error_share", metrics.system_error_share),
                **rate_columns("agent_calls", agent),
                **rate_columns("simulator_calls", metrics.calls.get("simulator")),
                **rate_columns("tokens", metrics.total_tokens),
            }
        )
    return pd.DataFrame(rows)


def rate_cell(row: pd.Series, name: str, digits: int = 2, missing: str = "unscored") -> str:
    """A value with its interval, and with its n where that is not the row's, e.g. "0.53 [0.43, 0.63] n=98"."""
    if pd.isna(row[name]):
        return missing
    low, high, n = (row[f"{name}_{end}"] for end in ("low", "high", "n"))
    interval = "" if pd.isna(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{row[name]:.{digits}f}{interval}" + ("" if n == row["n"] else f" n={n:.0f}")


def outcome_cells(row: pd.Series) -> dict[str, object]:
    """What the tables for reading begin with: who, how many, success and recall beside the paper's."""
    return {
        "domain": row["domain"],
        "system": row["system"],
        "n": row["n"],
        "failed": row["failed"],
        "leaks": row["leaks"],
        "SR": rate_cell(row, "success_rate"),
        "SR paper": row["paper_SR"],
        "R": rate_cell(row, "recall"),
        "R paper": row["paper_R"],
    }


def win_cells(row: pd.Series) -> dict[str, object]:
    """How a system fared before the judge, and what the verdicts were like; empty where there were none."""
    return {
        "WR": rate_cell(row, "win_rate") if row["win_rate_n"] or row["unscored_pairs"] else "",
        "WR paper": row["paper_WR"],
        "ties": "" if pd.isna(row["ties"]) else int(row["ties"]),
        "undecided": row["undecided"],
        "unscored": row["unscored_pairs"],
        "flips": row["flips"],
        "first shown": row["first_shown"],
    }


def short_simulation_table(table: pd.DataFrame) -> pd.DataFrame:
    """The same for reading: intervals in the cell, the paper's value beside it."""
    return pd.DataFrame(
        [
            {
                **outcome_cells(row),
                "turns": rate_cell(row, "mean_turns"),
                "EC (0-5)": rate_cell(row, "mean_confirmation"),
                "flexibility (0-2)": rate_cell(row, "flexibility"),
                "coherence (0-2)": rate_cell(row, "coherence"),
                "guidance (0-1)": rate_cell(row, "guidance"),
                "agent calls": rate_cell(row, "agent_calls", 1, missing=""),
                "tokens": rate_cell(row, "tokens", 0),
            }
            for _, row in table.iterrows()
        ]
    )


def short_conduct_table(table: pd.DataFrame) -> pd.DataFrame:
    """`dialogues.simulator_conduct` for reading: intervals in the cell."""
    columns = [name for name in table if not name.endswith(("_low", "_high", "_n"))]
    return pd.DataFrame(
        [{name: rate_cell(row, name) if f"{name}_low" in row else row[name] for name in columns} for _, row in table.iterrows()]
    )


def short_cra_table(table: pd.DataFrame) -> pd.DataFrame:
    """`cra_table` for reading: intervals in the cell, with n where it is not the row's; the paper's value beside it."""
    return pd.DataFrame(
        [
            {
                **outcome_cells(row),
                **win_cells(row),
                "calls/dialogue": rate_cell(row, "calls_per_dialogue", 1),
                "calls/turn": rate_cell(row, "calls_per_turn", missing=""),
                "queries/turn": None if pd.isna(row["queries_per_turn"]) else round(row["queries_per_turn"], 2),
                "paper calls": row["paper_calls"],
                "s/dialogue": None if pd.isna(row["seconds_per_dialogue"]) else round(row["seconds_per_dialogue"]),
            }
            for _, row in table.iterrows()
        ]
    )


def score_table(played: Played) -> pd.DataFrame:
    """How often each satisfaction 0-5 was given, per domain and system; "unscored" is a row of its own."""
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():
            replies = [turn for t in trajectories for turn in t.turns if turn.reply is not None]
            given = [turn.satisfaction for turn in replies]
            for score in [*range(6), None]:
                label = "unscored" if score is None else str(score)
                rows.append({"domain": domain, "system": name, "satisfaction": label, "replies": given.count(score)})
    return pd.DataFrame(rows)


def diversity_table(summaries: Mapping[tuple[Domain, str], DiversitySummary], profile: str) -> pd.DataFrame:
    """Persona diversity per domain and source, with the released scores of the paper's Figure 4."""
    paper, rows = paper_results()["figure4_released"], []
    for (domain, source), summary in summaries.items():
        published = paper[source] if domain == "book" else {}
        rows.append(
            {
                "domain": domain,
                "personas": source,
                "profile": profile,
                "n": summary.n,
                "distinct": summary.n_deduplicated,
                "mean": summary.mean,
                "q1": summary.q1,
                "median": summary.median,
                "q3": summary.q3,
                "paper_mean": published.get("mean"),
                "paper_n": published.get("n"),
            }
        )
    return pd.DataFrame(rows)


COMPARISON_COLUMNS = [
    *("system", "baseline"),
    *(f"{name}{part}" for name in ("system_mean", "baseline_mean", "difference") for part in ("", "_low", "_high", "_n")),
    *("higher", "lower", "unscored", "not_shared", "groups", "p_value", "p_holm", "p_exact"),
]


def comparison_table(rows: Sequence[Comparison]) -> pd.DataFrame:
    """Each system against the baseline on the tasks that both have a value of, with 95% intervals and Holm-adjusted p values."""
    return pd.DataFrame(
        [
            {
                "system": row.system,
                "baseline": row.baseline,
                **rate_columns("system_mean", row.paired.first),
                **rate_columns("baseline_mean", row.paired.second),
                **rate_columns("difference", row.paired.difference),
                "higher": row.paired.num_higher,
                "lower": row.paired.num_lower,
                "unscored": row.paired.difference.num_unscored,
                "not_shared": row.paired.num_not_shared,
                "groups": row.paired.num_groups,
                "p_value": row.paired.p_value,
                "p_holm": row.p_holm,
                "p_exact": row.paired.exact,
            }
            for row in rows
        ],
        columns=COMPARISON_COLUMNS,
    )
