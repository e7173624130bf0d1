"""Tables of the tuned agents: valid actions, faults of replies, rewriting, training curves, win rates per dimension."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from ..core.matching import says_again
from ..core.schema import Domain, Rewrite, Trajectory, Turn, Verdict
from ..dialogue.agents.actions import parse_action
from ..dialogue.agents.base import is_system_error
from .cra_table import Judged, cra_table, habit_columns
from .judges import DIMENSIONS
from .metrics import reply_words, valid_share
from .paper import paper_results
from .statistics import average, mean, proportion
from .tables import EXPERT, Played, outcome_cells, rate_cell, rate_columns, win_cells
from .win_rates import win_rate, win_shares

FAULTS = ("system error", "repeats itself", "misses the message", "out of context", "no next step")
TRAINING_CURVES = ("loss", "eval_loss", "rewards/margins", "rewards/accuracies", "eval_rewards/margins", "eval_rewards/accuracies")


def tuned_table(played: Played, judged: Judged, profile: str) -> pd.DataFrame:
    """`cra_table` with the share of valid actions and the length of replies. Paper: Table 1, lower half."""
    table = cra_table(played, judged, profile)
    extra = [
        rate_columns("valid_actions", mean(map(valid_share, rows))) | rate_columns("reply_words", mean(map(reply_words, rows)))
        for systems in played.values()
        for rows in systems.values()
    ]
    return pd.concat([table, pd.DataFrame(extra)], axis=1)


def short_tuned_table(table: pd.DataFrame) -> pd.DataFrame:
    """`tuned_table` for reading: intervals in the cell, with n where it is not the row's; the paper's value beside it."""
    return pd.DataFrame(
        [
            {
                **outcome_cells(row),
                **win_cells(row),
                "valid actions": rate_cell(row, "valid_actions"),
                "EC (0-5)": rate_cell(row, "mean_confirmation"),
                "words/reply": None if pd.isna(row["reply_words"]) else round(row["reply_words"], 1),
            }
            for _, row in table.iterrows()
        ]
    )


def faults_of(turn: Turn, earlier: Iterable[Turn]) -> list[str]:
    """What was wrong with a scored reply, as kinds: what the reply shows itself first, then what the user's scores say."""
    ec, reply = turn.confirmation, turn.reply or ""
    found = []
    if is_system_error(turn):
        found.append("system error")
    elif says_again(reply, earlier):
        found.append("repeats itself")
    if ec.flexibility < 2:
        found.append("misses the message")
    if ec.coherence < 2:
        found.append("out of context")
    if ec.guidance < 1:
        found.append("no next step")
    return found


def fault_table(played: Played, profile: str) -> pd.DataFrame:
    """Share of scored replies with each kind of fault, and their mean satisfaction 0-5, per domain and system.

    The intervals take replies as independent, though one dialogue has several.
    """
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():
            scored = [(t, row.turns[:i]) for row in trajectories for i, t in enumerate(row.turns) if t.satisfaction is not None]
            found = [(turn.satisfaction, faults_of(turn, earlier)) for turn, earlier in scored]
            for fault in (*FAULTS, "none"):
                having = [score for score, faults in found if (fault in faults) or (fault == "none" and not faults)]
                rows.append(
                    {"domain": domain, "system": name, "profile": profile, "fault": fault}
                    | rate_columns("share", proportion(len(having), len(found)))
                    | {"mean_satisfaction": average(having)}
                )
    return pd.DataFrame(rows)


def lowest_scored(rows: Sequence[Trajectory]) -> Trajectory:
    """The dialogue with the least satisfactory reply; the first one of several, or of dialogues without a score."""
    return min(rows, key=lambda row: min((t.satisfaction for t in row.turns if t.satisfaction is not None), default=6))


def rewrite_table(rewrites: Mapping[Domain, Sequence[Rewrite]], profile: str) -> pd.DataFrame:
    """Per domain: replies sent to the rewriter, pairs that came of them, what was dropped and why, how much was changed."""
    rows = []
    for domain, records in rewrites.items():
        kept = [record for record in records if record.dropped is None]
        drops = Counter(record.dropped for record in records if record.dropped)
        rows.append(
            {
                "domain": domain,
                "profile": profile,
                "replies": len(records),
                "pairs": len(kept),
                **{f"dropped: {reason}": number for reason, number in sorted(drops.items())},
                **rate_columns("kept_words", mean(record.kept_words for record in kept)),
                **rate_columns("score_before", mean(record.score for record in kept)),
                **rate_columns("score_after", mean(record.score_after for record in kept)),
                **rate_columns("same_action", proportion(sum(map(_same_type, kept)), len(kept)) if kept else None),
                **{f"action {before} to {after}": number for (before, after), number in sorted(Counter(map(_types, kept)).items())},
                "words_before": average(len(record.original.split()) for record in kept),
                "words_after": average(len(record.rewritten.split()) for record in kept),
            }
        )
    return pd.DataFrame(rows)


def _types(record: Rewrite) -> tuple[str, str]:
    return parse_action(record.original).type, parse_action(record.rewritten).type


def _same_type(record: Rewrite) -> bool:
    before, after = _types(record)
    return before == after


def rewrite_verdicts(
    judged: Mapping[Domain, Sequence[Verdict]], rewrites: Mapping[Domain, Sequence[Rewrite]], profile: str
) -> pd.DataFrame:
    """Rewritten replies against the originals: win, tie, lose beside the paper's, in words over both orders. Paper: Table 5.

    Judged are rewrites that make a pair; where they were verified that is a choice, which the evaluator's name tells. The interval
    takes pairs as independent, though one dialogue gives several.
    """
    rows = []
    for domain, verdicts in judged.items():
        found = win_rate(verdicts)
        rows.append(
            {"domain": domain, "profile": profile, "evaluator": _evaluator(rewrites[domain])}
            | {"n": found.rate.n, "unscored": found.num_unscored}
            | win_shares(verdicts)
            | rate_columns("win_rate", found.rate)
            | habit_columns(found)
        )
    for evaluator, values in paper_results()["table5"].items():
        rows.append({"domain": "all", "profile": "paper", "evaluator": evaluator, **values})
    return pd.DataFrame(rows)


def _evaluator(records: Sequence[Rewrite]) -> str:
    pairs = sum(record.dropped is None for record in records)
    verified = any(record.score_after is not None for record in records)
    return f"judge of this run, of the {pairs} verified among {len(records)} rewrites" if verified else "judge of this run"


def curve_table(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> pd.DataFrame:
    """Training curves as rows of adapter, step, quantity, value; validation at the ends of epochs, not where a training was resumed.

    Args:
        histories: By adapter the log lines of its trainer, as `training.json` holds them.
    """
    rows = [
        {"adapter": name, "step": line["step"], "quantity": quantity, "value": line[quantity]}
        for name, lines in histories.items()
        for line in lines
        for quantity in TRAINING_CURVES
        if quantity in line and not (quantity.startswith("eval_") and abs(line.get("epoch", 0) - round(line.get("epoch", 0))) > 0.01)
    ]
    return pd.DataFrame(rows, columns=["adapter", "step", "quantity", "value"])


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
