"""Conversational recommendation agents. `base` is the interface; each framework is one module."""

from ...core.errors import ParamsError
from .actcrs import ActCRS
from .base import Agent
from .chatrec import ChatRec
from .macrs import MACRS
from .react import ReAct

__all__ = ["ActCRS", "Agent", "ChatRec", "FRAMEWORKS", "MACRS", "ReAct", "find_framework"]

FRAMEWORKS: dict[str, type[Agent]] = {framework.name: framework for framework in (ChatRec, ReAct, MACRS, ActCRS)}


def find_framework(name: str) -> type[Agent]:
    """The class of a framework.

    Raises:
        ParamsError: If none is registered under this name.
    """
    try:
        return FRAMEWORKS[name]
    except KeyError:
        raise ParamsError(f"no framework '{name}'; there are: {', '.join(FRAMEWORKS)}; see docs/add_a_cra.md") from None
