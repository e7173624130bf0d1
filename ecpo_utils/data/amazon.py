"""Reader of the Amazon Reviews 2023 format: a review file and a meta file, joined on `parent_asin`."""

from __future__ import annotations

import html
import re
from pathlib import Path

from ..core.artifacts import iter_json_lines
from ..core.errors import SchemaError
from ..core.schema import Item, Review

_YEAR = re.compile(r"\b(1[0-9]{3}|20[0-9]{2})\b")


def load_amazon(reviews: Path, meta: Path) -> tuple[dict[str, Item], list[Review]]:
    """Items by id, and the reviews of those items in file order.

    Raises:
        ArtifactError: If a file is missing.
        SchemaError: If a line is broken or lacks a needed key; names file and line.
    """
    items = {}
    for number, row in iter_json_lines(meta):
        try:
            item = _item(row, f"{meta}:{number}")
        except (TypeError, AttributeError) as error:
            raise SchemaError(f"{meta}:{number}: {error}; is this an Amazon Reviews 2023 file?") from None
        items[item.item_id] = item
    found = [_review(row, f"{reviews}:{number}") for number, row in iter_json_lines(reviews)]
    return items, [review for review in found if review.item_id in items]


def _need(row: dict, key: str, where: str) -> object:
    if row.get(key) in (None, ""):
        raise SchemaError(f"{where}: no '{key}'; is this an Amazon Reviews 2023 file?")
    return row[key]


def _clean(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def parse_price(value: object) -> float | None:
    """US dollars or None: the dumps hold numbers, null, and text such as "$12.99" or "from 4.50"."""
    if isinstance(value, (int, float)):
        return float(value)
    match = re.search(r"\d+(?:\.\d+)?", str(value or "").replace(",", ""))
    return float(match.group()) if match else None


def _item(row: dict, where: str) -> Item:
    author = row.get("author") or {}
    maker = author.get("name") if isinstance(author, dict) else None
    maker = maker or re.sub(r"\s*\(Author\).*", "", row.get("store") or "")
    details = row.get("details") or {}
    dates = [v for k, v in details.items() if "date" in k.lower() and isinstance(v, str)] if isinstance(details, dict) else []
    year = next((match.group() for match in map(_YEAR.search, dates) if match), "")
    byline = " ".join(part for part in (f"By {maker}" if maker else "", f"({year})" if year else "") if part)
    text = row.get("description") or row.get("features") or []
    body = _clean(text if isinstance(text, str) else " ".join(text))
    return Item(
        item_id=str(_need(row, "parent_asin", where)),
        title=_clean(str(_need(row, "title", where))),
        categories=[_clean(c) for c in row.get("categories") or []],
        description=f"{byline}. {body}" if byline else body,
        price=parse_price(row.get("price")),
    )


def _review(row: dict, where: str) -> Review:
    user, item = str(_need(row, "user_id", where)), str(_need(row, "parent_asin", where))
    try:
        return Review(
            review_id=f"{user}/{item}/{row.get('timestamp', 0)}",
            user_id=user,
            item_id=item,
            rating=float(_need(row, "rating", where)),
            title=_clean(row.get("title") or ""),
            text=_clean(row.get("text") or ""),
            timestamp_ms=int(row.get("timestamp") or 0),
        )
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{where}: {error}") from None
