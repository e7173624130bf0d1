"""Conversational recommendation agents. `base` is the interface; each framework is one module."""

from .actcrs import ActCRS
from .base import Agent, AgentReply

__all__ = ["ActCRS", "Agent", "AgentReply", "FRAMEWORKS"]

FRAMEWORKS: dict[str, type[Agent]] = {"actcrs": ActCRS}
