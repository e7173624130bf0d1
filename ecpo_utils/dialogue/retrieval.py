"""The item database: texts embedded with a sentence-transformers model into a FAISS flat index. Paper: B.2."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.artifacts import digest, load_jsonl, write_json, write_jsonl, writing
from ..core.errors import ArtifactError
from ..core.schema import Item
from ..llm.models import fetch_model


def item_text(item: Item) -> str:
    """The text of an item that is embedded: title, categories, description."""
    return f"{item.title}; {', '.join(item.categories)}; {item.description}"


class Embedder:
    """Unit-length sentence embeddings. Library: sentence-transformers.

    Args:
        name: A model of `params/models.yaml`.
    """

    def __init__(self, name: str):
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.name = name
        self._model = SentenceTransformer(str(fetch_model(name)), device=None)

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """float32 array (len(texts), dimension), rows of length 1."""
        return self._model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=progress).astype(np.float32)


class ItemDatabase:
    """Items and their vectors; `search` gives what an agent sees.

    Args:
        items: In the order of the index.
        index: FAISS index of as many unit vectors.
        embedder: The model that made them.
    """

    def __init__(self, items: Sequence[Item], index: object, embedder: Embedder):
        self.items = list(items)
        self._index = index
        self.embedder = embedder

    def search(self, query: str, top_k: int) -> list[Item]:
        """The `top_k` items whose texts lie nearest to the query, best first."""
        _, found = self._index.search(self.embedder.encode([query]), min(top_k, len(self.items)))
        return [self.items[i] for i in found[0]]


def build_database(items: Sequence[Item], embedder: Embedder, items_path: Path, index_path: Path) -> ItemDatabase:
    """Embed items and write `items.jsonl` and `items.faiss`."""
    import faiss

    vectors = embedder.encode([item_text(item) for item in items])
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    write_jsonl(items_path, items)
    temporary = index_path.with_suffix(".tmp")
    with writing(index_path):
        temporary.write_bytes(faiss.serialize_index(index).tobytes())
        os.replace(temporary, index_path)
    write_json(_facts_path(index_path), _facts(items, embedder))
    return ItemDatabase(items, index, embedder)


def is_current(items: Sequence[Item], embedder: Embedder, items_path: Path, index_path: Path) -> bool:
    """Whether the files hold exactly these items, embedded by this model."""
    facts = _facts_path(index_path)
    if not all(path.is_file() for path in (items_path, index_path, facts)):
        return False
    return json.loads(facts.read_text()) == _facts(items, embedder) and load_jsonl(items_path, Item) == list(items)


def _facts_path(index_path: Path) -> Path:
    return index_path.with_name(index_path.name + ".json")


def _facts(items: Sequence[Item], embedder: Embedder) -> dict:
    return {"embedder": embedder.name, "num_items": len(items), "items_digest": digest([item.model_dump() for item in items])}


def load_database(items_path: Path, index_path: Path, embedder: Embedder) -> ItemDatabase:
    """Read a database that `build_database` wrote.

    Raises:
        ArtifactError: If a file is missing or the two do not belong together.
    """
    import faiss

    items = load_jsonl(items_path, Item)
    try:
        index = faiss.deserialize_index(np.frombuffer(index_path.read_bytes(), np.uint8))
    except (OSError, RuntimeError) as error:
        raise ArtifactError(f"cannot read {index_path}: {error}; run notebook 01 first") from None
    if index.ntotal != len(items):
        raise ArtifactError(f"{index_path} holds {index.ntotal} vectors, {items_path} {len(items)} items; run notebook 01 again")
    return ItemDatabase(items, index, embedder)
