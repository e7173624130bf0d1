"""How much at once: the cores there are, and many coroutines, bounded, with one progress bar and the first error as it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from .errors import EndpointError

A = TypeVar("A")
B = TypeVar("B")
START_GAP_S = 0.004  # between the first units, all within START_S: in step, all would send and then all wait
START_S = 0.2
MAX_FAILED_IN_A_ROW = 5


def available_cores() -> int:
    """Cores that this process may use, at least 1; a container or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FailuresInARow:
    """Ends a stage whose endpoint has gone, and lets single failures pass.

    Args:
        units: What fails, in the plural, and
        path: where what is finished is kept, if in a file: for the message.
    """

    def __init__(self, units: str, path: Path | None = None):
        self._units = units
        self._kept = f"; finished ones are kept in {path}" if path else ""
        self._number = 0

    def note(self, fault: str | None, *, is_known: bool = False) -> None:
        """Count how a unit ended.

        Args:
            fault: What went wrong, None if nothing did.
            is_known: Whether an earlier run met the same: a fault of the unit itself comes again and says nothing of the endpoint.

        Raises:
            EndpointError: If it is the fifth in a row.
        """
        if fault is None:
            self._number = 0
        elif not is_known:
            self._number += 1
        if self._number == MAX_FAILED_IN_A_ROW:
            raise EndpointError(f"{self._number} {self._units} in a row failed, stopped{self._kept}. Last error: {fault}")


async def map_bounded(function: Callable[[A], Awaitable[B]], values: Sequence[A], *, limit: int, description: str, unit: str) -> list[B]:
    """`function` of every value, `limit` of them in flight; results in the order of the values.

    A unit of work (a user, a pair, a dialogue) makes several calls that share a prompt prefix. With as many
    units in flight as the server has slots, each keeps its slot, and the prefix is read only once.

    Raises:
        Exception: The first one that `function` raises, itself and in no group; the other units are cancelled.
    """
    results: list[B | None] = [None] * len(values)
    waiting = iter(enumerate(values))
    failed: BaseException | None = None

    async def work(delay: float) -> None:
        await asyncio.sleep(delay)
        for index, value in waiting:  # all workers draw from the one iterator
            results[index] = await function(value)
            progress.update()

    with tqdm(total=len(values), desc=description, unit=unit, mininterval=1.0, disable=not values) as progress:
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(min(limit, len(values))):
                    group.create_task(work(number * min(START_GAP_S, START_S / limit)))
        except* Exception as errors:
            failed = errors.exceptions[0]
    if failed:
        raise failed  # out here, for with a group as its context no notebook shows its name and message
    return results
