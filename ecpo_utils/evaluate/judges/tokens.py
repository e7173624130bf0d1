"""A judge asked one question per dimension, answered by one token, whose probabilities in both orders are held against each other."""

from __future__ import annotations

from ...core.schema import Message, Verdict
from .base import DIMENSIONS, Judge, Pair, sign


class TokenJudge(Judge):
    """Debiased preferences: a liking for a position cancels; eight one-token calls per pair, log-probabilities needed."""

    name = "tokens"

    def prompts(self, pair: Pair) -> list[list[Message]]:
        """One question per dimension."""
        return [self.show(pair, f"judge_{name}") for name in DIMENSIONS]

    async def ask(self, row: Verdict, pair: Pair) -> None:
        """The probability of the answer that prefers the first system's dialogue."""
        word, shown = ("1", pair) if row.shown_first == "first" else ("2", pair[::-1])
        row.probabilities = {}
        for name in DIMENSIONS:
            answer = await self.client.choose(self.show(shown, f"judge_{name}"), ["1", "2"])
            row.probabilities[name] = answer[word]  # unrounded: near 0 and 1 the last digits decide
            row.scores[name] = sign(answer[word] - 0.5)
