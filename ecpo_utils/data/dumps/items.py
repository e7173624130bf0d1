"""The pass over a meta file: the items that the sampled users reviewed, or the whole catalogue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ...core.errors import SchemaError
from ...core.schema import Item
from .engine import Engine, raw_lines
from .kinds import Kind
from .lines import BLANK, item_notes, read_object
from .rejects import Rejects
from .sources import DumpSource
from .unpack import Unpacker


def iter_items(
    engine: Engine, source: DumpSource, path: Path, kind: Kind, folder: Path, wanted: set[str] | None, rejects: Rejects
) -> Iterator[Item]:
    """Every wanted item of a meta file, all if None; of several with the same id the first.

    Lines whose id or title cannot be read are looked at as well, so that `rejects` tells all of them.
    """
    seen: dict[str, int] = {}
    for line, raw in _lines(engine, source, path, kind, folder, wanted, rejects):
        sample = raw[:200].decode("utf-8", "replace")
        try:
            row, notes = read_object(raw)
            item = source.parse_item(row, "line")
        except SchemaError as error:
            rejects.add(path, line, str(error).removeprefix("line: "), sample)
            continue
        for note in (*notes, *item_notes(row, list(source.item_columns)[1])):
            rejects.add(path, line, note, sample, kept=True)
        if item.item_id in seen:
            rejects.add(path, line, f"a second item of the same id: {item.item_id}, first in line {seen[item.item_id]}", sample)
        elif wanted is None or item.item_id in wanted:
            seen[item.item_id] = line
            yield item


def _lines(
    engine: Engine, source: DumpSource, path: Path, kind: Kind, folder: Path, wanted: set[str] | None, rejects: Rejects
) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line to look at."""
    done = 0
    with tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, mininterval=0.5) as progress:
        if kind.plain and wanted is not None:  # as it lies on disk
            numbers, rejects.num_lines = engine.item_lines(source, path, wanted, progress)
            yield from raw_lines(path, numbers)
            return
        unpacker = Unpacker(path, kind, source, "meta", progress.update)
        with contextlib.closing(unpacker.pieces(folder)) as pieces:
            for piece in pieces:
                if wanted is None:
                    with open(piece.path, "rb") as file:
                        yield from ((done + number, line.rstrip(b"\r\n")) for number, line in enumerate(file, 1) if line.strip(BLANK))
                else:
                    numbers, _ = engine.item_lines(source, piece.path, wanted)
                    yield from ((done + number, line) for number, line in raw_lines(piece.path, numbers))
                done += piece.num_lines
        rejects.num_lines = done
    if unpacker.damage:
        rejects.add(path, done + 1, f"{unpacker.damage}; what stood behind this line is lost")
