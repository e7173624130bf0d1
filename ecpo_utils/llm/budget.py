"""A spending limit that stops a run cleanly: no further call is sent, what is in flight is kept."""

from __future__ import annotations

from pathlib import Path

from ..core.artifacts import drop_half_line, iter_json_lines
from ..core.errors import EndpointError
from ..core.params import Endpoint


def call_cost(endpoint: Endpoint, prompt_tokens: int, completion_tokens: int) -> float:
    """Price of an answer in US dollars, by the endpoint's prices per million tokens."""
    prices = endpoint.usd_per_million_prompt_tokens, endpoint.usd_per_million_completion_tokens
    return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6


class Budget:
    """What a run has spent and may spend.

    Args:
        limit_usd: Of the run in all, earlier processes included; 0 for no limit.
        calls_log: The run's `calls.jsonl`, which tells what was spent before.
    """

    def __init__(self, limit_usd: float, calls_log: Path):
        self.limit_usd = limit_usd
        self.calls_log = calls_log
        self.spent_usd = 0.0
        if calls_log.exists():
            drop_half_line(calls_log)
            if limit_usd:
                self.spent_usd = sum(row.get("usd", 0.0) for _, row in iter_json_lines(calls_log))

    def check(self) -> None:
        """Before a call is sent; calls in flight may take the sum a little over the limit.

        Raises:
            EndpointError: Fatal, if the limit is reached.
        """
        if self.limit_usd and self.spent_usd >= self.limit_usd:
            raise EndpointError(
                f"the spending limit is reached: {self.spent_usd:.2f} of max_spend_usd {self.limit_usd:g} ({self.calls_log}); what was "
                "paid for is kept; raise the limit and run again to go on",
                fatal=True,
            )

    def spend(self, usd: float) -> None:
        """Count an answer that was paid for."""
        self.spent_usd += usd
