"""The Yelp academic dataset: a review file and a business file, joined on `business_id`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from ..core.artifacts import iter_json_lines
from ..core.errors import SchemaError
from ..core.schema import Item, Review
from .fields import cut_title, need, parse_rating, plain_text

_WHAT = "a file of the Yelp academic dataset"


def load_yelp(reviews: Path, businesses: Path, summaries: Path | None = None) -> tuple[dict[str, Item], list[Review]]:
    """Items by id, and the reviews of those businesses in file order.

    Args:
        reviews: `yelp_academic_dataset_review.json` or a file of that form.
        businesses: `yelp_academic_dataset_business.json` or a file of that form.
        summaries: Lines {"business_id", "summary"}, descriptions in prose. Without it an item is
            described by its attributes.

    Raises:
        ArtifactError: If a file is missing.
        SchemaError: If a line is broken or lacks a needed key; names file and line.
    """
    texts = _summaries(summaries) if summaries else {}
    found = [parse_item(row, f"{businesses}:{number}", texts) for number, row in iter_json_lines(businesses)]
    items = {item.item_id: item for item in found}
    rows = [parse_review(row, f"{reviews}:{number}") for number, row in iter_json_lines(reviews)]
    return items, [review for review in rows if review.item_id in items]


def _summaries(path: Path) -> dict[str, str]:
    rows = ((row, f"{path}:{number}") for number, row in iter_json_lines(path))
    return {str(need(row, "business_id", where, _WHAT)): str(need(row, "summary", where, _WHAT)) for row, where in rows}


def _plain(value: object) -> object:
    """Attribute values are Python literals in strings: "u'quiet'", "{'casual': True}", "True"."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _describe(attributes: dict) -> str:
    """Attributes in words: what is true, and what has a value."""
    parts = []
    for name, raw in (attributes or {}).items():
        value = _plain(raw)
        if isinstance(value, dict):
            parts += [f"{name}: {', '.join(k for k, v in value.items() if v)}"] if any(value.values()) else []
        elif value is True:
            parts.append(name)
        elif value not in (False, None, "none", "None", "no"):
            parts.append(f"{name}: {value}")
    return "; ".join(parts)


def parse_item(row: dict, where: str, texts: Mapping[str, str] | None = None) -> Item:
    """A line of a business file, described by `texts` where they hold it; a SchemaError says where it stood and what was wrong."""
    try:
        return _item(row, texts or {}, where)
    except (TypeError, AttributeError) as error:
        raise SchemaError(f"{where}: an item of another form: {error}; is this {_WHAT}?") from None


def _item(row: dict, texts: Mapping[str, str], where: str) -> Item:
    identity = plain_text(need(row, "business_id", where, _WHAT), "business_id", where)
    place = ", ".join(row[k] for k in ("city", "state") if row.get(k))
    body = texts.get(identity) or _describe(row.get("attributes") or {})
    return Item(
        item_id=identity,
        title=cut_title(plain_text(need(row, "name", where, _WHAT), "name", where)),
        categories=[c.strip() for c in (row.get("categories") or "").split(",") if c.strip()],
        description=plain_text(f"In {place}. {body}" if place else body, "attributes", where),
    )


def parse_review(row: dict, where: str) -> Review:
    """A line of a review file; a SchemaError says where it stood and what was wrong."""
    identity, user, item = (plain_text(need(row, key, where, _WHAT), key, where) for key in ("review_id", "user_id", "business_id"))
    try:
        when = datetime.fromisoformat(str(row.get("date") or "1970-01-01")).replace(tzinfo=UTC)
    except ValueError:
        raise SchemaError(f"{where}: date is no date: {row['date']!r:.60}") from None
    return Review(
        review_id=identity,
        user_id=user,
        item_id=item,
        rating=parse_rating(need(row, "stars", where, _WHAT), where),
        text=plain_text(row.get("text"), "text", where),
        timestamp_ms=int(when.timestamp() * 1000),
    )
