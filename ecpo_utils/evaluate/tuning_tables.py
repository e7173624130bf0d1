"""Tables of the tuned agents: valid actions, rewriting, training curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from ..core.schema import Domain, Rewrite, Trajectory, Verdict
from ..dialogue.agents.actions import parse_action
from .cra_table import Judged, cra_table, habit_columns
from .metrics import reply_words, valid_share
from .paper import paper_results
from .statistics import average, mean, proportion
from .tables import Played, outcome_cells, rate_cell, rate_columns, win_cells
from .win_rates import win_rate, win_shares

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
