"""Amazon Reviews 2023: a review file and a meta file, joined on `parent_asin`."""

from __future__ import annotations

import re
from pathlib import Path

from ..core.artifacts import iter_json_lines
from ..core.errors import SchemaError
from ..core.schema import Item, Review
from .fields import clean_text, cut_title, milliseconds, need, parse_price, parse_rating, plain_text

_YEAR = re.compile(r"\b(1[0-9]{3}|20[0-9]{2})\b")
_WHAT = "an Amazon Reviews 2023 file"


def load_amazon(reviews: Path, meta: Path) -> tuple[dict[str, Item], list[Review]]:
    """Items by id, and the reviews of those items in file order.

    Raises:
        ArtifactError: If a file is missing.
        SchemaError: If a line is broken or lacks a needed key; names file and line.
    """
    found = [parse_item(row, f"{meta}:{number}") for number, row in iter_json_lines(meta)]
    items = {item.item_id: item for item in found}
    rows = [parse_review(row, f"{reviews}:{number}") for number, row in iter_json_lines(reviews)]
    return items, [review for review in rows if review.item_id in items]


def parse_item(row: dict, where: str) -> Item:
    """A line of a meta file; a SchemaError says where it stood and what was wrong."""
    try:
        return _item(row, where)
    except (TypeError, AttributeError) as error:
        raise SchemaError(f"{where}: an item of another form: {error}; is this {_WHAT}?") from None


def _item(row: dict, where: str) -> Item:
    author = row.get("author") or {}
    maker = author.get("name") if isinstance(author, dict) else None
    maker = maker or re.sub(r"\s*\(Author\).*", "", row.get("store") or "")
    details = row.get("details") or {}
    dates = [v for k, v in details.items() if "date" in k.lower() and isinstance(v, str)] if isinstance(details, dict) else []
    year = next((match.group() for match in map(_YEAR.search, dates) if match), "")
    byline = " ".join(part for part in (f"By {maker}" if maker else "", f"({year})" if year else "") if part)
    text = row.get("description") or row.get("features") or []
    body = clean_text(text if isinstance(text, str) else " ".join(text))
    categories = row.get("categories") or []
    title = cut_title(clean_text(plain_text(need(row, "title", where, _WHAT), "title", where)))
    return Item(
        item_id=plain_text(need(row, "parent_asin", where, _WHAT), "parent_asin", where),
        title=str(need({"title": title}, "title", where, _WHAT)),
        categories=[clean_text(c) for c in ([categories] if isinstance(categories, str) else categories)],
        description=f"{byline}. {body}" if byline else body,
        price=parse_price(row.get("price")),
    )


def parse_review(row: dict, where: str) -> Review:
    """A line of a review file; a SchemaError says where it stood and what was wrong."""
    user, item = (plain_text(need(row, key, where, _WHAT), key, where) for key in ("user_id", "parent_asin"))
    title, text = (clean_text(plain_text(row.get(key), key, where)) for key in ("title", "text"))
    return Review(
        review_id=f"{user}/{item}/{row.get('timestamp', 0)}",
        user_id=user,
        item_id=item,
        rating=parse_rating(need(row, "rating", where, _WHAT), where),
        title=title,
        text=text,
        timestamp_ms=milliseconds(row.get("timestamp"), where),
    )
