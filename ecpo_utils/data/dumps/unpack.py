"""A dump's text as UTF-8 pieces of complete lines on disk, whatever it is packed in; what a damaged file holds is not lost."""

from __future__ import annotations

import codecs
import contextlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.artifacts import writing
from ...core.errors import ArtifactError, SchemaError
from .kinds import HEAD_BYTES, Kind, check_lines, utf16_of
from .lines import BLANK
from .sources import DumpSource, Role

CHUNK_BYTES = 1 << 20
STEP_BYTES = 256
PIECE_BYTES = 1 << 28
BLANK_LINE = b'{"":0}'  # stands in for a blank line, which the engine would not count


@dataclass
class Piece:
    """Lines of a dump in a file of their own.

    Attributes:
        path: Of the piece; gone when the next one is asked for.
        end: Bytes of the unpacked dump up to its end.
        num_lines: In it.
    """

    path: Path
    end: int
    num_lines: int


@dataclass
class Unpacker:
    """Reads one dump.

    Attributes:
        path: The dump.
        kind: How it is packed.
        advance: Told how many bytes of the file have been read.
        damage: After reading: why the file could not be read to its end, or "".
    """

    path: Path
    kind: Kind
    source: DumpSource
    role: Role
    advance: Callable[[int], object] = lambda _: None
    damage: str = ""

    def pieces(self, folder: Path, *, skip: int = 0) -> Iterator[Piece]:
        """The dump's lines from byte `skip` of its text on, in pieces of about 256 MB that lie in `folder` one after the other."""
        path, end, size, num_lines = folder / f"{self.role}.piece.jsonl", skip, 0, 0
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "wb")  # noqa: SIM115 (closed below, and opened anew for each piece)
            try:
                for chunk in self._text(skip):
                    cut = chunk.rfind(b"\n") + 1 if size + len(chunk) >= PIECE_BYTES else 0
                    if cut:
                        file.write(chunk[:cut])
                        file.close()
                        end += size + cut
                        yield Piece(path, end, num_lines + chunk.count(b"\n", 0, cut))
                        file, size, num_lines, chunk = open(path, "wb"), 0, 0, chunk[cut:]  # noqa: SIM115
                    file.write(chunk)
                    size += len(chunk)
                    num_lines += chunk.count(b"\n")
                file.close()
                if size:
                    yield Piece(path, end + size, num_lines + (not _ends_line(path)))
            finally:
                file.close()
                path.unlink(missing_ok=True)

    def _text(self, skip: int) -> Iterator[bytes]:
        """Non-empty chunks of UTF-8 from `skip` on; a fault of the packing ends them and is noted as `damage`."""
        chunks = self._file()
        chunks = self._gunzip(chunks) if self.kind.gzip else chunks
        chunks = self._member(chunks) if self.kind.tar else chunks
        chunks = _recode(chunks) if self.kind.encoding == "utf-16" else chunks
        for chunk in chunks:
            if skip >= len(chunk):
                skip -= len(chunk)
            elif chunk:
                yield chunk[skip:]
                skip = 0

    def _file(self) -> Iterator[bytes]:
        try:
            with open(self.path, "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    self.advance(len(chunk))
                    yield chunk
        except OSError as error:
            raise ArtifactError(f"cannot read {self.path}: {error.strerror or error}") from None

    def _gunzip(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """All members of a gzip file, one after the other; zeros behind them are padding."""
        unpack, position = zlib.decompressobj(31), 0
        for chunk in chunks:
            while chunk:
                if unpack.eof:
                    chunk = chunk.lstrip(b"\0")
                    unpack = zlib.decompressobj(31) if chunk else unpack
                    continue
                before = unpack.copy()
                try:
                    yield unpack.decompress(chunk)
                except zlib.error as error:
                    self.damage = f"damaged gzip: {error} within {CHUNK_BYTES} bytes behind byte {position}"
                    yield from _until_fault(before, chunk)
                    return
                chunk = unpack.unused_data
            position += CHUNK_BYTES
        if not unpack.eof:
            self.damage = "truncated gzip: it ends in the middle"

    def _member(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The file of a tar archive whose name ends as the role's does."""
        wanted, names = self.source.members[self.role], []
        try:
            with tarfile.open(fileobj=io.BufferedReader(_Stream(chunks), CHUNK_BYTES), mode="r|") as archive:
                for member in archive:
                    names.append(member.name)
                    if member.isfile() and member.name.endswith(wanted):
                        file = archive.extractfile(member)
                        first = file.read(HEAD_BYTES)
                        check_lines(Path(f"{self.path}:{member.name}"), first, self.source, self.role)
                        yield first
                        while chunk := file.read(CHUNK_BYTES):
                            yield chunk
                        return
        except (tarfile.TarError, EOFError) as error:
            self.damage = self.damage or f"damaged tar: {error}"
            if self.source.members[self.role] in "".join(names):
                return
        raise SchemaError(f"{self.path} holds no file that ends in '{wanted}', but: {', '.join(names[:8]) or 'nothing'}")


def _until_fault(unpack: zlib._Decompress, chunk: bytes) -> Iterator[bytes]:
    """What a damaged chunk holds before the damage."""
    with contextlib.suppress(zlib.error):
        for start in range(0, len(chunk), STEP_BYTES):
            yield unpack.decompress(chunk[start : start + STEP_BYTES])


class _Stream(io.RawIOBase):
    """Chunks as a file that is read once."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _recode(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = None
    for chunk in chunks:
        decoder = decoder or codecs.getincrementaldecoder(utf16_of(chunk))("replace")
        yield decoder.decode(chunk).encode("utf-8", "replace")


def _ends_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, io.SEEK_END)
        return file.read(1) == b"\n"


def fill_blank_lines(path: Path) -> None:
    """Put a stand-in where a piece has a blank line, so that the engine's row numbers are line numbers."""
    filled = path.with_suffix(".filled")
    with writing(path), open(path, "rb") as file, open(filled, "wb") as out:
        out.writelines(line if line.strip(BLANK) else BLANK_LINE + b"\n" for line in file)
    filled.replace(path)
