"""ActCRS: one bracketed action per call, no separate thought. Paper: sections 3.1, B.2; O(M+N) calls."""

from __future__ import annotations

from ...core.schema import Message, Step
from ...llm.prompts import load_prompt, render
from .acting import ActingAgent
from .base import NOUNS


class ActCRS(ActingAgent):
    """The authors' framework, and the one that is fine-tuned.

    Args:
        few_shot: Whether the system message holds the worked example (untuned agents).
        **options: See `ActingAgent`.
    """

    name = "actcrs"

    def __init__(self, *args: object, few_shot: bool = True, **options: object):
        super().__init__(*args, **options)
        system = render("actcrs_system", noun=NOUNS[self.domain], top_k=self.top_k)
        if few_shot:
            system += "\n\n" + load_prompt(f"actcrs_example_{self.domain}")
        self.messages: list[Message] = [{"role": "system", "content": system}]

    async def decide(self, incoming: str, steps: list[Step], *, allow_search: bool) -> Step:
        """Strategy and wording in one call."""
        self.messages.append({"role": "user", "content": f"{incoming}\nAction:"})
        step, written = await self.act(self.messages, steps, allow_search=allow_search)
        self.messages.append({"role": "assistant", "content": written})
        return step
