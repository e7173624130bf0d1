"""Which of two dialogues on the same task is better, as a judge model sees it. Paper: section B.5.

"words" is the paper's way: one JSON answer with a reason and a verdict per dimension, in both presentation orders, for
large models. "tokens" asks one question per dimension, answered by one token, whose probabilities in the two orders are
held against each other, so that a liking for a position cancels. "narrow" is for models of a few billion parameters, which
have next to no preference between two whole dialogues: they read each dialogue reply by reply (see `reading`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from ..core.artifacts import append_jsonl, digest, load_resumable, write_jsonl
from ..core.concurrency import map_bounded
from ..core.errors import EndpointError, ParseError
from ..core.schema import Message, Verdict
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_prompt, render
from .reading import read_dialogue, reading_prompts
from .transcripts import Transcript

JudgeMode = Literal["narrow", "tokens", "words"]
DIMENSIONS = ("flexibility", "coherence", "guidance", "final")
VERDICT_TOKENS = 500
MAX_FAILED_IN_A_ROW = 5
Pair = tuple[Transcript, Transcript]


class WordedVerdict(BaseModel):
    """A large judge's answer: 1 where conversation 1 is better, -1 where conversation 2 is, 0 where they are equal."""

    model_config = ConfigDict(extra="forbid")

    flexibility_reason: str
    flexibility: Literal[-1, 0, 1]
    coherence_reason: str
    coherence: Literal[-1, 0, 1]
    guidance_reason: str
    guidance: Literal[-1, 0, 1]
    final_reason: str
    final: Literal[-1, 0, 1]


class Judge:
    """Compares dialogues on the same task.

    Args:
        client: The `judge` endpoint; all modes but "words" need its log-probabilities.
        mode: "narrow", "tokens" or "words".
        max_words: Longer messages are cut to so many words where whole dialogues are shown, 0 for none.
        meter: Counts the calls.

    Raises:
        ValueError: If there is no such mode.
    """

    def __init__(self, client: ChatClient, mode: JudgeMode, *, max_words: int = 0, meter: Meter | None = None):
        if mode not in get_args(JudgeMode):
            raise ValueError(f"no judge mode '{mode}'; there are: {', '.join(get_args(JudgeMode))}")
        self.client = client
        self.mode = mode
        self.max_words = max_words
        self.meter = meter

    def config(self, pair: Pair) -> str:
        """Digest of what decides the verdicts on a pair: the endpoint and all that it is asked."""
        if self.mode == "narrow":
            return digest([self.client.identity, [reading_prompts(transcript) for transcript in pair]])
        questions = ["judge_words"] if self.mode == "words" else [f"judge_{name}" for name in DIMENSIONS]
        conversations = self._conversations(pair)
        return digest([self.client.identity, [_prompt(conversations, question) for question in questions]])

    async def compare(self, pair: Pair, *, first: str, second: str) -> list[Verdict]:
        """The verdicts on a pair, in both orders if it is shown whole; one that cannot be scored keeps the reason, never a 0.

        Args:
            pair: Dialogues of the first and of the second system.
            first: Name of the first system; `second` likewise.

        Raises:
            EndpointError: If no further call can succeed.
        """
        return [await self._present(pair, shown_first, first, second) for shown_first in self._orders]

    @property
    def _orders(self) -> tuple[str, ...]:
        return ("apart",) if self.mode == "narrow" else ("first", "second")

    async def _present(self, pair: Pair, shown_first: str, first: str, second: str) -> Verdict:
        row = Verdict(task_id=pair[0].task_id, first=first, second=second, shown_first=shown_first, config=self.config(pair))
        silent = next((name for name, transcript in zip((first, second), pair, strict=True) if not transcript.replies), None)
        if silent:
            row.error = f"the dialogue of {silent} holds no reply of the agent"
            return row
        ask = {"words": self._in_words, "tokens": self._by_tokens, "narrow": self._apart}[self.mode]
        try:
            await ask(row, pair)
        except (ParseError, EndpointError) as error:
            if isinstance(error, EndpointError) and error.fatal:
                raise
            row.scores, row.reasons, row.probabilities, row.measures = {}, {}, None, None
            row.error = f"{type(error).__name__}: {error}"
        return row

    def _conversations(self, shown: Pair) -> str:
        return render("judge_pair", one=shown[0].render(self.max_words), two=shown[1].render(self.max_words))

    async def _in_words(self, row: Verdict, pair: Pair) -> None:
        sign, shown = (1, pair) if row.shown_first == "first" else (-1, pair[::-1])
        messages = _prompt(self._conversations(shown), "judge_words")
        answer = (await self.client.parse(messages, WordedVerdict, max_tokens=VERDICT_TOKENS, meter=self.meter)).parsed
        row.scores = {name: sign * getattr(answer, name) for name in DIMENSIONS}
        row.reasons = {name: getattr(answer, f"{name}_reason") for name in DIMENSIONS}

    async def _by_tokens(self, row: Verdict, pair: Pair) -> None:
        word, shown = ("1", pair) if row.shown_first == "first" else ("2", pair[::-1])
        conversations, row.probabilities = self._conversations(shown), {}
        for name in DIMENSIONS:
            answer = await self.client.choose(_prompt(conversations, f"judge_{name}"), ["1", "2"], meter=self.meter)
            row.probabilities[name] = answer[word]  # unrounded: near 0 and 1 the last digits decide
            row.scores[name] = _sign(answer[word] - 0.5)

    async def _apart(self, row: Verdict, pair: Pair) -> None:
        first, second = [await read_dialogue(self.client, transcript, self.meter) for transcript in pair]
        row.measures = {name: (first[name], second[name]) for name in DIMENSIONS}
        row.scores = {name: _sign(first[name] - second[name]) for name in DIMENSIONS}


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _prompt(conversations: str, question: str) -> list[Message]:
    return [
        {"role": "system", "content": load_prompt("judge_system")},
        {"role": "user", "content": f"{conversations}\n\n{load_prompt(question)}"},
    ]


