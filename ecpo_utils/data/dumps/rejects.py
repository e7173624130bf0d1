"""What a dump had wrong: every case counted, the first of each reason listed with file, line and what became of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from ...core.artifacts import write_jsonl

LISTED_PER_REASON = 1000
SAMPLE_CHARACTERS = 120


class Reject(BaseModel):
    """A line of `rejects.jsonl`. `kept` lines were repaired and are in the data; the others are not.

    `line` is None only where a large file had no other fault and was not read again to find it.
    """

    file: str
    line: int | None
    reason: str
    kept: bool = False
    detail: str = ""
    sample: str = ""


@dataclass
class Rejects:
    """Counts by reason, the rows to list, and how many lines were read."""

    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    rows: list[Reject] = field(default_factory=list)
    num_lines: int = 0

    def add(self, path: Path, line: int | None, message: str, sample: str = "", *, kept: bool = False) -> None:
        """Count a case; `message` is its reason, with details after a colon, semicolon or bracket."""
        reason = re.split(r": |; | \(", message)[0]
        counts = self.repaired if kept else self.dropped
        counts[reason] += 1
        if counts[reason] <= LISTED_PER_REASON:
            self.rows.append(
                Reject(file=str(path), line=line, reason=reason, kept=kept, detail=message, sample=sample[:SAMPLE_CHARACTERS])
            )

    def extend(self, other: Rejects) -> None:
        """Take over another's counts and rows."""
        self.dropped.update(other.dropped)
        self.repaired.update(other.repaired)
        self.rows += other.rows

    def save(self, path: Path) -> Path:
        """Write `rejects.jsonl`, in the order of files and lines."""
        return write_jsonl(path, sorted(self.rows, key=lambda row: (row.file, row.line or 0)))

    def dump(self) -> dict:
        """As JSON, for a state that a later run goes on from."""
        return {"dropped": self.dropped, "repaired": self.repaired, "rows": [row.model_dump() for row in self.rows]}

    @classmethod
    def load(cls, value: dict) -> Rejects:
        """What `dump` gave."""
        return cls(Counter(value["dropped"]), Counter(value["repaired"]), [Reject(**row) for row in value["rows"]])
