"""The one table that all benchmarks end in, printed and stored."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ecpo_utils.core.concurrency import available_cores

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """A figure, what was wanted, and what it was measured on or against."""

    figure: str
    value: float
    aim: str
    beside: str = ""


def peak_bytes() -> int:
    """Most memory that this process has held; getrusage would tell that of the process that started it. Linux."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def print_table(name: str, rows: Sequence[Row]) -> None:
    """Print the rows and keep them in `results/NAME.json` with the machine and the time."""
    width = max(len(row.figure) for row in rows)
    for row in rows:
        print(f"{row.figure:{width}}  {row.value:10.4g}  {row.aim:14}  {row.beside}")
    RESULTS.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {available_cores()} cores"
    facts = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "rows": [asdict(row) | {"value": float(row.value)} for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
