"""`ecpo doctor`: what this machine has, and what each profile lacks on it."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import psutil

from .core.concurrency import available_cores
from .core.errors import EcpoError
from .core.params import Endpoint, Params, load_profile
from .core.paths import cache_root, repository_root
from .core.redaction import hide_key, hide_userinfo
from .core.schema import Role
from .data.folder import folder_lacks
from .data.release import release_lacks
from .llm.models import load_registry, locate_model
from .llm.servers import VLLM, list_servers
from .llm.transport import OPENAI_URL, endpoint_urls, on_loopback

NEEDED_GB = {"embedded": 6, "vllm": 12}
PROBE_TIMEOUT_S = 5.0


def gpus() -> list[str]:
    """Names and memory of NVIDIA GPUs, as nvidia-smi tells; empty without it."""
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def diagnose() -> list[str]:
    """Lines of a report: machine, models, servers, keys, and for each profile what is missing.

    Endpoints are asked for their models, OpenAI's own only with a key.
    """
    memory = psutil.virtual_memory()
    lines = [
        f"machine   Python {platform.python_version()}, {available_cores()} cores, {memory.total / 2**30:.0f} GiB memory "
        f"({memory.available / 2**30:.0f} free), {_free_disk_gb():.0f} GB disk free under {cache_root()}",
        f"GPU       {'; '.join(gpus()) or 'none'}",
    ]
    for name in load_registry():
        lines.append(f"model     {name:32} {_located(name)}")
    lines += [f"server    {server.base_url} (pid {server.pid})" for server in list_servers()] or ["server    none running"]
    profiles = {path.stem: _load(path) for path in sorted((repository_root() / "params").glob("*.yaml")) if path.stem != "models"}
    lines += _key_lines([params for params in profiles.values() if isinstance(params, Params)])
    probe = functools.cache(probe_endpoint)
    return lines + [_profile_line(name, params, probe) for name, params in profiles.items()]


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


def _load(path: Path) -> Params | EcpoError:
    try:
        return load_profile(path)
    except EcpoError as error:
        return error


def _key_lines(profiles: list[Params]) -> list[str]:
    """Each environment variable that a profile takes a key from, whether it is set, and which profiles those are."""
    users: dict[str, dict[str, bool]] = {}
    for params in profiles:
        for endpoint in (getattr(params, role) for role in get_args(Role)):
            if endpoint.provider == "openai":
                needs = users.setdefault(endpoint.api_key_env, {})
                needs[params.profile] = needs.get(params.profile, False) or not endpoint_urls(endpoint)
    lines = []
    for name, needs in sorted(users.items()):
        needed, used = (", ".join(profile for profile in needs if needs[profile] == must) for must in (True, False))
        words = [f"needed by {needed}"] * bool(needed) + [f"sent by {used} to an endpoint that may not ask for it"] * bool(used)
        lines.append(f"key       {name:32} {'set' if _key(name) else 'not set'}; {'; '.join(words)}")
    return lines


def _key(name: str) -> str:
    return os.environ.get(name, "").strip()


def _profile_line(name: str, params: Params | EcpoError, probe: Callable[[str, str], str]) -> str:
    try:
        if isinstance(params, EcpoError):
            raise params
        lacks = profile_lacks(params, probe)
    except EcpoError as error:
        return f"profile   {name:8} BAD: {error}"
    return f"profile   {name:8} {'ready' if not lacks else 'lacks: ' + '; '.join(lacks)}"


def profile_lacks(params: Params, probe: Callable[[str, str], str]) -> list[str]:
    """What must be added to this machine before the profile can run; empty if nothing. `probe`: see `probe_endpoint`."""
    lacks: dict[str, None] = {}
    for role in get_args(Role):
        for lack in _endpoint_lacks(getattr(params, role), probe):
            lacks[lack] = None
    if locate_model(params.embedder) is None and not _can_fetch(params.embedder):
        lacks[f"model {params.embedder}"] = None
    if params.data_source == "folder":
        lacks |= dict.fromkeys(folder_lacks(params.data_dir, params.domains))
    return list(lacks | dict.fromkeys(release_lacks(params)))


def _can_fetch(name: str) -> bool:
    return bool(load_registry()[name].packages)


def _endpoint_lacks(endpoint: Endpoint, probe: Callable[[str, str], str]) -> list[str]:
    if endpoint.provider == "openai":
        urls, key = endpoint_urls(endpoint), _key(endpoint.api_key_env)
        if not key and not urls:
            return [f"the environment variable {endpoint.api_key_env}"]
        if not key.isascii():
            return [f"a key in {endpoint.api_key_env} without the character that no key has; paste it again"]
        faults = {hide_userinfo(url): probe(url, key or "no-key") for url in urls or [OPENAI_URL]}
        return [f"an answer from {url} ({fault.replace('KEY', '$' + endpoint.api_key_env)})" for url, fault in faults.items() if fault]
    lacks = []
    if endpoint.model not in load_registry():
        return [f"an entry '{endpoint.model}' in params/models.yaml"]
    if endpoint.provider == "vllm":
        lacks += [] if gpus() else ["a GPU"]
        lacks += [] if VLLM.is_file() else ["vLLM (pip install -r requirements-gpu.txt)"]
    if psutil.virtual_memory().total / 2**30 < NEEDED_GB[endpoint.provider]:
        lacks.append(f"{NEEDED_GB[endpoint.provider]} GiB of memory")
    if locate_model(endpoint.model) is None and not _can_fetch(endpoint.model):
        lacks.append(f"the weights of {endpoint.model} (ecpo models fetch {endpoint.model})")
    return lacks


def probe_endpoint(base_url: str, key: str) -> str:
    """What is wrong with an endpoint that is asked for its models, "" if it answers; KEY stands for the key's variable."""
    import openai

    direct = openai.DefaultHttpxClient(trust_env=False) if on_loopback(base_url) else None  # no proxy to ourselves
    try:
        openai.OpenAI(base_url=base_url, api_key=key, timeout=PROBE_TIMEOUT_S, max_retries=0, http_client=direct).models.list()
    except openai.NotFoundError:
        return ""  # endpoints without a model list are fine
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        return f"{error.status_code}: is the key in KEY right?"
    except openai.APIStatusError as error:
        return f"status {error.status_code}"
    except openai.APITimeoutError:
        return f"none within {PROBE_TIMEOUT_S:g} s"
    except openai.OpenAIError as error:
        return hide_userinfo(hide_key(f"{error} {error.__cause__}", key))
    except (AttributeError, ValueError):
        return ""  # it answers, though with no list
    return ""
