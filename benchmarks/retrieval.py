"""What retrieval costs: embedding beside sentence-transformers, a query, and the index at size.

    python benchmarks/retrieval.py [--texts 3000] [--vectors 200000]      # --vectors 3000000 needs 9 GB of disk and 8 GB of memory

Texts are the built-in items, then items with a review, of the length that real catalogues have. The vectors of the index are
synthetic: a real vector of an item or review plus half the difference of two others, so that they lie as closely and in as many
directions as real ones; its queries are real.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from table import Row, peak_bytes, print_table

from ecpo_utils.data.builtin import load_builtin
from ecpo_utils.dialogue.shards import SHARD_ITEMS, item_text
from ecpo_utils.dialogue.vector_index import MAX_FLAT_ITEMS, MIN_RECALL, RECALL_K, build_index, load_index, save_index
from ecpo_utils.dialogue.wishes import target_wishes
from ecpo_utils.llm.embedding import Embedder
from ecpo_utils.llm.models import fetch_model

NAME = "all-minilm-l6-v2"
DOMAINS = ("book", "game", "yelp")
START = {
    "retriever": f"from ecpo_utils.llm.embedding import Embedder; Embedder('{NAME}').encode(['a quiet novel'])",
    "sentence-transformers": "import sentence_transformers as st; st.SentenceTransformer({path!r}).encode(['a quiet novel'])",
}


class Timed:
    """An embedder that adds up its seconds and keeps its vectors."""

    def __init__(self, work: Callable[[Sequence[str]], np.ndarray]):
        self.work, self.seconds, self._found = work, 0.0, []
        work(["warm up"])

    def __call__(self, texts: Sequence[str]) -> None:
        start = time.perf_counter()
        self._found.append(self.work(texts))
        self.seconds += time.perf_counter() - start

    def vectors(self) -> np.ndarray:
        return np.concatenate(self._found)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def load_texts(number: int) -> tuple[list[str], list[str], list[str]]:
    """Texts of items, then of items with a review, `number` of both; those of items and reviews alone; queries."""
    items, reviews, queries = [], [], []
    for domain in DOMAINS:
        found, said = load_builtin(domain)
        items += [item_text(item) for item in found.values()]
        reviews += [(item_text(found[review.item_id]), review.text) for review in said]
        queries += [sentence for item in found.values() for sentence in target_wishes(item)[1:]]
    long = items + [f"{text} {review}" for text, review in reviews]
    repeated = [long[i % len(long)] for i in range(number)]
    draw = np.random.default_rng(0)
    return repeated, items + [review for _, review in reviews], [queries[i] for i in draw.permutation(len(queries))[:600]]


def embedding_rows(embedder: Embedder, texts: Sequence[str], queries: Sequence[str]) -> list[Row]:
    """Both embedders in turn on the same texts, a shard at a time."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(fetch_model(NAME)), device="cpu")
    ours, theirs = Timed(embedder._model.embed), Timed(partial(model.encode, batch_size=32, normalize_embeddings=True))
    for start in range(0, len(texts), SHARD_ITEMS):
        for encode in (theirs, ours):
            encode(texts[start : start + SHARD_ITEMS])
    cosine = (ours.vectors() * theirs.vectors()).sum(1).min()
    different = len(set(texts))  # they are repeated in the same order
    nearest = [encode.vectors()[:different] @ np.concatenate([encode.work([query]) for query in queries]).T for encode in (ours, theirs)]
    first = [np.argsort(-found, axis=0, kind="stable")[:RECALL_K] for found in nearest]
    new, again, before = Timed(embedder.encode), Timed(embedder.encode), Timed(theirs.work)
    for encode in (new, again, before):
        for query in queries[:100]:
            encode([query])
    return [
        Row("embedding, times as fast", theirs.seconds / ours.seconds, "at least 1.2",
            f"sentence-transformers at batch 32, same {len(texts)} texts in turn"),
        Row("embedding, texts a second", len(texts) / ours.seconds, "", f"sentence-transformers {len(texts) / theirs.seconds:.1f}"),
        Row("smallest cosine to sentence-transformers", cosine, "at least 0.9999", "the same texts"),
        Row(f"queries with the same first {RECALL_K} in the same order", (first[0] == first[1]).all(0).mean(), "1",
            f"{len(queries)} queries, {different} texts"),
        Row("a new query, ms", 10 * new.seconds, "", f"sentence-transformers {10 * before.seconds:.1f}"),
        Row("a query asked before, ms", 10 * again.seconds, "less than 1"),
    ]  # fmt: skip


