"""Many dialogues at once, each a coroutine, each a row: the trajectories that everything else reads."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core import matching, quoting, schema
from ..core.artifacts import append_jsonl, digest, load_resumable, write_jsonl
from ..core.concurrency import FailuresInARow, map_bounded
from ..core.errors import EndpointError, ParamsError, ParseError
from ..core.params import Params
from ..core.schema import Confirmation, Status, Task, Trajectory, Turn
from ..data import fields
from ..llm import prompts
from ..llm.client import ChatClient, Meter
from .agents import Agent, acting, actions, base, find_framework
from .confirmation import WEIGHTS, Confirmer
from .retrieval import ItemDatabase
from .simulator import Simulator
from .simulators import make_simulator

logger = logging.getLogger(__name__)

SHARED = (matching, quoting, schema, fields, base, acting, actions)  # with `dialogue/*.py`: what any agent's dialogue rests on
SHARED_PROMPTS = ("simulator", "narrow", "ievalm", "confirm")


@dataclass(frozen=True)
class System:
    """A CRA to be tried: a framework on a backbone.

    Attributes:
        name: Of the trajectories file, e.g. "actcrs_expert".
        framework: Key of `agents.FRAMEWORKS`.
        client: Chat endpoint of the backbone.
        options: Further arguments of the framework, e.g. {"few_shot": False}.
    """

    name: str
    framework: str
    client: ChatClient
    options: dict


def dialogue_config(system: System, simulator: ChatClient, params: Params, database: ItemDatabase) -> str:
    """Digest of what decides a dialogue besides its task; rows of another digest are played anew."""
    settings = params.model_dump(
        include={
            "seed",
            "max_turns",
            "retriever_top_k",
            "max_consecutive_searches",
            "simulator_temperature",
            "agent_temperature",
            "user_simulator",
            "simulator_mode",
        }
    )
    items = [database.embedder.name, database.items.sha256]
    framework = find_framework(system.framework)
    facts = [system.framework, system.options, system.client.identity, simulator.identity, settings, items]
    return digest([*facts, _sources(framework, system.framework)])


def _sources(framework: type[Agent], key: str) -> list[tuple[str, str]]:
    """Names and texts of the files that a dialogue of this framework rests on; other frameworks are not among them.

    Its own files are those of its class and of the classes that it derives from, and the prompts that begin with their names.
    """
    family = [cls for cls in framework.__mro__ if issubclass(cls, Agent)]
    code = [*Path(__file__).parent.glob("*.py"), *(Path(module.__file__) for module in SHARED), *map(_source_file, family), WEIGHTS]
    beginnings = tuple(f"{name}_" for name in (*SHARED_PROMPTS, key, *(getattr(cls, "name", key) for cls in family)))
    texts = [path for path in Path(prompts.__file__).parent.glob("*.txt") if path.name.startswith(beginnings)]
    return sorted((path.name, path.read_text(encoding="utf-8")) for path in {*code, *texts})


def _source_file(framework: type[Agent]) -> Path:
    """The file of a class.

    Raises:
        ParamsError: If it is in none, as a class that was typed into a notebook.
    """
    try:
        return Path(inspect.getsourcefile(framework))
    except (TypeError, OSError):
        raise ParamsError(
            f"the framework {framework.__name__} is in no file; put it into one, so that its dialogues are played anew when it changes"
        ) from None


async def play_dialogue(turns: list[Turn], agent: Agent, simulator: Simulator, *, max_turns: int) -> Status:
    """One dialogue: the user speaks, the agent answers, the user confirms. Paper: section 2.1.

    Where the user does not need the scores to go on, they are asked for beside the next steps.

    Args:
        turns: Filled as the dialogue goes, and each turn's steps too, so that what was said and done before an error is kept.

    Returns:
        "complete" after `max_turns`, "ended_by_user" after a closing message, "leak" if the user gave the
        title away in spite of all attempts.

    Raises:
        EndpointError, ParseError: The first one of an agent or the user.
    """
    scorings: list[asyncio.Task] = []
    try:
        status = await _take_turns(turns, agent, simulator, max_turns, scorings)
        await asyncio.gather(*scorings)
        return status
    except (EndpointError, ParseError):
        await asyncio.gather(*scorings, return_exceptions=True)  # what was said before is scored nevertheless
        raise
    finally:
        for scoring in scorings:
            scoring.cancel()


async def _take_turns(turns: list[Turn], agent: Agent, simulator: Simulator, max_turns: int, scorings: list[asyncio.Task]) -> Status:
    for index in range(max_turns):
        user = await (simulator.respond() if turns else simulator.open())
        turn = Turn(
            index=index,
            policy=user.policy,
            policy_reason=user.reason,
            user_message=user.message,
            user_retries=user.retries,
            user_faults=list(user.faults),
        )
        turns.append(turn)
        if "leak" in user.faults:
            return "leak"
        if user.policy == "end_conversation":
            return "ended_by_user"
        turn.reply = await agent.reply(user.message, turn.steps)
        simulator.hear(turn.reply)
        scorings.append(asyncio.create_task(_keep(turn, simulator.confirm())))
        if simulator.reads_confirmations:
            await scorings[-1]
    return "complete"


async def _keep(turn: Turn, scoring: Awaitable[Confirmation | None]) -> None:
    turn.confirmation = await scoring


async def _trajectory(
    task: Task, system: System, simulator_client: ChatClient, database: ItemDatabase, params: Params, config: str
) -> Trajectory:
    """A row whatever happens: a dialogue that fails keeps its turns and its error. Fatal errors go up."""
    meter = Meter()
    options = {"top_k": params.retriever_top_k, "temperature": params.agent_temperature, "meter": meter}
    agent = find_framework(system.framework)(system.client, database, task.domain, **options, **system.options)
    simulator = make_simulator(
        params.user_simulator,
        simulator_client,
        task,
        temperature=params.simulator_temperature,
        confirmer=Confirmer(simulator_client, database.embedder, params.simulator_mode),
        meter=meter,
    )
    row = Trajectory(
        task_id=task.task_id,
        domain=task.domain,
        system=system.name,
        config=config,
        target=task.target,
        persona=task.persona,
        status="failed",
    )
    try:
        row.status = await play_dialogue(row.turns, agent, simulator, max_turns=params.max_turns)
    except (EndpointError, ParseError) as error:
        if isinstance(error, EndpointError) and error.fatal:
            raise
        row.error = f"{type(error).__name__}: {error}"
    row.usage = meter.by_role
    find_target(row)
    return row


def find_target(row: Trajectory) -> None:
    """Fill in the turns in which the target was first named and first retrieved."""
    named = (turn.index for turn in row.turns if turn.reply and matching.mentions_title(turn.reply, row.target.title))
    found = (turn.index for turn in row.turns for step in turn.steps if step.retrieval and row.target.item_id in step.retrieval.item_ids)
    row.recommended_at, row.retrieved_at = next(named, None), next(found, None)


async def rollout(
    tasks: Sequence[Task], system: System, simulator: ChatClient, database: ItemDatabase, params: Params, path: Path
) -> list[Trajectory]:
    """Play all tasks, `dialogues_in_flight` at a time, and write `path` line by line as dialogues end.

    Rows that an earlier run left are kept if they have the same config, persona and target and did not fail; failed ones are played
    again. At the end the file holds one row per task, in task order, and after them those of further tasks that others played.

    Returns:
        The rows of `tasks`, in their order.

    Raises:
        EndpointError: If no further call can succeed (wrong key, unknown model), or five dialogues in a row failed otherwise than in
            an earlier run; finished rows stay.
        ArtifactError: If the file cannot be written.
    """
    config = dialogue_config(system, simulator, params, database)
    wanted = {task.task_id: task for task in tasks}
    earlier = [row for row in load_resumable(path, Trajectory) if row.config == config and _is_of(row, wanted.get(row.task_id))]
    known_faults = {row.task_id: row.error for row in earlier if row.status == "failed"}
    done = {row.task_id: row for row in earlier if row.task_id in wanted and row.status != "failed"}
    further = list({row.task_id: row for row in earlier if row.task_id not in wanted}.values())  # failed ones as well
    write_jsonl(path, [*done.values(), *further])
    failures = FailuresInARow("dialogues", path)

    async def play(task: Task) -> None:
        row = await _trajectory(task, system, simulator, database, params, config)
        append_jsonl(path, row)
        done[task.task_id] = row
        failures.note(row.error, is_known=row.error == known_faults.get(task.task_id))

    waiting = [task for task in tasks if task.task_id not in done]
    label = f"{tasks[0].domain if tasks else ''} {system.name}"
    await map_bounded(play, waiting, limit=params.dialogues_in_flight, description=label, unit="dialogue")
    rows = [done[task.task_id] for task in tasks]
    write_jsonl(path, [*rows, *further])
    log_counts(system.name, rows)
    return rows


def _is_of(row: Trajectory, task: Task | None) -> bool:
    """Whether a row is of the task as it is now: its user's persona may have been inferred anew. Another stage's tasks are not known."""
    return task is None or (row.persona, row.target) == (task.persona, task.target)


def log_counts(name: str, rows: Sequence[Trajectory]) -> None:
    """The stage's one line: dialogues, failures, calls, tokens, seconds, cost."""
    usage = [role for row in rows for role in row.usage.values()]
    logger.info(
        "%s: %d dialogues, %d failed, %d calls (%d cached), %d tokens, %.0f s, %.4f USD",
        name,
        len(rows),
        sum(row.status == "failed" for row in rows),
        sum(u.calls for u in usage),
        sum(u.cached for u in usage),
        sum(u.prompt_tokens + u.completion_tokens for u in usage),
        sum(u.seconds for u in usage),
        sum(u.cost_usd for u in usage),
    )
