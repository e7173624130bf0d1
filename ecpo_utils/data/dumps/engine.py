"""The columnar engine, DuckDB: JSON lines read in parallel within a set memory, a row for every line, NULLs for a broken one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
from tqdm import tqdm

from ...core.errors import ArtifactError
from .lines import BLANK
from .sources import DumpSource

MEMORY_GB = 2.0


class Engine:
    """A DuckDB connection of its own.

    Args:
        folder: For what does not fit into memory.
        memory_gb: Of the engine's buffers; a reading of 5 GB was seen to need about 0.5.
    """

    def __init__(self, folder: Path, memory_gb: float = MEMORY_GB):
        self._connection = duckdb.connect()
        self._connection.execute(f"SET memory_limit = '{int(memory_gb * 1000)}MB'")
        self._connection.execute(f"SET temp_directory = {quoted(folder / 'spill')}")
        self._connection.execute("PRAGMA enable_profiling = 'no_output'")

    def close(self) -> None:
        self._connection.close()

    def rows(self, sql: str, *values: object) -> list[tuple]:
        """Result rows of a query.

        Raises:
            ArtifactError: If the engine gives up, for instance because the disk is full.
        """
        try:
            return self._connection.execute(sql, values or None).fetchall()
        except duckdb.Error as error:
            raise ArtifactError(f"DuckDB {duckdb.__version__}: {' '.join(str(error).split())[:300]}") from None

    def _scan(self, sql: str, progress: tqdm | None = None) -> int:
        """Run a query that reads one file; returns the rows that it read."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.2):
                done = max(self._connection.query_progress(), 0.0) / 100 * progress.total
                progress.update(max(int(done) - progress.n, 0))

        watcher = threading.Thread(target=watch, daemon=True) if progress is not None else None
        if watcher:
            watcher.start()
        try:
            self.rows(sql)
        finally:
            stop.set()
            if watcher:
                watcher.join()
                progress.update(progress.total - progress.n)
        return max(_scanned(json.loads(self._connection.get_profiling_information(format="json"))), default=0)

    def copy_reviews(
        self, source: DumpSource, path: Path, out: Path, *, share: float, seed: int, numbered: bool, progress: tqdm | None = None
    ) -> int:
        """Write the sound reviews of a share of the users, and a row for every line that needs a second look, as parquet.

        Args:
            source: Whose keys.
            path: JSON lines, UTF-8.
            out: Columns: line (from 1, NULL unless `numbered`), sound, and those of the source.
            share: Users whose hash lies in this share of all hashes, 0-1.
            seed: Of the hash.
            numbered: Whether lines are counted, which lets only one core work.

        Returns:
            Lines read, blank ones not counted.
        """
        number = "row_number() OVER ()" if numbered else "NULL::BIGINT"
        self.rows(f"SET preserve_insertion_order = {numbered}")
        columns = ", ".join(f"CASE WHEN sound THEN {key} END AS {key}" for key in source.review_columns)
        return self._scan(
            f"""COPY (
                SELECT line, sound, {columns}
                FROM (SELECT *, {source.is_sound} AS sound FROM (SELECT {number} AS line, * FROM {scan(path, source.review_columns)}))
                WHERE NOT sound OR {_in_share(source, share, seed)}
            ) TO {quoted(out)} (FORMAT parquet, COMPRESSION snappy)""",
            progress,
        )

    def copy_repaired(self, source: DumpSource, path: Path, out: Path, *, share: float, seed: int) -> None:
        """Write as `copy_reviews` does what a second look has repaired: JSON lines with the line's number and the source's keys."""
        columns = {"line": "BIGINT", **source.review_columns}
        self.rows(
            f"COPY (SELECT line, true AS sound, {', '.join(source.review_columns)} FROM {scan(path, columns)} "
            f"WHERE {_in_share(source, share, seed)}) TO {quoted(out)} (FORMAT parquet, COMPRESSION snappy)"
        )

    def item_lines(self, source: DumpSource, path: Path, wanted: Iterable[str], progress: tqdm | None = None) -> tuple[list[int], int]:
        """Numbers (from 1, blank lines not counted) of the lines of some items and of those without id or title; and lines read."""
        identity, title = source.item_columns
        self.rows("SET preserve_insertion_order = true")
        self.rows("CREATE OR REPLACE TEMP TABLE wanted AS SELECT unnest(?) AS id", sorted(wanted))
        unread = f"coalesce({identity}, '') = '' OR coalesce({title}, '') = '' OR {identity}[1] IN ('[', '{{')"
        numbered = f"SELECT row_number() OVER () AS line, * FROM {scan(path, source.item_columns)}"
        self.rows("CREATE OR REPLACE TEMP TABLE found (line BIGINT)")
        read = self._scan(
            f"INSERT INTO found SELECT line FROM ({numbered}) WHERE {unread} OR {identity} IN (SELECT id FROM wanted)", progress
        )
        return [line for (line,) in self.rows("SELECT line FROM found ORDER BY line")], read


def _in_share(source: DumpSource, share: float, seed: int) -> str:
    """SQL: whether a user's hash lies in the first `share` of all hashes."""
    return "true" if share >= 1 else f"hash({source.user}, {seed}) < {int(share * 2**64)}::UBIGINT"


def scan(path: Path, columns: dict[str, str]) -> str:
    """SQL that reads JSON lines: one row per line that is not blank, NULL where a value cannot be had."""
    listed = ", ".join(f"'{key}': '{kind}'" for key, kind in columns.items())
    name = re.sub(r"([*?\[])", r"[\1]", str(path))  # no pattern, a name
    return f"read_ndjson({quoted(name)}, columns = {{{listed}}}, ignore_errors = true, compression = 'none')"


def quoted(value: object) -> str:
    """An SQL text."""
    return "'" + str(value).replace("'", "''") + "'"


def _scanned(node: object) -> Iterator[int]:
    """Rows that each scan of a profiled query gave."""
    if isinstance(node, list):
        for each in node:
            yield from _scanned(each)
    elif isinstance(node, dict):
        if node.get("type") == "TABLE_SCAN" and "NDJSON" in str(node.get("extra_info", {}).get("Function", "")):
            yield node["intermediate_rows"]
        for value in node.values():
            yield from _scanned(value) if isinstance(value, (list, dict)) else ()


def raw_lines(path: Path, wanted: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Line numbers and bytes of some lines, which are asked for by their number among those that are not blank, in order."""
    wanted = iter(wanted)
    asked, count = next(wanted, None), 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if asked is None:
                return
            if not line.strip(BLANK):
                continue
            count += 1
            if count == asked:
                yield number, line.rstrip(b"\r\n")
                asked = next(wanted, None)
