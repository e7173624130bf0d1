"""ActCRS: one bracketed action per call, no separate thought. Paper: sections 3.1, B.2; O(M+N) calls."""

from __future__ import annotations

from ...core.schema import Action, Item, Message, Retrieval, Step
from ...llm.prompts import load_prompt, render
from .actions import parse_action, render_action
from .base import NOUNS, SYSTEM_ERROR, Agent, AgentReply

ATTEMPT_HEAT = (0.0, 0.3, 0.6)  # added to the temperature after an action that could not be read
ACTION_TOKENS = 110
DESCRIPTION_WORDS = 18


def render_observation(items: list[Item]) -> str:
    """Search results as the agent reads them: a numbered list, one item a line."""
    lines = []
    for number, item in enumerate(items, 1):
        words = item.description.split()
        text = " ".join(words[:DESCRIPTION_WORDS]) + (" ..." if len(words) > DESCRIPTION_WORDS else "")
        lines.append(f"{number}. {item.title} ({', '.join(item.categories[:3])}): {text}")
    return "Observation:\n" + "\n".join(lines)


class ActCRS(Agent):
    """The authors' framework, and the one that is fine-tuned.

    Args:
        few_shot: Whether the system message holds the worked example (untuned agents).
        max_consecutive_searches: After so many, the turn must end in a reply.
        **options: See `Agent`.
    """

    name = "actcrs"

    def __init__(self, *args: object, few_shot: bool = True, max_consecutive_searches: int = 3, **options: object):
        super().__init__(*args, **options)
        system = render("actcrs_system", noun=NOUNS[self.domain], top_k=self.top_k)
        if few_shot:
            system += "\n\n" + load_prompt(f"actcrs_example_{self.domain}")
        self.max_consecutive_searches = max_consecutive_searches
        self.messages: list[Message] = [{"role": "system", "content": system}]

    async def reply(self, user_message: str) -> AgentReply:
        """One turn: up to the allowed searches, then Ask, Recommend or Response.

        A malformed action, or a search beyond the allowed ones, ends the turn with a fixed
        system-error sentence; the step keeps what was written.
        """
        steps: list[Step] = []
        incoming = f"User: {user_message}"
        for searches in range(self.max_consecutive_searches + 1):
            last = searches == self.max_consecutive_searches
            self.messages.append({"role": "user", "content": f"{incoming}\nAction:"})
            step = await self._act(allow_search=not last)
            steps.append(step)
            if step.action.type != "search" or last:
                break
            items = self.database.search(step.action.argument, self.top_k)
            step.retrieval = Retrieval(query=step.action.argument, item_ids=[item.item_id for item in items])
            incoming = render_observation(items)
            if searches == self.max_consecutive_searches - 1:
                incoming += "\n" + load_prompt("actcrs_no_more_search")
        action = steps[-1].action
        text = SYSTEM_ERROR if action.type in ("invalid", "search") else action.argument
        return AgentReply(text, steps)

    async def _act(self, *, allow_search: bool) -> Step:
        """Ask for an action, with more heat after one that cannot be used; the last try stands."""
        seen = [dict(message) for message in self.messages]
        for attempts, heat in enumerate(ATTEMPT_HEAT, 1):  # noqa: B007 (used after the loop)
            answer = await self.client.complete(
                seen, max_tokens=ACTION_TOKENS, temperature=self.temperature + heat, stop=["\nUser:", "\nObservation:"], meter=self.meter
            )
            action = parse_action(answer.text)
            usable = action.type != "invalid" and (allow_search or action.type != "search")
            if usable:
                break
        written = action if usable else Action(type="response", argument=SYSTEM_ERROR)  # what the user will read
        self.messages.append({"role": "assistant", "content": render_action(written)})
        return Step(messages=seen, output=answer.text, action=action, attempts=attempts)
