"""A framework to start your own from: searches for the user's last message and replies. See docs/add_a_cra.md; O(N) calls."""

from __future__ import annotations

from ...core.quoting import quote_for_agents
from ...core.schema import Message, Step
from .base import Agent, render_items


class TemplateCRS(Agent):
    """The least that is an agent. One object plays one dialogue, so what it should remember are attributes."""

    name = "template"  # key of agents.FRAMEWORKS; prompts are llm/prompts/template_*.txt
    takes_params = ()  # run parameters that __init__ should be given, e.g. ("max_consecutive_searches",)

    def __init__(self, *args: object, **options: object):
        super().__init__(*args, **options)
        self.messages: list[Message] = self.load_instructions("template_system")

    async def reply(self, user_message: str, steps: list[Step]) -> str:
        """One retrieval and one call; `speak` asks again if need be, counts the call and puts its step into `steps`."""
        items, retrieval = await self.retrieve(user_message)
        asked = f"{quote_for_agents(user_message)}\n\nFound in the database:\n{render_items(items)}"
        self.messages.append({"role": "user", "content": asked})
        text, step = await self.speak(self.messages, steps)
        step.retrieval = retrieval
        self.messages.append({"role": "assistant", "content": text})
        return text
