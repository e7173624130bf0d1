"""A chat session in a notebook: `widget = await open_chat_widget("actcrs")`, then show `widget`. Library: ipywidgets."""

from __future__ import annotations

import asyncio
import contextlib
import html
from collections.abc import Sequence

from .chat import ChatSession, ChatTurn, open_chat
from .chat_text import render_confirmation, render_end, render_error, render_greeting, render_reply, render_steps, render_target
from .core.errors import EcpoError

HEIGHT = "420px"


class ChatWidget:
    """Log, input line and buttons over a session. Enter sends, and so does leaving the input line.

    Args:
        session: Whom the human talks with.
        resources: Closed with the widget: the session's clients and servers.

    Attributes:
        box: The widget itself.
        busy: The message that is being answered, None before the first one.
    """

    def __init__(self, session: ChatSession, resources: contextlib.AsyncExitStack | None = None):
        import ipywidgets

        self.session = session
        self.busy: asyncio.Task | None = None
        self._resources = resources or contextlib.AsyncExitStack()
        self._lines: list[str] = []
        self.log = ipywidgets.HTML()
        self.field = ipywidgets.Text(placeholder="Say something; Enter sends", continuous_update=False, layout={"width": "60%"})
        self.target_button, self.new_button, self.end_button = (ipywidgets.Button(description=text) for text in ("Target", "New", "End"))
        scroll = ipywidgets.VBox([self.log], layout={"height": HEIGHT, "overflow": "auto", "display": "block", "border": "1px solid #bbb"})
        self.controls = [self.field, self.target_button, self.new_button, self.end_button]
        self.box = ipywidgets.VBox([scroll, ipywidgets.HBox(self.controls)])
        self.field.observe(self._on_text, "value")
        self.target_button.on_click(lambda _: self._show(render_target(session)))
        self.new_button.on_click(self._on_new)
        self.end_button.on_click(lambda _: self._start(self.close()))
        self._show(render_greeting(session))

    def _repr_mimebundle_(self, **options: object) -> dict:
        return self.box._repr_mimebundle_(**options)

    async def close(self) -> None:
        """End the session: shows the target, closes the clients; servers that nobody else uses end."""
        self._enable(False)
        self._show(render_end(self.session))
        await self._resources.aclose()

    def _on_text(self, change: dict) -> None:
        text = change["new"].strip()
        self.field.value = ""
        if text:
            self._start(self._say(text))

    def _on_new(self, _: object) -> None:
        self._show(render_target(self.session))
        self.session.new()
        self._show(["", *render_greeting(self.session)])

    def _start(self, coroutine: object) -> None:
        self.busy = asyncio.get_running_loop().create_task(coroutine)

    async def _say(self, text: str) -> None:
        self._enable(False)
        self._show([f"YOU    {text}"])
        try:
            chat_turn = await self.session.say(text, self._show_reply)
            self._show(render_confirmation(chat_turn.turn.confirmation))
        except EcpoError as error:
            self._show(render_error(error))
        except Exception as error:  # of an agent that is being written; nobody awaits this task
            self._show([*render_error(error), "       its traceback: await widget.busy"])
            raise
        finally:
            self._enable(True)

    def _show_reply(self, chat_turn: ChatTurn) -> None:
        self._show([*render_steps(chat_turn), *render_reply(chat_turn)])

    def _show(self, lines: Sequence[str]) -> None:
        self._lines += lines
        self.log.value = f'<pre style="white-space: pre-wrap">{html.escape(chr(10).join(self._lines))}</pre>'

    def _enable(self, enabled: bool) -> None:
        for control in self.controls:
            control.disabled = not enabled


async def open_chat_widget(agent: str, **options: str) -> ChatWidget:
    """A widget with a session of its own; it lives until its End button, `await widget.close()` or the kernel's end.

    Args:
        agent: Key of `agents.FRAMEWORKS`.
        **options: profile, domain, role, adapter, task_id: see `chat.open_chat`.

    Raises:
        EcpoError: See `chat.open_chat`.
    """
    resources = contextlib.AsyncExitStack()
    return ChatWidget(await resources.enter_async_context(open_chat(agent, **options)), resources)
