"""Dialogues with planted flaws of graded severity: what a judge must rank below their originals."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..dialogue.agents.base import SYSTEM_ERROR
from .transcripts import QUESTION_MARKS, Transcript

SEVERITIES = ("one", "half", "all")  # how many of the replies are damaged
_SENTENCE = re.compile(r"(?<=[.!?؟])\s+|(?<=[。！？])\s*(?=\S)")


def _without_questions(reply: str) -> str:
    """The reply without its questions, as it is where it has none; "" where nothing else was said."""
    sentences = _SENTENCE.split(reply)
    kept = [sentence for sentence in sentences if not sentence.rstrip("\"')").endswith(QUESTION_MARKS)]
    return reply if len(kept) == len(sentences) else " ".join(kept)


def damaged_replies(replies: Sequence[str], strangers: Sequence[str], flaw: str) -> list[str]:
    """Every reply in its damaged form.

    Args:
        replies: Of the original dialogue.
        strangers: Replies from a dialogue on another task.
        flaw: Key of `FLAWS`.
    """
    return [FLAWS[flaw](index, replies, strangers) for index in range(len(replies))]


FLAWS: dict[str, Callable[[int, Sequence[str], Sequence[str]], str]] = {
    "system_error": lambda index, replies, strangers: SYSTEM_ERROR,
    "repetition": lambda index, replies, strangers: replies[0],
    "irrelevant": lambda index, replies, strangers: strangers[index % len(strangers)],
    "no_guidance": lambda index, replies, strangers: _without_questions(replies[index]) or "I see.",
}


def damage(transcript: Transcript, flaw: str, severity: str, *, stranger: Transcript, seed: int = 0) -> Transcript | None:
    """A dialogue with a flaw planted into one, half or all of the replies that it can change; user messages stay.

    Args:
        transcript: The original.
        flaw: "system_error", "repetition" (of the first reply), "irrelevant" (replies to another task) or
            "no_guidance" (no questions).
        severity: "one", "half" (rounded up) or "all".
        stranger: A dialogue on another task, for "irrelevant".
        seed: Which replies are hit.

    Returns:
        None if the flaw changes no reply, e.g. a dialogue of one reply cannot repeat itself, or no more of them than a lighter
        severity does: half of two replies is one.
    """
    places = [i for i, m in enumerate(transcript.messages) if m["role"] == "assistant" and m["content"].strip()]
    replies = [transcript.messages[i]["content"] for i in places]
    flawed = dict(zip(places, damaged_replies(replies, stranger.replies or [SYSTEM_ERROR], flaw), strict=True))
    changeable = [i for i in places if flawed[i].split() != transcript.messages[i]["content"].split()]  # another blank is no flaw
    counts = {"one": 1, "half": (len(changeable) + 1) // 2, "all": len(changeable)}
    count, lighter = counts[severity], SEVERITIES[: SEVERITIES.index(severity)]
    if not changeable or count in (counts[each] for each in lighter):
        return None
    hit = set(random.Random(f"{seed} {transcript.task_id} {flaw}").sample(changeable, len(changeable))[:count])  # nested over severities
    messages = tuple({**m, "content": flawed[i]} if i in hit else m for i, m in enumerate(transcript.messages))
    return replace(transcript, messages=messages)
