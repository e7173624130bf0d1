"""A judge for models of a few billion parameters: it reads each dialogue by itself, reply by reply.

A model of one or two billion parameters that is shown two whole dialogues has next to no preference but for a position.
Shown one reply, it tells quite surely what kind of message it is, and whether it takes up what the customer said.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...core.matching import normalise
from ...core.schema import Message, Verdict
from ...llm.client import ChatClient
from ...llm.prompts import load_examples, load_prompt
from ..transcripts import Transcript, clip_characters
from .base import DIMENSIONS, Judge, Pair, sign

KINDS = ("question", "offer", "statement", "notes", "error")
UPTAKE = ("takes", "ignores")
READ_DIMENSIONS = ("flexibility", "coherence", "guidance")
SHOWN_WORDS = 25  # of the beginning and of the end of a message


def both_ends(text: str, words: int = SHOWN_WORDS) -> str:
    """A text with its middle left out: how a message ends says whether it leads on."""
    parts = [clip_characters(part) for part in text.split()]
    return " ".join(parts) if len(parts) <= 2 * words else " ".join([*parts[:words], "...", *parts[-words:]])


def share_seen(transcripts: Sequence[Transcript]) -> float:
    """Share of the words of the agents' replies that `both_ends` shows."""
    lengths = [len(reply.split()) for transcript in transcripts for reply in transcript.replies]
    return sum(min(length, 2 * SHOWN_WORDS) for length in lengths) / max(sum(lengths), 1)


class NarrowJudge(Judge):
    """The dialogue that is worth more by `read_dialogue` wins; no order, hence no position bias; log-probabilities needed."""

    name = "narrow"
    orders = ("apart",)

    def prompts(self, pair: Pair) -> list[list[Message]]:
        """What is asked of each reply, here of each dialogue as a whole."""
        return [_prompt(name, transcript.render()) for transcript in pair for name in ("judge_kind", "judge_uptake")]

    async def ask(self, row: Verdict, pair: Pair) -> None:
        """What each dialogue is worth, and which is worth more."""
        first, second = [await read_dialogue(self.client, transcript) for transcript in pair]
        row.measures = {name: (first[name], second[name]) for name in DIMENSIONS}
        row.scores = {name: sign(first[name] - second[name]) for name in DIMENSIONS}


def reply_scores(kinds: dict[str, float], takes_up: float, *, repeated: bool) -> dict[str, float]:
    """What one reply is worth per dimension, 0-1.

    Args:
        kinds: Probability of each of `KINDS`.
        takes_up: Probability that it takes up what the customer said last.
        repeated: Whether the agent said the same before: then it neither adapts nor makes sense in its place.
    """
    if repeated:
        return {"flexibility": 0.0, "coherence": 0.0, "guidance": kinds["question"] + kinds["offer"]}
    sound = 1 - kinds["notes"] - kinds["error"]
    return {"flexibility": takes_up, "coherence": sound, "guidance": kinds["question"] + kinds["offer"]}


async def read_dialogue(client: ChatClient, transcript: Transcript) -> dict[str, float]:
    """Mean over the agent's replies of `reply_scores`, and "final", the mean of the three.

    Args:
        client: The `judge` endpoint; needs its log-probabilities. Two one-token calls per reply.
        transcript: Holds at least one reply.

    Raises:
        EndpointError, ParseError: See `ChatClient.choose`.
    """
    rows, said, customer = [], set(), ""
    for message in transcript.messages:
        text = message["content"]
        if message["role"] == "user":
            customer = text
        elif text.strip():
            kinds = await client.choose(_prompt("judge_kind", both_ends(text)), KINDS)
            exchange = f"Customer: {both_ends(customer)}\nAssistant: {both_ends(text)}"
            uptake = await client.choose(_prompt("judge_uptake", exchange), UPTAKE)
            rows.append(reply_scores(kinds, uptake["takes"], repeated=normalise(text) in said))
            said.add(normalise(text))
    return mean_scores(rows)


def mean_scores(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Scores of a dialogue from those of its replies."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in READ_DIMENSIONS}
    return means | {"final": sum(means.values()) / len(means)}


def _prompt(name: str, text: str) -> list[Message]:
    system = {"role": "system", "content": load_prompt(f"{name}_system")}
    return [system, *load_examples(f"{name}_examples"), {"role": "user", "content": text}]
