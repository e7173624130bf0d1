"""ReAct: a thought before every action. Paper: sections 3.1, B.2; O(M+2N) calls."""

from __future__ import annotations

import re

from ...core.quoting import quote_for_agents
from ...core.schema import Message, Step
from .acting import STOP, ActingAgent
from .actions import parse_action

THOUGHT_TOKENS = 70


def read_thought(output: str) -> str:
    """The thought as one line, without its label and without an action that follows it; "" if there is none."""
    text = re.split(r"\bAction\s*\d*\s*:", output, maxsplit=1)[0]
    text = re.sub(r"^\s*thought\s*\d*\s*:", "", text, flags=re.IGNORECASE)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return "" if parse_action(line).type != "invalid" else line


class ReAct(ActingAgent):
    """Thinks in one line, then acts; after an observation again.

    The transcript goes into one message: small models copy their own earlier thoughts if these stand there as their messages.

    Args:
        few_shot: Whether worked examples precede the transcript (untuned agents).
        **options: See `ActingAgent`.
    """

    name = "react"

    def __init__(self, *args: object, few_shot: bool = True, **options: object):
        super().__init__(*args, **options)
        self.instructions = self.load_instructions("react_system", "react_examples" if few_shot else None, top_k=self.top_k)
        self.transcript: list[str] = []

    async def decide(self, incoming: str, steps: list[Step], *, allow_search: bool) -> Step:
        """Two calls, a thought and an action."""
        self.transcript.append(incoming)
        await self._think(steps)
        step, written = await self.act(self._messages("Action:"), steps, allow_search=allow_search)
        self.transcript.append(f"Action: {quote_for_agents(written)}")
        return step

    async def _think(self, steps: list[Step]) -> None:
        """Put a thought into the transcript; one that cannot be read is left out."""
        stop = [*STOP, "\nAction:"]
        step = await self.call("thought", self._messages("Thought:"), steps, max_tokens=THOUGHT_TOKENS, stop=stop, is_usable=read_thought)
        if thought := read_thought(step.output):
            self.transcript.append(f"Thought: {thought}")

    def _messages(self, cue: str) -> list[Message]:
        return [*self.instructions, {"role": "user", "content": "\n".join([*self.transcript, cue])}]
