"""Plays dialogues against the stub as notebooks do, in a process of its own, and tells what that took.

    python benchmarks/player.py FOLDER '{"url": "http://127.0.0.1:8000", "dialogues": 100, "in_flight": 50}'

FOLDER keeps item base, trajectories and answers; the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from table import peak_bytes

from ecpo_utils.core.params import Endpoint, Params, load_profile
from ecpo_utils.core.paths import repository_root
from ecpo_utils.core.schema import Persona, Task, Trajectory
from ecpo_utils.data.builtin import load_builtin
from ecpo_utils.dialogue.retrieval import build_database, load_database
from ecpo_utils.dialogue.rollout import System, rollout
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.embedding import Embedder
from ecpo_utils.llm.endpoints import open_clients

STARTED = time.monotonic()
PERSONA = Persona(activities="Detail-oriented. Compares before deciding.", language="Writes plainly, in short sentences.")


class TimedEmbedder(Embedder):
    """Knows the CPU seconds that went into vectors."""

    cpu_s = 0.0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        before = time.thread_time()
        try:
            return super().encode(texts)
        finally:
            self.cpu_s += time.thread_time() - before


@dataclass(frozen=True)
class Job:
    """What to play: `dialogues` ActCRS dialogues of `rounds` rounds in Book, `in_flight` at a time; a call fails after `timeout_s`."""

    url: str
    dialogues: int
    in_flight: int
    rounds: int = 5
    timeout_s: float = 60.0


def job_params(job: Job) -> Params:
    """The paper's profile with the stub behind every role."""
    endpoint = Endpoint(
        provider="openai", model="stub", base_url=f"{job.url}/v1", api_key_env="STUB_KEY", max_concurrency=2 * job.in_flight,
        timeout_s=job.timeout_s,
    )  # fmt: skip
    params = load_profile(repository_root() / "params" / "paper.yaml")
    changes = {"max_turns": job.rounds, "dialogues_in_flight": job.in_flight, "simulator": endpoint, "expert": endpoint}
    return params.model_copy(update=changes)


def make_tasks(number: int) -> list[Task]:
    """So many tasks on the built-in books, each with a user of its own."""
    items = list(load_builtin("book")[0].values())
    return [Task(task_id=f"book/{n}", domain="book", user_id=str(n), persona=PERSONA, target=items[n % len(items)]) for n in range(number)]


async def play(job: Job, folder: Path, params: Params, embedder: Embedder) -> tuple[list[Trajectory], float]:
    """The dialogues, and the seconds they took."""
    tasks = make_tasks(job.dialogues)
    paths = folder / "items.jsonl", folder / "items.faiss"
    if paths[1].is_file():
        database = load_database(*paths, embedder)
    else:
        database = build_database(list({task.target.item_id: task.target for task in tasks}.values()), embedder, *paths)
    roles = {"simulator": params.simulator, "expert": params.expert}
    with closing(ResponseCache(folder / "responses.sqlite")) as cache:
        async with open_clients(roles, cache=cache, calls_log=folder / "calls.jsonl") as clients:
            system = System("actcrs_expert", "actcrs", clients["expert"], {"max_consecutive_searches": params.max_consecutive_searches})
            started = time.monotonic()
            rows = await rollout(tasks, system, clients["simulator"], database, params, folder / "trajectories.jsonl")
            return rows, time.monotonic() - started


def main() -> None:
    folder, job = Path(sys.argv[1]).resolve(), Job(**json.loads(sys.argv[2]))
    folder.mkdir(parents=True, exist_ok=True)
    before = time.process_time()
    params = job_params(job)
    embedder = TimedEmbedder(params.embedder)
    rows, seconds = asyncio.run(play(job, folder, params, embedder))
    usage = [each for row in rows for each in row.usage.values()]
    print(json.dumps({
        "seconds": seconds, "seconds_in_all": time.monotonic() - STARTED,
        "cpu_s": time.process_time() - before, "embedding_cpu_s": embedder.cpu_s,
        "peak_mb": peak_bytes() / 2**20, "calls": sum(each.calls for each in usage),
        "cached": sum(each.cached for each in usage), "complete": sum(row.status == "complete" for row in rows),
        "scored": sum(turn.confirmation is not None and turn.confirmation.error is None for row in rows for turn in row.turns),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
