"""Verdicts on many pairs: written as they come, kept by the next run, asked for again where they rest on something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.artifacts import append_jsonl, load_jsonl, load_resumable, write_jsonl
from ..core.concurrency import FailuresInARow, map_bounded
from ..core.errors import ArtifactError
from ..core.schema import Verdict
from .judges import DIMENSIONS, Judge, Pair
from .judges.base import dialogues_digest, sign
from .transcripts import QUESTION_MARKS, Transcript


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
        keep_others: Whether this judge's verdicts on further tasks, which another stage asked for, stay in the file, at its end.

    Raises:
        EndpointError: If no further call can succeed, or the endpoint failed on five pairs in a row, otherwise than in an earlier
            run; finished verdicts stay.
        ArtifactError: If the file cannot be written.
    """
    done, others, known_faults = _earlier(judge, pairs, first, second, path) if path else ({}, [], set())
    failures = FailuresInARow("pairs to judge", path)

    async def decide(pair: Pair) -> None:
        verdicts = await judge.compare(pair, first=first, second=second)
        done[pair[0].task_id] = verdicts
        failing = next((verdict.error for verdict in verdicts if (verdict.error or "").startswith("EndpointError")), None)
        if path:
            for verdict in verdicts:
                append_jsonl(path, verdict)
        failures.note(failing, is_known=(pair[0].task_id, failing) in known_faults)

    waiting = [pair for pair in pairs if pair[0].task_id not in done]
    await map_bounded(decide, waiting, limit=judge.client.endpoint.max_concurrency, description=f"judging {first} vs {second}", unit="pair")
    rows = [verdict for pair in pairs for verdict in done[pair[0].task_id]]
    if path:
        write_jsonl(path, [*rows, *(others if keep_others else [])])
    return rows


def load_verdicts(path: Path, pairs: Sequence[Pair], notebook: str) -> list[Verdict]:
    """What a notebook left of verdicts on these pairs, in their order; those on other tasks are left out.

    Raises:
        ArtifactError: If a pair has no verdict on these very dialogues, or in one order only, or judges differ; names `notebook`.
    """
    wanted = {pair[0].task_id: dialogues_digest(pair) for pair in pairs}
    found: dict[str, list[Verdict]] = {task: [] for task in wanted}
    for row in load_jsonl(path, Verdict):
        if row.task_id in wanted and row.config.startswith(wanted[row.task_id]):
            found[row.task_id].append(row)
    lacking = [task for task, rows in found.items() if {row.shown_first for row in rows} not in ({"apart"}, {"first", "second"})]
    if lacking:
        raise ArtifactError(
            f"{path} lacks verdicts on {len(lacking)} of {len(pairs)} pairs of dialogues as they now are, {lacking[0]} first; "
            f"run notebooks/{notebook}.ipynb to its end"
        )
    verdicts = [row for rows in found.values() for row in rows]
    if len({row.judge for row in verdicts}) > 1:
        raise ArtifactError(f"{path} holds verdicts of more than one judge; run notebooks/{notebook}.ipynb to its end")
    return verdicts


def question_share(transcript: Transcript) -> float:
    """Share of the agent's replies that end in a question mark; the transcript holds at least one reply."""
    return sum(reply.rstrip().endswith(QUESTION_MARKS) for reply in transcript.replies) / len(transcript.replies)


def rule_verdicts(pairs: Sequence[Pair], *, first: str, second: str) -> list[Verdict]:
    """What a rule without any model makes of the pairs: more questions win. A judge that does no better has read nothing else.

    Args:
        pairs: As for `judge_pairs`.
        first: Name of the first system; `second` likewise.

    Returns:
        One verdict a pair, each dialogue by itself, the same in every dimension.
    """
    rows = []
    for pair in pairs:
        row = Verdict(task_id=pair[0].task_id, first=first, second=second, shown_first="apart", config="rule")
        if all(transcript.replies for transcript in pair):
            shares = question_share(pair[0]), question_share(pair[1])
            row.measures = dict.fromkeys(DIMENSIONS, shares)
            row.scores = dict.fromkeys(DIMENSIONS, sign(shares[0] - shares[1]))
        else:
            row.error = "a dialogue holds no reply of the agent"
        rows.append(row)
    return rows


def _earlier(
    judge: Judge, pairs: Sequence[Pair], first: str, second: str, path: Path
) -> tuple[dict[str, list[Verdict]], list[Verdict], set[tuple[str, str]]]:
    """Verdicts of an earlier run that still hold, by task and under today's names, and this judge's on other tasks; the file keeps these.

    Third, what failed then: task and error.
    """
    wanted = {pair[0].task_id: judge.config(pair) for pair in pairs}
    found: dict[str, dict[str, Verdict]] = {}
    others: list[Verdict] = []
    faults: set[tuple[str, str]] = set()
    for row in load_resumable(path, Verdict):
        if row.task_id not in wanted:
            others += [row] if row.judge == judge.identity else []
        elif row.error is None and wanted[row.task_id] == row.config:
            found.setdefault(row.task_id, {})[row.shown_first] = row.model_copy(update={"first": first, "second": second})
        elif row.error:
            faults.add((row.task_id, row.error))
    done = {task: [orders[name] for name in judge.orders] for task, orders in found.items() if set(orders) == set(judge.orders)}
    write_jsonl(path, [*(row for rows in done.values() for row in rows), *others])
    return done, others, faults
