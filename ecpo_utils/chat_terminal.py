"""A chat session in a terminal: reads lines, knows three commands, ends with the input or Ctrl-C."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from .chat import ChatSession, ChatTurn
from .chat_text import render_confirmation, render_end, render_error, render_greeting, render_reply, render_steps, render_target
from .core.errors import EcpoError

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # what others wrote must not steer a terminal
COMMANDS = "/target shows the hidden target, /new begins another dialogue, /quit ends"


class Terminal:
    """The loop between a human's lines and a session.

    Args:
        session: Whom the human talks with.
        wait: Runs a coroutine to its end.
        read: Returns the next line; raises EOFError at the end of input.
        write: Shows one line.
        status: Shows what is being done now, "" when it is done.
    """

    def __init__(
        self,
        session: ChatSession,
        wait: Callable[[Coroutine], Any],
        *,
        read: Callable[[], str],
        write: Callable[[str], None],
        status: Callable[[str], None],
    ):
        self.session = session
        self._wait = wait
        self._read = read
        self._write = write
        self._status = status

    def run(self) -> int:
        """Talk until /quit, the end of input or Ctrl-C; then tell the target and where the dialogue is.

        Returns:
            Exit code: 0, or 130 after Ctrl-C.
        """
        code = 0
        self._show([*render_greeting(self.session), COMMANDS])
        try:
            while (line := self._read().strip()) != "/quit":
                self._answer(line)
        except EOFError:
            self._show([""])
        except KeyboardInterrupt:
            code = 130
            self._show([""])
        self._show(render_end(self.session))
        return code

    def _answer(self, line: str) -> None:
        if line == "/target":
            self._show(render_target(self.session))
        elif line == "/new":
            self._show(render_target(self.session))
            self.session.new()
            self._show(["", *render_greeting(self.session)])
        elif line.startswith("/"):
            self._show([f"no command {line.split()[0]}; {COMMANDS}"])
        elif line:
            self._say(line)

    def _say(self, line: str) -> None:
        self._status(f"{self.session.row.system} is working ...")
        try:
            self._show(render_confirmation(self._wait(self.session.say(line, self._show_reply)).turn.confirmation))
        except EcpoError as error:
            self._show(render_error(error))

    def _show_reply(self, chat_turn: ChatTurn) -> None:
        self._show([*render_steps(chat_turn), *render_reply(chat_turn)])
        self._status("confirming ...")

    def _show(self, lines: Sequence[str]) -> None:
        self._status("")
        for line in lines:
            self._write(_CONTROL.sub(" ", line))
