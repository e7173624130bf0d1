"""What ActCRS and ReAct share: bracketed actions, observations of searches, and a reply that is forced after so many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from ...core.quoting import quote_for_agents
from ...core.schema import Action, Item, Message, Step
from ...llm.prompts import load_prompt
from .actions import parse_action, render_action
from .base import SYSTEM_ERROR, Agent, render_items

ACTION_TOKENS = 110
STOP = ["\nUser:", "\nObservation:"]


def render_observation(items: Sequence[Item]) -> str:
    """Search results as the agent reads them."""
    return "Observation:\n" + render_items(items)


class ActingAgent(Agent):
    """An agent that searches or speaks by one action at a time.

    Args:
        max_consecutive_searches: After so many, the turn must end in a reply.
        **options: See `Agent`.
    """

    takes_params = ("max_consecutive_searches",)

    def __init__(self, *args: object, max_consecutive_searches: int = 3, **options: object):
        super().__init__(*args, **options)
        self.max_consecutive_searches = max_consecutive_searches

    async def reply(self, user_message: str, steps: list[Step]) -> str:
        """One turn: up to the allowed searches, then Ask, Recommend or Response.

        A malformed action, or a search beyond the allowed ones, ends the turn with a fixed
        system-error sentence; the step keeps what was written.
        """
        incoming = f"User: {quote_for_agents(user_message)}"
        for searches in range(self.max_consecutive_searches + 1):
            last = searches == self.max_consecutive_searches
            step = await self.decide(incoming, steps, allow_search=not last)
            if step.action.type != "search" or last:
                break
            items, step.retrieval = await self.retrieve(step.action.argument)
            incoming = render_observation(items)
            if searches == self.max_consecutive_searches - 1:
                incoming += "\n" + load_prompt(f"{self.name}_no_more_search")
        return SYSTEM_ERROR if step.action.type in ("invalid", "search") else step.action.argument

    @abstractmethod
    async def decide(self, incoming: str, steps: list[Step], *, allow_search: bool) -> Step:
        """Take in the user's message or an observation; returns the step with the next action."""

    async def act(self, messages: Sequence[Message], steps: list[Step], *, allow_search: bool) -> tuple[Step, str]:
        """Ask for an action: its step, and how the agent will read it later, the system error if it cannot be used."""

        def is_usable(output: str) -> bool:
            action = parse_action(output)
            return action.type != "invalid" and (allow_search or action.type != "search")

        step = await self.call("action", messages, steps, max_tokens=ACTION_TOKENS, stop=STOP, is_usable=is_usable)
        step.action = parse_action(step.output)
        read = step.action if is_usable(step.output) else Action(type="response", argument=SYSTEM_ERROR)  # what the user will read
        return step, render_action(read)
