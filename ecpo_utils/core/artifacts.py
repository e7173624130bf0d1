"""Reading and writing the files between stages: atomic, line by line, with file and line in errors."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import ArtifactError, SchemaError

T = TypeVar("T", bound=BaseModel)
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system fault while writing `path` into an ArtifactError that names it."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}; check free space and permissions, then run again") from error


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object, length: int = 16) -> str:
    """Short hex digest of anything JSON can hold, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]  # half a character may stand in a review


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place if the block ends well: a file is written whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all, through a temporary file beside it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: object) -> Path:
    """Write one JSON value, indented, atomically."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_jsonl(path: Path, rows: Iterable[BaseModel]) -> Path:
    """Write records as JSON lines, atomically and one by one, so that `rows` may be more than memory holds."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json_line(row) for row in rows)
    return path


def json_line(row: BaseModel) -> str:
    """A record as it stands in a JSON-lines file."""
    return row.model_dump_json() + "\n"


def append_jsonl(path: Path, row: BaseModel | dict) -> None:
    """Append one line in a single write, so that a killed run loses at most the line in flight."""
    text = json_line(row) if isinstance(row, BaseModel) else json.dumps(row, ensure_ascii=False) + "\n"
    with writing(path):
        try:
            handle = os.open(path, _APPEND, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, _APPEND, 0o644)
        try:
            data = text.encode()
            written = os.write(handle, data)
            if written < len(data):
                raise OSError(28, "No space left on device")
        finally:
            os.close(handle)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked if its name ends in `.gz`; a fault on the way becomes an ArtifactError that names the file."""
    try:
        with gzip.open(path) if Path(path).suffix == ".gz" else open(path, "rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def iter_lines(path: Path, *, complete: bool = False) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line of a UTF-8 file, packed or not, without its end and without a byte order mark.

    With `complete` a last line without a line break is left out.

    Raises:
        ArtifactError: If the file is missing or cannot be read.
        SchemaError: If a line is not UTF-8; names file and line.
    """
    with reading(path) as file:
        for number, line in enumerate(file, 1):
            if complete and not line.endswith(b"\n"):
                return
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SchemaError(f"{path}:{number}: not UTF-8 text ({error.reason} at byte {error.start} of the line)") from None
            yield number, text.removesuffix("\n").removesuffix("\r")


def iter_json_lines(path: Path, *, complete: bool = False) -> Iterator[tuple[int, dict]]:
    """Line number (from 1) and object of every line that is not blank; `complete` as for `iter_lines`.

    Raises:
        ArtifactError: If the file is missing or cannot be read.
        SchemaError: If a line is no JSON object; names file and line.
    """
    for number, line in iter_lines(path, complete=complete):
        if line.strip():
            yield number, parse_object(line, f"{path}:{number}")


def parse_object(line: str, where: str) -> dict:
    """The JSON object of a line; a SchemaError says where it stood and what was wrong."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise SchemaError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise SchemaError(f"{where}: not valid JSON (nested too deeply)") from None
    except ValueError:
        raise SchemaError(f"{where}: not valid JSON (a number of too many digits)") from None
    if not isinstance(value, dict):
        raise SchemaError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def parse_record(kind: type[T], value: dict, where: str) -> T:
    """Validate one object; a SchemaError names where it stood, the key and what was wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "record"
        raise SchemaError(f"{where}: {key}: {first['msg']}") from None


def load_jsonl(path: Path, kind: type[T]) -> list[T]:
    """All records of a file.

    Raises:
        ArtifactError: If the file is missing.
        SchemaError: If a line is broken or not of this kind; names file and line.
    """
    return [parse_record(kind, value, f"{path}:{number}") for number, value in iter_json_lines(path)]


def drop_half_line(path: Path) -> None:
    """Cut off what stands behind the last line break: a killed run, or a full disk, may leave half a line."""
    with writing(path), open(path, "r+b") as file:
        data = file.read()
        complete = data.rfind(b"\n") + 1
        if complete < len(data):
            file.truncate(complete)


def load_resumable(path: Path, kind: type[T]) -> list[T]:
    """Records of a file that a killed run may have left with half a line at its end.

    The half line is cut off, so that appending can go on.

    Raises:
        SchemaError: If any other line is broken or not of this kind, or the last one is whole and of another kind or begins no
            JSON object: then the file is somebody else's, and stays as it is.
    """
    if not path.exists():
        return []
    rows = [parse_record(kind, value, f"{path}:{number}") for number, value in iter_json_lines(path, complete=True)]
    with reading(path) as file:
        half = file.read().rpartition(b"\n")[2].strip()
    if half and not half.startswith(b"{"):
        raise SchemaError(f"{path}: its last line begins no JSON object; this is no file that a run can go on with")
    with contextlib.suppress(ValueError, RecursionError):  # half a line, as expected
        parse_record(kind, json.loads(half), f"{path}, last line")
    drop_half_line(path)
    return rows