def start_row() -> Row:
    """Seconds of a new process until its first vector, the better of two."""
    commands = {name: [sys.executable, "-c", code.format(path=str(fetch_model(NAME)))] for name, code in START.items()}
    run = partial(subprocess.run, check=True, capture_output=True)
    found = {name: min(seconds(partial(run, command)) for _ in range(2)) for name, command in commands.items()}
    return Row("process start to first vector, s", found["retriever"], "", f"sentence-transformers {found['sentence-transformers']:.1f}")


def write_shards(real: np.ndarray, number: int, folder: Path) -> list[Path]:
    draw, paths = np.random.default_rng(0), []
    for start in range(0, number, SHARD_ITEMS):
        a, b, c = draw.integers(0, len(real), (3, min(SHARD_ITEMS, number - start)))
        vectors = real[a] + 0.5 * (real[b] - real[c])
        paths.append(folder / f"{start // SHARD_ITEMS:06d}.npy")
        np.save(paths[-1], vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return paths


def index_rows(real: np.ndarray, queries: np.ndarray, number: int) -> list[Row]:
    """Build, save and map an index of `number` synthetic vectors. In a process of its own: its peak of memory is told."""
    import faiss

    chosen, unseen = np.split(queries, 2)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(real, number, Path(folder))
        path, built = Path(folder) / "items.faiss", {}
        build = seconds(lambda: built.update(zip(("index", "facts"), build_index(shards, lambda: chosen), strict=True)))
        save_index(built.pop("index"), path)
        index = load_index(path)
        load = seconds(lambda: load_index(path))
        exact, start = faiss.ResultHeap(len(unseen), RECALL_K), 0
        for shard in shards:
            distances, rows = faiss.knn(unseen, vectors := np.load(shard), RECALL_K)
            exact.add_result(distances, rows + start)
            start += len(vectors)
        exact.finalize()
        found = index.search(unseen, RECALL_K)[1]
        recall = np.mean([len(set(a) & set(b)) / RECALL_K for a, b in zip(found, exact.I, strict=True)])
        search = seconds(lambda: [index.search(query[None], RECALL_K) for query in unseen]) / len(unseen)
        facts, title = built["facts"], f"{number:,} vectors"
        peak = peak_bytes() / 2**30
        return [
            Row(f"{title}: build, s", build, "", facts["index"]),
            Row(f"{title}: peak memory, GiB", peak, "less than 24", f"building and searching; file {path.stat().st_size / 2**30:.2f} GiB"),
            Row(f"{title}: recall@{RECALL_K}", facts.get("recall_at_5", 1.0), f"at least {MIN_RECALL}",
                f"told by its facts, {len(chosen)} queries, {facts.get('probed_lists', 'no')} lists probed"),
            Row(f"{title}: recall@{RECALL_K}, other queries", recall, "", f"{len(unseen)} queries that did not choose the lists"),
            Row(f"{title}: a search, ms", 1000 * search, "", f"loading takes {load:.2f} s"),
        ]  # fmt: skip


def in_new_process(work: Callable, *arguments: object) -> list[Row]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """All figures, printed, kept and returned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--vectors", type=int, default=200_000)
    options = parser.parse_args(arguments)
    texts, real_texts, queries = load_texts(options.texts)
    embedder = Embedder(NAME)
    real, asked = embedder._model.embed(real_texts), embedder._model.embed(queries)
    rows = [start_row(), *(embedding_rows(embedder, texts, queries) if texts else [])]
    for number in dict.fromkeys((min(MAX_FLAT_ITEMS, options.vectors), options.vectors)):
        rows += in_new_process(index_rows, real, asked, number)
    print_table("retrieval", rows)
    return rows


if __name__ == "__main__":
    main()
