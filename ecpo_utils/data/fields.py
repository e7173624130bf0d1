"""Values of the raw dumps as our records hold them. The reason why a value will not do stands before the message's next colon."""

from __future__ import annotations

import html
import math
import re

from ..core.errors import SchemaError

TITLE_CHARACTERS = 200  # Amazon's own limit; no agent would say a longer title in full
SECONDS_BELOW, MILLISECONDS_BELOW = 10**11, 10**14  # a time below is in seconds (until the year 5138), one above is none

# what our readers put first: author and year, or town and state; initials and "St." do not end it
_BYLINE = re.compile(
    r"(?:By [^()]{1,80}? )?\(\d{4}\)\. |In [^()]{1,60}?, [A-Z]{2}\. |In (?:(?![a-z])[^\s().]+ ?){1,4}\. "
    r"|By (?![a-z])(?:[^.()]|(?:(?<=\b[A-Z])|(?<=\b[DMSJ]r)|(?<=\bSt))\.){1,60}\. "
)


def split_byline(description: str) -> tuple[str, str]:
    """What our readers put before an item's description ("By Jane Austen (1815). ", "In Tampa, FL. "), "" for nothing, and the rest."""
    match = _BYLINE.match(description)
    return (match.group(), description[match.end() :]) if match else ("", description)


def need(row: dict, key: str, where: str, what: str) -> object:
    """A value that is there; otherwise a SchemaError that asks whether the file is `what`."""
    if row.get(key) in (None, ""):
        raise SchemaError(f"{where}: no '{key}'; is this {what}?")
    return row[key]


def plain_text(value: object, key: str, where: str) -> str:
    """Text without NUL bytes and halves of characters; numbers are written out, nothing is "".

    Raises:
        SchemaError: If it is a list or an object.
    """
    if isinstance(value, (list, dict)):
        raise SchemaError(f"{where}: {key} is no text: {value!r:.60}")
    text = "" if value is None else str(value)
    return text.replace("\0", "").encode("utf-8", "ignore").decode()


def clean_text(text: str) -> str:
    """One line without markup, NUL bytes and halves of characters."""
    text = text.replace("\0", "").encode("utf-8", "ignore").decode()
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def cut_title(text: str) -> str:
    """A title of at most `TITLE_CHARACTERS`, cut at a word."""
    return text if len(text) <= TITLE_CHARACTERS else text[:TITLE_CHARACTERS].rpartition(" ")[0] or text[:TITLE_CHARACTERS]


def parse_price(value: object) -> float | None:
    """US dollars or None: the dumps hold numbers, null, and text such as "$12.99" or "from 4.50"."""
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    match = re.search(r"\d+(?:\.\d+)?", str(value or "").replace(",", ""))
    return float(match.group()) if match else None


def parse_rating(value: object, where: str) -> float:
    """Stars, 1-5; a number in quotes will do.

    Raises:
        SchemaError: If it is no number or out of range.
    """
    try:
        rating = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        rating = float("nan")
    if not 1 <= rating <= 5:
        raise SchemaError(f"{where}: rating is no number from 1 to 5: {value!r:.60}")
    return rating


def milliseconds(value: object, where: str) -> int:
    """Unix time in milliseconds, from seconds or milliseconds; 0 where there is none.

    Raises:
        SchemaError: If it is neither.
    """
    try:
        time = 0 if value in (None, "") else int(float(value))
    except (TypeError, ValueError, OverflowError):
        time = -1
    if not 0 <= time < MILLISECONDS_BELOW:
        raise SchemaError(f"{where}: timestamp is no time in seconds or milliseconds: {value!r:.60}")
    return time * 1000 if time < SECONDS_BELOW else time
