"""The table of the data says of a large base how much its index finds, and nothing of the kind of a flat one."""

from types import SimpleNamespace

import pandas as pd
import pytest
from scripted_models import make_database

from ecpo_utils.core.schema import Item
from ecpo_utils.dialogue import vector_index
from ecpo_utils.evaluate.data_tables import (
    DomainData,
    Probe,
    data_table,
    describe_domains,
    gather_domains,
    probe_retrieval,
    retrieval_table,
)

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


def test_an_item_counts_as_found_if_it_is_among_the_first_results_for_its_probe(tmp_path):
    database = make_database(tmp_path)
    (probes,) = probe_retrieval({"game": database}, top_k=1, seed=0).values()
    assert sorted(probe.item_id for probe in probes) == sorted(item.item_id for item in database.items)
    assert [probe.found for probe in probes] == [database.search(probe.query, 1)[0].item_id == probe.item_id for probe in probes]
    assert all(probe.found for probe in probe_retrieval({"game": database}, top_k=len(database.items), seed=0)["game"])
    half = retrieval_table({"game": [Probe(item_id="1", query="q", found=found) for found in (True, False)]}).iloc[0]
    assert (half["probes"], half["found"]) == (2, 0.5) and half["low"] == pytest.approx(1 - half["high"])


def test_the_table_comes_back_to_the_digit_from_what_is_written(tmp_path):
    rows = [{"domain": "book", "source": "folder", "items": 3, "recall@5 against flat": 1 / 3, "queries": 300},
            {"domain": "game", "source": "folder", "items": 2}]  # fmt: skip
    probes = {domain: [Probe(item_id=str(n), query="q", found=n == 0) for n in range(3)] for domain in ("book", "game")}
    found = gather_domains(pd.DataFrame(rows), probes)
    assert found["game"].facts == rows[1]
    read = {domain: DomainData.model_validate_json(data.model_dump_json()) for domain, data in found.items()}
    expected = pd.DataFrame(rows).merge(retrieval_table(probes), on="domain")
    assert data_table(read).to_csv(index=False) == data_table(found).to_csv(index=False) == expected.to_csv(index=False)
