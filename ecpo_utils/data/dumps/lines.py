"""One line of a dump read with care: the few that the columnar engine did not take, and the lines of the chosen items."""

from __future__ import annotations

from ...core.artifacts import parse_object
from ...core.errors import SchemaError
from ..fields import SECONDS_BELOW, TITLE_CHARACTERS

BLANK = b" \t\r\n"
MAX_LINE_BYTES = 8 << 20  # half of what the engine takes for one object


def read_object(raw: bytes) -> tuple[dict, list[str]]:
    """The object of a line, and what had to be repaired to read it.

    A byte order mark goes, so do NUL bytes; a line that is not UTF-8 is read as Windows-1252.

    Raises:
        SchemaError: If it is no JSON object even so; the message begins with the reason.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise SchemaError(f"line too long: {len(raw)} bytes")
    notes = []
    if b"\0" in raw:
        raw = raw.replace(b"\0", b"")
        notes.append("NUL bytes taken out")
    if not raw.strip(BLANK):
        raise SchemaError("nothing but NUL bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
        notes.append("not UTF-8, read as Windows-1252")
    try:
        return parse_object(text.strip(), "line"), notes
    except SchemaError as error:
        raise SchemaError(str(error).removeprefix("line: ")) from None


def review_notes(row: dict, texts: tuple[str, ...]) -> list[str]:
    """What the parser of reviews will repair in a row, in words."""
    notes = [f"no '{key}'" for key in texts if row.get(key) is None]
    if "timestamp" in row or "date" not in row and "parent_asin" in row:
        time = row.get("timestamp")
        try:
            notes += ["timestamp in seconds"] if 0 < float(time) < SECONDS_BELOW else []
        except (TypeError, ValueError):
            notes += ["no 'timestamp'"] if time in (None, "") else []
    return notes


def item_notes(row: dict, title_key: str) -> list[str]:
    """Likewise of an item."""
    long = isinstance(row.get(title_key), str) and len(row[title_key]) > TITLE_CHARACTERS
    return [f"title cut to {TITLE_CHARACTERS} characters"] if long else []
