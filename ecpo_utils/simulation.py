"""Stages that play dialogues: agents against the simulated user, on the test tasks or on those to learn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .core.artifacts import load_jsonl, write_jsonl
from .core.errors import ArtifactError
from .core.records import RecordFile
from .core.schema import Domain, Item, Role, Task, Trajectory
from .dialogue.agents import find_framework
from .dialogue.confirmation import Confirmer
from .dialogue.retrieval import Embedder
from .dialogue.rollout import System, rollout
from .evaluate.separation import JudgedPair, judge_flaw_pairs, load_flaw_pairs
from .evaluate.tables import Played
from .preparation import open_databases
from .run import Run

ZERO_SHOT = {"few_shot": False}  # how tuned agents were trained and play
BACKBONES: Mapping[str, Role] = {"expert": "expert", "base": "cra"}  # last word of a system's name and the role that it stands for


@dataclass(frozen=True)
class Entry:
    """A system that is to play, before its endpoint is open.

    Attributes:
        name: Of the trajectories file.
        framework: Key of `agents.FRAMEWORKS`.
        role: Whose endpoint is the backbone.
        adapter: Name of the domain's LoRA adapter that the backbone carries, None for none.
        options: Further arguments of the framework, e.g. {"few_shot": False}.
    """

    name: str
    framework: str = "actcrs"
    role: Role = "cra"
    adapter: str | None = None
    options: dict = field(default_factory=dict)


async def check_separation(run: Run) -> list[JudgedPair]:
    """Confirm the planted-flaw pairs of the test half with the run's simulator; writes `separation.jsonl`."""
    async with run.clients("simulator") as clients:
        pairs = load_flaw_pairs("test", run.params.num_separation_pairs)
        confirmer = Confirmer(clients["simulator"], Embedder(run.params.embedder), run.params.simulator_mode)
        judged = await judge_flaw_pairs(confirmer, pairs)
    write_jsonl(run.paths.separation, judged)
    return judged


async def simulate(run: Run, systems: dict[str, Role], *, framework: str = "actcrs", **options: object) -> Played:
    """Let each system play each domain's first `num_simulation_tasks` test tasks; resumes, and pays for no call twice.

    Args:
        run: The open run.
        systems: Name of the trajectories file and role of the backbone, e.g. {"actcrs_expert": "expert"}.
        framework: Key of `agents.FRAMEWORKS`.
        **options: Further arguments of the framework, e.g. few_shot=False.

    Raises:
        ParamsError: If no such framework is registered.
    """
    roster = [Entry(name, framework, role, options=options) for name, role in systems.items()]
    return await play(run, roster, run.domains, limit="num_simulation_tasks")


async def simulate_frameworks(run: Run) -> Played:
    """Every framework of the run on both backbones, in `cra_domains`, on the first `num_cra_tasks` test tasks.

    A system is called FRAMEWORK_BACKBONE; dialogues that notebook 03 played already are kept.

    Raises:
        ParamsError: If no domain of the run is among `cra_domains`.
    """
    roster = [Entry(f"{name}_{backbone}", name, role) for name in run.params.frameworks for backbone, role in BACKBONES.items()]
    return await play(run, roster, run.domains_among("cra_domains"), limit="num_cra_tasks")


async def play(run: Run, roster: Sequence[Entry], domains: Sequence[Domain], *, split: str = "test", limit: str = "") -> Played:
    """The dialogues of a roster of systems on a split's tasks, by domain and system.

    Args:
        run: The open run.
        roster: Who plays.
        domains: Where.
        split: Which tasks.
        limit: Name of the parameter that says how many of them, the first ones; 0 or no name: all.

    Raises:
        ParamsError: If a framework is not registered, which is known before any dialogue.
        ArtifactError: If tasks or an adapter are missing, before any dialogue as well; names the notebook that makes them.
    """
    for entry in roster:
        find_framework(entry.framework)
    tasks = {d: load_jsonl(run.need(run.paths.tasks(d, split), "02_persona_diversity"), Task) for d in domains}
    adapters = {(d, entry.adapter): find_adapter(run, d, entry.adapter) for d in domains for entry in roster if entry.adapter}
    databases, played = open_databases(run), {}
    async with run.clients("simulator"):  # stays up from one system to the next
        for domain in domains:
            number = run.params.number(limit, domain) if limit else 0
            played[domain] = {}
            for entry in roster:
                adapter = adapters.get((domain, entry.adapter))
                given = {param: getattr(run.params, param) for param in find_framework(entry.framework).takes_params}
                async with run.clients("simulator", entry.role, adapter=adapter) as clients:
                    system = System(entry.name, entry.framework, clients[entry.role], {**given, **entry.options})
                    path = run.paths.trajectories(domain, entry.name)
                    rows = await rollout(tasks[domain][: number or None], system, clients["simulator"], databases[domain], run.params, path)
                played[domain][entry.name] = rows
    return played


def find_adapter(run: Run, domain: Domain, name: str) -> Path:
    """Folder of a trained adapter.

    Raises:
        ArtifactError: If it was not trained yet; names the notebook.
    """
    notebook = "06_sgpt" if name == "sgpt" else "09_preference_optimization"
    return run.need(run.paths.adapter(domain, name) / "adapter_model.safetensors", notebook).parent


def load_played(
    run: Run, names: Sequence[str], domains: Sequence[Domain], notebook: str, *, split: str = "test", limit: str = ""
) -> Played:
    """Dialogues that an earlier notebook wrote, by domain and system, in the order of the tasks.

    Args:
        run: The open run.
        names: Of the systems.
        domains: Where they played.
        notebook: Which one wrote them.
        split: On which tasks.
        limit: Name of the parameter that says how many of them it shows, the first ones; 0 or no name: all.

    Raises:
        ArtifactError: If one is missing, or has not played all tasks; names `notebook`.
    """
    found = {}
    for domain in domains:
        number = run.params.number(limit, domain) if limit else 0
        paths = {name: run.need(run.paths.trajectories(domain, name), notebook) for name in names}
        tasks = load_jsonl(run.need(run.paths.tasks(domain, split), "02_persona_diversity"), Task)[: number or None]
        found[domain] = {name: _rows_of(tasks, path, notebook) for name, path in paths.items()}
    return found


def load_titles(run: Run, rows: Iterable[Trajectory]) -> dict[str, str]:
    """Titles of all that was retrieved in some dialogues, by item id.

    Raises:
        ArtifactError: If the items of a domain are missing.
    """
    found: dict[Domain, set[str]] = {}
    for row in rows:
        retrieved = (step.retrieval.item_ids for turn in row.turns for step in turn.steps if step.retrieval)
        found.setdefault(row.domain, set()).update(*retrieved)
    paths = {domain: run.need(run.paths.items(domain), "01_environment") for domain in found}
    return {item.item_id: item.title for domain, ids in found.items() for item in RecordFile(paths[domain], Item) if item.item_id in ids}


def _rows_of(tasks: Sequence[Task], path: Path, notebook: str) -> list[Trajectory]:
    rows = {row.task_id: row for row in load_jsonl(path, Trajectory)}
    missing = [task.task_id for task in tasks if task.task_id not in rows]
    if missing:
        raise ArtifactError(
            f"{path} lacks {len(missing)} of {len(tasks)} dialogues, {missing[0]} first; run notebooks/{notebook}.ipynb to its end"
        )
    return [rows[task.task_id] for task in tasks]
