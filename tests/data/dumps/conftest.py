"""A build of a small dump."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_dumps import EVERYONE, to_bytes

from ecpo_utils.core.artifacts import iter_json_lines
from ecpo_utils.data.dumps import reviews as reviews_module
from ecpo_utils.data.dumps.build import BuildOptions, build_folder


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build from rows or bytes; returns facts, items by id, reviews and rejects as they stand in the folder.

    `direct=True` reads the review file as a large one is read.
    """

    def build(reviews, meta, *, source="amazon", rule=EVERYONE, direct=False, names=("reviews.jsonl", "meta.jsonl"), out="out", **options):
        monkeypatch.setattr(reviews_module, "DIRECT_FROM_BYTES", 0 if direct else 1 << 26)
        paths = [tmp_path / name for name in names]
        for path, data in zip(paths, (reviews, meta), strict=True):
            if data is not None:
                path.write_bytes(data if isinstance(data, bytes) else to_bytes(data))
        domain = "yelp" if source == "yelp" else "book"
        facts = build_folder(BuildOptions(domain, source, *paths, out=tmp_path / out, rule=rule, **options))
        folder = tmp_path / out / domain
        items, found, rejects = ([row for _, row in iter_json_lines(folder / f"{name}.jsonl")] for name in ("items", "reviews", "rejects"))
        assert not Path(folder / ".work").exists()
        return facts, {each["item_id"]: each for each in items}, found, rejects

    return build
