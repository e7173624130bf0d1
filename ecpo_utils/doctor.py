"""`ecpo doctor`: what this machine has, and what each profile lacks on it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from .core.errors import EcpoError
from .core.params import Endpoint, Params, load_profile
from .core.paths import cache_root, repository_root
from .llm.models import load_registry, locate_model
from .llm.servers import list_servers

ROLES = ("persona", "simulator", "expert", "cra", "rewriter", "judge")
NEEDED_GB = {"embedded": 6, "vllm": 12}


def gpus() -> list[str]:
    """Names and memory of NVIDIA GPUs, as nvidia-smi tells; empty without it."""
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def diagnose() -> list[str]:
    """Lines of a report: machine, models, servers, and for each profile what is missing."""
    memory = psutil.virtual_memory()
    lines = [
        f"machine   Python {platform.python_version()}, {os.cpu_count()} cores, {memory.total / 2**30:.0f} GiB memory "
        f"({memory.available / 2**30:.0f} free), {_free_disk_gb():.0f} GB disk free under {cache_root()}",
        f"GPU       {'; '.join(gpus()) or 'none'}",
    ]
    for name in load_registry():
        lines.append(f"model     {name:32} {_located(name)}")
    lines += [f"server    {server.base_url} (pid {server.pid})" for server in list_servers()] or ["server    none running"]
    for path in sorted((repository_root() / "params").glob("*.yaml")):
        if path.stem != "models":
            lines += _profile_lines(path)
    return lines


def _free_disk_gb() -> float:
    folder = cache_root()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def _located(name: str) -> str:
    try:
        return str(locate_model(name) or "not here (fetched when needed)")
    except EcpoError as error:
        return f"BAD: {error}"


def _profile_lines(path: os.PathLike) -> list[str]:
    try:
        lacks = profile_lacks(load_profile(path))
    except EcpoError as error:
        return [f"profile   {path.stem:8} BAD: {error}"]
    return [f"profile   {path.stem:8} {'ready' if not lacks else 'lacks: ' + '; '.join(lacks)}"]


def profile_lacks(params: Params) -> list[str]:
    """What must be added to this machine before the profile can run; empty if nothing."""
    lacks: dict[str, None] = {}
    for role in ROLES:
        for lack in _endpoint_lacks(getattr(params, role)):
            lacks[lack] = None
    if locate_model(params.embedder) is None and not _can_fetch(params.embedder):
        lacks[f"model {params.embedder}"] = None
    if params.data_source == "release" and not params.release_dir:
        lacks["release_dir"] = None
    return list(lacks)


def _can_fetch(name: str) -> bool:
    return bool(load_registry()[name].packages)


def _endpoint_lacks(endpoint: Endpoint) -> list[str]:
    if endpoint.provider == "openai":
        base_url = endpoint.base_url or os.environ.get(endpoint.base_url_env)
        if base_url:
            return [] if _answers(base_url, os.environ.get(endpoint.api_key_env) or "none") else [f"an answer from {base_url}"]
        return [] if os.environ.get(endpoint.api_key_env) else [f"the environment variable {endpoint.api_key_env}"]
    lacks = []
    if endpoint.model not in load_registry():
        return [f"an entry '{endpoint.model}' in params/models.yaml"]
    if endpoint.provider == "vllm":
        lacks += [] if gpus() else ["a GPU"]
        lacks += [] if Path(sys.executable).with_name("vllm").is_file() else ["vLLM (pip install -r requirements-gpu.txt)"]
    if psutil.virtual_memory().total / 2**30 < NEEDED_GB[endpoint.provider]:
        lacks.append(f"{NEEDED_GB[endpoint.provider]} GiB of memory")
    if locate_model(endpoint.model) is None and not _can_fetch(endpoint.model):
        lacks.append(f"the weights of {endpoint.model} (ecpo models fetch {endpoint.model})")
    return lacks


def _answers(base_url: str, key: str) -> bool:
    import openai

    try:
        openai.OpenAI(base_url=base_url, api_key=key, timeout=5.0, max_retries=0).models.list()
    except openai.APIStatusError as error:
        return error.status_code == 404  # endpoints without a model list are fine
    except openai.OpenAIError:
        return False
    except (AttributeError, ValueError):
        return True  # it answers, though with no list
    return True
