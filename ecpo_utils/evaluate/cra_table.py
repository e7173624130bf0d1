"""Table 1: every CRA framework on every backbone, by success, recall, win rate and number of calls. Paper: section 3.2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..core.schema import Domain, Trajectory, Verdict
from .comparison import compare_all
from .metrics import summarize
from .paper import paper_results
from .statistics import Rate, mean
from .tables import Played, comparison_table, rate_columns
from .win_rates import WinRate, win_rate

Judged = Mapping[Domain, Mapping[tuple[str, str], Sequence[Verdict]]]
AGENT_ROLES = ("expert", "cra")
ORDERS = {"chatrec": "O(N)", "react": "O(M+2N)", "macrs": "O(M+4N)", "actcrs": "O(M+N)"}  # the paper's, per dialogue


def agent_calls(row: Trajectory) -> int:
    """Chat calls of the agent in a dialogue, retries included."""
    return sum(row.usage[role].calls for role in AGENT_ROLES if role in row.usage)


def num_queries(row: Trajectory) -> int:
    """M: how often the agent wrote a retrieval query in a dialogue."""
    steps = [step for turn in row.turns for step in turn.steps]
    return sum(step.purpose == "query" or (step.action is not None and step.action.type == "search") for step in steps)


def num_replies(row: Trajectory) -> int:
    """N: turns that the agent answered."""
    return sum(turn.reply is not None for turn in row.turns)


def seconds_per_dialogue(rows: Sequence[Trajectory]) -> Rate:
    """Mean over dialogues of the time their calls took, all roles; dialogues with cached calls are left out and counted."""
    return mean(
        None if any(u.cached for u in row.usage.values()) or not row.usage else sum(u.seconds for u in row.usage.values()) for row in rows
    )


def cra_table(played: Played, judged: Judged, profile: str, *, against: str = "actcrs_expert") -> pd.DataFrame:
    """One row per domain and system, the paper's values beside ours. Paper: Table 1, upper half.

    Args:
        played: Trajectories by domain and system, whose name is FRAMEWORK_BACKBONE.
        judged: Verdicts by domain and (system, against).
        profile: Marks the rows.
        against: Whose dialogues the win rate is measured against; its own is 0.5 by definition and left empty.
    """
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():
            published = paper_results()["table1"].get(name, {}).get(domain, {})
            verdicts = judged.get(domain, {}).get((name, against))
            rows.append(
                {"domain": domain, "system": name, "profile": profile}
                | _success(trajectories, published)
                | _judgement(win_rate(verdicts) if verdicts else None, published)
                | _effort(trajectories, name)
            )
    return pd.DataFrame(rows)


def _success(rows: Sequence[Trajectory], published: dict) -> dict:
    metrics = summarize(rows)
    return {
        "n": metrics.n,
        "failed": metrics.n_failed,
        "leaks": metrics.statuses["leak"],
        **rate_columns("success_rate", metrics.success_rate),
        "paper_SR": published.get("SR"),
        **rate_columns("recall", metrics.recall),
        "paper_R": published.get("R"),
        **rate_columns("mean_confirmation", metrics.mean_confirmation),
        **rate_columns("system_error_share", metrics.system_error_share),
    }


def _judgement(found: WinRate | None, published: dict) -> dict:
    return {
        **rate_columns("win_rate", found.rate if found else Rate(None, None, None, 0)),
        "flips": found.flips.value if found else None,
        "first_shown": found.first_shown.value if found else None,
        "unscored_pairs": found.num_unscored if found else 0,
        "paper_WR": published.get("WR"),
    }


def _effort(rows: Sequence[Trajectory], name: str) -> dict:
    answered = [row for row in rows if num_replies(row)]
    return {
        **rate_columns("calls_per_dialogue", mean(agent_calls(row) for row in rows)),
        **rate_columns("calls_per_turn", mean(agent_calls(row) / num_replies(row) for row in answered)),
        "queries_per_turn": mean(num_queries(row) / num_replies(row) for row in answered).value,
        "paper_calls": ORDERS.get(name.rpartition("_")[0], ""),
        **rate_columns("seconds_per_dialogue", seconds_per_dialogue(rows)),
    }


def success_comparisons(played: Played, baseline: str, *, seed: int) -> pd.DataFrame:
    """Every system's success against the baseline's on the same tasks, per domain: paired interval, Holm-adjusted p."""
    tables = []
    for domain, systems in played.items():
        values = {name: {row.task_id: _succeeded(row) for row in rows} for name, rows in systems.items()}
        users = {row.task_id: row.task_id.rpartition("/")[0] for rows in systems.values() for row in rows}
        tables.append(comparison_table(compare_all(values, baseline, seed, groups=users)).assign(domain=domain))
    return pd.concat(tables, ignore_index=True)


def _succeeded(row: Trajectory) -> float:
    return float(row.status not in ("failed", "leak") and row.recommended_at is not None)


def backbone_win_rates(judged: Judged) -> pd.DataFrame:
    """WR of each framework on the small backbone against itself on the expert's. Paper: Table 4, row Llama-3.1."""
    rows = []
    for domain, comparisons in judged.items():
        for (first, second), verdicts in comparisons.items():
            if first.rpartition("_")[0] != second.rpartition("_")[0]:
                continue
            found = win_rate(verdicts)
            paper = paper_results()["table4"].get(first) if domain == "book" else None
            rows.append({"domain": domain, "system": first, "against": second} | _judgement(found, {"WR": paper}))
    return pd.DataFrame(rows)
