"""The item database: what is nearest, what is written, and what is said if files are missing or do not belong together."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scripted_models import ITEMS, ODD_TEXTS, FakeEmbedder, make_database

from ecpo_utils.core.artifacts import write_jsonl
from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.core.schema import Item
from ecpo_utils.dialogue import shards, vector_index
from ecpo_utils.dialogue.retrieval import build_database, is_current, load_database
from ecpo_utils.dialogue.shards import item_text


def files(tmp_path):
    return tmp_path / "game" / "items.jsonl", tmp_path / "game" / "items.faiss"


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.item_id)
def test_an_item_is_the_nearest_to_its_own_text(database, item):
    assert database.search(item_text(item), 1) == [item]


def test_search_gives_top_k_distinct_items_best_first(database):
    found = database.search("a folded nobleman solves crimes", 3)
    assert found[0].item_id == "g5"
    assert len({item.item_id for item in found}) == 3


def test_search_gives_all_items_if_there_are_fewer_than_top_k(database):
    assert sorted(item.item_id for item in database.search("anything", 50)) == [item.item_id for item in ITEMS]


def test_a_database_that_was_written_is_read_back_alike(database, tmp_path):
    again = load_database(*files(tmp_path), FakeEmbedder())
    assert list(again.items) == ITEMS
    assert [i.item_id for i in again.search("moons", 6)] == [i.item_id for i in database.search("moons", 6)]
    assert sorted(path.name for path in (tmp_path / "game").iterdir()) == ["items.faiss", "items.faiss.json", "items.jsonl"]


def test_items_and_index_that_do_not_belong_together_name_both_counts_and_notebook_01(database, tmp_path):
    write_jsonl(files(tmp_path)[0], ITEMS[:4])
    with pytest.raises(ArtifactError, match=r"items.faiss holds 6 vectors, .*items.jsonl 4 items; run notebook 01 again"):
        load_database(*files(tmp_path), FakeEmbedder())


def test_a_missing_index_names_the_file_and_notebook_01(database, tmp_path):
    files(tmp_path)[1].unlink()
    with pytest.raises(ArtifactError, match=r"items.faiss.*run notebook 01"):
        load_database(*files(tmp_path), FakeEmbedder())


@pytest.mark.parametrize("kept", [0, 1, 4, 40, 1000, -1])
def test_a_cut_index_names_the_file_and_notebook_01(database, tmp_path, kept):
    index = files(tmp_path)[1]
    index.write_bytes(index.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"items.faiss.*run notebook 01"):
        load_database(*files(tmp_path), FakeEmbedder())


def test_missing_items_name_the_file(database, tmp_path):
    files(tmp_path)[0].unlink()
    with pytest.raises(ArtifactError, match="items.jsonl"):
        load_database(*files(tmp_path), FakeEmbedder())


def test_building_again_replaces_the_files(tmp_path):
    make_database(tmp_path / "game")
    make_database(tmp_path / "game", ITEMS[:2])
    assert load_database(*files(tmp_path), FakeEmbedder()).items[:] == ITEMS[:2]


def test_items_may_come_one_by_one_and_only_once(tmp_path):
    paths = files(tmp_path)
    assert list(build_database(iter(ITEMS), FakeEmbedder(), *paths).items) == ITEMS
    assert is_current(iter(ITEMS), FakeEmbedder(), *paths) and not is_current(iter(ITEMS[1:]), FakeEmbedder(), *paths)


def test_no_items_are_told(tmp_path):
    with pytest.raises(ArtifactError, match=r"items.jsonl: there are no items"):
        make_database(tmp_path / "game", [])


def test_other_items_of_the_same_number_are_told(database, tmp_path):
    write_jsonl(files(tmp_path)[0], ITEMS[::-1])
    with pytest.raises(ArtifactError, match=r"items.jsonl is not the file that .*items.faiss was made from; run notebook 01 again"):
        load_database(*files(tmp_path), FakeEmbedder())


def test_a_build_killed_before_its_index_is_not_taken_for_finished(database, tmp_path, monkeypatch):
    monkeypatch.setattr("ecpo_utils.dialogue.retrieval.embed_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make_database(tmp_path / "game", ITEMS[::-1])
    assert not is_current(ITEMS[::-1], FakeEmbedder(), *files(tmp_path))
    with pytest.raises(ArtifactError, match="run notebook 01 again"):
        load_database(*files(tmp_path), FakeEmbedder())


def test_an_embedder_of_another_name_is_told(database, tmp_path):
    other = FakeEmbedder()
    other.name = "another"
    with pytest.raises(ArtifactError, match=r"items.faiss holds vectors of fake-embedder of dimension 1024, the embedder is another"):
        load_database(*files(tmp_path), other)


def test_an_embedder_of_another_dimension_is_told(database, tmp_path):
    other = FakeEmbedder()
    other.encode = lambda texts: np.ones((len(texts), 384), np.float32)
    with pytest.raises(ArtifactError, match=r"dimension 1024, the embedder is fake-embedder of dimension 384; run notebook 01 again"):
        load_database(*files(tmp_path), other)


@pytest.mark.parametrize("facts", ["", "{", "[]", "{}"])
def test_damaged_facts_are_told(database, tmp_path, facts):
    (tmp_path / "game" / "items.faiss.json").write_text(facts)
    with pytest.raises(ArtifactError, match=r"items.faiss.json.*run notebook 01 again"):
        load_database(*files(tmp_path), FakeEmbedder())


def test_a_database_whose_facts_lack_something_is_built_again(database, tmp_path):
    path = tmp_path / "game" / "items.faiss.json"
    path.write_text(json.dumps({"embedder": "fake-embedder", "num_items": len(ITEMS)}))
    with pytest.raises(ArtifactError, match=r"cannot read .*items\.faiss\.json: 'items_sha256'; run notebook 01 again"):
        load_database(*files(tmp_path), FakeEmbedder())
    assert not is_current(ITEMS, FakeEmbedder(), *files(tmp_path))


@pytest.mark.parametrize("text", ["", "\0", *ODD_TEXTS.values()], ids=["nothing", "NUL", *ODD_TEXTS])
def test_items_and_queries_of_any_text_are_searched(tmp_path, text):
    odd = Item(item_id="odd", title=text, description=text)
    database = make_database(tmp_path / "game", [*ITEMS, odd])
    assert len(database.search(text, 7)) == 7
    assert database.search(item_text(odd), 1) == [odd]


def test_threads_may_share_a_database(database):
    queries = [item_text(item) for item in ITEMS] * 50
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda query: database.search(query, 1)[0], queries))
    assert found == ITEMS * 50


def test_a_large_database_tells_its_recall_and_needs_no_more_files(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "MAX_FLAT_ITEMS", 100)
    monkeypatch.setattr(shards, "SHARD_ITEMS", 300)
    words = np.random.default_rng(0).choice(["salt", "moon", "duke", "lamp", "port", "fog", "maze", "oil"], (1000, 12))
    items = [Item(item_id=str(n), title=f"Title {n}", description=" ".join(row[:6]) + ". " + " ".join(row[6:]) + ".") for n, row in
             enumerate(words.tolist())]  # fmt: skip
    database = make_database(tmp_path / "game", items)
    again = load_database(*files(tmp_path), FakeEmbedder())
    assert again.facts == database.facts and 0.9 < again.facts["recall_at_5"] <= 1
    assert [again.search(item_text(item), 1) for item in items[::100]] == [[item] for item in items[::100]]
    assert len(again.search("moon", 2000)) <= 1000
    assert sorted(path.name for path in (tmp_path / "game").iterdir()) == ["items.faiss", "items.faiss.json", "items.jsonl"]
