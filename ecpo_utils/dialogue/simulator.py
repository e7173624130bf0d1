"""AILO, the policy-based user simulator: policy, message, expectation confirmation. Paper: section 2.3."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from dataclasses import dataclass

from ..core.matching import hide_title, mentions_title, normalise
from ..core.quoting import quote_for_users
from ..core.schema import Confirmation, Message, Persona, Policy, Task
from ..llm.client import ChatClient, Meter
from .agents.base import NOUNS
from .confirmation import Confirmer
from .voices import Situation, make_voice
from .wishes import target_wishes

MESSAGE_TOKENS = 70
ATTEMPT_HEAT = (0.0, 0.5, 0.9)  # added to the temperature after a message that failed a check

_ASSISTANT_TALK = re.compile(
    r"\b(how (can|may) i (help|assist)|(i|i'd|i would) (recommend|suggest)|may i (suggest|recommend)|happy to (help|assist)"
    r"|(can|may) i help you|glad i could (help|assist)|(can't|cannot|can not) (help|assist) (you|with)"
    r"|let me (recommend|suggest|find)|here (is|are) (a|some|my) (recommendation|suggestion)"
    r"|as an ai|language model|the assistant('s)?\b|as the customer"
    r"|i (didn't|did not) (catch|receive|hear|understand|get) (that|your|you|it)|could you (please )?(rephrase|provide more|clarify)"
    r"|what (you're|you are) looking for"
    r"|(sure|certainly|absolutely|of course)[,!.]? i (can|could|will)|i (can|could) help you"
    r"|what did you want|what (kind|sort|type) of \w+ (are|do|would) you|do you have any (other |more |further )?questions"
    r"|let me know if|(anything|something) else (you|i can)|(should|shall) i (look|search|find)"
    r"|does (that|this|it|either) sound (right|good)|would you like (me|to)|i('m| am) glad you (like|enjoy|found))"
    r"|(^|[.!?]\s+)enjoy (it|the|your)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class UserTurn:
    """What the user does.

    Attributes:
        faults: Checks that the last attempt still failed: "leak", "role_reversal", "parrot", "ungrounded", "empty".
        retries: Attempts that were thrown away before this message.
    """

    policy: Policy
    reason: str
    message: str
    retries: int
    faults: tuple[str, ...]


class Simulator:
    """AILO in one dialogue.

    The target's title never enters a prompt: the simulator is told whether it was named, so that even a
    small model cannot give it away. Messages are still checked, for wishes can quote a title too.

    Args:
        client: The `simulator` endpoint.
        task: Persona and secret target.
        temperature: Of the first attempt at a message.
        confirmer: Scores the agent's replies; its mode also decides the voice.
        meter: Counts this dialogue's calls.
    """

    def __init__(self, client: ChatClient, task: Task, *, temperature: float, confirmer: Confirmer, meter: Meter):
        self.client = client
        self.task = task
        self.temperature = temperature
        self.confirmer = confirmer
        self.meter = meter
        self.history: list[Message] = []
        self.named_at: int | None = None  # number of user messages when the agent first named the target
        self._voice = make_voice(confirmer.mode, client, meter)
        self._wishes = target_wishes(task.target)
        hidden = {name: quote_for_users(hide_title(text, task.target.title)) for name, text in task.persona.model_dump().items()}
        self._persona = Persona(**hidden)
        self._satisfactions: list[int | None] = []

    async def open(self) -> UserTurn:
        """The first message: a wish that gives away almost nothing, under the fixed first policy."""
        return await self._speak("ask_recommendation", "first message")

    async def respond(self) -> UserTurn:
        """Choose a policy for the agent's last reply and write the message that follows it."""
        choice = await self._voice.choose_policy(self._situation())
        return await self._speak(choice.policy, choice.reason, choice.draft)

    def hear(self, reply: str) -> None:
        """Take in the agent's reply."""
        if self.named_at is None and self.names_target(reply):
            self.named_at = self._num_messages()
        self.history.append({"role": "assistant", "content": reply})

    @property
    def reads_confirmations(self) -> bool:
        """Whether what the user does next depends on the scores, so that it must wait for them."""
        return self.confirmer.mode == "narrow"

    def confirm(self) -> Coroutine[None, None, Confirmation | None]:
        """Expectation confirmation of the agent's last reply, as the conversation stands at this moment. Paper: section 2.2."""
        return self._confirm(list(self.history))

    async def _confirm(self, history: list[Message]) -> Confirmation:
        confirmation = await self.confirmer.confirm(self.task.target, self.task.domain, history, meter=self.meter)
        self._satisfactions.append(confirmation.satisfaction)
        return confirmation

    def names_target(self, text: str | None) -> bool:
        """Whether a text holds the target's whole title."""
        return bool(text) and mentions_title(text, self.task.target.title)

    def _num_messages(self) -> int:
        return sum(message["role"] == "user" for message in self.history)

    def _situation(self) -> Situation:
        """One more wish each turn; when all are told, all but the first again."""
        turn, told = self._num_messages(), len(self._wishes)
        hint = self._wishes[turn if turn < told else 1 + (turn - told) % max(1, told - 1)] if told > 1 else self._wishes[0]
        return Situation(
            persona=self._persona, noun=NOUNS[self.task.domain], wishes=" ".join(self._wishes), hint=hint,
            history=self.history,
            title=None if self.named_at is None else self.task.target.title,
            turns_since_named=turn - (turn if self.named_at is None else self.named_at),
            satisfactions=tuple(self._satisfactions),
        )  # fmt: skip

    async def _speak(self, policy: Policy, reason: str, draft: str = "") -> UserTurn:
        """Write a message, unless there is a draft, and write it again with more heat while it fails a check."""
        messages = self._voice.prompt(policy, self._situation())
        for retries, heat in enumerate(ATTEMPT_HEAT):  # noqa: B007 (used after the loop)
            message = tidy_message(draft if draft and not retries else await self._write(messages, heat, retries))
            faults = self._faults(message)
            if not faults:
                break
        if "leak" not in faults:
            self.history.append({"role": "user", "content": message})
        return UserTurn(policy, reason, message, retries, tuple(faults))

    async def _write(self, messages: list[Message], heat: float, sample: int) -> str:
        stop = ["\n\n", "\nAssistant:", "\nCustomer:", "\n#", "\nNote:"]
        options = {"max_tokens": MESSAGE_TOKENS, "temperature": self.temperature + heat, "sample": sample, "stop": stop}
        return (await self.client.complete(messages, **options, meter=self.meter)).text

    def _faults(self, message: str) -> list[str]:
        said = [normalise(m["content"]) for m in self.history]
        checks = {
            "empty": not message,
            "leak": self.named_at is None and self.names_target(message),
            "role_reversal": bool(_ASSISTANT_TALK.search(message)),
            "parrot": any(echoes(normalise(message), other) for other in said),
        }
        return [name for name, failed in checks.items() if failed]


def echoes(message: str, other: str) -> bool:
    """Whether a message repeats another: the same words, or most of a longer message word for word."""
    words, others = message.split(), other.split()
    if len(words) < 8:
        return message == other
    runs = {tuple(others[i : i + 4]) for i in range(len(others) - 3)}
    own = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return sum(run in runs for run in own) > len(own) / 2


def tidy_message(text: str) -> str:
    """The spoken words only: no speaker label, no quotes around all, no half sentence at the end."""
    text = " ".join(re.sub(r"^\s*(customer|user|you|message)\s*:\s*", "", text, flags=re.IGNORECASE).split())
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if text and text[-1] not in ".!?)\"'":
        end = max(text.rfind(mark) for mark in ".!?")
        text = text[: end + 1] if end > 20 else text
    return text
