"""MACRS: reflection on the user and on the strategy, a planner, and three speaking agents. Paper: 3.1, B.2; O(M+4N) calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ...core.errors import ParseError
from ...core.quoting import quote_for_agents
from ...core.schema import Action, Item, Message, Step, Usage
from .base import REPLY_STOP, Agent, render_history, render_items, said_so_far, tidy_reply

Label = Literal["ask", "recommend", "smalltalk"]  # small models take to a label "chat" whatever was said
FALLBACK: Label = "recommend"  # if the planner's answer cannot be read: the one move that can reach the target
PROFILE_TOKENS, STRATEGY_TOKENS, LABEL_TOKENS, QUERY_TOKENS = 90, 260, 12, 40
ADVICE = {  # which of the suggestions a member of the team gets
    "recommend": "recommend_suggestion",
    "query": "recommend_suggestion",
    "ask": "ask_suggestion",
    "smalltalk": "chit_suggestion",
    "plan": "plan_suggestion",
}
CUES = {"profile": "New profile:", "strategy": "JSON:", "plan": "Label:", "query": "Query:"}  # the others: "Assistant:"


class Suggestions(BaseModel):
    """Why recommending failed so far, as advice to each agent and to the planner."""

    model_config = ConfigDict(extra="forbid")

    recommend_suggestion: str
    ask_suggestion: str
    chit_suggestion: str
    plan_suggestion: str


def read_label(output: str) -> Label | None:
    """The first label in angle brackets, or else the only label among the words; None if there is neither."""
    if match := re.search(r"<\s*(ask|recommend|smalltalk)\w*\s*>", output, re.IGNORECASE):
        return match.group(1).lower()
    words = set(re.findall(r"\b(ask|recommend|smalltalk)", output.lower()))
    return words.pop() if len(words) == 1 else None


def read_line(output: str) -> str:
    """The first line with words, without label and quotes."""
    line = next((line for line in output.splitlines() if line.strip()), "")
    return re.sub(r"^\s*(search )?query\s*:", "", line, flags=re.IGNORECASE).strip(" \"'`*")


class MACRS(Agent):
    """Several agents on one backbone; they share the dialogue, the user's profile and the suggestions.

    Args:
        few_shot: Whether worked examples precede each request (untuned agents).
        **options: See `Agent`.
    """

    name = "macrs"

    def __init__(self, *args: object, few_shot: bool = True, **options: object):
        super().__init__(*args, **options)
        self.few_shot = few_shot
        self.history: list[Message] = []
        self.profile = "nothing yet"
        self.suggestions = Suggestions(**dict.fromkeys(Suggestions.model_fields, "none yet"))

    async def reply(self, user_message: str, steps: list[Step]) -> str:
        """One turn: reflect on the user, from the second turn on the strategy too, plan, and let the chosen agent speak."""
        self.history.append({"role": "user", "content": user_message})
        await self._reflect_on_user(steps)
        if len(self.history) > 1:
            await self._reflect_on_strategy(steps)
        label = await self._plan(steps)
        text = await (self._recommend(steps) if label == "recommend" else self._speak(label, steps))
        self.history.append({"role": "assistant", "content": text})
        return text

    async def _reflect_on_user(self, steps: list[Step]) -> None:
        """Merge what the last message tells into the profile; an empty answer leaves it as it was."""
        step = await self.call(
            "profile", self._messages("profile"), steps, max_tokens=PROFILE_TOKENS, stop=REPLY_STOP, is_usable=tidy_reply
        )
        self.profile = " ".join(tidy_reply(step.output).split()) or self.profile

    async def _reflect_on_strategy(self, steps: list[Step]) -> None:
        """New suggestions; if they cannot be read, the old ones stay and the step says so.

        The step holds the request as it was first made; a repair by `ChatClient.parse` counts as another attempt.
        """
        messages, before = self._messages("strategy"), self._num_calls()
        step = Step(purpose="strategy", messages=messages, output="")
        try:
            options = {"max_tokens": STRATEGY_TOKENS, "temperature": self.temperature, "meter": self.meter}
            answer = await self.client.parse(messages, Suggestions, repairs=1, **options)  # the old ones will do as well
            self.suggestions, step.output = answer.parsed, answer.text
        except ParseError as error:
            step.output, step.action = str(error), Action(type="invalid", argument=str(error))
        step.attempts = self._num_calls() - before
        steps.append(step)

    async def _plan(self, steps: list[Step]) -> Label:
        """Which agent speaks: `FALLBACK` if the answer cannot be read, and the step's action is then `invalid`."""
        step = await self.call("plan", self._messages("plan"), steps, max_tokens=LABEL_TOKENS, is_usable=read_label)
        return read_label(step.output) or FALLBACK

    async def _recommend(self, steps: list[Step]) -> str:
        """A query, and a reply on what it finds; without a readable query the user's last message is searched for."""
        step = await self.call("query", self._messages("query"), steps, max_tokens=QUERY_TOKENS, stop=REPLY_STOP, is_usable=read_line)
        items, step.retrieval = await self.retrieve(read_line(step.output) or self.history[-1]["content"])
        return await self._speak("recommend", steps, items)

    async def _speak(self, label: Label, steps: list[Step], items: Sequence[Item] = ()) -> str:
        """The chosen agent's reply."""
        return (await self.speak(self._messages(label, items), steps, said=said_so_far(self.history)))[0]

    def _messages(self, task: str, items: Sequence[Item] = ()) -> list[Message]:
        """A member's task with its examples; then profile, the member's own advice, the items found, and last the dialogue."""
        lines = [f"Profile: {self.profile}"]
        if task in ADVICE:
            lines.append(f"Advice: {quote_for_agents(getattr(self.suggestions, ADVICE[task]))}")
        if items:
            lines.append(f"Entries:\n{render_items(items)}")
        lines += ["Conversation:", render_history(self.history), CUES.get(task, "Assistant:")]
        asked = {"role": "user", "content": "\n".join(lines)}
        return [*self.load_instructions(f"macrs_{task}", f"macrs_{task}_examples" if self.few_shot else None), asked]

    def _num_calls(self) -> int:
        return self.meter.by_role.get(self.client.role, Usage()).calls
