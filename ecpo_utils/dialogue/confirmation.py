"""Expectation confirmation (EC): how satisfied the user is with one reply, and why. Paper: section 2.2.

Two ways to the same record. "full" asks for scores and reasons in one JSON answer, for large models.
"narrow" is for small ones, which give full marks to nearly everything. Its evidence is one narrow yes/no
question per dimension, read by the log-odds of its answer token, whether the reply names the target, and how near
the reply lies to the target, to the user's last message and to earlier replies in embedding space. A logistic model
per dimension, fitted on the `dev` half of the planted-flaw set (`evaluate.calibration`), turns this evidence into
the probability of a faultless reply.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core.errors import ParseError
from ..core.matching import mentions_title
from ..core.quoting import quote_for_users
from ..core.schema import Confirmation, Domain, Item, Message
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_prompt, render
from .agents.base import NOUNS
from .retrieval import Embedder
from .wishes import target_wishes

SimulatorMode = Literal["narrow", "full"]
MAXIMA = {"flexibility": 2, "coherence": 2, "guidance": 1}
REASON_TOKENS = 28
WEIGHTS = Path(__file__).parent / "confirmation_weights.json"


class WordedConfirmation(BaseModel):
    """A large model's answer: the reason comes before its score."""

    model_config = ConfigDict(extra="forbid")

    flexibility_reason: str
    flexibility: int = Field(ge=0, le=2)
    coherence_reason: str
    coherence: int = Field(ge=0, le=2)
    guidance_reason: str
    guidance: int = Field(ge=0, le=1)


class Confirmer:
    """Scores replies on behalf of the user.

    Args:
        client: The `simulator` endpoint; mode "narrow" needs its log-probabilities.
        embedder: Of the item database; used by mode "narrow".
        mode: "narrow" or "full".
    """

    def __init__(self, client: ChatClient, embedder: Embedder, mode: SimulatorMode):
        self.client = client
        self.embedder = embedder
        self.mode = mode

    async def confirm(
        self, target: Item, domain: Domain, history: list[Message], *, meter: Meter | None = None, reasons: bool = True
    ) -> Confirmation:
        """Score the last reply of `history`; one that cannot be scored keeps the error, never a 0.

        Args:
            target: What the user has in mind; its title is used only to see whether the reply names it.
            domain: Of the target.
            history: Messages so far; the last one is the agent's reply to be judged.
            meter: Counts the calls.
            reasons: Whether mode "narrow" words them, which takes a call each.
        """
        context = _context(target, domain, history, tell_named=True)
        if self.mode == "full":
            return await self._in_words(context, meter)
        try:
            evidence = await self.gather(target, domain, history, meter=meter)
        except ParseError as error:
            return Confirmation(error=str(error))
        return await self._from_evidence(evidence, context if reasons else None, history, meter)

    async def gather(self, target: Item, domain: Domain, history: list[Message], *, meter: Meter | None = None) -> dict[str, float]:
        """What is known about the last reply: three log-odds of "yes", three cosines, whether it names the target."""
        context, evidence = _context(target, domain, history), {}
        for name in MAXIMA:
            answer = await self.client.choose(_messages(context, load_prompt(f"confirm_{name}")), ["yes", "no"], meter=meter)
            evidence[f"asked_{name}"] = math.log(answer["yes"] / answer["no"])
        return {
            **evidence,
            **reply_similarities(self.embedder, _wishes(target), history),
            "names_target": float(mentions_title(history[-1]["content"], target.title)),
        }

    async def _from_evidence(
        self, evidence: dict[str, float], context: str | None, history: list[Message], meter: Meter | None
    ) -> Confirmation:
        """Scores by the fitted weights; the model words the reasons for coherence and guidance, if it is given a context."""
        probabilities = {name: faultless_probability(name, evidence) for name in MAXIMA}
        scores = {name: score_probability(name, value) for name, value in probabilities.items()}
        reasons = dict.fromkeys(MAXIMA, "")
        for name in (name for name, score in scores.items() if context is not None and score < MAXIMA[name]):
            if name == "flexibility":  # what was missed is known word for word; a small model quotes the assistant instead
                reasons[name] = render("confirm_reason_flexibility", said=history[-2]["content"])
                continue
            question = load_prompt(f"confirm_reason_{name}")
            why = await self.client.complete(_messages(context, question), max_tokens=REASON_TOKENS, stop=["\n"], meter=meter)
            reasons[name] = tidy_reason(why.text)
        return Confirmation(**scores, reasons=reasons, probabilities=probabilities, evidence={k: round(v, 4) for k, v in evidence.items()})

    async def _in_words(self, context: str, meter: Meter | None) -> Confirmation:
        try:
            messages = _messages(context, load_prompt("confirm_full"))
            answer = (await self.client.parse(messages, WordedConfirmation, max_tokens=400, meter=meter)).parsed
        except ParseError as error:
            return Confirmation(error=str(error))
        scores = {name: getattr(answer, name) for name in MAXIMA}
        return Confirmation(
            **scores, reasons={name: getattr(answer, f"{name}_reason") if scores[name] < top else "" for name, top in MAXIMA.items()}
        )


