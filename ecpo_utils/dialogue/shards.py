"""Vectors of many items on disk, a shard at a time: embedding that was killed goes on after the last whole shard."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..core.artifacts import digest, replacing, sha256_file, write_json
from ..core.schema import Item
from ..llm.embedding import Embedder

logger = logging.getLogger(__name__)

SHARD_ITEMS = 1024  # 1.5 MB, half a minute on two cores


def item_text(item: Item) -> str:
    """The text of an item that is embedded: title, categories, description."""
    return f"{item.title}; {', '.join(item.categories)}; {item.description}"


def embed_shards(items: Sequence[Item], embedder: Embedder, folder: Path) -> list[Path]:
    """Embed items shard by shard; shards of the same texts by the same model that lie there whole are not made again.

    Returns:
        The shards' files in the order of the items: each a float32 array (items, dimension) in NumPy's format.
    """
    shards = []
    with tqdm(total=len(items), desc="embed", unit="item", disable=len(items) <= SHARD_ITEMS) as progress:
        for start in range(0, len(items), SHARD_ITEMS):
            texts = [item_text(item) for item in items[start : start + SHARD_ITEMS]]
            shards.append(_embed_shard(texts, embedder, folder / f"{start // SHARD_ITEMS:06d}.npy"))
            progress.update(len(texts))
    return shards


def _embed_shard(texts: Sequence[str], embedder: Embedder, path: Path) -> Path:
    made_from, facts_path = digest([embedder.name, texts]), path.with_suffix(".json")
    if not _is_intact(path, facts_path, made_from):
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, embedder.encode(texts))
        write_json(facts_path, {"made_from": made_from, "sha256": sha256_file(path)})
    return path


def _is_intact(path: Path, facts_path: Path, made_from: str) -> bool:
    """Whether a shard holds these texts' vectors; what is damaged is told and made again."""
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        if facts["made_from"] != made_from:
            return False
        if facts["sha256"] == sha256_file(path):
            return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.info("%s: %r", facts_path, error)
    logger.warning("%s is damaged; its items are embedded again", path)
    return False
