"""How AILO chooses a policy and words a message: one voice for large models, one for small ones. Paper: 2.3.

A large model gets the whole picture (persona, target, transcript) and is told what to do. A model of one or two
billion parameters loses itself in that and echoes the assistant; it gets the least that a step needs: the policy is
read off one word about the assistant's last message, and the wording is a short note to be said in the persona's manner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..core.quoting import one_line, quote_for_users
from ..core.schema import Message, Persona, Policy
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_examples, load_prompt, render
from .confirmation import render_transcript

HINT_WORDS = 22
GREETING = "Hello! What are you looking for?"  # what a first message answers; no part of the dialogue
PATIENCE = {"Efficiency-seeking": 2, "Detail-oriented": 3, "Exploration-oriented": 3}  # poor replies in a row before leaving
POOR_SATISFACTION = 1

_MANNERS = {
    "Efficiency-seeking": "Be brief: give only the one correction that is needed.",
    "Detail-oriented": "Name one or two particulars; you may ask for a fact about the suggestion.",
    "Exploration-oriented": "Show curiosity; you may ask what else there is, even if the suggestion is fine.",
}


class PolicyChoice(BaseModel):
    """What to do next, and why. The first message has no choice: it asks for a recommendation."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    policy: Literal["respond_to_clarification", "provide_feedback_on_recommendation", "end_conversation"]

    @property
    def draft(self) -> str:
        """The message, where it came with the choice."""
        return getattr(self, "message", "")


class WordedChoice(PolicyChoice):
    """A large model's answer: the message follows from the policy, in the same call."""

    message: str


@dataclass
class Situation:
    """What a voice may know when it speaks.

    Attributes:
        noun: What is sought, e.g. "book".
        wishes: The target in words, without its title.
        hint: The one wish to let out now.
        history: Messages so far.
        title: The target's title once the agent has named it, None before.
        turns_since_named: User messages since then.
        satisfactions: r_t of the replies so far, None where unscored.
    """

    persona: Persona
    noun: str
    wishes: str
    hint: str
    history: list[Message]
    title: str | None = None
    turns_since_named: int = 0
    satisfactions: tuple[int | None, ...] = ()

    @property
    def named(self) -> bool:
        """Whether the agent has named the target; from then on its title is no secret."""
        return self.title is not None

    @property
    def kind(self) -> str:
        """The activity type that a persona's activities begin with, "" for personas from elsewhere."""
        return next((kind for kind in PATIENCE if self.persona.activities.lower().startswith(kind.split("-")[0].lower())), "")


class FullVoice:
    """For large models: everything in view, a policy with its reason and the message under it in one JSON answer."""

    def __init__(self, client: ChatClient, meter: Meter):
        self.client = client
        self.meter = meter

    async def choose_policy(self, situation: Situation) -> PolicyChoice:
        """Policy and message at once. Paper: section 2.3, steps 1 and 2."""
        instruction = render("simulator_policy", fact=_fact(situation), hint=situation.hint, manner=_manner(situation))
        return (await self.client.parse(self._messages(situation, instruction), WordedChoice, max_tokens=220, meter=self.meter)).parsed

    def prompt(self, policy: Policy, situation: Situation) -> list[Message]:
        """What the first message is written from, and one that did not pass a check under its policy."""
        values = {"fact": _fact(situation), "hint": situation.hint, "noun": situation.noun, "manner": _manner(situation)}
        names = {"ask_recommendation": "opening", "respond_to_clarification": "answer", "end_conversation": "closing"}
        return self._messages(situation, render(f"simulator_{names.get(policy, 'feedback')}", **values))

    def _messages(self, situation: Situation, instruction: str) -> list[Message]:
        persona = situation.persona
        context = render(
            "simulator_context", noun=situation.noun, target=quote_for_users(situation.wishes, begins_line=True),
            transcript=render_transcript(situation.history),
            activities=persona.activities, interests=persona.interests or "not known",
            orientations=persona.orientations or "not known", language=persona.language,
        )  # fmt: skip
        return [{"role": "system", "content": load_prompt("simulator_system")}, {"role": "user", "content": f"{context}\n\n{instruction}"}]


class NarrowVoice:
    """For small models: one word about the agent's move, rules of the persona for the end, a note to be worded."""

    def __init__(self, client: ChatClient, meter: Meter):
        self.client = client
        self.meter = meter
        self._move = ""  # what the agent's last message did: "ask", "suggest" or "other"

    async def choose_policy(self, situation: Situation) -> PolicyChoice:
        """The model says what the agent did; when to leave follows from the activity type."""
        if leaving := _reason_to_leave(situation):
            return PolicyChoice(reason=leaving, policy="end_conversation")
        messages = [
            {"role": "system", "content": load_prompt("narrow_policy_system")},
            *load_examples("narrow_policy_examples"),
            {"role": "user", "content": quote_for_users(situation.history[-1]["content"])},
        ]
        weights = await self.client.choose(messages, ["ask", "suggest", "other"], meter=self.meter)
        self._move = word = max(weights, key=weights.get)
        policy = "respond_to_clarification" if word == "ask" else "provide_feedback_on_recommendation"
        return PolicyChoice(reason=f"{word} ({weights[word]:.2f})", policy=policy)

    def prompt(self, policy: Policy, situation: Situation) -> list[Message]:
        """Manner of writing, the agent's last message, and a note of what to say."""
        heard = situation.history[-1]["content"] if situation.history else GREETING
        values = {"language": situation.persona.language, "reply": quote_for_users(heard), "note": _note(policy, situation, self._move)}
        return [
            {"role": "system", "content": load_prompt("narrow_message_system")},
            *load_examples("narrow_message_examples"),
            {"role": "user", "content": render("narrow_message", **values)},
        ]


def _manner(situation: Situation) -> str:
    return _MANNERS.get(situation.kind, "Say plainly what fits and what does not.")


def _fact(situation: Situation) -> str:
    return load_prompt("simulator_fact_named" if situation.named else "simulator_fact_not_named")


def _reason_to_leave(situation: Situation) -> str:
    """Efficient users leave once their target was named, others after one more exchange; all lose patience."""
    if situation.named and situation.turns_since_named >= (0 if situation.kind == "Efficiency-seeking" else 1):
        return "has what it wanted"
    patience = PATIENCE.get(situation.kind, 3)
    recent = situation.satisfactions[-patience:]
    if not situation.named and len(recent) == patience and all(score is not None and score <= POOR_SATISFACTION for score in recent):
        return f"lost patience after {patience} poor replies"
    return ""


def _note(policy: Policy, situation: Situation, move: str) -> str:
    """What to say, in a few plain words."""
    words, title = situation.hint.rstrip(".").split(), one_line(situation.title or "")
    wish = " ".join(words[:HINT_WORDS])
    if policy == "ask_recommendation":
        return f"opening; looking for a {situation.noun}, roughly: {wish}."
    if policy == "end_conversation":
        return f"{title} is what I wanted, thanks, goodbye." if situation.named else "no luck, that does not help me, goodbye."
    if situation.named:
        rest = "what else is there like it?" if situation.kind == "Exploration-oriented" else "tell me one more fact about it."
        return f"yes, {title} is exactly it; {rest}"
    if policy == "respond_to_clarification":
        return f"answer; what I want: {wish}."
    return f"{'no, not that one' if move == 'suggest' else 'that did not help'}; what I want: {wish}."


def make_voice(mode: Literal["narrow", "full"], client: ChatClient, meter: Meter) -> FullVoice | NarrowVoice:
    """The voice of a `simulator_mode`."""
    return NarrowVoice(client, meter) if mode == "narrow" else FullVoice(client, meter)
