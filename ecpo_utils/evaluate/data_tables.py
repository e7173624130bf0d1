"""Tables about the data: how many items, users and reviews, and what the retriever can find."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pandas as pd

from ..core.params import Params
from ..core.schema import Domain
from ..data.folder import load_data
from ..dialogue.retrieval import ItemDatabase
from ..dialogue.wishes import target_wishes
from .statistics import proportion

NUM_PROBES = 100


def describe_domains(params: Params, databases: Mapping[Domain, ItemDatabase]) -> pd.DataFrame:
    """Items, and where reviews are at hand users, reviews and liked items, per domain; of a large base how much its index finds."""
    rows = []
    for domain, database in databases.items():
        row = {"domain": domain, "source": params.data_source, "items": len(database.items)}
        if params.data_source != "release":
            _, reviews = load_data(params, domain)
            liked = {(r.user_id, r.item_id) for r in reviews if r.rating >= params.min_target_rating}
            row |= {
                "users": len({r.user_id for r in reviews}),
                "reviews": len(reviews),
                "liked pairs": len(liked),
                "liked items": len({item for _, item in liked}),
            }
        if "recall_at_5" in (facts := database.facts):
            row |= {"index": facts["index"], "recall@5 against flat": facts["recall_at_5"], "queries": facts["recall_queries"]}
        rows.append(row)
    return pd.DataFrame(rows)


def retrieval_check(databases: Mapping[Domain, ItemDatabase], *, top_k: int, seed: int) -> pd.DataFrame:
    """How often an item is among the first `top_k` for one sentence of its own description, title hidden."""
    rows = []
    for domain, database in databases.items():
        draw = random.Random(seed)
        probes = draw.sample(database.items, min(NUM_PROBES, len(database.items)))
        found = sum(item in database.search(draw.choice(target_wishes(item)[1:] or target_wishes(item)), top_k) for item in probes)
        rate = proportion(found, len(probes))
        rows.append({"domain": domain, "probes": rate.n, "found": rate.value, "low": rate.low, "high": rate.high})
    return pd.DataFrame(rows)
