"""A notebook's run: validated parameters, file names, chat clients, provenance."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import platform
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from .core.artifacts import digest, write_json, writing
from .core.concurrency import available_cores
from .core.errors import ArtifactError, ParamsError
from .core.params import Params, build_params, load_params_file
from .core.paths import RunPaths, repository_root
from .core.schema import Domain, Role
from .llm.budget import Budget
from .llm.cache import ResponseCache
from .llm.client import ChatClient
from .llm.endpoints import open_clients
from .llm.models import find_model
from .llm.prompts import prompts_digest

logger = logging.getLogger(__name__)

LIBRARIES = (
    "torch", "transformers", "trl", "peft", "sentence-transformers", "onnxruntime", "faiss-cpu", "openai", "xllamacpp", "numpy",
    "snakemake", "papermill",
)  # fmt: skip


@dataclass
class Run:
    """A notebook's view of a run: validated parameters, file names, the parameters it gave itself, when it began."""

    notebook: str
    params: Params
    paths: RunPaths
    given: frozenset[str] = frozenset()
    changed: tuple[str, ...] = ()  # parameters that differ from the profile's file
    started: float = field(default_factory=time.time)

    @property
    def label(self) -> str:
        """How tables and figures call this run: the profile, and what was changed."""
        return f"{self.params.profile}, changed: {', '.join(self.changed)}" if self.changed else self.params.profile

    def need(self, path: Path, notebook: str) -> Path:
        """The file, or that of the profile's own run; otherwise an ArtifactError that says which notebook makes it."""
        found = next((each for each in (path, self.paths.fallback(path)) if each.is_file()), None)
        if found is None:
            raise ArtifactError(
                f"{path} is missing; run notebooks/{notebook}.ipynb with the same profile first "
                f"(or: ecpo run --profile {self.params.profile} --only {notebook[:2]})"
            )
        return found

    @property
    def domains(self) -> list[Domain]:
        return self.params.domains

    @contextlib.asynccontextmanager
    async def clients(self, *roles: Role, adapter: Path | None = None, private: bool = False) -> AsyncIterator[dict[Role, ChatClient]]:
        """Chat clients of some roles, with the servers they need, cached in the run's response cache.

        Args:
            *roles: Whose endpoints.
            adapter: Folder of a LoRA adapter for the `cra` endpoint to carry.
            private: Whether they work on files that are not the run's; their calls have a log of their own.
        """
        with contextlib.closing(ResponseCache(self.paths.responses)) as cache:
            endpoints = {role: getattr(self.params, role) for role in roles}
            if adapter:
                endpoints["cra"] = endpoints["cra"].model_copy(update={"adapter": str(adapter)})
            every = [getattr(self.params, role) for role in get_args(Role)]
            log = self.paths.private_calls if private else self.paths.calls
            budget = Budget(self.params.max_spend_usd, log) if private else self._budget
            options = {"sharing": every, "calls_log": log, "seed": self.params.seed, "budget": budget}
            async with open_clients(endpoints, cache=cache, **options) as clients:
                yield clients

    @functools.cached_property
    def _budget(self) -> Budget:
        return Budget(self.params.max_spend_usd, self.paths.calls)

    def provenance(self, **facts: object) -> dict:
        """Commit, parameters, model hashes, seeds, versions: what a figure or a manifest states."""
        endpoints = [getattr(self.params, role) for role in get_args(Role)]
        names = {endpoint.model for endpoint in endpoints if endpoint.provider != "openai"} | {self.params.embedder}
        return {
            "notebook": self.notebook,
            "profile": self.params.profile,
            **git_state(self.paths.root),
            "params": self.params.model_dump(),
            "params_digest": digest(self.params.model_dump()),
            "seed": self.params.seed,
            "models": {name: find_model(name).files or "as stated by the hub" for name in sorted(names)},
            "prompts_digest": prompts_digest(),
            "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "device": f"{platform.machine()}, {available_cores()} cores",
            **facts,
        }

    def domains_among(self, parameter: str) -> list[Domain]:
        """The run's domains that a parameter, `cra_domains` or `tuning_domains`, names too.

        Raises:
            ParamsError: If there are none.
        """
        wanted = getattr(self.params, parameter)
        found = [domain for domain in self.domains if domain in wanted]
        if not found:
            raise ParamsError(f"none of the domains {self.domains} is among {parameter} {wanted}; change one of the two")
        return found

    def finish(self, **facts: object) -> Path:
        """Write the notebook's `manifest.json` with what it made and how long it took; returns its path."""
        return write_json(self.paths.manifest(self.notebook), self.provenance(seconds=round(time.time() - self.started, 1), **facts))


def open_run(notebook: str, namespace: dict) -> Run:
    """Validate a notebook's parameters and open its run. Call it as `open_run("03_simulation", globals())`.

    Parameters are the plain values among the notebook's names, those that papermill injected included;
    what the notebook does not declare comes from the profile's params file. A run whose parameters differ from
    that file lives in a folder of its own, `runs/PROFILE.DIGEST`, so that it cannot pass for the profile's run.

    Raises:
        ParamsError: If a parameter is unknown, missing, mistyped or out of range.
    """
    root = repository_root()
    os.chdir(root)
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in ("In", "Out")
        and (value is None or isinstance(value, (bool, int, float, str, list, dict)))
    }
    if isinstance(earlier := namespace.get("run"), Run):  # run again in one kernel: what later cells assigned is no parameter
        known = earlier.given | set(namespace.get("__annotations__", ()))
        given = {name: value for name, value in given.items() if name in known}
    profile = given.get("profile", "quick")
    defaults = load_params_file(root / "params" / f"{profile}.yaml")
    params = build_params({**defaults, **given}, f"notebook {notebook}, profile {profile}")
    standard = build_params(defaults, f"params/{profile}.yaml")
    usual = standard.model_dump()
    # without the released tasks `release_dir` only names logs to check the judge on
    unused = {"release_dir", "data_dir"} - {{"release": "release_dir", "folder": "data_dir"}.get(params.data_source)}
    ignored = {"domains", "max_spend_usd"} | unused
    changed = {name: value for name, value in params.model_dump().items() if name not in ignored and value != usual[name]}
    scope = "all" if params.domains == standard.domains else "-".join(params.domains)
    if changed:
        logger.warning("parameters differ from params/%s.yaml: %s", profile, ", ".join(f"{k}={v!r}" for k, v in changed.items()))
    run = Run(notebook, params, RunPaths(root, profile, digest(changed, 8) if changed else "", scope), frozenset(given), tuple(changed))
    with writing(run.paths.run):
        run.paths.run.mkdir(parents=True, exist_ok=True)
    return run


def git_state(root: Path) -> dict[str, str | bool]:
    """Commit and whether files differ from it; "unknown" outside a git checkout."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        return {"commit": git("rev-parse", "HEAD") or "unknown", "dirty": bool(git("status", "--porcelain"))}
    except OSError:
        return {"commit": "unknown", "dirty": False}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
