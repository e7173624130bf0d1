"""The paper's judge: one JSON answer with a reason and a verdict per dimension, in both orders; for large models. Paper: section B.5."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ...core.schema import Message, Verdict
from .base import DIMENSIONS, Judge, Pair

VERDICT_TOKENS = 500


class WordedVerdict(BaseModel):
    """A large judge's answer: 1 where conversation 1 is better, -1 where conversation 2 is, 0 where they are equal."""

    model_config = ConfigDict(extra="forbid")

    flexibility_reason: str
    flexibility: Literal[-1, 0, 1]
    coherence_reason: str
    coherence: Literal[-1, 0, 1]
    guidance_reason: str
    guidance: Literal[-1, 0, 1]
    final_reason: str
    final: Literal[-1, 0, 1]


class WordedJudge(Judge):
    """Verdicts in words; two calls per pair."""

    name = "words"

    def prompts(self, pair: Pair) -> list[list[Message]]:
        """One question for all dimensions."""
        return [self.show(pair, "judge_words")]

    async def ask(self, row: Verdict, pair: Pair) -> None:
        """Verdicts and their reasons, turned where the second system's dialogue was shown first."""
        turned, shown = (1, pair) if row.shown_first == "first" else (-1, pair[::-1])
        messages = self.show(shown, "judge_words")
        answer = (await self.client.parse(messages, WordedVerdict, max_tokens=VERDICT_TOKENS)).parsed
        row.scores = {name: turned * getattr(answer, name) for name in DIMENSIONS}
        row.reasons = {name: getattr(answer, f"{name}_reason") for name in DIMENSIONS}
