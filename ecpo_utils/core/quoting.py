"""Text that others wrote, as it may stand in a prompt: it begins no line with one of our labels, and ends no message.

Prompts part what they hold by labels at the beginnings of lines ("Customer:", "# Now", "Observation:"), and a chat template parts
messages by control tokens. Ordinary text comes through unchanged, to the byte. What a text says is not touched: a model may still
be talked into something, see docs/security.md.
"""

from __future__ import annotations

import re

INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"  # of a class in a pattern
_BREAK = "\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
_MARKS = rf"[\s>*_`\"'{INVISIBLE}-]*"  # what may stand before a label and leaves it one


def _forged(labels: str, others: str) -> re.Pattern[str]:
    """A line break before one of these labels, which end in a colon, or before something else that only we write."""
    return re.compile(rf"\s*[{_BREAK}]{_MARKS}(?=#*{_MARKS}(?:(?:{labels}){_MARKS}[:\uff1a]|{others}))", re.IGNORECASE)


# what the user's side reads: simulator, confirmation
_FOR_USERS = _forged(
    "customer|user|assistant|system|note|manner",
    r"\#+\s*(?:who you are|what (?:you|the customer)|conversation|now\b|question)"
    r"|\((?:you notice:|this last message names|the conversation begins)",
)
# what the agent's side reads: frameworks, rewriter
_FOR_AGENTS = _forged(
    r"user|assistant|agent|system|action(?: of the agent)?|observation|thought|(?:new )?profile|advice|(?:found )?entries"
    r"|found in the database|conversation|what the user found wrong",
    r"\(no further search",
)
_BREAKS = re.compile(rf"\s*[{_BREAK}]\s*")
_CONTROL = re.compile(
    r"<(?=[|\uff5c][^<>|\uff5c\n]{1,60}[|\uff5c]>)"  # <|im_end|> and its like
    r"|<(?=/?(?:s|bos|eos|unk|pad|mask|start_of_turn|end_of_turn)>)"
    r"|<(?=</?SYS>>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])"
)


def quote_for_users(text: str, *, begins_line: bool = False) -> str:
    """The text, with a blank in place of each line break before a label of the prompts of simulator and confirmation.

    Args:
        text: What others wrote.
        begins_line: Whether it stands at the beginning of a line; then it begins with no label either.
    """
    if not begins_line:
        return _FOR_USERS.sub(" ", text)
    quoted = _FOR_USERS.sub(" ", f"\n{text}")
    return quoted[1:] if quoted[0] == "\n" else f"...{quoted}"


def quote_for_agents(text: str) -> str:
    """The text, with a blank in place of each line break before a label of the prompts of agents and rewriter."""
    return _FOR_AGENTS.sub(" ", text)


def one_line(text: str) -> str:
    """The text with a blank in place of each line break."""
    return _BREAKS.sub(" ", text)


def defuse(text: str) -> str:
    """The text in which a chat template's control tokens are ordinary characters: a blank stands within each.

    Half a surrogate pair, which could be neither sent nor stored, becomes a question mark.
    """
    return _CONTROL.sub(lambda match: match.group() + " ", text.encode("utf-8", "replace").decode())
