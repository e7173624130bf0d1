"""Dialogues with planted flaws of graded severity: what a judge must rank below their originals."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..core.matching import normalise
from ..dialogue.agents.base import SYSTEM_ERROR
from .transcripts import QUESTION_MARKS, Transcript

SEVERITIES = ("one", "half", "all")  # how many of the replies are damaged
EMPTY_WORDS = ("I see.", "All right.", "Very well.", "Understood.", "Of course.")  # where nothing but a question was said, in turn
_SENTENCE = re.compile(r"(?<=[.!?؟])\s+|(?<=[。！？])\s*(?=\S)")


def _without_questions(reply: str) -> str:
    """The reply without its questions, as it is where it has none; "" where nothing else was said."""
    sentences = _SENTENCE.split(reply)
    kept = [sentence for sentence in sentences if not sentence.rstrip("\"')").endswith(QUESTION_MARKS)]
    return reply if len(kept) == len(sentences) else " ".join(kept)


def replies_to_others(replies: Sequence[str], others: Sequence[Transcript]) -> list[str]:
    """As many replies from other dialogues, each said once, in the same place there where there is one left, so that nothing is repeated.

    Returns:
        The replies themselves, which is no damage, where they repeat each other (without them a repetition would be gone) or the
        other dialogues have too few.
    """
    seen, found = {normalise(reply) for reply in replies}, []
    if len(seen) < len(replies):
        return list(replies)
    for index in range(len(replies)):
        placed = [other.replies[index] for other in others if len(other.replies) > index]
        anywhere = [reply for other in others for reply in other.replies]
        stranger = next((reply for reply in [*placed, *anywhere] if normalise(reply) not in seen), None)
        if stranger is None:
            return list(replies)
        seen.add(normalise(stranger))
        found.append(stranger)
    return found


FLAWS: dict[str, Callable[[Sequence[str], Sequence[Transcript]], list[str]]] = {  # every reply of a dialogue in its damaged form
    "system_error": lambda replies, others: [SYSTEM_ERROR] * len(replies),
    "repetition": lambda replies, others: [replies[0]] * len(replies),
    "irrelevant": replies_to_others,
    "no_guidance": lambda replies, others: [
        _without_questions(reply) or EMPTY_WORDS[index % len(EMPTY_WORDS)] for index, reply in enumerate(replies)
    ],
}


def damage(transcript: Transcript, flaw: str, severity: str, *, others: Sequence[Transcript], seed: int = 0) -> Transcript | None:
    """A dialogue with a flaw planted into one, half or all of the replies that it can change; user messages stay.

    Args:
        transcript: The original.
        flaw: "system_error", "repetition" (of the first reply), "irrelevant" (replies to another task) or
            "no_guidance" (no questions).
        severity: "one", "half" (rounded up) or "all".
        others: Dialogues of other users, for "irrelevant", those to be taken first first.
        seed: Which replies are hit.

    Returns:
        None if the flaw changes no reply, e.g. a dialogue of one reply cannot repeat itself, or no more of them than a lighter
        severity does: half of two replies is one. One without any reply cannot be damaged either.
    """
    places = [i for i, m in enumerate(transcript.messages) if m["role"] == "assistant" and m["content"].strip()]
    flawed = dict(zip(places, FLAWS[flaw](transcript.replies, others), strict=True)) if places else {}
    changeable = [i for i in places if flawed[i].split() != transcript.messages[i]["content"].split()]  # another blank is no flaw
    counts = {"one": 1, "half": (len(changeable) + 1) // 2, "all": len(changeable)}
    count, lighter = counts[severity], SEVERITIES[: SEVERITIES.index(severity)]
    if not changeable or count in (counts[each] for each in lighter):
        return None
    hit = set(random.Random(f"{seed} {transcript.task_id} {flaw}").sample(changeable, len(changeable))[:count])  # nested over severities
    messages = tuple({**m, "content": flawed[i]} if i in hit else m for i, m in enumerate(transcript.messages))
    return replace(transcript, messages=messages)
