"""The response cache: what was reported written is there, whatever happens to the writer."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.llm.cache import ResponseCache

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from pathlib import Path
from ecpo_utils.llm.cache import ResponseCache
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
cache = ResponseCache(path)
for n in range(count):
    cache.put(f"{name}-{n}", {"text": name * 50, "n": n})
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
"""


def start_writer(path, name, count):
    """A process that opens the cache and writes once it gets a line."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def go(writer):
    writer.stdin.write("go\n")
    writer.stdin.flush()


def entries(path):
    with sqlite3.connect(path) as db:
        return dict(db.execute("SELECT key, value FROM responses"))


def test_answer_comes_back_from_a_new_process_view(tmp_path):
    path = tmp_path / "runs" / "responses.sqlite"
    first = ResponseCache(path)
    answer = {"text": "É 雪 \u2028 'quote\"", "top_logprobs": [{"yes": -0.1}], "seconds": 0.25}
    key = first.key({"messages": [], "seed": 0})
    assert first.get(key) is None
    first.put(key, answer)
    assert ResponseCache(path).get(key) == answer
    first.put(key, {"text": "new"})
    assert ResponseCache(path).get(key) == {"text": "new"}
    first.close()


def test_key_is_a_digest_of_all_fields_in_any_order():
    key = ResponseCache.key({"seed": 0, "stop": ["a"]})
    assert len(key) == 64 and key == ResponseCache.key({"stop": ["a"], "seed": 0})
    others = [{"seed": 1, "stop": ["a"]}, {"seed": 0, "stop": ["b"]}, {"seed": 0, "stop": []}, {"seed": 0.0, "stop": ["a"]}, {"seed": 0}]
    assert len({key, *map(ResponseCache.key, others)}) == 6


def test_half_a_surrogate_pair_can_be_stored(tmp_path):
    cache = ResponseCache(tmp_path / "a.sqlite")
    cache.put("k", {"text": "\ud83d"})
    assert cache.get("k") == {"text": "\ud83d"}


def test_all_reported_entries_survive_kill_9(tmp_path):
    path = tmp_path / "responses.sqlite"
    writer = start_writer(path, "w", 10**9)
    go(writer)
    for line in writer.stdout:
        if int(line) == 100:
            break
    writer.send_signal(signal.SIGKILL)
    reported = [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    assert writer.wait() == -signal.SIGKILL
    cache = ResponseCache(path)
    for n in range(max(reported, default=100) + 1):
        assert cache.get(f"w-{n}") == {"text": "w" * 50, "n": n}
    cache.put("more", {"text": "goes on"})
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_processes_that_open_and_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "responses.sqlite"
    writers = {name: start_writer(path, name, 60) for name in ("a", "b", "c")}
    for writer in writers.values():
        go(writer)
    assert [writer.wait(timeout=60) for writer in writers.values()] == [0, 0, 0]
    assert set(entries(path)) == {f"{name}-{n}" for name in writers for n in range(60)}


def test_file_that_is_no_database_is_named_and_kept(tmp_path):
    path = tmp_path / "responses.sqlite"
    path.write_bytes(b"these are my notes, not a database" * 100)
    with pytest.raises(ArtifactError, match=rf"response cache {path}: .*move it away"):
        ResponseCache(path)
    assert path.read_bytes().startswith(b"these are my notes")


def test_database_of_something_else_is_named(tmp_path):
    path = tmp_path / "responses.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE responses (id INTEGER)")
    cache = ResponseCache(path)
    with pytest.raises(ArtifactError, match=str(path)):
        cache.get("k")


def test_damaged_database_is_named(tmp_path):
    path = tmp_path / "responses.sqlite"
    cache = ResponseCache(path)
    for n in range(300):
        cache.put(f"k{n}", {"text": "x" * 200})
    cache.close()
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{path}: .*; move it away"):
        damaged = ResponseCache(path)
        for n in range(300):
            damaged.get(f"k{n}")


def test_folder_that_cannot_be_made_is_an_artifact_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ArtifactError, match="runs/responses.sqlite"):
        ResponseCache(tmp_path / "runs" / "responses.sqlite")


def test_folder_in_the_files_place_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=f"response cache {tmp_path}: unable to open"):
        ResponseCache(tmp_path)


@pytest.fixture
def no_root():
    """Root may write anywhere: become nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_read_only_folder_is_an_artifact_error(tmp_path, no_root):
    with contextlib.suppress(PermissionError):
        tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="responses.sqlite: .*(denied|unable to open).*; check free space and permissions"):
        ResponseCache(tmp_path / "responses.sqlite")


def test_closed_cache_is_an_artifact_error(tmp_path):
    cache = ResponseCache(tmp_path / "a.sqlite")
    cache.close()
    with pytest.raises(ArtifactError, match="closed"):
        cache.put("k", {})
