"""Records of a JSON-lines file that may be larger than memory: each line is found once and read when it is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar, overload

import numpy as np
from pydantic import BaseModel

from .artifacts import json_line, parse_object, parse_record, reading
from .errors import SchemaError

T = TypeVar("T", bound=BaseModel)
BLOCK_BYTES = 1 << 24


class RecordFile(Sequence[T], Generic[T]):
    """A file that `write_jsonl` wrote, as a sequence; in memory are 8 bytes a record.

    The file stays open, so that one which replaces it later does not change what is read.

    Attributes:
        sha256: Of the file.

    Raises:
        ArtifactError: If the file is missing.
        SchemaError: When a record is asked for that is broken; names file and line.
    """

    def __init__(self, path: Path, kind: type[T]):
        self.path, self._kind = path, kind
        hasher, ends, size = hashlib.sha256(), [], 0
        with reading(path) as file:
            while block := file.read(BLOCK_BYTES):
                hasher.update(block)
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size + 1)
                size += len(block)
            self._file = open(os.dup(file.fileno()), "rb")  # noqa: SIM115 (as long as the sequence)
        ends = np.concatenate([np.zeros(1, np.int64), *ends])
        self._bounds = ends if ends[-1] == size else np.append(ends, size)
        self.sha256 = hasher.hexdigest()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # a negative index counts from the end, one outside is an IndexError
        start, end = self._bounds[number : number + 2].tolist()
        where = f"{self.path}:{number + 1}"
        try:
            line = os.pread(self._file.fileno(), end - start, start).decode("utf-8")
        except UnicodeDecodeError as error:
            raise SchemaError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start} of the line)") from None
        return parse_record(self._kind, parse_object(line, where), where)


def records_sha256(rows: Iterable[BaseModel]) -> tuple[int, str]:
    """Number of rows, and the SHA-256 of the file that `write_jsonl` would make of them."""
    hasher, number = hashlib.sha256(), 0
    for number, row in enumerate(rows, 1):  # noqa: B007 (used after the loop)
        hasher.update(json_line(row).encode())
    return number, hasher.hexdigest()
