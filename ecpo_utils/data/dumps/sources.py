"""What the two sources call things, and which rows of theirs need no second look. The only place that knows their keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...core.schema import Item, Review
from .. import amazon, yelp

Role = Literal["reviews", "meta"]


@dataclass(frozen=True)
class DumpSource:
    """A source's two files.

    Attributes:
        label: How messages call it.
        review_columns: Keys of a review that are read, with their DuckDB types.
        item_columns: Likewise of an item; the first is its id.
        user, item, rating: Keys of a review.
        review_key: Reviews that agree in these are one review.
        sound: SQL that holds for a review only if `parse_review` would take it as it stands.
        texts: Keys of a review that hold text; a list or an object there is not text, whatever the engine makes of it.
        signatures: Per role, keys that tell such a file from others.
        members: Per role, how the file's name ends inside a tar archive.
    """

    label: str
    review_columns: dict[str, str]
    item_columns: dict[str, str]
    user: str
    item: str
    rating: str
    review_key: tuple[str, ...]
    sound: str
    texts: tuple[str, ...]
    signatures: dict[Role, frozenset[str]]
    members: dict[Role, str]
    parse_review: Callable[[dict, str], Review]
    parse_item: Callable[[dict, str], Item]

    @property
    def is_sound(self) -> str:
        """SQL: whether a review needs no second look. False, never NULL, for whatever the engine could not read."""
        named = {self.user, self.item, *self.review_key}
        ids = [key for key, kind in self.review_columns.items() if key in named and kind == "VARCHAR"]
        plain = [f"({_opens_no_bracket(key)} OR NOT json_valid({key}))" for key in self.texts]
        named = [f"{key} <> '' AND ({_opens_no_bracket(key)})" for key in ids]
        return f"coalesce({self.rating} BETWEEN 1 AND 5 AND {self.sound} AND {' AND '.join(named + plain)}, false)"


def _opens_no_bracket(key: str) -> str:
    """SQL: a text does not begin with "[" or "{", as lists and objects do. Of six ways to say so the one that costs next to nothing."""
    return f"{key} NOT LIKE '[%' AND {key} NOT LIKE '{{%'"


AMAZON = DumpSource(
    label="Amazon Reviews 2023",
    review_columns={
        "user_id": "VARCHAR",
        "parent_asin": "VARCHAR",
        "rating": "DOUBLE",
        "timestamp": "BIGINT",
        "title": "VARCHAR",
        "text": "VARCHAR",
    },
    item_columns={"parent_asin": "VARCHAR", "title": "VARCHAR"},
    user="user_id",
    item="parent_asin",
    rating="rating",
    review_key=("user_id", "parent_asin", "timestamp"),
    sound="timestamp >= 100000000000 AND timestamp < 100000000000000",
    texts=("title", "text"),
    signatures={
        "reviews": frozenset({"user_id", "parent_asin", "rating"}),
        "meta": frozenset({"parent_asin", "average_rating", "main_category"}),
    },
    members={"reviews": ".jsonl", "meta": ".jsonl"},
    parse_review=amazon.parse_review,
    parse_item=amazon.parse_item,
)

YELP = DumpSource(
    label="Yelp academic dataset",
    review_columns={
        "review_id": "VARCHAR",
        "user_id": "VARCHAR",
        "business_id": "VARCHAR",
        "stars": "DOUBLE",
        "date": "VARCHAR",
        "text": "VARCHAR",
    },
    item_columns={"business_id": "VARCHAR", "name": "VARCHAR"},
    user="user_id",
    item="business_id",
    rating="stars",
    review_key=("review_id",),
    sound=r"regexp_full_match(date, '\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?') AND try_cast(date AS TIMESTAMP) IS NOT NULL",
    texts=("text",),
    signatures={
        "reviews": frozenset({"review_id", "user_id", "business_id", "stars"}),
        "meta": frozenset({"business_id", "name", "city"}),
    },
    members={"reviews": "_review.json", "meta": "_business.json"},
    parse_review=yelp.parse_review,
    parse_item=yelp.parse_item,
)

SOURCES: dict[str, DumpSource] = {"amazon": AMAZON, "yelp": YELP}
