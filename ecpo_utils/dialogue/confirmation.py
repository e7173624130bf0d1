"""Expectation confirmation (EC): how satisfied the user is with one reply, and why. Paper: section 2.2.

Two ways to the same record. "verbal" asks for scores and reasons in one JSON answer, for large models.
"probabilities" is for small ones, which give full marks to nearly everything: each dimension is one or two
narrow yes/no questions, read by the log-odds of the answer token, and cut points turn them into scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core.errors import ParseError
from ..core.schema import Confirmation, Message
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_prompt, render

ConfirmationMode = Literal["probabilities", "verbal"]
MAXIMA = {"flexibility": 2, "coherence": 2, "guidance": 1}
REASON_TOKENS = 40


@dataclass(frozen=True)
class Question:
    """A narrow yes/no question, `confirm_NAME.txt`.

    Attributes:
        good: The answer that speaks for the reply.
        centre: Log-odds of that answer at which good and flawed replies part; taken from the `dev` half
            of the planted-flaw set with the embedded 1.5B model.
    """

    name: str
    good: Literal["yes", "no"]
    centre: float


QUESTIONS: dict[str, list[Question]] = {
    "flexibility": [Question("flexibility", "yes", 0.0)],
    "coherence": [Question("coherence", "yes", 0.0)],
    "guidance": [Question("guidance", "yes", 0.0)],
}


class VerbalConfirmation(BaseModel):
    """A large model's answer: the reason comes before its score."""

    model_config = ConfigDict(extra="forbid")

    flexibility_reason: str
    flexibility: int = Field(ge=0, le=2)
    coherence_reason: str
    coherence: int = Field(ge=0, le=2)
    guidance_reason: str
    guidance: int = Field(ge=0, le=1)


async def confirm(client: ChatClient, *, wishes: str, noun: str, history: list[Message], named: bool,
                  mode: ConfirmationMode, meter: Meter | None = None) -> Confirmation:
    """Score the last reply of `history`. An answer that cannot be read leaves it unscored, with the error.

    Args:
        client: The `simulator` endpoint; needs log-probabilities for mode "probabilities".
        wishes: The target in words, without its title.
        noun: What is sought, e.g. "book".
        history: Messages so far; the last one is the agent's reply to be judged.
        named: Whether that reply names the target.
        mode: "probabilities" or "verbal".
        meter: Counts the calls.
    """
    context = _context(wishes, noun, history, named)
    if mode == "verbal":
        return await _verbal(client, context, meter)
    return await _by_probabilities(client, context, history[-1]["content"], meter)


def _context(wishes: str, noun: str, history: list[Message], named: bool) -> str:
    names = {"user": "Customer", "assistant": "Assistant"}
    transcript = "\n".join(f"{names[m['role']]}: {m['content']}" for m in history)
    fact = load_prompt("confirm_named") if named else ""
    return render("confirm_context", wishes=wishes, noun=noun, transcript=transcript, fact=fact)


def _messages(context: str, question: str) -> list[Message]:
    return [{"role": "system", "content": load_prompt("confirm_system")}, {"role": "user", "content": f"{context}\n\n{question}"}]


async def _verbal(client: ChatClient, context: str, meter: Meter | None) -> Confirmation:
    try:
        answer = await client.parse(_messages(context, load_prompt("confirm_verbal")), VerbalConfirmation, max_tokens=400, meter=meter)
    except ParseError as error:
        return Confirmation(error=str(error))
    scores = {name: getattr(answer.parsed, name) for name in MAXIMA}
    reasons = {name: getattr(answer.parsed, f"{name}_reason") if scores[name] < top else "" for name, top in MAXIMA.items()}
    return Confirmation(**scores, reasons=reasons)


async def _by_probabilities(client: ChatClient, context: str, reply: str, meter: Meter | None) -> Confirmation:
    probabilities, scores, reasons = {}, {}, {}
    for dimension, questions in QUESTIONS.items():
        odds = []
        for question in questions:
            answer = await client.choose(_messages(context, load_prompt(f"confirm_{question.name}")), ["yes", "no"], meter=meter)
            bad = "no" if question.good == "yes" else "yes"
            odds.append(math.log(answer[question.good] / answer[bad]) - question.centre)
        probabilities[dimension] = round(1 / (1 + math.exp(-min(odds))), 4)
        scores[dimension] = score_probability(dimension, probabilities[dimension])
        reasons[dimension] = ""
        if scores[dimension] < MAXIMA[dimension]:
            why = await client.complete(_messages(context, load_prompt(f"confirm_reason_{dimension}")), max_tokens=REASON_TOKENS,
                                        stop=["\n"], meter=meter)
            reasons[dimension] = " ".join(why.text.split())
    return Confirmation(**scores, reasons=reasons, probabilities=probabilities)


def score_probability(dimension: str, probability: float) -> int:
    """Sub-score of a dimension from the probability that the reply is faultless in it.

    One half parts faulty from faultless; for the dimensions of two points 1/4 to 3/4 is a small fault.
    """
    if MAXIMA[dimension] == 1:
        return int(probability >= 0.5)
    return int(probability >= 0.25) + int(probability >= 0.75)
