"""The dialogue harness against a stub endpoint of fixed latency: rate, cost of a call, memory, faults, kills.

Every figure is told beside what it is measured against: an ideal that follows from latency and calls in a row, or the openai
library alone in the same run. The public release's harness, measured the same way elsewhere: 42 calls a dialogue, all in a row,
194 dialogues a minute with 50 in flight, 8 ms of CPU a call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import openai
import stub
from table import Row, print_table
from tqdm import tqdm

from ecpo_utils.core.concurrency import map_bounded

LATENCY_S = 0.2
ROUNDS = 5
CRITICAL_CALLS = 1 + 3 * ROUNDS  # the first message; then two of the agent and one of the user or of its last scores
SIZES = {"dialogues": 200, "many": 1000, "kills": 20}
SMALL = {"dialogues": 100, "many": 300, "kills": 4}
MIXED = dict.fromkeys(stub.FAULTS, 0.15 / len(stub.FAULTS))
ENVIRONMENT = {**os.environ, "STUB_KEY": "stub"}
PLAYER = Path(__file__).with_name("player.py")
COMPARED = ("task_id", "status", "recommended_at", "retrieved_at")


def command(folder: Path, url: str, dialogues: int, in_flight: int, **options: object) -> list[str]:
    job = {"url": url, "dialogues": dialogues, "in_flight": in_flight, "rounds": ROUNDS, **options}
    return [sys.executable, str(PLAYER), str(folder), json.dumps(job)]


def play(folder: Path, url: str, dialogues: int, in_flight: int, **options: object) -> dict:
    """What the player tells, and the seconds from its start to its end."""
    started = time.monotonic()
    words = command(folder, url, dialogues, in_flight, **options)
    done = subprocess.run(words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) | {"wall_s": time.monotonic() - started}


def fresh_folder(parent: Path, name: str) -> Path:
    """A folder that holds nothing but the item base."""
    folder = parent / name
    folder.mkdir()
    for path in (parent / "base").glob("items.*"):
        shutil.copy(path, folder)
    return folder


def ask_stub(url: str, behaviour: dict | None = None) -> dict:
    """The stub's counts; with a behaviour it starts anew."""
    data = None if behaviour is None else json.dumps(behaviour).encode()
    with urllib.request.urlopen(f"{url}/stub", data) as answer:
        return json.loads(answer.read())


async def library_alone(url: str, calls: int, in_flight: int) -> dict:
    """Calls a second, and CPU a call, of the openai client and nothing else; started and bounded as the harness's dialogues are."""
    messages = [{"role": "system", "content": "You are an agent. " * 150}, {"role": "user", "content": "User: hello\nAction:"}]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="stub") as client:

        async def call(number: int) -> None:
            await client.chat.completions.create(model="stub", messages=messages, max_tokens=10, temperature=0.0, seed=number)

        started, cpu = time.monotonic(), time.process_time()
        await map_bounded(call, range(calls), limit=in_flight, description="library alone", unit="call")
        return {"rate": calls / (time.monotonic() - started), "cpu_s": (time.process_time() - cpu) / calls}


def measure_rate(parent: Path, url: str, sizes: dict[str, int]) -> list[Row]:
    """Calls, rates, CPU, memory."""
    alone = {number: asyncio.run(library_alone(url, 20 * number, number)) for number in (50, 500)}
    ask_stub(url, {"latency_s": LATENCY_S})
    few = play(fresh_folder(parent, "few"), url, 100, 50)
    calls = ask_stub(url)["different"] / 100
    steady = play(fresh_folder(parent, "steady"), url, sizes["dialogues"], 50)
    many = play(fresh_folder(parent, "many"), url, sizes["many"], 500)
    crowd = play(fresh_folder(parent, "crowd"), url, sizes["many"], sizes["many"])
    single = play(fresh_folder(parent, "single"), url, 1, 1)
    ideal = sizes["dialogues"] / 50 * CRITICAL_CALLS * LATENCY_S
    library_rate = alone[50]["rate"] * LATENCY_S / 50
    cpu = [1000 * each for each in (steady["embedding_cpu_s"] / steady["calls"], alone[50]["cpu_s"])]
    return [
        Row("calls per dialogue of 5 rounds", calls, "at most 28", "release 42"),
        Row("of these one after the other", single["seconds"] / LATENCY_S, "at most 16", "release 42; seconds of one dialogue by latency"),
        Row("rate by the ideal, 50 in flight", ideal / steady["seconds"], "at least 0.97",
            f"{sizes['dialogues']} dialogues; library alone {library_rate:.2f}; release 0.54"),
        Row("calls a second by the openai library's, 500 in flight", many["calls"] / many["seconds"] / alone[500]["rate"], "at least 0.90",
            f"{many['calls'] / many['seconds']:.0f} by {alone[500]['rate']:.0f}"),
        Row("100 dialogues a minute, 50 in flight, start included", 6000 / few["wall_s"], "at least 679", "release 194"),
        Row("CPU per call, ms", 1000 * steady["cpu_s"] / steady["calls"], "at most 2.5",
            f"start and {cpu[0]:.2f} of embedding included; library alone {cpu[1]:.2f}; release 8"),
        Row(f"memory with {sizes['many']} dialogues in flight, MB", crowd["peak_mb"], "at most 600", "embedding model included"),
    ]  # fmt: skip


