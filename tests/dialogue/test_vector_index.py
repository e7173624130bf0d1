"""Flat below a size; above it approximate, with the recall that was measured."""

import numpy as np
import pytest

from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.dialogue import vector_index
from ecpo_utils.dialogue.vector_index import RECALL_K, build_index, load_index, save_index

faiss = pytest.importorskip("faiss")
DIMENSION = 16


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(number, seed):
    """Vectors around 40 centres, as texts of like kind lie together."""
    draw, centres = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(40, DIMENSION))
    return unit(centres[draw.integers(0, 40, number)] + 0.4 * draw.normal(size=(number, DIMENSION)))


VECTORS, QUERIES = clustered(3000, 1), clustered(100, 2)


@pytest.fixture
def shards(tmp_path):
    paths = [tmp_path / f"{number}.npy" for number in range(4)]
    for path, rows in zip(paths, np.array_split(VECTORS, [1000, 2000, 2998]), strict=True):
        np.save(path, rows)
    return paths


def exact():
    flat = faiss.IndexFlatL2(DIMENSION)
    flat.add(VECTORS)
    return flat.search(QUERIES, RECALL_K)[1]


def recall(index):
    return np.mean([len(set(a) & set(b)) / RECALL_K for a, b in zip(index.search(QUERIES, RECALL_K)[1], exact(), strict=True)])


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(vector_index, "MAX_FLAT_ITEMS", 2999)


def test_up_to_the_threshold_the_index_is_flat_and_asks_for_no_queries(shards, monkeypatch):
    monkeypatch.setattr(vector_index, "MAX_FLAT_ITEMS", 3000)
    index, facts = build_index(shards, lambda: pytest.fail("asked for"))
    assert facts == {"index": "flat"} and recall(index) == 1
    whole = faiss.IndexFlatL2(DIMENSION)
    whole.add(VECTORS)
    assert faiss.serialize_index(index).tobytes() == faiss.serialize_index(whole).tobytes()


def test_above_the_threshold_the_stated_recall_is_that_of_its_searches(shards, large, tmp_path):
    index, facts = build_index(shards, lambda: QUERIES)
    assert facts["recall_at_5"] == pytest.approx(recall(index)) and facts["recall_at_5"] >= vector_index.MIN_RECALL
    assert facts["recall_queries"] == 100 and facts["probed_lists"] == index.nprobe < 219
    save_index(index, tmp_path / "items.faiss")
    again = load_index(tmp_path / "items.faiss")
    assert (again.search(QUERIES, RECALL_K)[1] == index.search(QUERIES, RECALL_K)[1]).all()


def test_lists_of_a_large_index_stay_on_disk(shards, large, tmp_path):
    save_index(build_index(shards, lambda: QUERIES)[0], tmp_path / "items.faiss")
    assert isinstance(faiss.downcast_InvertedLists(load_index(tmp_path / "items.faiss").invlists), faiss.OnDiskInvertedLists)


def test_a_recall_out_of_reach_ends_with_all_lists(shards, large, monkeypatch):
    monkeypatch.setattr(vector_index, "MIN_RECALL", 1.1)
    index, facts = build_index(shards, lambda: QUERIES)
    assert facts["probed_lists"] == index.nlist == 219 and facts["recall_at_5"] > 0.99


def test_building_twice_gives_the_same_index(shards, large):
    first, second = (faiss.serialize_index(build_index(shards, lambda: QUERIES)[0]).tobytes() for _ in range(2))
    assert first == second


def test_an_index_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(faiss, "write_index", lambda *_: (_ for _ in ()).throw(RuntimeError("No space left on device")))
    with pytest.raises(ArtifactError, match=r"cannot write .*items.faiss.*No space left.*run again"):
        save_index(faiss.IndexFlatL2(4), tmp_path / "items.faiss")
    assert list(tmp_path.iterdir()) == []
