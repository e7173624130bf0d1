"""What a conversational recommendation agent is: one object per dialogue that answers user messages."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from ...core.quoting import defuse, one_line, quote_for_agents
from ...core.schema import Action, Domain, Item, Message, Purpose, Retrieval, Step, Turn
from ...llm.client import ChatClient, Meter
from ...llm.prompts import load_examples, render
from ..retrieval import ItemDatabase

SYSTEM_ERROR = "Sorry, something went wrong on my side. Could you say that again?"
APOLOGY = SYSTEM_ERROR.partition(".")[0]  # a tuned agent may have learnt to begin so
ATTEMPT_HEAT = (0.0, 0.3, 0.6)  # added to the temperature after an answer that could not be used
DESCRIPTION_WORDS = 18
REPLY_TOKENS = 110
REPLY_STOP = ["\nUser:", "\nAssistant:", "\nProfile:", "\nConversation:", "\nEntries:"]  # labels of the transcripts

NOUNS: dict[Domain, str] = {"book": "book", "game": "video game", "yelp": "place"}


def is_system_error(turn: Turn) -> bool:
    """Whether the user read an error message in place of a reply."""
    return (turn.reply or "").startswith(APOLOGY) or bool(turn.steps) and turn.steps[-1].is_unusable


class Agent(ABC):
    """A CRA in one dialogue; it keeps its own state between turns.

    Args:
        client: Chat endpoint of the backbone.
        database: Items it may search.
        domain: Decides nouns and the worked example.
        top_k: Items per retrieval.
        temperature: Of the first attempt at an answer.
        meter: Counts this dialogue's calls.

    Attributes:
        name: Key of `agents.FRAMEWORKS` and first word of the names of its prompts.
        takes_params: Run parameters that the constructor takes besides these, e.g. "max_consecutive_searches".
    """

    name: ClassVar[str]
    takes_params: ClassVar[tuple[str, ...]] = ()

    def __init__(self, client: ChatClient, database: ItemDatabase, domain: Domain, *, top_k: int, temperature: float, meter: Meter):
        self.client = client
        self.database = database
        self.domain = domain
        self.top_k = top_k
        self.temperature = temperature
        self.meter = meter

    @abstractmethod
    async def reply(self, user_message: str, steps: list[Step]) -> str:
        """Answer one user message.

        Args:
            steps: Filled as the turn goes, so that what was done before an error is kept.

        Returns:
            The text that the user reads.
        """

    def load_instructions(self, prompt: str, examples: str | None = None, **values: object) -> list[Message]:
        """What precedes a request: a prompt as system message, its {noun} and `values` filled, and worked examples as chat turns."""
        system = {"role": "system", "content": render(prompt, noun=NOUNS[self.domain], **values)}
        return [system, *(load_examples(examples) if examples else [])]

    async def call(
        self,
        purpose: Purpose,
        messages: Sequence[Message],
        steps: list[Step],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        is_usable: Callable[[str], object] = str.strip,
    ) -> Step:
        """Ask the backbone once, and again with more heat while the answer cannot be used; the last try stands.

        Returns:
            The step, already in `steps`. Its action is `invalid` if even the last try cannot be used, else None.
        """
        seen = [{**message, "content": defuse(message["content"])} for message in messages]  # as they are sent
        for attempts, heat in enumerate(ATTEMPT_HEAT, 1):  # noqa: B007 (used after the loop)
            answer = await self.client.complete(
                seen, max_tokens=max_tokens, temperature=self.temperature + heat, stop=stop, meter=self.meter
            )
            usable = is_usable(answer.text)
            if usable:
                break
        action = None if usable else Action(type="invalid", argument=answer.text)
        steps.append(Step(purpose=purpose, messages=seen, output=answer.text, action=action, attempts=attempts))
        return steps[-1]

    async def speak(self, messages: Sequence[Message], steps: list[Step], *, said: Sequence[str] = ()) -> tuple[str, Step]:
        """A reply in free text: the words for the user, and their step.

        An empty answer is asked for again and then becomes the system-error sentence. So is a repetition of
        what was `said` before, but if it stays one, it stands.
        """

        def is_new(output: str) -> bool:
            text = tidy_reply(output)
            return bool(text) and text not in said

        step = await self.call("reply", messages, steps, max_tokens=REPLY_TOKENS, stop=REPLY_STOP, is_usable=is_new)
        text = tidy_reply(step.output)
        if text:
            step.action = None
        return text or SYSTEM_ERROR, step

    async def retrieve(self, query: str) -> tuple[list[Item], Retrieval]:
        """The items nearest to a query, and the record of it for a step; other dialogues go on meanwhile."""
        items = await asyncio.to_thread(self.database.search, query, self.top_k)
        return items, Retrieval(query=query, item_ids=[item.item_id for item in items])


def render_history(history: Sequence[Message]) -> str:
    """The dialogue as a transcript, one message after the other."""
    names = {"user": "User", "assistant": "Assistant"}
    return "\n".join(f"{names[message['role']]}: {quote_for_agents(message['content'])}" for message in history)


def said_so_far(history: Sequence[Message]) -> list[str]:
    """The agent's own messages of a dialogue."""
    return [message["content"] for message in history if message["role"] == "assistant"]


def render_items(items: Sequence[Item]) -> str:
    """Items as an agent reads them: a numbered list, one item a line."""
    lines = []
    for number, item in enumerate(items, 1):
        words = item.description.split()
        text = " ".join(words[:DESCRIPTION_WORDS]) + (" ..." if len(words) > DESCRIPTION_WORDS else "")
        lines.append(f"{number}. {one_line(item.title)} ({one_line(', '.join(item.categories[:3]))}): {text}")
    return "\n".join(lines)


def tidy_reply(text: str) -> str:
    """The spoken words of a free-text answer: no speaker label, no quotes around all, no half sentence at the end."""
    text = re.sub(r"^(assistant|reply|response|agent)\s*:\s*", "", text.strip(), flags=re.IGNORECASE)
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    end = max(text.rfind(mark) for mark in ".!?")
    if text and text[-1] not in ".!?)\"'" and end > 20:
        text = text[: end + 1] + ('"' if text[end + 1 : end + 2] == '"' else "")
    return text