async def judge_pairs(
    judge: Judge, pairs: Sequence[Pair], *, first: str, second: str, path: Path | None = None, keep_others: bool = False
) -> list[Verdict]:
    """Verdicts on all pairs, those on a pair next to each other, written to `path` as they come.

    Pairs that an earlier run left there are kept if their verdicts rest on the same dialogues and judge and have no error.

    Args:
        judge: Who compares.
        pairs: From `pair_transcripts`: one per task, the first system's dialogue first.
        first: Name of the first system; `second` likewise.
        path: The verdicts' file; None keeps them in memory only.
        keep_others: Whether verdicts on further tasks, which another stage asked for, stay in the file, at its end.

    Raises:
        EndpointError: If no further call can succeed, or the endpoint failed on five pairs in a row; finished verdicts stay.
        ArtifactError: If the file cannot be written.
    """
    done, others = _earlier(judge, pairs, first, second, path) if path else ({}, [])
    others = others if keep_others else []
    failed_in_a_row = 0

    async def decide(pair: Pair) -> None:
        nonlocal failed_in_a_row
        verdicts = await judge.compare(pair, first=first, second=second)
        done[pair[0].task_id] = verdicts
        failing = next((verdict.error for verdict in verdicts if (verdict.error or "").startswith("EndpointError")), None)
        failed_in_a_row = failed_in_a_row + 1 if failing else 0
        if path:
            for verdict in verdicts:
                append_jsonl(path, verdict)
        if failed_in_a_row == MAX_FAILED_IN_A_ROW:
            raise EndpointError(f"the judge failed on {failed_in_a_row} pairs in a row, stopped; finished ones are kept. Last: {failing}")

    waiting = [pair for pair in pairs if pair[0].task_id not in done]
    await map_bounded(decide, waiting, limit=judge.client.endpoint.max_concurrency, description=f"judging {first} vs {second}", unit="pair")
    rows = [verdict for pair in pairs for verdict in done[pair[0].task_id]]
    if path:
        write_jsonl(path, [*rows, *others])
    return rows


def _earlier(
    judge: Judge, pairs: Sequence[Pair], first: str, second: str, path: Path
) -> tuple[dict[str, list[Verdict]], list[Verdict]]:
    """Verdicts of an earlier run that still hold, by task and under today's names, and those on other tasks; the file keeps these."""
    wanted = {pair[0].task_id: judge.config(pair) for pair in pairs}
    found: dict[str, dict[str, Verdict]] = {}
    others: list[Verdict] = []
    for row in load_resumable(path, Verdict):
        if row.task_id not in wanted:
            others.append(row)
        elif row.error is None and wanted[row.task_id] == row.config:
            found.setdefault(row.task_id, {})[row.shown_first] = row.model_copy(update={"first": first, "second": second})
    done = {task: [orders[name] for name in judge._orders] for task, orders in found.items() if set(orders) == set(judge._orders)}
    write_jsonl(path, [*(row for rows in done.values() for row in rows), *others])
    return done, others
