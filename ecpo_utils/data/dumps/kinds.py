"""What kind of file a path is, from its first bytes: a wrong one is told at once, not after a long scan."""

from __future__ import annotations

import codecs
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core.errors import ArtifactError, SchemaError
from .lines import BLANK, read_object
from .sources import SOURCES, DumpSource, Role

HEAD_BYTES = 1 << 18
HEAD_LINES = 50
Encoding = Literal["utf-8", "utf-16"]

FOREIGN = {
    b"PK\x03\x04": "a zip archive; unpack it and give the file inside",
    b"PAR1": "a parquet file; the JSON-lines file of the same name is needed",
    b"BZh": "packed by bzip2; unpack it first",
    b"\xfd7zXZ": "packed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the file inside",
    b"%PDF": "a PDF",
    b"SQLite format": "an SQLite database",
    b"ARROW1": "an Arrow file; the JSON-lines file of the same name is needed",
}
SIMILAR = {  # files that people mistake for the ones needed, by keys of their own
    "a review file of an older Amazon release (2018 or before); the 2023 release is needed": {"reviewerID", "asin", "overall"},
    "a meta file of an older Amazon release (2018 or before); the 2023 release is needed": {"asin", "also_buy"},
    "the user file of the Yelp academic dataset": {"user_id", "yelping_since"},
    "the tip file of the Yelp academic dataset": {"business_id", "compliment_count"},
    "the check-in file of the Yelp academic dataset": {"business_id", "date"},
    "a task file of the paper's release; use: --source release": {"UserID", "Persona", "Items"},
}


@dataclass(frozen=True)
class Kind:
    """How a file is packed. A `plain` one is UTF-8 text that the engine reads as it lies on disk."""

    gzip: bool = False
    tar: bool = False
    encoding: Encoding = "utf-8"

    @property
    def plain(self) -> bool:
        return not self.gzip and not self.tar and self.encoding == "utf-8"


def inspect(path: Path, source: DumpSource, role: Role) -> Kind:
    """How a file is packed, after a look at its first lines. In an archive, the wanted member is looked for when it is read.

    Raises:
        ArtifactError: If it is missing, a folder, or cannot be read.
        SchemaError: If it is empty or another kind of file than `role` of `source`; says which, where that can be told.
    """
    head = _head(path)
    if not head:
        raise SchemaError(f"{path} is empty; expected the {role} file of {source.label}")
    gzip = head.startswith(b"\x1f\x8b")
    if gzip:
        head = _unpacked(path, head)
    if foreign := next((what for magic, what in FOREIGN.items() if head.startswith(magic)), None):
        raise SchemaError(f"{path} is {foreign}")
    if head[257:262] == b"ustar":
        return Kind(gzip=gzip, tar=True)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in (head[:1], head[1:2]) and head.count(b"\0") > len(head) // 4:
        check_lines(path, to_utf8(head), source, role)
        return Kind(gzip=gzip, encoding="utf-16")
    check_lines(path, head, source, role)
    return Kind(gzip=gzip)


def to_utf8(head: bytes) -> bytes:
    """The beginning of a UTF-16 text, with or without its mark, as UTF-8."""
    return codecs.getincrementaldecoder(utf16_of(head))("replace").decode(head).encode("utf-8", "ignore")


def utf16_of(head: bytes) -> str:
    """Name of the codec by the first bytes: a byte order mark, else where the zero byte of "{" stands."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"


def check_lines(path: Path, head: bytes, source: DumpSource, role: Role) -> None:
    """Say what a file is by its first lines, unless it is the one wanted; broken lines among them do not count."""
    lines = [line for line in head.split(b"\n")[:HEAD_LINES] if line.strip(BLANK + b"\0")]
    rows = [row for row in map(_keys, lines) if row]
    wanted = f"expected the {role} file of {source.label}, lines with the keys {', '.join(sorted(source.signatures[role]))}"
    if not lines:
        raise SchemaError(f"{path} has nothing but blanks at its beginning; {wanted}")
    if not rows:
        what = "one JSON list, not lines of objects" if head.lstrip().startswith(b"[") else f"no JSON lines, it begins {lines[0][:40]!r}"
        raise SchemaError(f"{path} is {what}; {wanted}")
    if any(_is(row, source, role) for row in rows):
        return
    for other in SOURCES.values():
        for its_role in ("reviews", "meta"):
            if any(_is(row, other, its_role) for row in rows):
                raise SchemaError(f"{path} is the {its_role} file of {other.label}; expected the {role} file of {source.label}")
    for what, keys in SIMILAR.items():
        if keys <= rows[0]:
            raise SchemaError(f"{path} is {what}; expected the {role} file of {source.label}")
    raise SchemaError(f"{path} is unknown, objects with the keys {', '.join(sorted(rows[0])[:8]) or '(none)'}; {wanted}")


def _is(keys: set[str], source: DumpSource, role: Role) -> bool:
    """All keys of the signature, or, where a line lacks one, all but one and none that only the other file has."""
    mine, other = (source.signatures[name] for name in (("reviews", "meta") if role == "reviews" else ("meta", "reviews")))
    return mine <= keys or len(mine - keys) == 1 and len(mine & keys) > 1 and not (other - mine) & keys


def _keys(line: bytes) -> set[str]:
    try:
        return set(read_object(line)[0])
    except SchemaError:
        return set()


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; give the file in it")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is no regular file, and it is read more than once; write it to a file first")
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None


def _unpacked(path: Path, head: bytes) -> bytes:
    try:
        data = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error as error:
        raise ArtifactError(f"{path} is a damaged gzip file, nothing of it can be read: {error}; get it again") from None
    if not data:
        raise SchemaError(f"{path} is empty, or nothing of what it packs can be read")
    return data
