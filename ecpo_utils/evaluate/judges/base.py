"""What every judge is: asked about a pair of dialogues, once per order of presentation, it fills in a verdict. Paper: section B.5."""

from __future__ import annotations

import functools
import inspect
import sys
from abc import ABC, abstractmethod
from typing import ClassVar

from ...core.artifacts import digest
from ...core.errors import EndpointError, ParamsError, ParseError
from ...core.schema import Message, Verdict
from ...llm.client import ChatClient
from ...llm.prompts import load_prompt, render
from ..transcripts import Transcript

DIMENSIONS = ("flexibility", "coherence", "guidance", "final")
BLANK = Transcript("", ({"role": "user", "content": ""}, {"role": "assistant", "content": ""}))
Pair = tuple[Transcript, Transcript]


class Judge(ABC):
    """Compares dialogues on the same task.

    A way of judging is a subclass with a `name`, in a module of its own: it writes `prompts` and `ask`.

    Args:
        client: The `judge` endpoint.
        max_words: Longer messages are cut to so many words where whole dialogues are shown, 0 for none.
    """

    name: ClassVar[str]
    orders: ClassVar[tuple[str, ...]] = ("first", "second")  # which dialogue of a pair is shown first, one verdict each

    def __init__(self, client: ChatClient, *, max_words: int = 0):
        self.client = client
        self.max_words = max_words

    @abstractmethod
    def prompts(self, pair: Pair) -> list[list[Message]]:
        """All that is asked about a pair in one order, for the digest of `config`."""

    @abstractmethod
    async def ask(self, row: Verdict, pair: Pair) -> None:
        """Fill in the scores of a verdict, 1 where the first system's dialogue is better, whichever was shown first.

        Args:
            row: Says in `shown_first` which dialogue is to be shown first; gets `scores`, and what else there is to keep.
            pair: Dialogues of the first and of the second system.

        Raises:
            ParseError: If the answer cannot be read: the verdict stays unscored.
            EndpointError: If the call failed.
        """

    def config(self, pair: Pair) -> str:
        """What decides the verdicts on a pair: `dialogues_digest`, and that of the endpoint, all that it is asked, and how it is read.

        Raises:
            ParamsError: If the class is in no file, as one that was typed into a notebook.
        """
        try:
            sources = [inspect.getsource(sys.modules[each.__module__]) for each in type(self).__mro__ if issubclass(each, Judge)]
        except (TypeError, OSError):
            raise ParamsError(
                f"the judge {type(self).__name__} is in no file; put it into one, so that pairs are judged anew when it changes"
            ) from None
        return f"{dialogues_digest(pair)} {digest([self.client.identity, self.prompts(pair), sources])}"

    @functools.cached_property
    def identity(self) -> str:
        """Digest of the judge alone: its `config` on dialogues without words, and `max_words`, which cuts nothing of these."""
        return digest([self.config((BLANK, BLANK)), self.max_words])

    async def compare(self, pair: Pair, *, first: str, second: str) -> list[Verdict]:
        """The verdicts on a pair, one per order; one that cannot be scored keeps the reason, never a 0.

        Args:
            pair: Dialogues of the first and of the second system.
            first: Name of the first system; `second` likewise.

        Raises:
            EndpointError: If no further call can succeed.
        """
        return [await self._present(pair, shown_first, first, second) for shown_first in self.orders]

    async def _present(self, pair: Pair, shown_first: str, first: str, second: str) -> Verdict:
        row = Verdict(task_id=pair[0].task_id, first=first, second=second, shown_first=shown_first)
        row.config, row.judge = self.config(pair), self.identity
        silent = next((name for name, transcript in zip((first, second), pair, strict=True) if not transcript.replies), None)
        if silent:
            row.error = f"the dialogue of {silent} holds no reply of the agent"
            return row
        try:
            await self.ask(row, pair)
        except (ParseError, EndpointError) as error:
            if isinstance(error, EndpointError) and error.fatal:
                raise
            row.scores, row.reasons, row.probabilities, row.measures = {}, {}, None, None
            row.error = f"{type(error).__name__}: {error}"
        return row

    def show(self, shown: Pair, question: str) -> list[Message]:
        """Both dialogues in the order given and a question about them, a file of `llm/prompts`."""
        conversations = render("judge_pair", one=shown[0].render(self.max_words), two=shown[1].render(self.max_words))
        return [
            {"role": "system", "content": load_prompt("judge_system")},
            {"role": "user", "content": f"{conversations}\n\n{load_prompt(question)}"},
        ]


def dialogues_digest(pair: Pair) -> str:
    """Digest of two dialogues, with which the `config` of every verdict on them begins: to know it no endpoint is needed."""
    return digest([transcript.messages for transcript in pair])


def sign(value: float) -> int:
    """1, 0 or -1."""
    return (value > 0) - (value < 0)
