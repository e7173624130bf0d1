"""A chat session as lines of text, for the terminal and the widget."""

from __future__ import annotations

import textwrap

from .chat import ChatSession, ChatTurn
from .core.errors import ArtifactError, EcpoError
from .core.schema import Confirmation
from .dialogue.confirmation import MAXIMA
from .evaluate.dialogues import step_lines

WIDTH = 110


def render_greeting(session: ChatSession) -> list[str]:
    """Whom one talks to, and about what."""
    row = session.row
    return [f"{row.system}, domain {row.domain}. You are the user. Whatever you ask for, the agent is scored against a hidden target."]


def render_steps(chat_turn: ChatTurn) -> list[str]:
    """What the agent did before it spoke: thoughts, plans, actions, and the titles of each retrieval."""
    lines = []
    for step, titles in zip(chat_turn.turn.steps, chat_turn.retrieved, strict=True):
        lines += [f"  {text}" for text in step_lines(step)]
        lines += [f"      {number}. {title}" for number, title in enumerate(titles, 1)]
    return lines


def render_reply(chat_turn: ChatTurn) -> list[str]:
    """The agent's reply as the user reads it."""
    return textwrap.wrap(f"AGENT  {chat_turn.turn.reply}", WIDTH, subsequent_indent="       ")


def render_confirmation(confirmation: Confirmation) -> list[str]:
    """Expectation confirmation: r_t, the sub-scores, and the reason for each deduction."""
    if confirmation.satisfaction is None:
        return [f"  EC unscored: {confirmation.error}"]
    lines = [f"  EC {confirmation.satisfaction}/5, hidden from the agent"]
    for name, top in MAXIMA.items():
        reason = confirmation.reasons.get(name)
        text = f"{name} {getattr(confirmation, name)}/{top}" + (f": {reason}" if reason else "")
        lines += textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="          ")
    return lines


def render_target(session: ChatSession) -> list[str]:
    """The hidden target, and whether it was found."""
    item, row = session.task.target, session.row
    found = "not named by the agent" if row.recommended_at is None else f"named by the agent in turn {row.recommended_at + 1}"
    text = f"TARGET {item.title} ({', '.join(item.categories)}), {found}. {item.description}"
    return textwrap.wrap(text, WIDTH, subsequent_indent="       ")


def render_end(session: ChatSession) -> list[str]:
    """What is shown when the session ends: the target, and where the dialogue is."""
    return [*render_target(session), f"saved in {session.path}" if session.path.is_file() else "nothing was said, nothing is saved"]


def render_error(error: Exception) -> list[str]:
    """An error in a line; what was said to an agent that did not answer is not part of the dialogue."""
    if not isinstance(error, EcpoError):  # of an agent's own code
        return [f"ERROR  {type(error).__name__}: {' '.join(str(error).split())}; the dialogue stands as before"]
    again = "" if isinstance(error, ArtifactError) else "; the dialogue stands as before, say it again"
    return [f"ERROR  {' '.join(str(error).split())}{again}"]
