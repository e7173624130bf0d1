"""Table 1: every CRA framework on every backbone, by success, recall, win rate and number of calls. Paper: section 3.2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import pandas as pd

from ..core.schema import Domain, Trajectory, Verdict
from .comparison import Comparison, PairedDifference, Values, compare_all, holm, tasks_needed
from .judges import DIMENSIONS
from .metrics import AGENT_ROLES, mean_score, reply_words, summarize, valid_share
from .paper import paper_results
from .statistics import Rate, average, mean
from .tables import EXPERT, Played, comparison_table, rate_columns
from .transcripts import user_of
from .win_rates import WinRate, outcomes, win_rate

Verdicts = Mapping[tuple[str, str], Sequence[Verdict]]
Judged = Mapping[Domain, Verdicts]
Measure = Literal["success", "recall", "confirmation", "valid_actions", "reply_words", "win", "direct_win"]
VALUE_OF: dict[Measure, Callable[[Trajectory], float | None]] = {  # of a dialogue by itself, with nobody's verdict
    "success": lambda row: float(row.is_success),
    "recall": lambda row: float(row.is_recalled),
    "confirmation": lambda row: mean_score(row, "satisfaction"),
    "valid_actions": valid_share,
    "reply_words": reply_words,
}
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
    """Mean over dialogues of the time their calls took, all roles, cached answers as long as at first.

    Dialogues without a call, or from before the time of cached answers was kept, are left out and counted.
    """
    return mean(
        None if not row.usage or any(u.cached and not u.cached_seconds for u in row.usage.values())
        else sum(u.seconds + u.cached_seconds for u in row.usage.values())
        for row in rows
    )  # fmt: skip


def cra_table(played: Played, judged: Judged, profile: str) -> pd.DataFrame:
    """One row per domain and system, the paper's values beside ours. Paper: Table 1, upper half.

    Args:
        played: Trajectories by domain and system, whose name is FRAMEWORK_BACKBONE.
        judged: Verdicts by domain and (system, other); the win rate is that over `EXPERT`, whose own, 0.5 by definition, is left empty.
        profile: Marks the rows.
    """
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():
            published = paper_results()["table1"].get(name, {}).get(domain, {})
            verdicts = judged.get(domain, {}).get((name, EXPERT))
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
        "ties": found.ties if found else None,
        **habit_columns(found),
        "unscored_pairs": found.num_unscored if found else 0,
        "paper_WR": published.get("WR"),
    }


def habit_columns(found: WinRate | None) -> dict:
    """What tells whether a win rate means anything: that no side is preferred in any pair, and how far verdicts follow the order."""
    return {
        "undecided": found.is_undecided if found else False,
        "flips": found.flips.value if found else None,
        "first_shown": found.first_shown.value if found else None,
    }


def _effort(rows: Sequence[Trajectory], name: str) -> dict:
    answered = [row for row in rows if num_replies(row)]
    return {
        **rate_columns("calls_per_dialogue", mean(agent_calls(row) for row in rows)),
        **rate_columns("calls_per_turn", mean(agent_calls(row) / num_replies(row) for row in answered)),
        "queries_per_turn": average(num_queries(row) / num_replies(row) for row in answered),
        "paper_calls": ORDERS.get(name.rpartition("_")[0], ""),
        **rate_columns("seconds_per_dialogue", seconds_per_dialogue(rows)),
    }


def system_comparisons(played: Played, judged: Judged, baseline: str, profile: str, *, seed: int) -> pd.DataFrame:
    """Every system against the baseline on the same tasks, per measure and domain: paired interval and sign-flip test over users.

    Each measure is one family of Holm's adjustment, over all its domains. "confirmation" is a dialogue's mean satisfaction, 0 to 5,
    "valid_actions" the share of actions that could be read, which ChatRec and MACRS lack (unscored), "reply_words" the mean number of
    words of its replies. A "win" is over `EXPERT`, a "direct_win" over the baseline, where that is another one and was judged against;
    whoever is won over has the value 0.5 on every task.

    Args:
        played: Trajectories by domain and system.
        judged: Verdicts by domain and (system, other), for the wins.
        baseline: A system; a domain without it is left out.
        profile: Marks the rows.
        seed: Of resampling.

    Returns:
        `comparison_table` with `measure`, `domain`, and `tasks_needed`: independent tasks that a sign test needs, with power
        0.8, if systems differ as measured; none where they do not.
    """
    found: list[tuple[Measure, Domain, Comparison]] = []
    for measure in (name for name in get_args(Measure) if name != "direct_win" or baseline != EXPERT):
        family = [
            (domain, each)
            for domain, systems in played.items()
            if baseline in systems
            for each in _compare_domain(measure, systems, judged.get(domain, {}), baseline, seed)
        ]
        adjusted = holm([each.paired.p_value for _, each in family])
        found += [(measure, domain, dataclasses.replace(each, p_holm=p)) for (domain, each), p in zip(family, adjusted, strict=True)]
    return comparison_table([each for _, _, each in found]).assign(
        measure=[measure for measure, _, _ in found],
        domain=[domain for _, domain, _ in found],
        profile=profile,
        tasks_needed=[_tasks_needed(each.paired) for _, _, each in found],
    )


def _compare_domain(
    measure: Measure, systems: Mapping[str, Sequence[Trajectory]], verdicts: Verdicts, baseline: str, seed: int
) -> list[Comparison]:
    won_over = baseline if measure == "direct_win" else EXPERT
    judged = {name: None if name == won_over else verdicts.get((name, won_over), []) for name in systems}
    if measure == "direct_win":
        systems = {name: rows for name, rows in systems.items() if judged[name] is None or judged[name]}
    values = {name: _values(measure, rows, judged[name]) for name, rows in systems.items()}
    users = {row.task_id: user_of(row.task_id, row.target.item_id) for rows in systems.values() for row in rows}
    return compare_all(values, baseline, seed, groups=users)


def _values(measure: Measure, rows: Sequence[Trajectory], verdicts: Sequence[Verdict] | None) -> Values:
    """A system's value of each task that it played; `verdicts` None for the one that the wins are over."""
    if measure in ("win", "direct_win"):
        won = outcomes(verdicts or [])
        return {row.task_id: 0.5 if verdicts is None else won.get(row.task_id) for row in rows}
    return {row.task_id: VALUE_OF[measure](row) for row in rows}


