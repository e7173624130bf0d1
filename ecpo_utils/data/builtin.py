"""The data sets that come with the package, in the raw formats of their sources. See files/DATA_CARD.md."""

from __future__ import annotations

from pathlib import Path

from ..core.schema import Domain, Item, Review
from .amazon import load_amazon
from .yelp import load_yelp

FILES = Path(__file__).parent / "files"


def load_builtin(domain: Domain) -> tuple[dict[str, Item], list[Review]]:
    """Items by id and reviews of a built-in domain, read as the real dumps are."""
    folder = FILES / domain
    if domain == "yelp":
        return load_yelp(folder / "review.json", folder / "business.json", folder / "summaries.jsonl")
    return load_amazon(folder / "reviews.jsonl", folder / "meta.jsonl")
