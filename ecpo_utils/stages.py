"""What the notebooks call: one function per stage, over all domains of a run. No notebook holds logic."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import random
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from .core.artifacts import digest, load_jsonl, write_json, write_jsonl, writing
from .core.concurrency import map_bounded
from .core.errors import ArtifactError
from .core.params import Params, build_params, load_params_file
from .core.paths import RunPaths, repository_root
from .core.schema import Domain, Item, PersonaRecord, Role, Task, Trajectory
from .data.builtin import load_builtin
from .data.personas import infer_persona, random_personas, sample_users
from .data.release import load_release_tasks
from .data.tasks import build_tasks, sample_splits, split_tasks
from .dialogue.agents.base import NOUNS
from .dialogue.confirmation import Confirmer
from .dialogue.retrieval import Embedder, ItemDatabase, build_database, is_current, load_database
from .dialogue.rollout import System, rollout
from .evaluate.separation import JudgedPair, judge_flaw_pairs, load_flaw_pairs
from .llm.cache import ResponseCache
from .llm.client import ChatClient, open_clients
from .llm.models import find_model
from .llm.prompts import prompts_digest

logger = logging.getLogger(__name__)

MIN_LIKED = 4
LIBRARIES = ("torch", "transformers", "sentence-transformers", "faiss-cpu", "openai", "xllamacpp", "numpy", "snakemake", "papermill")


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
    async def clients(self, *roles: Role) -> AsyncIterator[dict[Role, ChatClient]]:
        """Chat clients of some roles, with the servers they need, cached in the run's response cache."""
        with contextlib.closing(ResponseCache(self.paths.responses)) as cache:
            endpoints = {role: getattr(self.params, role) for role in roles}
            async with open_clients(endpoints, cache=cache, calls_log=self.paths.calls, seed=self.params.seed) as clients:
                yield clients

    def provenance(self, **facts: object) -> dict:
        """Commit, parameters, model hashes, seeds, versions: what a figure or a manifest states."""
        names = {
            getattr(self.params, role).model
            for role in ("persona", "simulator", "expert", "cra")
            if getattr(self.params, role).provider != "openai"
        } | {self.params.embedder}
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
            "device": f"{platform.machine()}, {os.cpu_count()} cores",
            **facts,
        }

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
    changed = {name: value for name, value in params.model_dump().items() if name != "domains" and value != usual[name]}
    scope = "all" if params.domains == standard.domains else "-".join(params.domains)
    if changed:
        logger.warning("parameters differ from params/%s.yaml: %s", profile, ", ".join(f"{k}={v!r}" for k, v in changed.items()))
    random.seed(params.seed)
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


def prepare_items(run: Run) -> dict[Domain, ItemDatabase]:
    """Write each domain's `items.jsonl` and `items.faiss`; reuses them where the items are the same."""
    embedder = Embedder(run.params.embedder)
    databases = {}
    for domain in run.domains:
        items = list(load_items(run, domain).values())
        paths = run.paths.items(domain), run.paths.index(domain)
        if is_current(items, embedder, *paths):
            databases[domain] = load_database(*paths, embedder)
        else:
            databases[domain] = build_database(items, embedder, *paths)
    return databases


def open_databases(run: Run) -> dict[Domain, ItemDatabase]:
    """The item databases that notebook 01 wrote."""
    embedder = Embedder(run.params.embedder)
    return {
        domain: load_database(
            run.need(run.paths.items(domain), "01_environment"), run.need(run.paths.index(domain), "01_environment"), embedder
        )
        for domain in run.domains
    }


def load_items(run: Run, domain: Domain) -> dict[str, Item]:
    """Items of a domain: the built-in ones, or the targets of the released tasks."""
    if run.params.data_source == "builtin":
        return load_builtin(domain)[0]
    return {task.target.item_id: task.target for split in ("train", "test") for task in _released(run, domain, split)}


def _released(run: Run, domain: Domain, split: str) -> list[Task]:
    if not run.params.release_dir:
        raise ArtifactError("data_source is 'release' but release_dir is empty; set it to the folder that holds the release's task/")
    return load_release_tasks(Path(run.params.release_dir) / "task" / f"{domain.capitalize()}_{split}.jsonl", domain)


