"""Actions in square brackets, as ActCRS and ReAct write them: `Search[...]`, `Ask[...]`, ..."""

from __future__ import annotations

import re

from ...core.schema import Action

_NAME = re.compile(r"\b(search|ask|recommend|response)\s*\[", re.IGNORECASE)


def parse_action(output: str) -> Action:
    """Read the first action of an answer; `invalid` with the raw text if there is none.

    Leading blanks, line breaks and text after the closing bracket are tolerated, and so are brackets
    inside the argument as long as they are balanced. The action must open the answer.
    """
    text = output.strip().lstrip("*`- ")
    text = re.sub(r"^action\s*\d*\s*:\s*", "", text, flags=re.IGNORECASE)
    match = _NAME.match(text)
    if not match:
        return Action(type="invalid", argument=output)
    depth = 1
    for position in range(match.end(), len(text)):
        depth += {"[": 1, "]": -1}.get(text[position], 0)
        if depth == 0:
            argument = text[match.end() : position].strip()
            return Action(type=match.group(1).lower(), argument=argument) if argument else Action(type="invalid", argument=output)
    return Action(type="invalid", argument=output)


def render_action(action: Action) -> str:
    """The bracket form of an action; an invalid one stays what it was."""
    return action.argument if action.type == "invalid" else f"{action.type.capitalize()}[{action.argument}]"
