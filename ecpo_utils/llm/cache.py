"""Content-addressed cache of chat answers: a table in sqlite3 that survives `kill -9`."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from ..core.artifacts import digest
from ..core.errors import ArtifactError


class ResponseCache:
    """Answers by the digest of everything that decides them; safe for several processes at once.

    Args:
        path: The sqlite file, made if missing.

    Raises:
        ArtifactError: If the file cannot be opened, is no such cache or cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # kept when the process dies; a power cut may cost the last seconds
            self._db.execute("CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        except (sqlite3.Error, OSError) as error:
            raise self._explain("cannot open the ", error) from None

    @staticmethod
    def key(request: dict) -> str:
        """Digest of a request; the caller puts in every field that may change the answer."""
        return digest(request, 64)

    def get(self, key: str) -> dict | None:
        """The stored answer, None if there is none."""
        with self._lock:
            row = self._run("SELECT value FROM responses WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, value: dict) -> None:
        """Store an answer; it outlives the process from now on."""
        with self._lock:
            self._run("INSERT OR REPLACE INTO responses VALUES (?, ?)", (key, json.dumps(value)))

    def forget(self, keys: Sequence[str]) -> None:
        """Drop answers, so that they are asked for again."""
        with self._lock:
            for key in keys:
                self._run("DELETE FROM responses WHERE key = ?", (key,))

    def select(self, beginnings: Collection[str]) -> Iterator[tuple[str, dict]]:
        """Keys and answers of the requests whose keys begin so (16 characters, as in `calls.jsonl`), in the order of the keys."""
        with self._lock:
            rows = self._run("SELECT key, value FROM responses ORDER BY key", ()).fetchall()
        yield from ((key, json.loads(value)) for key, value in rows if key[:16] in beginnings)

    def add(self, answers: Iterable[tuple[str, dict]]) -> int:
        """Store answers in one transaction, where there is none yet; returns how many were new."""
        with self._lock:
            before = self._db.total_changes
            self._run("BEGIN", ())
            for key, value in answers:
                self._run("INSERT OR IGNORE INTO responses VALUES (?, ?)", (key, json.dumps(value)))
            self._run("COMMIT", ())
            return self._db.total_changes - before

    def _run(self, statement: str, values: tuple) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._explain("", error) from None

    def _explain(self, what: str, error: Exception) -> ArtifactError:
        is_fault = isinstance(error, sqlite3.OperationalError | OSError)  # of the disk, not of what the file holds
        advice = "check free space and permissions, then run again" if is_fault else "move it away to start a new one"
        return ArtifactError(f"{what}response cache {self.path}: {error}; {advice}")

    def close(self) -> None:
        """Close the file; stored answers stay."""
        self._db.close()
