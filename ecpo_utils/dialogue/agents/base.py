"""What a conversational recommendation agent is: one object per dialogue that answers user messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from ...core.schema import Domain, Step
from ...llm.client import ChatClient, Meter
from ..retrieval import ItemDatabase

SYSTEM_ERROR = "Sorry, something went wrong on my side. Could you say that again?"

NOUNS: dict[Domain, str] = {"book": "book", "game": "video game", "yelp": "place"}


@dataclass(frozen=True)
class AgentReply:
    """The text the user reads, and the steps that led to it."""

    text: str
    steps: list[Step] = field(default_factory=list)


class Agent(ABC):
    """A CRA in one dialogue; it keeps its own state between turns.

    Args:
        client: Chat endpoint of the backbone.
        database: Items it may search.
        domain: Decides nouns and the worked example.
        top_k: Items per retrieval.
        temperature: Of the first attempt at an action.
        meter: Counts this dialogue's calls.
    """

    name: str

    def __init__(self, client: ChatClient, database: ItemDatabase, domain: Domain, *, top_k: int, temperature: float, meter: Meter):
        self.client = client
        self.database = database
        self.domain = domain
        self.top_k = top_k
        self.temperature = temperature
        self.meter = meter

    @abstractmethod
    async def reply(self, user_message: str) -> AgentReply:
        """Answer one user message."""
