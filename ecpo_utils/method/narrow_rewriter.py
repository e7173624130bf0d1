"""Rewriting in steps, for rewriters too small to repair a reply at once: they write single sentences, rules say which. Paper: section 2.2.

A model of 1.5B parameters that is shown a reply and its faults mostly copies the reply. So it writes a single sentence: a question in
place of the reply's last one, which makes up for what the user missed. Nothing else changes, so that a pair differs only at its end: with
other beginnings a policy of 135M parameters lost its searches or spoilt them, and with a sentence left out for the question it left out its
second title for good. A question about one of two suggestions teaches it the same, and makes no pair. Only an error or a repetition makes
way for other entries.

What was missed are the dimensions in which the user deducted points. The user's own words on it are not shown: a model of this size
answers a complaint with an apology.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from ..core.errors import ParseError
from ..core.matching import mentions_title, normalise, says_again
from ..core.quoting import quote_for_users
from ..core.schema import Action, Confirmation, Item, Message, Trajectory, Turn
from ..dialogue.agents.actions import parse_action, render_action
from ..dialogue.agents.base import render_items
from ..dialogue.confirmation import MAXIMA
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_examples, load_prompt, render

RewriterReads = Literal["confirmation", "instruction"]
PURPOSES = ("fit", "pitch", "question", "missed")
PROMPTS = (*(f"rewrite_narrow_{purpose}_{part}" for purpose in PURPOSES for part in ("system", "examples")),
           "rewrite_narrow_entry", "rewrite_narrow_so_far", "rewrite_narrow_lacks")  # fmt: skip
MAX_ENTRIES = 6  # that the model reads, the latest ones
NUM_RECOMMENDED = 2
TAKE_UP, NEXT_STEP = "take up what the user said", "offer a next step"
MISSED = {TAKE_UP: "what the customer said", NEXT_STEP: "a step that leads on"}  # as the model reads it
MAX_WORDS = 80  # about as many as an agent may write in one action
LAST_MESSAGES = 3  # of the customer
LONG_WORD = 5  # letters: of shorter words any two sentences share some
SENTENCE_TOKENS = {"pitch": 32, "question": 20, "missed": 28}
_QUESTION_AT_END = re.compile(r"\s*[^.!?\"\u201d]*\w\s*\?\s*$")  # not the mark behind a title
_TITLE = re.compile(r"[\"\u201c][^\"\u201c\u201d]+[\"\u201d]")
_OF_ONE = re.compile(r"\W*((is|was|does|has|would) (this|that)|(does|has) it)\b", re.IGNORECASE)  # "is it" may mean the wish
_SENTENCE = re.compile(r".*?\w\w[\"\u201d)]?[.!?](?=\s|$)")  # an initial, as in "M. R. James", ends none


class NarrowRewriter:
    """Writes the pieces of a repaired reply. The endpoint must return log-probabilities.

    Args:
        client: The `rewriter` endpoint.
        meter: Counts its calls.
        reads: "confirmation": in which dimensions the user deducted points; "instruction": nothing of this turn.
    """

    def __init__(self, client: ChatClient, meter: Meter, reads: RewriterReads = "confirmation"):
        self.client = client
        self.meter = meter
        self.reads = reads

    async def repair(self, row: Trajectory, turn: Turn, seen: Sequence[Item], *, is_error: bool) -> tuple[str, Action]:
        """The repaired action, after what is to change in words.

        Args:
            row: The dialogue.
            turn: Its turn whose reply is repaired.
            seen: What the agent had found by then, the latest first.
            is_error: Whether the user read an error message.

        Raises:
            EndpointError: If the endpoint fails.
            ParseError: If it answers none of the words asked for, writes no whole sentence to end with, or asks about one of several
                suggestions.
        """
        changes = what_to_change(turn.confirmation) if self.reads == "confirmation" else [NEXT_STEP]
        earlier = row.turns[: turn.index]
        if is_error or says_again(turn.reply or "", earlier):
            return await self._replace(row, turn, seen, changes)
        action = parse_action(turn.steps[-1].output)
        body = _QUESTION_AT_END.sub("", action.argument)
        return "; ".join(changes), _put_together(action.type, [body], await self._question(turn, body, changes))

    async def _replace(self, row: Trajectory, turn: Turn, seen: Sequence[Item], changes: Sequence[str]) -> tuple[str, Action]:
        """Another reply: entries that were not named yet, or a question where there are none."""
        entries = [item for item in seen if not any(mentions_title(each.reply or "", item.title) for each in row.turns[: turn.index])]
        if not entries:
            return "; ".join(changes), _put_together("ask", [""], await self._question(turn, "", changes))
        said = [each.user_message for each in row.turns[: turn.index + 1]][-LAST_MESSAGES:]
        bodies = await self._recommend(" / ".join(said), entries[:MAX_ENTRIES])
        question = await self._question(turn, bodies[0], changes)
        return "; ".join(["recommend what fits", *changes]), _put_together("recommend", bodies, question)

    async def _question(self, turn: Turn, answer: str, changes: Sequence[str]) -> str:
        text = render("rewrite_narrow_so_far", said=quote_for_users(turn.user_message), answer=quote_for_users(answer))
        if self.reads == "instruction":
            sentence = await self._sentence("question", text)
        else:
            missed = ", ".join(MISSED[change] for change in changes)
            sentence = await self._sentence("missed", render("rewrite_narrow_lacks", so_far=text, missed=missed))
            sentence = sentence if sentence.endswith("?") else ""  # an apology makes up for nothing
        if not sentence:
            raise ParseError("the rewriter wrote no whole sentence to end with; the reply without its question would be no repair")
        if _OF_ONE.match(sentence) and len(set(_TITLE.findall(answer))) > 1:
            raise ParseError(f"the question is about one suggestion where the reply names several: {sentence}")
        return sentence

    async def _recommend(self, said: str, entries: Sequence[Item]) -> list[str]:
        """The entries that suit best, each with a sentence on what it is about; second, in fewer words."""
        asked = [self._messages("fit", self._entry(said, item)) for item in entries]
        fits = [(await self.client.choose(messages, ["yes", "no"], meter=self.meter))["yes"] for messages in asked]
        best = [entries[i] for i in sorted(range(len(entries)), key=lambda i: -fits[i])[:NUM_RECOMMENDED]]
        first, *others = [f'How about "{item.title}"? {await self._pitch(said, item)}' for item in best]
        named = [f'Or "{item.title}"?' for item in best[1:]]
        return [" ".join([first, *(other.replace("How about", "Or", 1) for other in others)]), " ".join([first, *named])]

    async def _pitch(self, said: str, item: Item) -> str:
        """A sentence on an entry; none where it says other things than the entry does."""
        pitch = await self._sentence("pitch", self._entry(said, item))
        known = set(normalise(f"{item.title} {item.description} {' '.join(item.categories)}").split())
        telling = [word for word in normalise(pitch).split() if len(word) >= LONG_WORD]
        return pitch if sum(word in known for word in telling) >= len(telling) / 2 else ""

    def _entry(self, said: str, item: Item) -> str:
        return render("rewrite_narrow_entry", said=quote_for_users(said), entry=render_items([item]).partition(" ")[2])

    async def _sentence(self, purpose: str, text: str) -> str:
        """The first sentence of the answer; of one that did not come to its end a pitch keeps what stands before the last comma."""
        answer = await self.client.complete(
            self._messages(purpose, text), max_tokens=SENTENCE_TOKENS[purpose], stop=["\n"], meter=self.meter
        )
        words = answer.text.strip().strip('"').strip()
        if whole := _SENTENCE.match(words):
            return whole[0]
        return f"{words.rpartition(',')[0]}." if purpose == "pitch" and "," in words else ""

    def _messages(self, purpose: str, text: str) -> list[Message]:
        system = {"role": "system", "content": load_prompt(f"rewrite_narrow_{purpose}_system")}
        return [system, *load_examples(f"rewrite_narrow_{purpose}_examples"), {"role": "user", "content": text}]


def what_to_change(confirmation: Confirmation) -> list[str]:
    """What a reply should have done, by the dimensions that lost points; a next step where none did."""
    deducted = {name for name, most in MAXIMA.items() if getattr(confirmation, name) < most}
    changes = [TAKE_UP] if deducted & {"flexibility", "coherence"} else []
    return changes if changes and "guidance" not in deducted else [*changes, NEXT_STEP]


def _put_together(kind: str, bodies: Sequence[str], question: str) -> Action:
    """An action of the pieces; of one that grows too long the shorter body."""
    forms = [f"{body} {question}".split() for body in bodies]
    words = next((form for form in forms if len(form) <= MAX_WORDS), forms[-1])
    return parse_action(render_action(Action(type=kind, argument=" ".join(words))))
