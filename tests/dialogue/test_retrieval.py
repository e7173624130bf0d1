"""The item database: what is nearest, what is written, and what is said if files are missing or do not belong together."""

import pytest
from scripted_models import ITEMS, FakeEmbedder, make_database

from ecpo_utils.core.artifacts import write_jsonl
from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.dialogue.retrieval import item_text, load_database


def files(tmp_path):
    return tmp_path / "game" / "items.jsonl", tmp_path / "game" / "items.faiss"


def test_item_text_is_title_categories_description():
    assert item_text(ITEMS[2]) == "Quiet Orbit; Video Games, Puzzle; By Lumen (2019). Nudge moons into place. No timer and no score."


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
    assert again.items == ITEMS
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
    assert load_database(*files(tmp_path), FakeEmbedder()).items == ITEMS[:2]
