"""ChatRec: the dialogue itself is the query, the items found go with the reply call. Paper: sections 3.1, B.2; O(N) calls."""

from __future__ import annotations

from ...core.schema import Message, Step
from ...llm.prompts import render
from .base import Agent, render_history, render_items, said_so_far


def history_query(history: list[Message]) -> str:
    """The whole dialogue as one query, newest message first: an embedder reads the beginning of a long text only."""
    return "\n".join(message["content"] for message in reversed(history))


class ChatRec(Agent):
    """Retrieves on every turn and answers in free text, one call a turn.

    Args:
        few_shot: Whether worked examples precede the request (untuned agents).
        **options: See `Agent`.
    """

    name = "chatrec"

    def __init__(self, *args: object, few_shot: bool = True, **options: object):
        super().__init__(*args, **options)
        self.instructions = self.load_instructions("chatrec_system", "chatrec_examples" if few_shot else None)
        self.history: list[Message] = []

    async def reply(self, user_message: str, steps: list[Step]) -> str:
        """One retrieval and one call."""
        self.history.append({"role": "user", "content": user_message})
        items, retrieval = await self.retrieve(history_query(self.history))
        asked = render("chatrec_reply", transcript=render_history(self.history), items=render_items(items))
        messages = [*self.instructions, {"role": "user", "content": asked}]
        text, step = await self.speak(messages, steps, said=said_so_far(self.history))
        step.retrieval = retrieval
        self.history.append({"role": "assistant", "content": text})
        return text