def _tasks_needed(paired: PairedDifference) -> int | None:
    n, more, less = paired.difference.n, paired.num_higher, paired.num_lower
    return tasks_needed((more - less) / n, (more + less) / n) if more != less else None


def backbone_win_rates(judged: Judged, profile: str) -> pd.DataFrame:
    """WR of each framework on the small backbone against itself on the expert's. Paper: Table 4, row Llama-3.1.

    Its SR and R are those of `cra_table`.
    """
    rows = []
    for domain, comparisons in judged.items():
        for (first, second), verdicts in comparisons.items():
            if first.rpartition("_")[0] != second.rpartition("_")[0]:
                continue
            paper = paper_results()["table4"].get(first) if domain == "book" else None
            row = {"domain": domain, "system": first, "against": second, "profile": profile}
            rows.append(row | _judgement(win_rate(verdicts), {"WR": paper}))
    return pd.DataFrame(rows)


def dimension_table(judged: Judged, profile: str) -> pd.DataFrame:
    """Win rate of each comparison per dimension, beside the paper's Figure 5 where that has one."""
    rows = []
    for domain, comparisons in judged.items():
        for (first, second), verdicts in comparisons.items():
            published = paper_results()["figure5"].get(first, {}).get(domain, {}) if second == EXPERT else {}
            for dimension in DIMENSIONS:
                found = win_rate(verdicts, dimension=dimension)
                rows.append(
                    {"domain": domain, "system": first, "against": second, "profile": profile, "dimension": dimension}
                    | rate_columns("win_rate", found.rate)
                    | {"wins": found.wins, "ties": found.ties, "losses": found.losses, "unscored": found.num_unscored}
                    | habit_columns(found)
                    | {"paper_WR": published.get(dimension)}
                )
    return pd.DataFrame(rows)
