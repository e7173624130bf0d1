"""Whether expectation confirmation tells good replies from bad ones: 80 hand-made turns with planted flaws.

Each pair is one history with two replies, a good one and its flawed twin (repeated question, ignored request,
irrelevant item, system error, no guidance). The `dev` half served to find the questions; the `test` half reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from tqdm import tqdm

from ..core.artifacts import load_jsonl
from ..core.matching import mentions_title
from ..core.schema import Confirmation, Domain, Item, Message, Record
from ..data.builtin import FILES
from ..dialogue.agents.base import NOUNS
from ..dialogue.confirmation import MAXIMA, ConfirmationMode, confirm
from ..dialogue.simulator import target_wishes
from ..llm.client import ChatClient
from .statistics import proportion


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


@dataclass(frozen=True)
class JudgedPair:
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


async def judge_flaw_pairs(client: ChatClient, pairs: Sequence[FlawPair], mode: ConfirmationMode) -> list[JudgedPair]:
    """Confirm both twins of every pair, as AILO would in a dialogue."""
    progress = tqdm(total=len(pairs), desc="planted flaws", unit="pair", mininterval=1.0)

    async def one(pair: FlawPair) -> JudgedPair:
        item = Item(item_id=pair.pair_id, **pair.target)
        scored = []
        for reply in (pair.good, pair.flawed):
            history = [*pair.history, {"role": "assistant", "content": reply}]
            scored.append(await confirm(client, wishes=" ".join(target_wishes(item)), noun=NOUNS[pair.domain], history=history,
                                        named=mentions_title(reply, item.title), mode=mode))
        progress.update()
        return JudgedPair(pair, *scored)

    try:
        return list(await asyncio.gather(*map(one, pairs)))
    finally:
        progress.close()


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
        rows.append({
            "flaw": flaw, "n": len(part), "scored": len(scored), "good_higher": rate.value, "low": rate.low, "high": rate.high,
            "r_t_higher": sum(g > 0 for g in gaps), "r_t_equal": sum(g == 0 for g in gaps), "r_t_lower": sum(g < 0 for g in gaps),
            "mean_good": sum(e.good.satisfaction for e in scored) / len(scored) if scored else None,
            "mean_flawed": sum(e.flawed.satisfaction for e in scored) / len(scored) if scored else None,
        })
    return pd.DataFrame(rows)
