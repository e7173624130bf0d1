"""Records read one at a time are those of the whole file."""

import pytest

from ecpo_utils.core.artifacts import load_jsonl, sha256_file, write_jsonl
from ecpo_utils.core.errors import ArtifactError, SchemaError
from ecpo_utils.core.records import RecordFile, records_sha256
from ecpo_utils.core.schema import Item

ITEMS = [Item(item_id=str(n), title=f"T{n} \u6f22\u5b57\u2028\U0001f4da", description="\0 line\nbreak\u0085") for n in range(5)]


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "items.jsonl", ITEMS)


@pytest.mark.parametrize("block", [1, 7, 1 << 24])
def test_records_are_those_that_were_written(path, monkeypatch, block):
    monkeypatch.setattr("ecpo_utils.core.records.BLOCK_BYTES", block)
    records = RecordFile(path, Item)
    assert list(records) == ITEMS == load_jsonl(path, Item)
    assert (len(records), records[-1], records[1:4:2]) == (5, ITEMS[-1], ITEMS[1:4:2])


def test_an_index_outside_is_an_index_error(path):
    with pytest.raises(IndexError):
        RecordFile(path, Item)[5]


def test_the_digest_is_that_of_the_file_and_of_the_rows(path):
    assert RecordFile(path, Item).sha256 == sha256_file(path)
    assert records_sha256(iter(ITEMS)) == (5, sha256_file(path))


def test_a_last_line_without_its_end_counts(path):
    path.write_bytes(path.read_bytes()[:-1])
    assert list(RecordFile(path, Item)) == ITEMS


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "items.jsonl").touch()
    assert list(RecordFile(tmp_path / "items.jsonl", Item)) == []


def test_a_file_that_replaces_it_does_not_change_what_is_read(path):
    records = RecordFile(path, Item)
    write_jsonl(path, reversed(ITEMS))
    assert list(records) == ITEMS


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="items.jsonl"):
        RecordFile(tmp_path / "items.jsonl", Item)


@pytest.mark.parametrize(("line", "message"), [(b"{", "not valid"), (b'{"x": 1}', "item_id"), (b"\xff", "not UTF-8"), (b"", "not valid")])
def test_a_broken_line_is_named_when_it_is_asked_for(path, line, message):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    records = RecordFile(path, Item)
    assert records[0] == ITEMS[0]
    with pytest.raises(SchemaError, match=rf"items.jsonl:2: .*{message}"):
        records[1]
