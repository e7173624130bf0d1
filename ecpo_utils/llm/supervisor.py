"""The process around one model server. Started by `servers`, never imported by the rest.

It owns the server, writes `server.json` once the server answers, and ends both when no lease is held.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from ..core.concurrency import available_cores
from .servers import VLLM, flock, is_locked, visible_gpus

IDLE_S = 5.0  # without a lease, before the server goes: long enough for the next notebook to take over
PROMPT_CACHE_MB = 512


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start_embedded(options: dict, port: int, key: str) -> object:
    """llama.cpp's own server, in this process. `xllamacpp` documentation: CommonParams, Server."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options["weights"]
    params.model_alias = {options["model"], Path(options["adapter"] or options["model"]).name}
    params.n_parallel = options["slots"]
    params.n_ctx = options["slots"] * options["context_tokens"]
    params.cache_ram_mib = PROMPT_CACHE_MB
    # servers share the cores, one of them working at a time: threads that poll while they wait would stall the others
    for parameters in (params.cpuparams, params.cpuparams_batch):
        parameters.n_threads = available_cores()
        parameters.poll = 0
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.api_keys = [key]
    if options["adapter"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(options["gguf_adapter"], 1.0)]
    params.ui = False
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"llama.cpp did not load {options['weights']}: {error}")


def _die_with_parent() -> None:
    """Linux: the child is told to end when the supervisor does, even by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _start_vllm(options: dict, port: int, key: str) -> subprocess.Popen:
    """`vllm serve` on loopback, on GPUs of its own. vLLM documentation: OpenAI-compatible server, LoRA adapters."""
    gpus = take_gpus(Path(options["folder"]).parent, options["replicas"])
    command = [
        str(VLLM),
        "serve",
        options["weights"],
        "--served-model-name",
        options["model"],
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--max-num-seqs",
        str(-(-options["slots"] // options["replicas"])),
        "--load-format",
        "safetensors",
        "--enable-prefix-caching",
        "--generation-config",  # its own defaults: a model's may hold a repetition penalty, which greedy answers would feel too
        "vllm",
    ]
    if options["replicas"] > 1:
        command += ["--data-parallel-size", str(options["replicas"])]
    if options["context_tokens"]:
        command += ["--max-model-len", str(options["context_tokens"])]
    if adapter := options["adapter"]:
        command += ["--enable-lora", "--max-lora-rank", str(options["lora_rank"]), "--lora-modules", f"{Path(adapter).name}={adapter}"]
    environment = {**os.environ, "VLLM_API_KEY": key} | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
    return subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent)


def take_gpus(folder: Path, number: int) -> list[str]:
    """Ids of GPUs that no other server has, theirs until this process ends; none where no GPU is in sight.

    vLLM claims nine tenths of a GPU's memory, so that each server needs GPUs of its own.
    """
    visible, taken = visible_gpus(), []
    for gpu in visible:
        lock = os.open(folder / f"gpu-{gpu}.lock", os.O_WRONLY | os.O_CREAT, 0o600)  # left open: the lock goes with the process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken.append(gpu)
        except BlockingIOError:
            os.close(lock)
        if len(taken) == number:
            return taken
    if visible:
        needed = f"it needs {number} of the {len(visible)} GPUs in sight for itself"
        sys.exit(f"{needed}, other servers leave {len(taken)}; end them, or lower replicas")
    return []


def _answers(base_url: str, key: str) -> bool:
    request = urllib.request.Request(f"{base_url}/models", headers={"Authorization": f"Bearer {key}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError), direct.open(request, timeout=5):
        return True
    return False


def _has_lease(folder: Path) -> bool:
    """Whether any user still holds its lease; leases of users that ended are cleared away."""
    held = False
    for path in (folder / "leases").iterdir():
        with contextlib.suppress(FileNotFoundError), open(path) as lease:
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                held = True
    return held


def _watch(folder: Path, server: object) -> None:
    """Return once no lease was held for IDLE_S; from then on no new user can find this server."""
    last_used = time.monotonic()
    while True:
        time.sleep(0.5)
        if isinstance(server, subprocess.Popen) and server.poll() is not None:
            sys.exit(f"vllm ended with exit code {server.returncode}")
        with flock(folder / "start.lock"):  # users take their lease under the same lock
            if _has_lease(folder):
                last_used = time.monotonic()
            elif time.monotonic() - last_used > IDLE_S:
                (folder / "server.json").unlink(missing_ok=True)
                return


def _wait_for_leaving(folder: Path) -> None:
    """Return once no other server is up that nobody uses: it would still hold its part of the GPU."""

    def is_wanted(folder: Path) -> bool:
        return any(map(is_locked, (folder / "leases").iterdir()))

    others = [path.parent for path in folder.parent.glob("*/alive.lock") if path.parent != folder]
    while any(is_locked(other / "alive.lock") and not is_wanted(other) for other in others):
        time.sleep(0.2)
        if not is_wanted(folder):
            sys.exit("whoever asked for this server has ended")


def main(options: dict) -> None:
    """Run a server until nobody uses it. `options`: ServerSpec's fields, `weights`, `folder`."""
    folder = Path(options["folder"])
    with open(folder / "alive.lock", "w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        if options["engine"] == "vllm":
            _wait_for_leaving(folder)
        port, key = _free_port(), secrets.token_urlsafe(24)
        start = _start_embedded if options["engine"] == "embedded" else _start_vllm
        server = start(options, port, key)
        base_url = f"http://127.0.0.1:{port}/v1"
        while not _answers(base_url, key):
            if isinstance(server, subprocess.Popen) and server.poll() is not None:
                sys.exit(f"vllm ended with exit code {server.returncode}")
            time.sleep(0.2)
        state = folder / "server.json"
        temporary = state.with_suffix(".tmp")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"base_url": base_url, "api_key": key, "pid": os.getpid()}, file)
        os.replace(temporary, state)
        try:
            _watch(folder, server)
        finally:
            state.unlink(missing_ok=True)
            if isinstance(server, subprocess.Popen):
                server.terminate()
                server.wait(60)
    os._exit(0)  # llama.cpp's threads are ended with the process; there is nothing to save


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
