"""Reading a full-size dump: our reader's rate beside the engine's own bare scan, and peak memory.   python benchmarks/reading.py"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from table import Row, print_table

from ecpo_utils.data.builtin import load_builtin
from ecpo_utils.data.dumps.build import BuildOptions, build_folder
from ecpo_utils.data.dumps.engine import Engine, scan
from ecpo_utils.data.dumps.kinds import Kind
from ecpo_utils.data.dumps.reviews import ReviewPass
from ecpo_utils.data.dumps.selection import MIN_SHARE, SPILL_BYTES
from ecpo_utils.data.dumps.sources import AMAZON

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
NUM_ITEMS = 100_000
BLOCK_USERS = 20_000
REPEATS = 3


def write_dump(folder: Path, gigabytes: float, seed: int = 0) -> tuple[Path, Path]:
    """A review and a meta file in the form of Amazon Reviews 2023.

    Lengths of texts are lognormal with a median of 55 words, as of book reviews; most users have one to five reviews,
    one in a hundred has 30. Blocks of users repeat with other ids, which is what makes it quick.
    """
    draw = random.Random(seed)
    words = " ".join(review.text for review in load_builtin("book")[1]).split()
    reviews, meta = folder / "Books.jsonl", folder / "meta_Books.jsonl"
    rows = []
    for _ in range(BLOCK_USERS):
        user = "".join(draw.choices(LETTERS, k=22))
        for _ in range(30 if draw.random() < 0.01 else draw.choice([1, 1, 1, 2, 2, 3, 5])):
            start, length = draw.randrange(len(words)), max(1, int(draw.lognormvariate(4, 1.1)))
            item = f"B{draw.randrange(NUM_ITEMS):09d}"
            row = {
                "rating": draw.choice([5.0, 5.0, 5.0, 4.0, 4.0, 3.0, 2.0, 1.0]),
                "title": " ".join(words[start : start + 5]),
                "text": " ".join((words[start:] + words)[:length]),
                "images": [],
                "asin": item,
                "parent_asin": item,
                "user_id": f"AE@@@@{user}",
                "timestamp": 1_400_000_000_000 + draw.randrange(10**11),
                "helpful_vote": draw.randrange(5),
                "verified_purchase": draw.random() < 0.8,
            }
            rows.append(json.dumps(row))
    block, size, number = ("\n".join(rows) + "\n").encode(), 0, 0
    with open(reviews, "wb") as file:
        while size < gigabytes * 1e9:
            size += file.write(block.replace(b"@@@@", b"%04d" % number))
            number += 1
    with open(meta, "w", encoding="utf-8") as file:
        for number in range(NUM_ITEMS):
            text = " ".join(words[number % len(words) :][:80])
            row = {"main_category": "Books", "title": f"Title {number}", "average_rating": 4.2, "rating_number": 9, "features": [],
                   "description": [text], "price": 9.99, "images": [], "videos": [], "store": "A. Writer", "categories": ["Books"],
                   "details": {"Publisher": "X"}, "parent_asin": f"B{number:09d}", "bought_together": None}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return reviews, meta


def time_scan(reviews: Path, folder: Path) -> float:
    """Seconds in which the engine reads the same columns and does next to nothing with them."""
    engine = Engine(folder)
    sums = [f"sum(strlen({key}))" if kind == "VARCHAR" else f"sum({key})" for key, kind in AMAZON.review_columns.items()]
    began = time.perf_counter()
    engine.rows(f"SELECT count(*), {', '.join(sums)} FROM {scan(reviews, AMAZON.review_columns)}")
    seconds = time.perf_counter() - began
    engine.close()
    return seconds


def time_reader(reviews: Path, folder: Path) -> float:
    """Seconds of our pass over the review file: checked, sampled, spilled."""
    engine = Engine(folder)
    share = min(1.0, max(MIN_SHARE, SPILL_BYTES / reviews.stat().st_size))
    began = time.perf_counter()
    ReviewPass(engine, AMAZON, reviews, Kind(), folder / f"pass-{began}", seed=0).run(share)
    seconds = time.perf_counter() - began
    engine.close()
    return seconds


def watch_build(reviews: Path, meta: Path, out: Path) -> tuple[float, float, dict]:
    """Seconds and peak memory (GB, of the process alone) of a whole build in a process of its own, and its facts."""
    command = [sys.executable, __file__, "--build", str(reviews), str(meta), str(out)]
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                memory = watched.memory_info()
                peak = max(peak, memory.rss - memory.shared)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
        facts = json.loads(process.stdout.read())
    return time.perf_counter() - began, peak / 1e9, facts


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """All figures, printed, kept and returned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    gigabytes = parser.parse_args(arguments).gigabytes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reviews, meta = write_dump(folder, gigabytes)
        size = reviews.stat().st_size / 1e9
        time_scan(reviews, folder)  # the file comes into the page cache, for both alike
        scans, passes = [], []
        for _ in range(REPEATS):
            scans.append(time_scan(reviews, folder))
            passes.append(time_reader(reviews, folder))
        seconds, peak, facts = watch_build(reviews, meta, folder / "out")
    rates = f"{1000 * size / min(passes):.0f} by {1000 * size / min(scans):.0f} MB/s, best of {REPEATS}"
    rows = [
        Row("reading reviews by the engine's bare scan", min(scans) / min(passes), "at least 0.8", f"{size:.1f} GB; {rates}"),
        Row("memory of a whole build, GB", peak, "at most 4", f"{seconds:.1f} s for {facts['counts']['review_lines']} reviews"),
    ]
    print_table("reading", rows)
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--build"]:
        print(json.dumps(build_folder(BuildOptions("book", "amazon", *map(Path, sys.argv[2:5])))))
    else:
        main()