def tidy_reason(text: str) -> str:
    """One line without quotes."""
    return " ".join(text.split()).strip("\"' ")


def render_transcript(history: list[Message]) -> str:
    """The dialogue as the simulator and the confirmation read it."""
    names = {"user": "Customer", "assistant": "Assistant"}
    return "\n".join(f"{names[message['role']]}: {quote_for_users(message['content'])}" for message in history)


def _wishes(target: Item) -> str:
    return " ".join(target_wishes(target))


def _context(target: Item, domain: Domain, history: list[Message], *, tell_named: bool = False) -> str:
    fact = load_prompt("confirm_named") if tell_named and mentions_title(history[-1]["content"], target.title) else ""
    transcript = f"{render_transcript(history)}\n{fact}".rstrip()
    return render("confirm_context", wishes=quote_for_users(_wishes(target), begins_line=True), noun=NOUNS[domain], transcript=transcript)


def _messages(context: str, question: str) -> list[Message]:
    return [{"role": "system", "content": load_prompt("confirm_system")}, {"role": "user", "content": f"{context}\n{question}"}]


def reply_similarities(embedder: Embedder, wishes: str, history: list[Message]) -> dict[str, float]:
    """Cosine of the last reply to the wishes, to the user's last message, and the largest to an earlier reply (0 without one)."""
    reply = history[-1]["content"]
    earlier = [message["content"] for message in history[:-1] if message["role"] == "assistant"]
    vectors = embedder.encode([reply, wishes, history[-2]["content"], *earlier])
    cosines = (vectors[1:] @ vectors[0]).tolist()
    return {"near_wishes": cosines[0], "near_request": cosines[1], "near_earlier_reply": max(cosines[2:], default=0.0)}


@cache
def load_weights() -> dict[str, dict[str, float]]:
    """Per dimension the intercept and a weight for each kind of evidence; see `evaluate.calibration`."""
    return json.loads(WEIGHTS.read_text(encoding="utf-8"))["weights"]


def faultless_probability(dimension: str, evidence: dict[str, float]) -> float:
    """Probability that a reply has no fault in a dimension."""
    weights = load_weights()[dimension]
    logit = weights["intercept"] + sum(weights[name] * value for name, value in evidence.items())
    return round(1 / (1 + math.exp(-logit)), 4)


def score_probability(dimension: str, probability: float) -> int:
    """Sub-score of a dimension from the probability that the reply is faultless in it.

    One half parts faulty from faultless; for the dimensions of two points 1/3 to 2/3 is a small fault.
    """
    if MAXIMA[dimension] == 1:
        return int(probability >= 0.5)
    return int(probability >= 1 / 3) + int(probability >= 2 / 3)
