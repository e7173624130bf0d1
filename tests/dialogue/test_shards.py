"""Embedding that goes on where it was killed, and makes again only what is missing, damaged or of other texts."""

import json

import numpy as np
import pytest
from scripted_models import ITEMS, FakeEmbedder

from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.dialogue import shards
from ecpo_utils.dialogue.shards import embed_shards, item_text


class Counting(FakeEmbedder):
    """Notes what it embeds; is killed at the text that starts with `fatal`."""

    def __init__(self, fatal="none"):
        self.seen, self.fatal = [], fatal

    def encode(self, texts):
        if any(text.startswith(self.fatal) for text in texts):
            raise KeyboardInterrupt
        self.seen += texts
        return super().encode(texts)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ITEMS", 2)


def vectors(paths):
    return np.concatenate([np.load(path) for path in paths])


def test_item_text_is_title_categories_description():
    assert item_text(ITEMS[2]) == "Quiet Orbit; Video Games, Puzzle; By Lumen (2019). Nudge moons into place. No timer and no score."


def test_shards_hold_the_vectors_in_the_order_of_the_items(tmp_path):
    found = embed_shards(ITEMS[:5], FakeEmbedder(), tmp_path)
    assert [path.name for path in found] == ["000000.npy", "000001.npy", "000002.npy"]
    assert (vectors(found) == FakeEmbedder().encode([item_text(item) for item in ITEMS[:5]])).all()


def test_a_killed_build_loses_at_most_one_shard(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed_shards(ITEMS, Counting(fatal=ITEMS[4].title), tmp_path)
    again = Counting()
    found = embed_shards(ITEMS, again, tmp_path)
    assert again.seen == [item_text(item) for item in ITEMS[4:]]
    assert (vectors(found) == FakeEmbedder().encode([item_text(item) for item in ITEMS])).all()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-8]), lambda path: path.write_bytes(b""),
                                    lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), lambda path: path.unlink(),
                                    lambda path: path.with_suffix(".json").write_text("{"), lambda path: path.with_suffix(".json").unlink(),
                                    lambda path: path.with_suffix(".json").write_text("[]")])  # fmt: skip
def test_a_damaged_shard_is_made_again_and_only_that_one(tmp_path, damage):
    good = vectors(found := embed_shards(ITEMS, FakeEmbedder(), tmp_path))
    damage(found[1])
    again = Counting()
    assert (vectors(embed_shards(ITEMS, again, tmp_path)) == good).all()
    assert again.seen == [item_text(item) for item in ITEMS[2:4]]


def test_damage_is_told(tmp_path, caplog):
    path = embed_shards(ITEMS, FakeEmbedder(), tmp_path)[2]
    path.write_bytes(b"x")
    embed_shards(ITEMS, FakeEmbedder(), tmp_path)
    assert [record.message for record in caplog.records] == [f"{path} is damaged; its items are embedded again"]


def test_shards_of_other_items_or_of_another_model_are_made_again(tmp_path):
    embed_shards(ITEMS, FakeEmbedder(), tmp_path)
    changed, other = Counting(), Counting()
    embed_shards([ITEMS[0], ITEMS[1], ITEMS[3], ITEMS[2], *ITEMS[4:]], changed, tmp_path)
    assert len(changed.seen) == 2
    other.name = "another"
    embed_shards(ITEMS, other, tmp_path)
    assert len(other.seen) == len(ITEMS)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "items.faiss.shards").write_text("a file")
    with pytest.raises(ArtifactError, match=r"cannot write .*items.faiss.shards.*000000.npy.*run again"):
        embed_shards(ITEMS, FakeEmbedder(), tmp_path / "items.faiss.shards")


def test_facts_say_what_a_shard_was_made_from(tmp_path):
    path = embed_shards(ITEMS[:2], FakeEmbedder(), tmp_path)[0]
    assert set(json.loads(path.with_suffix(".json").read_text())) == {"made_from", "sha256"}
