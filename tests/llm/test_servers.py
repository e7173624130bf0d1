"""The embedded server with the smallest model: who may use it, who shares it, and that it goes with its last user."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Literal

import psutil
import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from ecpo_utils.core.artifacts import sha256_file
from ecpo_utils.core.errors import ModelError
from ecpo_utils.core.params import Endpoint
from ecpo_utils.llm import supervisor
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.endpoints import open_clients
from ecpo_utils.llm.models import find_model, locate_model
from ecpo_utils.llm.servers import RunningServer, ServerSpec, is_locked, list_servers, running_server, server_spec, servers_folder, serving

ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m-instruct-q4"
SPEC = ServerSpec("embedded", MODEL, slots=1)
HELLO = [{"role": "user", "content": "Is snow white? Answer with yes or no."}]
USER = """
import sys
from ecpo_utils.llm.servers import ServerSpec, serving
with serving(ServerSpec("embedded", sys.argv[1], slots=1, context_tokens=256)) as server:
    sys.stdout.write(f"{server.pid} {server.base_url}\\n")
    sys.stdout.flush()
    sys.stdin.readline()
"""


class Colour(BaseModel):
    model_config = ConfigDict(extra="forbid")

    white: Literal["yes", "no"]


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    """A cache of our own, so that no server of anybody else is met; the weights are linked."""
    os.chdir(ROOT)
    weights = locate_model(MODEL)
    if weights is None:
        pytest.skip(f"needs the weights: ecpo models fetch {MODEL}")
    folder = tmp_path_factory.mktemp("servers")
    linked = folder / "mine" / MODEL / weights.name
    linked.parent.mkdir(parents=True)
    linked.symlink_to(weights.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECPO_CACHE", str(folder / "cache"))
        patch.setenv("ECPO_MODELS", str(folder / "mine"))
        patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # loopback must be reached past it
        patch.delenv("NO_PROXY", raising=False)
        patch.delenv("no_proxy", raising=False)
        yield folder / "cache"


@pytest.fixture(scope="module")
def server(cache_folder):
    with serving(SPEC) as server:
        yield server


def post(server, key):
    """HTTP status of a chat call."""
    body = json.dumps({"model": MODEL, "messages": HELLO, "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{server.base_url}/chat/completions", body, {"Content-Type": "application/json"})
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def start_user():
    """A process that uses a server until a line comes; returns it and the server's process id and address."""
    user = subprocess.Popen([sys.executable, "-c", USER, MODEL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid, url = user.stdout.readline().split()
    return user, int(pid), url


def is_up(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(happens):
    deadline = time.monotonic() + 20
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert happens()


@pytest.mark.slow
def test_server_listens_on_loopback_only(server):
    process = psutil.Process(server.pid)
    sockets = [each for part in (process, *process.children(recursive=True)) for each in part.net_connections(kind="inet")]
    listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"} and server.base_url.startswith("http://127.0.0.1:")


@pytest.mark.slow
def test_calls_need_the_key_and_only_this_user_can_read_it(server):
    state = server.log.parent / "server.json"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert len(server.api_key) >= 32 and json.loads(state.read_text())["api_key"] == server.api_key
    assert [post(server, key) for key in (None, "wrong", server.api_key)] == [401, 401, 200]
    command_line = " ".join(psutil.Process(server.pid).cmdline())
    assert server.api_key not in command_line + server.log.read_text(errors="replace")


@pytest.mark.slow
def test_answers_follow_a_schema_and_carry_probabilities(server, tmp_path):
    endpoints = {"cra": Endpoint(provider="embedded", model=MODEL, max_concurrency=SPEC.slots)}
    cache = ResponseCache(tmp_path / "responses.sqlite")

    async def use():
        async with open_clients(endpoints, cache=cache, calls_log=tmp_path / "calls.jsonl") as clients:
            answer = await clients["cra"].parse(HELLO, Colour, max_tokens=20)
            return answer, await clients["cra"].choose(HELLO, ["yes", "no"]), clients["cra"].identity

    answer, chances, identity = asyncio.run(use())
    assert isinstance(answer.parsed, Colour) and answer.prompt_tokens > 0 and answer.completion_tokens > 0
    assert sum(chances.values()) == pytest.approx(1) and max(chances.values()) > 0.5
    assert chances != {"yes": 0.5, "no": 0.5}
    assert [running.pid for running in list_servers()] == [server.pid]
    assert next(iter(find_model(MODEL).files.values())) in identity
    assert server.api_key.encode() not in (tmp_path / "responses.sqlite").read_bytes() + (tmp_path / "calls.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_share_a_server_that_goes_after_the_last_was_killed(cache_folder):
    first, pid, url = start_user()
    second, *seen = start_user()
    assert seen == [pid, url]
    first.send_signal(signal.SIGKILL)
    first.wait()
    folder = next(path for path in servers_folder().iterdir() if getattr(running_server(path), "pid", None) == pid)
    wait_until(lambda: len(list((folder / "leases").iterdir())) == 1)
    assert is_locked(next((folder / "leases").iterdir()))
    second.send_signal(signal.SIGKILL)
    second.wait()
    killed = time.monotonic()
    assert is_up(pid)
    wait_until(lambda: not is_up(pid))
    assert time.monotonic() - killed < 8
    assert running_server(folder) is None and not (folder / "server.json").exists() and not list((folder / "leases").iterdir())


@pytest.mark.slow
def test_server_that_was_killed_is_replaced(cache_folder):
    spec = ServerSpec("embedded", MODEL, slots=1, context_tokens=128)
    with serving(spec) as first:
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: not is_up(first.pid))
        with serving(spec) as second:
            assert second.pid != first.pid and post(second, second.api_key) == 200
        assert running_server(spec.folder) == second


@pytest.mark.parametrize("content", ["half", "none"])
def test_file_that_is_no_whole_gguf_is_a_model_error_that_shows_the_log(monkeypatch, cache_folder, tmp_path, content):
    whole = next((cache_folder.parent / "mine" / MODEL).iterdir())
    with open(whole, "rb") as file:
        data = file.read(1_000_000) if content == "half" else b"<html>Not found</html>"
    weights = tmp_path / "broken" / "broken.gguf"
    weights.parent.mkdir()
    weights.write_bytes(data)
    entry = {"kind": "gguf", "licence": "MIT", "size_mb": 1, "context_tokens": 128, "files": {weights.name: sha256_file(weights)}}
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "models.yaml").write_text(yaml.safe_dump({"models": {"broken": {**entry, "path": str(weights.parent)}}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (
        pytest.raises(ModelError, match=r"embedded server for broken did not start: .*; whole log: .*server\.log") as caught,
        serving(ServerSpec("embedded", "broken", slots=1)),
    ):
        pass
    assert f"llama.cpp did not load {weights}" in str(caught.value)
    assert list_servers() == [] and not list((tmp_path / "cache").rglob("leases/*"))


def test_server_that_does_not_start_on_a_full_disk_says_so(monkeypatch, small_disk, tmp_path):
    disk = small_disk("64k")
    (disk / "filler").write_bytes(b"x" * 40_000)
    monkeypatch.setenv("ECPO_CACHE", str(disk))
    monkeypatch.setattr("ecpo_utils.llm.servers.fetch_model", lambda name: tmp_path)
    monkeypatch.setattr("ecpo_utils.llm.servers.sys.executable", "false")
    with pytest.raises(ModelError, match=rf"did not start: no space left on the disk of {disk}"), serving(SPEC):
        pass


def test_what_the_embedded_server_cannot_load_is_known_before_a_download(monkeypatch, tmp_path):
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path))
    monkeypatch.setattr("ecpo_utils.llm.servers.fetch_model", lambda name: pytest.fail("fetched"))
    expected = "loads GGUF files; qwen2.5-7b-instruct is a transformers model"
    with pytest.raises(ModelError, match=expected), serving(ServerSpec("embedded", "qwen2.5-7b-instruct")):
        pass


def test_gguf_weights_are_refused_for_vllm_before_it_starts_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path))
    monkeypatch.setattr("ecpo_utils.llm.servers.fetch_model", lambda name: pytest.fail("fetched"))
    expected = rf"vLLM loads model folders; {MODEL} is a gguf model, use provider: embedded, or .*ecpo export model FOLDER --adapter none"
    with pytest.raises(ModelError, match=expected), serving(ServerSpec("vllm", MODEL)):
        pass


def test_an_adapter_that_is_not_there_is_known_before_a_server_starts(tmp_path):
    with pytest.raises(ModelError, match="no adapter at .*nowhere/adapter_model.safetensors; train it first"):
        server_spec("embedded", MODEL, 2, str(tmp_path / "nowhere"))


def test_two_trainings_of_one_adapter_have_two_servers(tmp_path):
    weights = tmp_path / "sgpt" / "adapter_model.safetensors"
    weights.parent.mkdir()
    folders = set()
    for content in (b"first", b"second"):
        weights.write_bytes(content)
        folders.add(server_spec("embedded", MODEL, 2, str(weights.parent)).folder)
    assert len(folders) == 2


def test_roles_with_one_model_share_a_server_however_many_calls_each_has_in_flight(monkeypatch, tmp_path):
    asked = []

    @contextlib.contextmanager
    def serve(spec):
        asked.append(spec)
        yield RunningServer("http://127.0.0.1:9/v1", "k", 1, tmp_path / "log")

    monkeypatch.setattr("ecpo_utils.llm.endpoints.serving", serve)
    roles = {role: Endpoint(provider="embedded", model=MODEL, max_concurrency=n) for role, n in (("simulator", 2), ("cra", 5))}

    async def use():
        cache = ResponseCache(tmp_path / "responses.sqlite")
        for names in (["simulator"], ["simulator", "cra"]):
            given = {name: roles[name] for name in names}
            async with open_clients(given, cache=cache, calls_log=tmp_path / "calls.jsonl", sharing=list(roles.values())):
                pass

    asyncio.run(use())
    assert {(spec.model, spec.slots) for spec in asked} == {(MODEL, 5)} and len(asked) == 3


def test_folder_that_cannot_be_written_says_which_variable_to_set(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("ecpo_utils.llm.servers.fetch_model", lambda name: tmp_path)
    with pytest.raises(ModelError, match="set ECPO_CACHE"), serving(SPEC):
        pass


@contextlib.contextmanager
def held(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def folders(tmp_path):
    """Of a server that is about to start, whose user waits, and of another one."""
    own, other = tmp_path / "servers" / "own", tmp_path / "servers" / "other"
    (other / "leases").mkdir(parents=True)
    with held(own / "alive.lock"), held(own / "leases" / "1"):
        yield own, other


def test_a_server_that_is_leaving_is_waited_for(folders):
    own, other = folders
    waiting = threading.Thread(target=supervisor._wait_for_leaving, args=[own])
    with held(other / "alive.lock"):
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_server_that_is_used_or_gone_is_not_waited_for(folders):
    own, other = folders
    (other / "alive.lock").touch()
    supervisor._wait_for_leaving(own)
    with held(other / "alive.lock"), held(other / "leases" / "2"):
        supervisor._wait_for_leaving(own)


def test_a_server_that_nobody_waits_for_any_more_does_not_start(tmp_path):
    own, other = tmp_path / "servers" / "own", tmp_path / "servers" / "other"
    for folder in (own, other):
        (folder / "leases").mkdir(parents=True)
    with held(own / "alive.lock"), held(other / "alive.lock"), pytest.raises(SystemExit, match="has ended"):
        supervisor._wait_for_leaving(own)
