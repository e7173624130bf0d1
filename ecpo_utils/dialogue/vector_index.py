"""The FAISS index of item vectors: flat below a size, approximate above it, with its recall measured. Paper: B.2 (flat)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.artifacts import replacing
from ..core.errors import ArtifactError

if TYPE_CHECKING:
    import faiss

MAX_FLAT_ITEMS = 50_000  # up to here every vector is compared with the query: 10 ms on two cores
MIN_RECALL = 0.99  # above, so many lists are probed that this share of the nearest RECALL_K is found
RECALL_K = 5
POINTS_PER_LIST = 40  # for k-means; FAISS asks for 39


def build_index(shards: Sequence[Path], make_queries: Callable[[], np.ndarray]) -> tuple[faiss.Index, dict]:
    """The index of all vectors, and what is to be told about it.

    Above MAX_FLAT_ITEMS vectors it is an inverted file of 16-bit vectors. Beside HNSW and 8-bit vectors it had the best recall
    for its search time, builds in minutes and can be read from disk list by list.

    Args:
        shards: Files of `embed_shards`, in order.
        make_queries: Gives unit vectors (n, dimension) of texts like those that will be searched for, to measure the recall;
            not called for a flat index.
    """
    import faiss

    dimension = next(_read(shards)).shape[1]
    num_items = sum(len(vectors) for vectors in _read(shards))
    if num_items <= MAX_FLAT_ITEMS:
        index = faiss.IndexFlatL2(dimension)
        _add(index, shards)
        return index, {"index": "flat"}
    num_lists = int(4 * num_items**0.5)
    index = faiss.index_factory(dimension, f"IVF{num_lists},SQfp16")
    index.cp.max_points_per_centroid = POINTS_PER_LIST
    index.train(_sample(shards, share=min(1.0, POINTS_PER_LIST * num_lists / num_items)))
    _add(index, shards)
    queries = make_queries()
    index.nprobe, recall = _probes_needed(index, num_lists, shards, queries)
    return index, {
        "index": f"inverted file of {num_lists} lists, 16-bit vectors",
        "probed_lists": index.nprobe,
        f"recall_at_{RECALL_K}": recall,
        "recall_queries": len(queries),
    }


def _read(shards: Sequence[Path]) -> Iterator[np.ndarray]:
    for shard in shards:
        yield np.load(shard, mmap_mode="r")


def _add(index: faiss.Index, shards: Sequence[Path]) -> None:
    for vectors in _read(shards):
        index.add(np.ascontiguousarray(vectors))


def _sample(shards: Sequence[Path], *, share: float) -> np.ndarray:
    """The same share of every shard."""
    draw = np.random.default_rng(0)
    return np.concatenate(
        [vectors[np.sort(draw.choice(len(vectors), int(np.ceil(share * len(vectors))), replace=False))] for vectors in _read(shards)]
    )


def _probes_needed(index: faiss.Index, num_lists: int, shards: Sequence[Path], queries: np.ndarray) -> tuple[int, float]:
    """The smallest power of two of probed lists with MIN_RECALL against the flat search, and its recall."""
    import faiss

    exact = _exact_neighbours(shards, queries)
    probes, recall = 4, 0.0
    while recall < MIN_RECALL and probes < num_lists:
        probes = min(2 * probes, num_lists)
        _, found = index.search(queries, RECALL_K, params=faiss.SearchParametersIVF(nprobe=probes))
        recall = float(np.mean([len(set(a) & set(b)) / RECALL_K for a, b in zip(found, exact, strict=True)]))
    return probes, recall


def _exact_neighbours(shards: Sequence[Path], queries: np.ndarray) -> np.ndarray:
    import faiss

    nearest, start = faiss.ResultHeap(len(queries), RECALL_K), 0
    for vectors in _read(shards):
        distances, rows = faiss.knn(queries, np.ascontiguousarray(vectors), min(RECALL_K, len(vectors)))
        nearest.add_result(distances, rows + start)
        start += len(vectors)
    nearest.finalize()
    return nearest.I


def save_index(index: faiss.Index, path: Path) -> None:
    """Write an index whole or not at all."""
    import faiss

    with replacing(path) as temporary:
        try:
            faiss.write_index(index, str(temporary))
        except RuntimeError as error:
            raise ArtifactError(f"cannot write {path}: {error}; check free space and permissions, then run again") from None


def load_index(path: Path) -> faiss.Index:
    """Read an index; the lists of an inverted file stay on disk and are mapped into memory as searches need them.

    Raises:
        ArtifactError: If it cannot be read.
    """
    import faiss

    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise ArtifactError(f"cannot read {path}: {error}; run notebook 01 first") from None
    if isinstance(index, faiss.IndexIVF):
        index.parallel_mode = 1  # a single query uses all cores; the file does not keep this
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0  # 32 threads, begun anew by every search, cost six times it
    return index
