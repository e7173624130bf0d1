"""Reader of the Yelp academic dataset: a review file and a business file, joined on `business_id`."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path

from ..core.artifacts import iter_json_lines
from ..core.errors import SchemaError
from ..core.schema import Item, Review


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
    items = {}
    for number, row in iter_json_lines(businesses):
        try:
            item = _item(row, texts, f"{businesses}:{number}")
        except (TypeError, AttributeError) as error:
            raise SchemaError(f"{businesses}:{number}: {error}; is this a file of the Yelp academic dataset?") from None
        items[item.item_id] = item
    found = [_review(row, f"{reviews}:{number}") for number, row in iter_json_lines(reviews)]
    return items, [review for review in found if review.item_id in items]


def _need(row: dict, key: str, where: str) -> object:
    if row.get(key) in (None, ""):
        raise SchemaError(f"{where}: no '{key}'; is this a file of the Yelp academic dataset?")
    return row[key]


def _summaries(path: Path) -> dict[str, str]:
    rows = ((row, f"{path}:{number}") for number, row in iter_json_lines(path))
    return {str(_need(row, "business_id", where)): str(_need(row, "summary", where)) for row, where in rows}


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


def _item(row: dict, texts: dict[str, str], where: str) -> Item:
    identity = str(_need(row, "business_id", where))
    place = ", ".join(row[k] for k in ("city", "state") if row.get(k))
    body = texts.get(identity) or _describe(row.get("attributes") or {})
    return Item(
        item_id=identity,
        title=str(_need(row, "name", where)),
        categories=[c.strip() for c in (row.get("categories") or "").split(",") if c.strip()],
        description=f"In {place}. {body}" if place else body,
    )


def _review(row: dict, where: str) -> Review:
    try:
        when = datetime.fromisoformat(str(row.get("date") or "1970-01-01")).replace(tzinfo=UTC)
        return Review(
            review_id=str(_need(row, "review_id", where)),
            user_id=str(_need(row, "user_id", where)),
            item_id=str(_need(row, "business_id", where)),
            rating=float(_need(row, "stars", where)),
            text=str(row.get("text") or ""),
            timestamp_ms=int(when.timestamp() * 1000),
        )
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{where}: {error}") from None
