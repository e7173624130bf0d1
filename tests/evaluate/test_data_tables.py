"""The table of the data says of a large base how much its index finds, and nothing of the kind of a flat one."""

from types import SimpleNamespace

import pandas as pd
from scripted_models import make_database

from ecpo_utils.core.schema import Item
from ecpo_utils.dialogue import vector_index
from ecpo_utils.evaluate.data_tables import describe_domains

RELEASE = SimpleNamespace(data_source="release")


def test_a_flat_base_has_no_recall(tmp_path):
    assert list(describe_domains(RELEASE, {"game": make_database(tmp_path)}).columns) == ["domain", "source", "items"]


def test_a_large_base_tells_its_recall(tmp_path, monkeypatch):
    flat = make_database(tmp_path / "flat")
    monkeypatch.setattr(vector_index, "MAX_FLAT_ITEMS", 100)
    items = [Item(item_id=str(n), title=f"Title {n}", description=f"One of {n % 7}. Two of {n % 11}.") for n in range(400)]
    table = describe_domains(RELEASE, {"game": make_database(tmp_path / "large", items), "book": flat}).set_index("domain")
    assert 0 < table.loc["game", "recall@5 against flat"] <= 1 and table.loc["game", "queries"] == 300
    assert pd.isna(table.loc["book", "recall@5 against flat"])
