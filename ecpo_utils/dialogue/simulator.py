"""AILO, the policy-based user simulator: policy, message, expectation confirmation. Paper: section 2.3."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..core.matching import mentions_title, normalise
from ..core.schema import Confirmation, Item, Message, Policy, Task
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_prompt, render
from .agents.base import NOUNS
from .confirmation import Confirmer, render_transcript

MESSAGE_TOKENS = 70
ATTEMPT_HEAT = (0.0, 0.5, 0.9)  # added to the temperature after a message that failed a check

_ASSISTANT_TALK = re.compile(
    r"\b(how (can|may) i (help|assist)|(i|i'd|i would) (recommend|suggest)|may i (suggest|recommend)|happy to (help|assist)"
    r"|(can|may) i help you|let me (recommend|suggest|find)|here (is|are) (a|some|my) (recommendation|suggestion)"
    r"|as an ai|language model)",
    re.IGNORECASE,
)
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


@dataclass(frozen=True)
class UserTurn:
    """What the user does.

    Attributes:
        faults: Checks that the last attempt still failed: "leak", "role_reversal", "parrot", "empty".
        retries: Attempts that were thrown away before this message.
    """

    policy: Policy
    reason: str
    message: str
    retries: int
    faults: tuple[str, ...]


def target_wishes(item: Item) -> list[str]:
    """What can be told about the target without its name, from vague to telling.

    Categories come first, then the sentences of the description, and last the byline ("By ...") that
    would give a book away at once. Words of the title are blanked out.
    """
    general = [category for category in item.categories if category.lower() not in ("books", "video games", "restaurants", "shopping")]
    sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+", item.description) if s.strip()]
    byline = [s for s in sentences if re.match(r"(By|In) ", s) and len(s.split()) < 12][:1]
    rest = [s for s in sentences if s not in byline]
    return [hide_title(text, item.title) for text in [" / ".join(general[:2]) or "anything good", *rest, *byline]]


def hide_title(text: str, title: str) -> str:
    """The text with the title replaced by "it" wherever it stands as a whole."""
    return re.sub(re.escape(title), "it", text, flags=re.IGNORECASE)


class Simulator:
    """AILO in one dialogue.

    The target's title never enters a prompt: the simulator is told whether it was named, so that even a
    small model cannot give it away. Messages are still checked, for wishes can quote a title too.

    Args:
        client: The `simulator` endpoint.
        task: Persona and secret target.
        temperature: Of the first attempt at a message.
        confirmer: Scores the agent's replies.
        meter: Counts this dialogue's calls.
    """

    def __init__(self, client: ChatClient, task: Task, *, temperature: float, confirmer: Confirmer, meter: Meter):
        self.client = client
        self.task = task
        self.temperature = temperature
        self.confirmer = confirmer
        self.meter = meter
        self.history: list[Message] = []
        self.named = False  # whether the agent has named the target
        self._wishes = target_wishes(task.target)

    async def open(self) -> UserTurn:
        """The first message: a wish that gives away almost nothing, under the fixed first policy."""
        instruction = render("simulator_opening", noun=self._noun, hint=self._wishes[0])
        return await self._speak("ask_recommendation", "first message", instruction)

    async def respond(self) -> UserTurn:
        """Choose a policy for the agent's last reply and write the message that follows it."""
        choice = await self._choose_policy()
        values = {"reply": self.history[-1]["content"], "fact": self._fact(), "hint": self._next_wish()}
        if choice.policy == "end_conversation":
            instruction = render("simulator_closing", **values, reason=choice.reason)
        elif choice.policy == "respond_to_clarification":
            instruction = render("simulator_answer", **values)
        else:
            kind = self.task.persona.activities.partition(".")[0]
            instruction = render("simulator_feedback", **values, manner=_MANNERS.get(kind, "Say plainly what fits and what does not."))
        return await self._speak(choice.policy, choice.reason, instruction)

    def hear(self, reply: str) -> None:
        """Take in the agent's reply."""
        self.named = self.named or self.names_target(reply)
        self.history.append({"role": "assistant", "content": reply})

    async def confirm(self) -> Confirmation:
        """Expectation confirmation of the agent's last reply. Paper: section 2.2."""
        return await self.confirmer.confirm(wishes=self._target_text(), noun=self._noun, history=self.history, meter=self.meter)

    def names_target(self, text: str | None) -> bool:
        """Whether a text holds the target's whole title."""
        return bool(text) and mentions_title(text, self.task.target.title)

    @property
    def _noun(self) -> str:
        return NOUNS[self.task.domain]

    def _target_text(self) -> str:
        return " ".join(self._wishes)

    def _next_wish(self) -> str:
        """One more wish each turn; after the last one, the last one again."""
        turn = sum(message["role"] == "user" for message in self.history)
        return self._wishes[min(turn, len(self._wishes) - 1)]

    def _fact(self) -> str:
        return load_prompt("simulator_fact_named" if self.named else "simulator_fact_not_named")

    def _messages(self, instruction: str) -> list[Message]:
        persona = self.task.persona
        context = render(
            "simulator_context",
            noun=self._noun,
            target=self._target_text(),
            transcript=render_transcript(self.history),
            activities=persona.activities,
            interests=persona.interests or "not known",
            orientations=persona.orientations or "not known",
            language=persona.language,
        )
        return [{"role": "system", "content": load_prompt("simulator_system")}, {"role": "user", "content": f"{context}\n\n{instruction}"}]

    async def _choose_policy(self) -> PolicyChoice:
        reply = self.history[-1]["content"]
        messages = self._messages(render("simulator_policy", reply=reply, fact=self._fact()))
        answer = await self.client.parse(messages, PolicyChoice, max_tokens=120, meter=self.meter)
        return answer.parsed

    async def _speak(self, policy: Policy, reason: str, instruction: str) -> UserTurn:
        """Write a message, and write it again with more heat while it fails a check."""
        messages = self._messages(instruction)
        for retries, heat in enumerate(ATTEMPT_HEAT):
            answer = await self.client.complete(
                messages,
                max_tokens=MESSAGE_TOKENS,
                temperature=self.temperature + heat,
                sample=retries,
                stop=["\n\n", "\nAssistant:", "\nCustomer:", "\n#"],
                meter=self.meter,
            )
            message = tidy_message(answer.text)
            faults = self._faults(message)
            if not faults:
                break
        if "leak" not in faults:
            self.history.append({"role": "user", "content": message})
        return UserTurn(policy, reason, message, retries, tuple(faults))

    def _faults(self, message: str) -> list[str]:
        said = [normalise(m["content"]) for m in self.history]
        checks = {
            "empty": not message,
            "leak": not self.named and self.names_target(message),
            "role_reversal": bool(_ASSISTANT_TALK.search(message)),
            "parrot": normalise(message) in said,
        }
        return [name for name, failed in checks.items() if failed]


def tidy_message(text: str) -> str:
    """The spoken words only: no speaker label, no quotes around all, no half sentence at the end."""
    text = " ".join(re.sub(r"^\s*(customer|user|you)\s*:\s*", "", text, flags=re.IGNORECASE).split())
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if text and text[-1] not in ".!?)\"'":
        end = max(text.rfind(mark) for mark in ".!?")
        text = text[: end + 1] if end > 20 else text
    return text