def measure_faults(parent: Path, url: str, dialogues: int) -> list[Row]:
    """A run with 15% mixed faults beside one without."""
    ask_stub(url, {"latency_s": 0.02})
    whole = fresh_folder(parent, "without_faults")
    play(whole, url, dialogues, 20)
    ask_stub(url, {"latency_s": 0.02, "faults": MIXED, "hang_s": 30.0})
    broken = fresh_folder(parent, "with_faults")
    told = play(broken, url, dialogues, 20, timeout_s=1.0)
    same = sum(a == b for a, b in zip(outcomes(whole), outcomes(broken), strict=True))
    faults = sum(count for name, count in ask_stub(url)["outcomes"].items() if name != "answered")
    return [
        Row("dialogues complete with 15% mixed faults", told["complete"], f"{dialogues} of {dialogues}",
            f"{faults} faults beside {told['calls']} calls"),
        Row("same outcome, words and scores as without faults", same, f"{dialogues} of {dialogues}", "release: 23 to 34 of 100 complete"),
    ]  # fmt: skip


def outcomes(folder: Path) -> list[list]:
    """What a run found out, without what it cost."""
    rows = [json.loads(line) for line in (folder / "trajectories.jsonl").read_text().splitlines()]
    said = [[(turn["user_message"], turn["reply"], turn["confirmation"]) for turn in row["turns"]] for row in rows]
    return [[*(row[name] for name in COMPARED), turns] for row, turns in zip(rows, said, strict=True)]


def measure_kills(parent: Path, url: str, kills: int) -> list[Row]:
    """`kill -9` at random moments; then the same command to its end."""
    dialogues, in_flight = 60, 10
    ask_stub(url, {"latency_s": 0.1})
    whole = fresh_folder(parent, "unkilled")
    needed = play(whole, url, dialogues, in_flight)["calls"]
    chance, equal, repeated = random.Random(0), 0, 0
    for number in tqdm(range(kills), desc="kills", unit="kill"):
        ask_stub(url, {"latency_s": 0.1})
        folder = fresh_folder(parent, f"kill_{number}")
        process = subprocess.Popen(command(folder, url, dialogues, in_flight), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        moment = chance.uniform(0.02, 0.9) * needed
        while ask_stub(url)["different"] < moment and process.poll() is None:
            time.sleep(chance.uniform(0.01, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        play(folder, url, dialogues, in_flight)
        repeated = max(repeated, ask_stub(url)["repeated"])
        equal += outcomes(folder) == outcomes(whole)
        shutil.rmtree(folder)
    return [
        Row(f"same rows after kill -9 at a random moment, {kills} times", equal, f"{kills} of {kills}",
            f"{dialogues} dialogues, {needed} calls"),
        Row("calls paid twice after a kill, at most", repeated, f"at most {2 * in_flight}",
            f"two calls of each of {in_flight} dialogues in flight"),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer dialogues and kills, for a first look")
    sizes = SMALL if parser.parse_args(arguments).small else SIZES
    with tempfile.TemporaryDirectory() as name, stub.serving(latency_s=LATENCY_S) as url:
        parent = Path(name)
        play(parent / "base", url, 449, 449, rounds=1)  # every book is a target, so that all are in the base
        rows = [*measure_rate(parent, url, sizes), *measure_faults(parent, url, 100), *measure_kills(parent, url, sizes["kills"])]
    print_table("harness", rows)
    return rows


if __name__ == "__main__":
    main()
