"""Stages of notebooks 03 and 04: agents play the test tasks against the simulated user."""

from __future__ import annotations

from collections.abc import Mapping

from .core.artifacts import load_jsonl
from .core.schema import Domain, Role, Task, Trajectory
from .dialogue.agents import find_framework
from .dialogue.confirmation import Confirmer
from .dialogue.retrieval import Embedder
from .dialogue.rollout import System, rollout
from .evaluate.separation import JudgedPair, judge_flaw_pairs, load_flaw_pairs
from .preparation import open_databases
from .run import Run

Played = dict[Domain, dict[str, list[Trajectory]]]
Roster = Mapping[str, tuple[str, Role, dict]]  # per system its framework, the role of its backbone, further arguments
BACKBONES: Mapping[str, Role] = {"expert": "expert", "base": "cra"}  # last word of a system's name and the role that it stands for


async def check_separation(run: Run) -> list[JudgedPair]:
    """Confirm the planted-flaw pairs of the test half with the run's simulator."""
    async with run.clients("simulator") as clients:
        pairs = load_flaw_pairs("test", run.params.num_separation_pairs)
        confirmer = Confirmer(clients["simulator"], Embedder(run.params.embedder), run.params.simulator_mode)
        return await judge_flaw_pairs(confirmer, pairs)


async def simulate(run: Run, systems: dict[str, Role], *, split: str = "test", framework: str = "actcrs", **options: object) -> Played:
    """Let each system play each domain's tasks against the simulated user; resumes, and pays for no call twice.

    Args:
        run: The open run.
        systems: Name of the trajectories file and role of the backbone, e.g. {"actcrs_expert": "expert"}.
        split: Which tasks.
        framework: Key of `agents.FRAMEWORKS`.
        **options: Further arguments of the framework, e.g. few_shot=False.

    Raises:
        ParamsError: If no such framework is registered.
    """
    find_framework(framework)
    roster = {name: (framework, role, options) for name, role in systems.items()}
    return await _play(run, run.domains, roster, split=split)


async def simulate_frameworks(run: Run) -> Played:
    """Every framework of the run on both backbones, in `cra_domains`, on the first `num_cra_tasks` test tasks.

    A system is called FRAMEWORK_BACKBONE; dialogues that notebook 03 played already are kept.
    """
    for framework in run.params.frameworks:
        find_framework(framework)  # a typo is known before any dialogue
    roster = {f"{name}_{backbone}": (name, role, {}) for name in run.params.frameworks for backbone, role in BACKBONES.items()}
    domains = [domain for domain in run.domains if domain in run.params.cra_domains]
    return await _play(run, domains, roster, limit=run.params.num_cra_tasks)


async def _play(run: Run, domains: list[Domain], roster: Roster, *, split: str = "test", limit: int = 0) -> Played:
    databases, played = open_databases(run), {}
    async with run.clients("simulator", *dict.fromkeys(role for _, role, _ in roster.values())) as clients:
        for domain in domains:
            tasks = load_jsonl(run.need(run.paths.tasks(domain, split), "02_persona_diversity"), Task)[: limit or None]
            played[domain] = {}
            for name, (framework, role, options) in roster.items():
                given = {param: getattr(run.params, param) for param in find_framework(framework).takes_params}
                system = System(name, framework, clients[role], {**given, **options})
                path = run.paths.trajectories(domain, name)
                played[domain][name] = await rollout(tasks, system, clients["simulator"], databases[domain], run.params, path)
    return played
