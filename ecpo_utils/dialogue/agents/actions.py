"""Actions in square brackets, as ActCRS and ReAct write them: `Search[...]`, `Ask[...]`, ..."""

from __future__ import annotations

import re

from ...core.schema import Action

_NAME = re.compile(r"\b(search|ask|recommend|response)\s*\[", re.IGNORECASE)


def parse_action(output: str) -> Action:
    """Read the first action of an answer; `invalid` with the raw text if there is none.

    Leading blanks, line breaks and text after the closing bracket are tolerated, and so are brackets
    inside the argument as long as they are balanced. A closing bracket may be missing after a finished
    sentence. The action must open the answer.
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
            return _action(match.group(1), text[match.end() : position], output)
    if text[-1] in ".!?\"'":  # a finished sentence whose bracket alone is missing
        return _action(match.group(1), text[match.end() :], output)
    return Action(type="invalid", argument=output)


def _action(name: str, argument: str, output: str) -> Action:
    argument = argument.strip()
    return Action(type=name.lower(), argument=argument) if argument else Action(type="invalid", argument=output)


def render_action(action: Action) -> str:
    """The bracket form of an action; an invalid one stays what it was."""
    return action.argument if action.type == "invalid" else f"{action.type.capitalize()}[{action.argument}]"
