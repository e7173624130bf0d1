"""Bounded work: order, limit, and the first error as a notebook can show it."""

import asyncio
import os

import pytest

from ecpo_utils.core.concurrency import available_cores, map_bounded
from ecpo_utils.core.errors import EndpointError


def run(function, values, limit=2):
    return asyncio.run(map_bounded(function, values, limit=limit, description="work", unit="piece"))


def test_results_stand_in_the_order_of_the_values_and_no_more_are_in_flight_than_allowed():
    in_flight, most = 0, 0

    async def double(value):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01 / (1 + value))
        in_flight -= 1
        return 2 * value

    assert run(double, range(6)) == [0, 2, 4, 6, 8, 10] and most == 2
    assert run(double, []) == []


def test_first_error_comes_alone_without_a_group_in_its_context():
    """IPython shows an error with a group in its context as plain text, and the executed copy then holds no error."""
    ended = []

    async def fail(value):
        try:
            if value == 1:
                try:
                    raise OSError("gone")
                except OSError:
                    raise EndpointError("the endpoint does not answer") from None
            await asyncio.sleep(60)
        finally:
            ended.append(value)

    with pytest.raises(EndpointError, match="does not answer") as caught:
        run(fail, range(3))
    assert {0, 1} <= set(ended)
    context = caught.value.__context__
    while context is not None:
        assert not isinstance(context, BaseExceptionGroup)
        context = context.__context__


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a process choose its cores")
def test_only_the_cores_that_the_process_may_use_are_counted():
    allowed = os.sched_getaffinity(0)
    assert available_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
