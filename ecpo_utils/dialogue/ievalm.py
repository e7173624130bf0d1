"""iEvaLM's user simulator, the baseline that AILO is compared with: one call a message, no persona, no policy, no scores.

Paper: sections 2.3 and B.4. It is told to accept the target, to refuse everything else and say something about the target
instead, to answer questions from the target's record, and never to say the title. Title, leak, role reversal and repetition
are dealt with as for AILO, so that the two differ in the method only; unlike the release's, it is shown the agent's last
reply. A model of one or two billion parameters repeats itself, and takes its wishes from what the agent praises;
with `simulator_mode: narrow` it reads no more of the conversation than how the last reply begins and ends, and a message that
tells nothing of the record is written again.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..core.matching import normalise
from ..core.quoting import one_line, quote_for_users
from ..core.schema import Message, Policy
from ..llm.prompts import load_examples, load_prompt, render
from .confirmation import SimulatorMode, render_transcript
from .simulator import Simulator
from .voices import PolicyChoice, Situation

STEM = 5  # letters
COMMON = {"about", "after", "again", "could", "every", "looki", "might", "never", "other", "place", "right", "shoul", "somet", "sound",
          "story", "their", "there", "these", "thing", "think", "those", "where", "which", "while", "would"}  # fmt: skip
REPLY_WORDS = 12  # of the beginning of a reply
MIN_LEFT = 2  # untold sentences; with fewer a small model makes wishes up


class IEvaLMVoice:
    """One instruction for every message, with the conversation and the target's record, or its title once the agent has named it.

    Args:
        mode: In "narrow" the conversation is the agent's last reply alone, shortened.
    """

    def __init__(self, mode: SimulatorMode):
        self.mode = mode

    async def choose_policy(self, situation: Situation) -> PolicyChoice:
        """No choice and no call: it ends when the target was recommended; every other answer is filed as feedback."""
        if situation.named:
            return PolicyChoice(reason="the target was recommended", policy="end_conversation")
        return PolicyChoice(reason="the target was not recommended", policy="provide_feedback_on_recommendation")

    def prompt(self, policy: Policy, situation: Situation) -> list[Message]:
        """What a message is written from. The policy makes no difference: it follows from the conversation as well."""
        history = situation.history
        if self.mode == "narrow" and history:
            history = [{**history[-1], "content": shorten_reply(history[-1]["content"])}]
        values = {"noun": situation.noun, "target": quote_for_users(situation.wishes), "title": one_line(situation.title or "")}
        kind = "accept" if situation.named else "message" if history else "opening"
        return [
            {"role": "system", "content": load_prompt("ievalm_system")},
            *load_examples(f"ievalm_{kind}_examples"),
            {"role": "user", "content": render(f"ievalm_{kind}", transcript=render_transcript(history), **values)},
        ]


def shorten_reply(text: str) -> str:
    """How a reply begins and how it ends, which tells a suggestion from a question, without what it praises in between."""
    first, *rest = re.split(r"(?<=[.?!])\s+", " ".join(text.split()))
    words = first.split()
    is_cut = len(words) > REPLY_WORDS or len(rest) > 1
    return " ".join([*words[:REPLY_WORDS], *(["..."] if is_cut else []), *rest[-1:]])


class IEvaLMSimulator(Simulator):
    """iEvaLM's user in one dialogue; takes the same arguments as AILO, but no persona, and of the confirmer only its mode."""

    def __init__(self, *args: object, **options: object):
        super().__init__(*args, **options)
        self._voice = IEvaLMVoice(self.confirmer.mode)

    async def confirm(self) -> None:
        """No scores: the reply stays unscored."""

    def _situation(self) -> Situation:
        """What of the record is not told yet, as the rest is no news to the agent; all of it where hardly anything is left."""
        said = {stem for message in self.history if message["role"] == "user" for stem in stems(message["content"])}
        left = [wish for wish in self._wishes if not is_told(wish, said)]
        shown = left if len(left) >= MIN_LEFT else self._wishes
        return replace(super()._situation(), wishes=" ".join(wish if wish[-1] in ".!?" else f"{wish}." for wish in shown))

    def _faults(self, message: str) -> list[str]:
        faults = super()._faults(message)
        if self.confirmer.mode == "narrow" and message and self.named_at is None and not self._tells(message):
            faults.append("ungrounded")
        return faults

    def _tells(self, message: str) -> bool:
        """Whether a message holds a telling word of the record."""
        return bool(stems(message) & stems(" ".join(self._wishes)))


def is_told(wish: str, said: set[str]) -> bool:
    """Whether three of a sentence's telling words, or all if it has fewer, are among those that were said."""
    words = stems(wish)
    return bool(words) and len(words & said) >= min(3, len(words))


def stems(text: str) -> set[str]:
    """The beginnings of the words that tell something: five letters, of words that are not shorter."""
    return {word[:STEM] for word in normalise(text).split() if len(word) >= STEM} - COMMON
