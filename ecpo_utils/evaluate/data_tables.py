"""Tables about the data: how many items, users and reviews, and what the retriever can find."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pandas as pd

from ..core.params import Params
from ..core.schema import Domain, Record
from ..data.folder import load_data
from ..dialogue.retrieval import ItemDatabase
from ..dialogue.wishes import target_wishes
from .statistics import proportion

NUM_PROBES = 100


class Probe(Record):
    """A query that describes an item, and whether the item was among the first results."""

    item_id: str
    query: str
    found: bool


class DomainData(Record):
    """What notebook 01 found of a domain; its table is drawn from this without the embedder.

    Attributes:
        facts: The domain's row of `describe_domains`.
        probes: Of its database.
    """

    facts: dict[str, str | int | float]
    probes: list[Probe]


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


def probe_retrieval(databases: Mapping[Domain, ItemDatabase], *, top_k: int, seed: int) -> dict[Domain, list[Probe]]:
    """For some items of each domain one sentence of their own description, title hidden: are they among the first `top_k`?"""
    probes = {}
    for domain, database in databases.items():
        draw = random.Random(seed)
        items = draw.sample(database.items, min(NUM_PROBES, len(database.items)))
        queries = [draw.choice(target_wishes(item)[1:] or target_wishes(item)) for item in items]
        probes[domain] = [
            Probe(item_id=item.item_id, query=query, found=item in database.search(query, top_k))
            for item, query in zip(items, queries, strict=True)
        ]
    return probes


def retrieval_table(probes: Mapping[Domain, Sequence[Probe]]) -> pd.DataFrame:
    """How often a probed item was found, per domain, with a 95% interval."""
    rows = []
    for domain, asked in probes.items():
        rate = proportion(sum(probe.found for probe in asked), len(asked))
        rows.append({"domain": domain, "probes": rate.n, "found": rate.value, "low": rate.low, "high": rate.high})
    return pd.DataFrame(rows)


def gather_domains(described: pd.DataFrame, probes: Mapping[Domain, Sequence[Probe]]) -> dict[Domain, DomainData]:
    """Both tables' contents by domain; what a domain has no value of is left out."""
    facts = {row["domain"]: {name: value for name, value in row.items() if pd.notna(value)} for row in described.to_dict("records")}
    return {domain: DomainData(facts=facts[domain], probes=asked) for domain, asked in probes.items()}


def data_table(found: Mapping[Domain, DomainData]) -> pd.DataFrame:
    """`describe_domains` and `retrieval_table` side by side."""
    described = pd.DataFrame([data.facts for data in found.values()])
    return described.merge(retrieval_table({domain: data.probes for domain, data in found.items()}), on="domain")
