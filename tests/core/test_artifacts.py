"""Files between stages: whole or not at all, resumable, with file and line in every error."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ecpo_utils.core.artifacts import (
    append_jsonl,
    digest,
    iter_json_lines,
    load_jsonl,
    load_resumable,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)
from ecpo_utils.core.errors import ArtifactError, SchemaError
from ecpo_utils.core.schema import Item

ROOT = Path(__file__).resolve().parents[2]
ITEMS = [Item(item_id="1", title="Emma"), Item(item_id="2", title="Les Misérables 雪\u2028国", price=8.5)]


@pytest.fixture
def items(tmp_path):
    return write_jsonl(tmp_path / "book" / "items.jsonl", ITEMS)


def fill(folder):
    with pytest.raises(OSError) as caught, open(folder / "filler", "wb", buffering=0) as file:
        while True:
            if file.write(b"x" * 4096) < 4096:
                raise OSError(errno.ENOSPC, "full")
    assert caught.value.errno == errno.ENOSPC


def test_records_come_back_as_they_were_written(items):
    assert load_jsonl(items, Item) == ITEMS
    assert len(items.read_bytes().splitlines()) == 2


def test_appended_records_follow_the_written_ones(items):
    append_jsonl(items, Item(item_id="3", title="Dune"))
    append_jsonl(items, {"item_id": "4", "title": "É"})
    assert [item.item_id for item in load_jsonl(items, Item)] == ["1", "2", "3", "4"]


def test_half_a_line_at_the_end_is_cut_off_and_appending_goes_on(items):
    whole = items.read_bytes()
    items.write_bytes(whole + '{"item_id": "3", "title": "Mis\u00e9'.encode()[:-1])
    assert load_resumable(items, Item) == ITEMS
    assert items.read_bytes() == whole
    append_jsonl(items, Item(item_id="3", title="Dune"))
    assert len(load_resumable(items, Item)) == 3


@pytest.mark.parametrize("text", ["a note", '{"item_id": "1"}', '{"task_id": "1"}\n{"task_id": "2"}', "PK\x03\x04"])
def test_a_file_of_something_else_is_refused_and_stays_as_it_is(tmp_path, text):
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(SchemaError, match="items.jsonl"):
        load_resumable(path, Item)
    assert path.read_text() == text


def test_half_a_first_line_leaves_an_empty_file(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": ')
    assert load_resumable(path, Item) == [] and path.read_bytes() == b""


def test_file_that_is_not_there_yet_resumes_from_nothing(tmp_path):
    assert load_resumable(tmp_path / "none.jsonl", Item) == [] and not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("load", [load_jsonl, load_resumable])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"item_id": "9", "ti', r"items\.jsonl:2: not valid JSON"),
        ("[1, 2]", r"items\.jsonl:2: expected a JSON object, got list"),
        ("[" * 100_000, r"items\.jsonl:2: not valid JSON \(nested too deeply\)"),
        ('{"price": ' + "9" * 5_000 + "}", r"items\.jsonl:2: not valid JSON \(a number of too many digits\)"),
        ('{"item_id": "9"}', r"items\.jsonl:2: title: "),
        ('{"item_id": "9", "title": "t", "prize": 1}', r"items\.jsonl:2: prize: "),
        ('{"item_id": "9", "title": "t", "price": "cheap"}', r"items\.jsonl:2: price: "),
    ],
)
def test_broken_line_in_the_middle_is_an_error_with_file_and_line(items, load, line, expected):
    first, second = items.read_text().strip().split("\n")
    items.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(SchemaError, match=expected):
        load(items, Item)
    assert line in items.read_text()


def test_empty_lines_are_skipped_but_counted(items):
    items.write_text(f"\n{items.read_text()}\nbroken\n")
    with pytest.raises(SchemaError, match=r":5: not valid JSON"):
        load_jsonl(items, Item)


def test_line_that_is_no_text_is_named(items):
    items.write_bytes(b"\n" + items.read_bytes() + b'{"item_id": "3", "title": "Mis\xe9rables"}\n')
    with pytest.raises(SchemaError, match=r"items\.jsonl:4: not UTF-8 text \(.* at byte 30 of the line\)"):
        load_jsonl(items, Item)


def test_byte_order_mark_and_dos_line_ends_change_nothing(items):
    items.write_bytes(b"\xef\xbb\xbf" + items.read_bytes().replace(b"\n", b"\r\n"))
    assert load_jsonl(items, Item) == ITEMS


def test_packed_file_is_read_like_the_file_itself(items):
    packed = items.with_name("items.jsonl.gz")
    packed.write_bytes(gzip.compress(items.read_bytes()))
    assert load_jsonl(packed, Item) == ITEMS and list(iter_json_lines(packed)) == list(iter_json_lines(items))


@pytest.mark.parametrize("spoil", [lambda data: data[:-20], lambda data: b"{}" + data, lambda data: data[:12] + b"\xff" * 20 + data[32:],
                                   lambda data: data + b"more"])  # fmt: skip
def test_broken_packed_file_is_named(items, spoil):
    packed = items.with_name("items.jsonl.gz")
    packed.write_bytes(spoil(gzip.compress(items.read_bytes())))
    with pytest.raises(ArtifactError, match=rf"cannot read {packed}: ."):
        load_jsonl(packed, Item)


def test_missing_file_and_folder_in_its_place_are_named(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ArtifactError, match=f"cannot read {path}"):
            load_jsonl(path, Item)


def test_write_that_fails_leaves_the_old_file_and_no_litter(items, monkeypatch):
    old = items.read_bytes()

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(ArtifactError, match=rf"cannot write {items}: Input/output error"):
        write_text(items, "new")
    assert items.read_bytes() == old and [path.name for path in items.parent.iterdir()] == ["items.jsonl"]


def test_record_that_cannot_be_written_leaves_the_old_file(items):
    old = items.read_bytes()

    def rows():
        yield ITEMS[0]
        raise RuntimeError("stage failed")

    with pytest.raises(RuntimeError):
        write_jsonl(items, rows())
    assert items.read_bytes() == old


def test_file_where_a_folder_should_be_is_an_artifact_error(tmp_path):
    (tmp_path / "book").write_text("a file")
    for write in (lambda path: write_text(path, "x"), lambda path: append_jsonl(path, {"a": 1})):
        with pytest.raises(ArtifactError, match="cannot write .*items"):
            write(tmp_path / "book" / "items.jsonl")


def test_line_of_which_only_a_part_was_written_is_an_artifact_error(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:5]))
    with pytest.raises(ArtifactError, match="rows.jsonl: No space left"):
        append_jsonl(tmp_path / "rows.jsonl", {"n": 1})


def test_full_disk_is_an_artifact_error_and_keeps_what_was_there(small_disk):
    full_disk = small_disk("64k")
    path = write_json(full_disk / "manifest.json", {"seed": 0})
    log = full_disk / "rows.jsonl"
    append_jsonl(log, {"n": 1})
    fill(full_disk)
    with pytest.raises(ArtifactError, match="manifest.json: No space left"):
        write_text(path, "y" * 50_000)
    assert json.loads(path.read_text()) == {"seed": 0}
    with pytest.raises(ArtifactError, match="rows.jsonl: No space left"):
        for _ in range(100):
            append_jsonl(log, {"text": "z" * 1000})
    (full_disk / "filler").unlink()
    rows = [json.loads(line) for line in log.read_text().splitlines()[:-1]]
    assert rows[0] == {"n": 1}


def test_rows_appended_before_sigkill_are_all_there(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys; from pathlib import Path; from ecpo_utils.core.artifacts import append_jsonl\n"
        "from ecpo_utils.core.schema import Item\n"
        "for n in range(10**9):\n"
        "    append_jsonl(Path(sys.argv[1]), Item(item_id=str(n), title='x' * 500))\n"
        "    sys.stdout.write(f'{n}\\n'); sys.stdout.flush()\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for line in writer.stdout:
        if int(line) >= 50:
            break
    writer.send_signal(signal.SIGKILL)
    reported = [int(line) for line in writer.stdout.read().splitlines() if line]
    writer.wait()
    rows = [int(row.item_id) for row in load_resumable(path, Item)]
    assert rows == list(range(len(rows))) and len(rows) > max(reported, default=50)


def test_digest_ignores_key_order_but_no_value():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(value) for value in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"b": 1}, [1], [1, 2], [2, 1])}) == 8


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
