"""Rewriting in steps, for rewriters too small to repair a reply at once: they write single sentences, rules say which. Paper: section 2.2.

A model of 1.5B parameters that is shown a reply and its faults mostly copies the reply. So each fault calls for one piece: a missed message
for an opening that takes it up, a reply out of context for other entries and what they are about, a missing next step for a question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core.matching import mentions_title, normalise
from ..core.quoting import quote_for_users
from ..core.schema import Action, Item, Message, Trajectory, Turn
from ..dialogue.agents.actions import parse_action
from ..dialogue.agents.base import render_items
from ..dialogue.simulator import echoes
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_examples, load_prompt, render

PURPOSES = ("opening", "fit", "pitch", "question")
PROMPTS = (*(f"narrow_rewrite_{purpose}_{part}" for purpose in PURPOSES for part in ("system", "examples")),
           "narrow_rewrite_entry", "narrow_rewrite_so_far")  # fmt: skip
MAX_ENTRIES = 6  # that the model reads, the latest ones
NUM_RECOMMENDED = 2
LAST_MESSAGES = 3  # of the customer
SENTENCE_TOKENS = {"opening": 20, "pitch": 32, "question": 20}
_QUESTION_AT_END = re.compile(r"\s*[^.!?\"\u201d]*\?\s*$")
_SENTENCE = re.compile(r".*?\w\w[\"\u201d)]?[.!?](?=\s|$)")  # an initial, as in "M. R. James", ends none
_FORMS = {"ask": "Ask", "recommend": "Recommend", "response": "Response"}


class NarrowRewriter:
    """Writes the pieces of a repaired reply. The endpoint must return log-probabilities."""

    def __init__(self, client: ChatClient, meter: Meter):
        self.client = client
        self.meter = meter

    async def rewrite(self, row: Trajectory, turn: Turn, seen: Sequence[Item], *, is_error: bool) -> tuple[str, Action]:
        """What is changed, in words, and the repaired action.

        Args:
            row: The dialogue.
            turn: Its turn whose reply is repaired.
            seen: What the agent had found by then, the latest first.
            is_error: Whether the user read an error message.

        Raises:
            EndpointError: If the endpoint fails.
            ParseError: If it answers none of the words asked for.
        """
        ec, earlier = turn.confirmation, row.turns[: turn.index]
        repeats = normalise(turn.reply or "") in {normalise(each.reply or "") for each in earlier}
        said = [each.user_message for each in row.turns[: turn.index + 1]][-LAST_MESSAGES:]
        changes, opening = [], ""
        kept = "" if is_error or repeats else parse_action(turn.steps[-1].output).argument
        if ec.flexibility < 2 or not kept:
            changes.append("take up what the user said")
            opening = await self._sentence("opening", quote_for_users(turn.user_message))
            if echoes(normalise(opening), normalise(turn.user_message)):
                opening = ""
        entries = [item for item in seen if not any(mentions_title(each.reply or "", item.title) for each in earlier)]
        if entries and (ec.coherence < 2 or not kept):
            changes.append("recommend what fits")
            kept, kind = await self._recommendation(" / ".join(said), entries[:MAX_ENTRIES]), "recommend"
        else:
            kind = turn.steps[-1].action.type if kept else "ask"
        if ec.guidance < 1 or not kept or "recommend what fits" in changes:
            changes.append("offer a next step")
            kept = _QUESTION_AT_END.sub("", kept)
            answer = " ".join(filter(None, (opening, kept)))
            values = {"said": quote_for_users(turn.user_message), "answer": quote_for_users(answer)}
            kept = f"{kept} {await self._sentence('question', render('narrow_rewrite_so_far', **values))}"
        text = " ".join(" ".join((opening, kept)).split())
        return "; ".join(changes), parse_action(f"{_FORMS.get(kind, 'Response')}[{text}]")

    async def _recommendation(self, said: str, entries: Sequence[Item]) -> str:
        """The entries that suit best, each with a sentence on what it is about."""
        fits = [(await self.client.choose(self._messages("fit", self._entry(said, item)), ["yes", "no"], meter=self.meter))["yes"]
                for item in entries]  # fmt: skip
        best = sorted(range(len(entries)), key=lambda i: -fits[i])[:NUM_RECOMMENDED]
        pitches = [await self._sentence("pitch", self._entry(said, entries[i])) for i in best]
        names = [f'How about "{entries[i].title}"?' if place == 0 else f'Or "{entries[i].title}"?' for place, i in enumerate(best)]
        return " ".join(f"{name} {pitch}" for name, pitch in zip(names, pitches, strict=True))

    def _entry(self, said: str, item: Item) -> str:
        return render("narrow_rewrite_entry", said=quote_for_users(said), entry=render_items([item]).partition(" ")[2])

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
        system = {"role": "system", "content": load_prompt(f"narrow_rewrite_{purpose}_system")}
        return [system, *load_examples(f"narrow_rewrite_{purpose}_examples"), {"role": "user", "content": text}]
