"""Whether expectation confirmation tells good replies from bad ones: 80 written pairs with a planted flaw.

Each pair is one history with two replies, a good one and its flawed twin (repeated question, ignored request,
irrelevant item, system error, no guidance). The `dev` half served to find the questions; the `test` half reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from ..core.artifacts import load_jsonl
from ..core.concurrency import map_bounded
from ..core.schema import Confirmation, Domain, Item, Message, Record
from ..data.builtin import FILES
from ..dialogue.confirmation import MAXIMA, Confirmer
from .statistics import average, proportion


class FlawPair(Record):
    """A history and two replies to it."""

    pair_id: str
    split: Literal["dev", "test"]
    domain: Domain
    flaw: Literal["repeated_question", "ignored_request", "irrelevant_item", "system_error", "no_guidance"]
    target: dict
    history: list[Message]
    good: str
    flawed: str


class JudgedPair(Record):
    """A pair and the confirmation of each twin."""

    pair: FlawPair
    good: Confirmation
    flawed: Confirmation


def load_flaw_pairs(split: str, limit: int | None = None) -> list[FlawPair]:
    """Pairs of one half; with a limit as evenly over the flaws as possible."""
    pairs = [pair for pair in load_jsonl(FILES / "planted_flaws.jsonl", FlawPair) if pair.split == split]
    rank: dict[str, int] = {}
    order = []
    for pair in pairs:
        rank[pair.flaw] = rank.get(pair.flaw, 0) + 1
        order.append((rank[pair.flaw], pair))
    chosen = [pair for _, pair in sorted(order, key=lambda entry: entry[0])]
    return chosen[:limit]


def _situation(pair: FlawPair, reply: str) -> tuple[Item, Domain, list[Message]]:
    """What `Confirmer.confirm` is given in a dialogue that has come to this reply."""
    return Item(item_id=pair.pair_id, **pair.target), pair.domain, [*pair.history, {"role": "assistant", "content": reply}]


async def judge_flaw_pairs(confirmer: Confirmer, pairs: Sequence[FlawPair]) -> list[JudgedPair]:
    """Confirm both twins of every pair, as AILO would in a dialogue."""

    async def judge(pair: FlawPair) -> JudgedPair:
        good, flawed = [await confirmer.confirm(*_situation(pair, reply)) for reply in (pair.good, pair.flawed)]
        return JudgedPair(pair=pair, good=good, flawed=flawed)

    return await map_bounded(judge, pairs, limit=confirmer.client.endpoint.max_concurrency, description="planted flaws", unit="pair")


async def gather_flaw_evidence(
    confirmer: Confirmer, pairs: Sequence[FlawPair]
) -> list[tuple[FlawPair, dict[str, float], dict[str, float]]]:
    """The evidence of both twins of every pair, before any weights: what `calibration` fits on."""

    async def gather(pair: FlawPair) -> tuple[FlawPair, dict[str, float], dict[str, float]]:
        good, flawed = [await confirmer.gather(*_situation(pair, reply)) for reply in (pair.good, pair.flawed)]
        return pair, good, flawed

    return await map_bounded(gather, pairs, limit=confirmer.client.endpoint.max_concurrency, description="evidence", unit="pair")


def graded(confirmation: Confirmation) -> float | None:
    """Satisfaction before rounding, 0-5, where probabilities were read; otherwise r_t itself."""
    if confirmation.probabilities:
        return sum(MAXIMA[name] * value for name, value in confirmation.probabilities.items())
    return confirmation.satisfaction


def separation_table(judged: Sequence[JudgedPair]) -> pd.DataFrame:
    """Per flaw and overall: how often the good twin scores higher, by the graded score and by r_t.

    A tie is not "higher". `r_t_lower` counts pairs whose flawed twin has the higher r_t.
    """
    rows = []
    flaws = list(dict.fromkeys(entry.pair.flaw for entry in judged))
    for flaw in [*flaws, "all"]:
        part = [entry for entry in judged if flaw in ("all", entry.pair.flaw)]
        scored = [entry for entry in part if entry.good.satisfaction is not None and entry.flawed.satisfaction is not None]
        rate = proportion(sum(graded(e.good) > graded(e.flawed) for e in scored), len(scored))
        gaps = [e.good.satisfaction - e.flawed.satisfaction for e in scored]
        rows.append(
            {
                "flaw": flaw,
                "n": len(part),
                "scored": len(scored),
                "good_higher": rate.value,
                "low": rate.low,
                "high": rate.high,
                "r_t_higher": sum(g > 0 for g in gaps),
                "r_t_equal": sum(g == 0 for g in gaps),
                "r_t_lower": sum(g < 0 for g in gaps),
                "mean_good": average(e.good.satisfaction for e in scored),
                "mean_flawed": average(e.flawed.satisfaction for e in scored),
            }
        )
    return pd.DataFrame(rows)
