"""Model servers on loopback, started on demand, shared by all processes, gone with their last user.

A user holds a lock on a lease file; the operating system drops the lock however the user ends, and the
supervisor (`ecpo_utils.llm.supervisor`) stops its server when no lease is held any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.artifacts import digest, sha256_file
from ..core.errors import ModelError
from ..core.paths import cache_root
from .adapters import adapter_rank, check_adapter, refuse_pickled_adapter
from .gguf_adapters import gguf_adapter
from .models import fetch_model, find_model

logger = logging.getLogger(__name__)

MAX_CONTEXT_TOKENS = 8192  # per slot: a dialogue of five turns with its searches
SLOTS = 1  # as the CPU profiles ask for, so that `ecpo serve` and a run share a server
VLLM = Path(sys.executable).with_name("vllm")  # its command, in this environment
VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 512)  # what `--max-lora-rank` takes
FULL_DISK_BYTES = 1 << 16
START_TIMEOUT_S = {"embedded": 120.0, "vllm": 1200.0}


@dataclass(frozen=True)
class ServerSpec:
    """What must be equal for two users to share a server.

    Attributes:
        engine: "embedded" (llama.cpp through xllamacpp) or "vllm".
        model: Name in `params/models.yaml`.
        slots: Answers decoded side by side.
        context_tokens: Per slot, prompt and answer together.
        adapter: LoRA adapter directory that is loaded at start; `adapter_hash` tells two trainings of it apart.
        replicas: Copies of the model, one per GPU; vllm only.
    """

    engine: str
    model: str
    slots: int = SLOTS
    context_tokens: int = MAX_CONTEXT_TOKENS
    adapter: str | None = None
    adapter_hash: str = ""
    replicas: int = 1

    @property
    def folder(self) -> Path:
        return servers_folder() / f"{self.model}-{digest(self.__dict__, 10)}"


def servers_folder() -> Path:
    """State of the servers of this machine; others, which may share the cache, have their own."""
    return cache_root() / "servers" / platform.node()


def visible_gpus() -> list[str]:
    """Ids of the NVIDIA GPUs that servers may use: those that CUDA_VISIBLE_DEVICES names, else all that nvidia-smi lists."""
    if (ids := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [word for word in ids.replace(" ", "").split(",") if word]
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else []


def server_spec(engine: str, model: str, slots: int = SLOTS, adapter: str | None = None, replicas: int = 1) -> ServerSpec:
    """What a role and `ecpo serve` ask for alike: the context is the model's, up to MAX_CONTEXT_TOKENS.

    Raises:
        ModelError: If there is no such model, or no adapter in that folder.
    """
    context = min(find_model(model).context_tokens, MAX_CONTEXT_TOKENS)
    if adapter is None:
        return ServerSpec(engine, model, slots, context, replicas=replicas)
    return ServerSpec(engine, model, slots, context, str(Path(adapter).resolve()), adapter_hash(Path(adapter)), replicas)


def adapter_hash(adapter: Path) -> str:
    """SHA-256 of an adapter's weights.

    Raises:
        ModelError: If there are none.
    """
    weights = adapter / "adapter_model.safetensors"
    refuse_pickled_adapter(adapter)
    if not weights.is_file():
        raise ModelError(f"no adapter at {weights}; train it first or correct the 'adapter' of the params file")
    return sha256_file(weights)


@dataclass(frozen=True)
class RunningServer:
    """A server that answers: OpenAI-compatible `base_url`, its random `api_key`, process id, log file."""

    base_url: str
    api_key: str
    pid: int
    log: Path


@contextlib.contextmanager
def flock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the operating system drops it however this process ends."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def serving(spec: ServerSpec) -> Iterator[RunningServer]:
    """Use a server for a while; start it if nobody else has.

    Raises:
        ModelError: If the weights cannot be had, or the server does not come up; shows its last lines.
    """
    check_loadable(spec)
    weights = fetch_model(spec.model)
    if spec.adapter:
        check_adapter(spec.model, Path(spec.adapter))
    folder = spec.folder
    lease_path = folder / "leases" / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as held:
        try:
            lease_path.parent.mkdir(parents=True, exist_ok=True)
            starting = held.enter_context(contextlib.ExitStack())
            starting.enter_context(flock(folder / "start.lock"))
            held.enter_context(flock(lease_path))
        except OSError as error:
            raise ModelError(f"cannot write to {folder}: {error.strerror}; set ECPO_CACHE to a folder you may write to") from None
        held.callback(lease_path.unlink, missing_ok=True)
        server = running_server(folder) or _start(spec, weights)
        starting.close()
        yield server


def running_server(folder: Path) -> RunningServer | None:
    """The server whose state is in `folder`, if its supervisor still holds the folder's life lock."""
    state = folder / "server.json"
    if not state.is_file() or not is_locked(folder / "alive.lock"):
        return None
    values = json.loads(state.read_text())
    return RunningServer(values["base_url"], values["api_key"], values["pid"], folder / "server.log")


def list_servers() -> list[RunningServer]:
    """All servers of this user that are up."""
    found = (running_server(folder) for folder in sorted(servers_folder().glob("*")))
    return [server for server in found if server]


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on a file."""
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def check_loadable(spec: ServerSpec) -> None:
    """Refuse what the engine cannot load, before gigabytes are fetched.

    Raises:
        ModelError: If the model is not registered, or not of the engine's kind.
    """
    model = find_model(spec.model)
    if spec.engine == "embedded" and model.kind != "gguf":
        raise ModelError(f"the embedded server loads GGUF files; {spec.model} is a {model.kind} model, use provider: vllm")
    if spec.engine == "vllm" and model.kind == "gguf":
        way = "write its plain model folder (ecpo export model FOLDER --adapter none) and register that in params/models.yaml"
        raise ModelError(f"vLLM loads model folders; {spec.model} is a gguf model, use provider: embedded, or {way}")


def _start(spec: ServerSpec, weights: Path) -> RunningServer:
    folder = spec.folder
    (folder / "server.json").unlink(missing_ok=True)
    options = {**spec.__dict__, "weights": str(weights), "folder": str(folder)}
    if spec.adapter and spec.engine == "embedded":
        options["gguf_adapter"] = str(gguf_adapter(Path(spec.adapter), weights))
    elif spec.adapter:
        options["lora_rank"] = next(rank for rank in VLLM_LORA_RANKS if rank >= adapter_rank(Path(spec.adapter)))
    logger.info("starting %s for %s", spec.engine, spec.model)
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ecpo_utils.llm.supervisor", json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S[spec.engine]
    while time.monotonic() < deadline:
        if server := running_server(folder):
            return server
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    tail = " | ".join((folder / "server.log").read_text(errors="replace").splitlines()[-3:])
    if shutil.disk_usage(folder).free < FULL_DISK_BYTES:  # then its log is cut short, too
        tail = f"no space left on the disk of {folder}"
    raise ModelError(f"the {spec.engine} server for {spec.model} did not start: {tail}; whole log: {folder / 'server.log'}")
