"""A judge for models of a few billion parameters: it reads each dialogue by itself, reply by reply.

A model of one or two billion parameters that is shown two whole dialogues has next to no preference but for a position.
Shown one reply, it tells quite surely what kind of message it is, and whether it takes up what the customer said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    """Share of the characters of the agents' replies that `both_ends` shows, blanks left out."""
    replies = [reply for transcript in transcripts for reply in transcript.replies]
    whole, shown = (["".join(text.split()) for text in texts] for texts in (replies, map(both_ends, replies)))
    return sum(min(len(part), len(text)) for part, text in zip(shown, whole, strict=True)) / max(sum(map(len, whole)), 1)


class NarrowJudge(Judge):
    """The dialogue that is worth more by `read_dialogue` wins; no order, hence no position bias; log-probabilities needed."""

    name = "narrow"
    orders = ("apart",)

    def prompts(self, pair: Pair) -> list[list[Message]]:
        """What is asked of each reply."""
        return [prompt for transcript in pair for _, *prompts in questions(transcript) for prompt in prompts]

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
    rows, said = [], set()
    for text, of_kind, of_uptake in questions(transcript):
        if text.strip():
            kinds, uptake = await client.choose(of_kind, KINDS), await client.choose(of_uptake, UPTAKE)
            rows.append(reply_scores(kinds, uptake["takes"], repeated=_words(text) in said))
            said.add(_words(text))
    return mean_scores(rows)


def _words(text: str) -> str:
    return normalise(text) or text.strip()  # symbols only


def questions(transcript: Transcript) -> Iterator[tuple[str, list[Message], list[Message]]]:
    """Every reply of the agent, what asks for its kind, and what asks whether it takes up what the customer said."""
    customer = ""
    for message in transcript.messages:
        text = message["content"]
        if message["role"] == "user":
            customer = text
        else:
            exchange = f"Customer: {both_ends(customer)}\nAssistant: {both_ends(text)}"
            yield text, _prompt("judge_kind", both_ends(text)), _prompt("judge_uptake", exchange)


def mean_scores(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Scores of a dialogue from those of its replies."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in READ_DIMENSIONS}
    return means | {"final": sum(means.values()) / len(means)}


def _prompt(name: str, text: str) -> list[Message]:
    system = {"role": "system", "content": load_prompt(f"{name}_system")}
    return [system, *load_examples(f"{name}_examples"), {"role": "user", "content": text}]