async def prepare_personas(run: Run) -> dict[Domain, list[PersonaRecord]]:
    """Infer the personas of `num_personas` sampled users per domain; write `personas.jsonl` and the random baseline.

    Answers that were paid for before come from the response cache. With the released tasks, whose personas
    are given, none is inferred.
    """
    found = {}
    async with contextlib.AsyncExitStack() as stack:
        if run.params.data_source == "builtin":
            client = (await stack.enter_async_context(run.clients("persona")))["persona"]
        for domain in run.domains:
            if run.params.data_source == "release":
                given = {task.user_id: task.persona for task in _released(run, domain, "test")}
                found[domain] = [PersonaRecord(user_id=user, persona=persona, source="release") for user, persona in given.items()]
            else:
                found[domain] = await _infer_all(client, run, domain)
            write_jsonl(run.paths.personas(domain), found[domain])
            write_jsonl(run.paths.personas(domain, "random"), random_personas(len(found[domain]), seed=run.params.seed))
    return found


async def _infer_all(client: ChatClient, run: Run, domain: Domain) -> list[PersonaRecord]:
    params = run.params
    items, reviews = load_builtin(domain)
    users = sample_users(reviews, num_users=params.num_personas, min_liked=MIN_LIKED, min_rating=params.min_target_rating, seed=params.seed)
    if len(users) < params.num_personas:
        logger.warning("%s: num_personas is %d, the data have %d such users; all are taken", domain, params.num_personas, len(users))

    async def infer(user: str) -> PersonaRecord:
        return await infer_persona(client, user, reviews, items, max_reviews=params.max_reviews_per_persona, noun=NOUNS[domain])

    return await map_bounded(infer, users, limit=client.endpoint.max_concurrency, description=f"{domain} personas", unit="persona")


def load_persona_records(run: Run, source: str = "ailo") -> dict[Domain, list[PersonaRecord]]:
    """The persona records of a source, "ailo" or "random", that notebook 02 wrote."""
    return {
        domain: load_jsonl(run.need(run.paths.personas(domain, source), "02_persona_diversity"), PersonaRecord) for domain in run.domains
    }


def prepare_tasks(run: Run) -> dict[Domain, dict[str, list[Task]]]:
    """Write `tasks.{sgpt,ecpo,test}.jsonl` per domain. Paper: section B.2-B.3."""
    params, prepared = run.params, {}
    for domain in run.domains:
        if params.data_source == "release":
            train, test = _released(run, domain, "train"), _released(run, domain, "test")
            random.Random(params.seed).shuffle(train)
            random.Random(params.seed).shuffle(test)
            held_out = {task.target.item_id for task in test}
            train = [task for task in train if task.target.item_id not in held_out]
        else:
            items, reviews = load_builtin(domain)
            personas = load_jsonl(run.need(run.paths.personas(domain), "02_persona_diversity"), PersonaRecord)
            tasks = build_tasks(domain, personas, reviews, items, min_rating=params.min_target_rating)
            train, test = split_tasks(tasks, split=params.split, test_share=params.test_share, seed=params.seed)
        prepared[domain] = sample_splits(
            train, test, num_sgpt=params.num_sgpt_tasks, num_ecpo=params.num_ecpo_tasks, num_test=params.num_test_tasks
        )
        for name, rows in prepared[domain].items():
            write_jsonl(run.paths.tasks(domain, name), rows)
    return prepared


async def check_separation(run: Run) -> list[JudgedPair]:
    """Confirm the planted-flaw pairs of the test half with the run's simulator."""
    async with run.clients("simulator") as clients:
        pairs = load_flaw_pairs("test", run.params.num_separation_pairs)
        confirmer = Confirmer(clients["simulator"], Embedder(run.params.embedder), run.params.simulator_mode)
        return await judge_flaw_pairs(confirmer, pairs)


async def simulate(
    run: Run, systems: dict[str, Role], *, split: str = "test", framework: str = "actcrs", **options: object
) -> dict[Domain, dict[str, list[Trajectory]]]:
    """Let each system play each domain's tasks against AILO; resumes, and pays for no call twice.

    Args:
        run: The open run.
        systems: Name of the trajectories file and role of the backbone, e.g. {"actcrs_expert": "expert"}.
        split: Which tasks.
        framework: Key of `agents.FRAMEWORKS`.
        **options: Further arguments of the framework.
    """
    databases = open_databases(run)
    played: dict[Domain, dict[str, list[Trajectory]]] = {}
    async with run.clients("simulator", *dict.fromkeys(systems.values())) as clients:
        for domain in run.domains:
            tasks = load_jsonl(run.need(run.paths.tasks(domain, split), "02_persona_diversity"), Task)
            played[domain] = {}
            for name, role in systems.items():
                extra = {"max_consecutive_searches": run.params.max_consecutive_searches, **options}
                system = System(name, framework, clients[role], extra)
                played[domain][name] = await rollout(
                    tasks, system, clients["simulator"], databases[domain], run.params, run.paths.trajectories(domain, name)
                )
    return played
