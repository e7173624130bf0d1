"""The item database: texts embedded by a sentence-embedding model into a FAISS index. Paper: B.2."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.artifacts import write_json, write_jsonl
from ..core.errors import ArtifactError
from ..core.records import RecordFile, records_sha256
from ..core.schema import Item
from ..llm.embedding import Embedder
from .shards import embed_shards
from .vector_index import build_index, load_index, save_index
from .wishes import target_wishes

NUM_PROBES = 300  # queries that measure the recall of an approximate index


class ItemDatabase:
    """Items and their vectors; `search` gives what an agent sees. Threads may share it.

    Args:
        items: In the order of the index.
        index: FAISS index of as many unit vectors.
        embedder: The model that made them.
        facts: What `build_database` noted of items and index.
    """

    def __init__(self, items: RecordFile[Item], index: object, embedder: Embedder, facts: dict):
        self.items = items
        self._index = index
        self.embedder = embedder
        self.facts = facts

    def search(self, query: str, top_k: int) -> list[Item]:
        """The `top_k` items whose texts lie nearest to the query, best first."""
        _, found = self._index.search(self.embedder.encode([query]), min(top_k, len(self.items)))
        return [self.items[i] for i in found[0].tolist() if i >= 0]


def build_database(items: Iterable[Item], embedder: Embedder, items_path: Path, index_path: Path) -> ItemDatabase:
    """Embed items and write `items.jsonl` and `items.faiss`, with facts about them beside it.

    Items are read one by one, so that they may be more than memory holds; a build that was killed goes on where it stopped.

    Raises:
        ArtifactError: If there are no items, or a file cannot be written.
    """
    write_jsonl(items_path, items)
    items = RecordFile(items_path, Item)
    if not items:
        raise ArtifactError(f"{items_path}: there are no items to embed; look at the data that notebook 01 was given")
    folder = index_path.with_name(index_path.name + ".shards")
    shards = embed_shards(items, embedder, folder)
    index, index_facts = build_index(shards, lambda: embedder.encode(_probes(items)))
    save_index(index, index_path)
    facts = {
        "embedder": embedder.name,
        "dimension": index.d,
        "num_items": len(items),
        "items_sha256": items.sha256,
        "index_bytes": index_path.stat().st_size,
        **index_facts,
    }
    write_json(_facts_path(index_path), facts)
    shutil.rmtree(folder)
    return ItemDatabase(items, load_index(index_path), embedder, facts)


def _probes(items: Sequence[Item]) -> list[str]:
    """Queries as users put them: one sentence of an item's description, its title hidden."""
    draw = random.Random(0)
    drawn = [items[i] for i in draw.sample(range(len(items)), min(NUM_PROBES, len(items)))]
    return [draw.choice(target_wishes(item)[1:] or target_wishes(item)) for item in drawn]


def is_current(items: Iterable[Item], embedder: Embedder, items_path: Path, index_path: Path) -> bool:
    """Whether the files hold exactly these items, embedded by this model."""
    try:
        facts = load_database(items_path, index_path, embedder).facts
    except ArtifactError:
        return False
    return (facts["num_items"], facts["items_sha256"]) == records_sha256(items)


def load_database(items_path: Path, index_path: Path, embedder: Embedder) -> ItemDatabase:
    """Read a database that `build_database` wrote.

    Raises:
        ArtifactError: If a file is missing or damaged, or they do not belong together or to the embedder.
    """
    items, facts = RecordFile(items_path, Item), _load_facts(index_path)
    if not index_path.is_file():
        raise ArtifactError(f"there is no {index_path}; run notebook 01 first")
    size = index_path.stat().st_size
    if facts["index_bytes"] != size:  # FAISS would map a cut file into memory and crash
        raise ArtifactError(f"{index_path} has {size} bytes, {facts['index_bytes']} were written; run notebook 01 again")
    index = load_index(index_path)
    if index.ntotal != len(items):
        raise ArtifactError(f"{index_path} holds {index.ntotal} vectors, {items_path} {len(items)} items; run notebook 01 again")
    if facts["items_sha256"] != items.sha256:
        raise ArtifactError(f"{items_path} is not the file that {index_path} was made from; run notebook 01 again")
    dimension = embedder.encode([""]).shape[1]
    if (facts["embedder"], index.d) != (embedder.name, dimension):
        raise ArtifactError(
            f"{index_path} holds vectors of {facts['embedder']} of dimension {index.d}, the embedder is {embedder.name} "
            f"of dimension {dimension}; run notebook 01 again"
        )
    return ItemDatabase(items, index, embedder, facts)


def _load_facts(index_path: Path) -> dict:
    path = _facts_path(index_path)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {key: facts[key] for key in ("embedder", "num_items", "items_sha256", "index_bytes")} | facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; run notebook 01 again") from None


def _facts_path(index_path: Path) -> Path:
    return index_path.with_name(index_path.name + ".json")
