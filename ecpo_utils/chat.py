"""A human in the user's place: talk with any agent and see what it does, and how a user with a hidden wish would score it.

`chat_terminal` and `chat_widget` show it. Dialogues are kept under `runs/PROFILE/chats/`, which no stage reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .core.artifacts import load_jsonl, write_jsonl
from .core.errors import ArtifactError, EndpointError, ParamsError, ParseError
from .core.matching import mentions_title
from .core.params import Params
from .core.schema import Confirmation, Domain, Message, Persona, Policy, Role, Task, Trajectory, Turn
from .dialogue.agents import Agent, find_framework
from .dialogue.confirmation import Confirmer
from .dialogue.retrieval import ItemDatabase
from .dialogue.rollout import System, dialogue_config, find_target
from .llm.cache import ResponseCache
from .llm.client import ChatClient, Meter
from .llm.endpoints import open_clients
from .preparation import prepare_items
from .run import Run, open_run
from .simulation import ZERO_SHOT, find_adapter

BACKBONES: tuple[Role, ...] = ("expert", "cra")
SPLITS = ("test", "ecpo", "sgpt")
HUMAN = Persona(activities="A human in the user's place.", language="")


@dataclass(frozen=True)
class ChatTurn:
    """What one message of the human led to.

    Attributes:
        turn: As it is saved: the agent's steps, its reply, the confirmation (None while it is being worked out).
        retrieved: For each of the turn's steps the titles that it retrieved, best first; empty where it searched nothing.
    """

    turn: Turn
    retrieved: list[list[str]]


class ChatSession:
    """Dialogues of a human with one agent, each about one hidden target.

    Args:
        system: The agent and its backbone.
        simulator: The endpoint that confirms.
        database: What the agent searches.
        tasks: Whose targets are drawn; the first dialogue takes the first one.
        params: Of the run.
        path: All dialogues of the session, rewritten after every turn; made with the first one.

    Attributes:
        task: Whose target is the hidden one now.
        row: The dialogue so far.
    """

    def __init__(
        self, system: System, simulator: ChatClient, database: ItemDatabase, tasks: Sequence[Task], params: Params, path: Path
    ):  # fmt: skip
        self.system = system
        self.path = path
        self._simulator = simulator
        self._database = database
        self._tasks = list(tasks)
        self._params = params
        self._confirmer = Confirmer(simulator, database.embedder, params.simulator_mode)
        self._titles = {item.item_id: item.title for item in database.items}
        self._finished: list[Trajectory] = []
        self._one_at_a_time = asyncio.Lock()
        self._begin(self._tasks[0])

    def new(self) -> None:
        """End this dialogue and begin another one, with another target if there is one."""
        if self.row.turns:
            self._finished.append(self.row)
        others = [task for task in self._tasks if task.target.item_id != self.task.target.item_id]
        self._begin(random.SystemRandom().choice(others or self._tasks))

    async def say(self, text: str, on_reply: Callable[[ChatTurn], None] | None = None) -> ChatTurn:
        """Say something to the agent; answers with what it did and said, and how that is confirmed.

        Args:
            text: The human's message.
            on_reply: Called with the turn as soon as the reply is there, before it is confirmed.

        Raises:
            EndpointError: If the agent got no answer; the dialogue stands as it was before, and can go on.
            ParseError: Likewise.
            ArtifactError: If the dialogue cannot be written.
        """
        async with self._one_at_a_time:
            turn = self._turn(text.encode("utf-8", "replace").decode().strip())
            agent = self._copy_of_agent()
            turn.reply = await agent.reply(turn.user_message, turn.steps)
            self._agent = agent
            self.row.turns.append(turn)
            self._save()
            chat_turn = ChatTurn(turn, [self._retrieved(step.retrieval) for step in turn.steps])
            if on_reply:
                on_reply(chat_turn)
            turn.confirmation = await self._confirm()
            self._save()
            return chat_turn

    def _begin(self, task: Task) -> None:
        params = self._params
        self.task = task
        self._meter = Meter()
        options = {"top_k": params.retriever_top_k, "temperature": params.agent_temperature, "meter": self._meter}
        framework = find_framework(self.system.framework)
        self._agent: Agent = framework(self.system.client, self._database, task.domain, **options, **self.system.options)
        config = dialogue_config(self.system, self._simulator, params, self._database)
        self.row = Trajectory(task_id=task.task_id, domain=task.domain, system=self.system.name, config=config, target=task.target,
                              persona=HUMAN, status="ended_by_user")  # fmt: skip

    def _turn(self, text: str) -> Turn:
        """The human's message as a turn; its policy is read off what the agent did before."""
        earlier = self.row.turns
        policy: Policy = "ask_recommendation"
        if earlier:
            action = next((step.action for step in reversed(earlier[-1].steps) if step.action), None)
            policy = "respond_to_clarification" if action and action.type == "ask" else "provide_feedback_on_recommendation"
        gives_away = not any(self._names_target(turn.reply) for turn in earlier) and self._names_target(text)
        return Turn(index=len(earlier), policy=policy, policy_reason="written by a human", user_message=text,
                    user_faults=["leak"] if gives_away else [])  # fmt: skip

    def _copy_of_agent(self) -> Agent:
        """The agent as it stands, so that a turn that fails leaves no trace; what cannot be copied is used as it is."""
        shared = (self.system.client, self._database, self._meter)
        try:
            return copy.deepcopy(self._agent, {id(each): each for each in shared})
        except TypeError:
            return self._agent

    async def _confirm(self) -> Confirmation:
        """Expectation confirmation of the last reply against the hidden target; what cannot be scored says why."""
        history: list[Message] = []
        for turn in self.row.turns:
            history += [{"role": "user", "content": turn.user_message}, {"role": "assistant", "content": turn.reply}]
        try:
            return await self._confirmer.confirm(self.task.target, self.task.domain, history, meter=self._meter)
        except (EndpointError, ParseError) as error:
            return Confirmation(error=str(error))

    def _names_target(self, text: str | None) -> bool:
        return bool(text) and mentions_title(text, self.task.target.title)

    def _retrieved(self, retrieval: object) -> list[str]:
        return [self._titles[item_id] for item_id in retrieval.item_ids] if retrieval else []

    def _save(self) -> None:
        row = self.row
        row.usage = self._meter.by_role
        row.status = "leak" if any("leak" in turn.user_faults for turn in row.turns) else "ended_by_user"
        find_target(row)
        write_jsonl(self.path, [*self._finished, row])


@contextlib.asynccontextmanager
async def open_chat(
    agent: str, *, profile: str = "quick", domain: str = "", role: str = "", adapter: str = "", task_id: str = ""
) -> AsyncIterator[ChatSession]:
    """A session with the servers it needs. Needs no notebook's run: missing items are prepared, and without tasks an item is the target.

    Args:
        agent: Key of `agents.FRAMEWORKS`.
        profile: Name of a params file.
        domain: One of the profile's domains, "" for its first.
        role: The agent's backbone, "expert" or "cra"; "" for the expert, with an adapter for the one that is tuned.
        adapter: Name of the domain's LoRA adapter for `cra` to carry, e.g. "dpo". A backbone with an adapter works without examples,
            as it was trained.
        task_id: A task of notebook 02, "" to draw one.

    Raises:
        ParamsError: If there is no such agent, profile, domain or role.
        ArtifactError: If there is no such task, or no such adapter; names the notebook that trains it.
        EndpointError: If an endpoint refuses or does not answer.
        ModelError: If weights or a server for them cannot be had.
    """
    framework = find_framework(agent)
    role = role or ("cra" if adapter else "expert")
    run = _open_run(profile, domain, role, adapter)
    endpoints = {name: getattr(run.params, name) for name in ("simulator", role)}
    if adapter:
        endpoints["cra"] = endpoints["cra"].model_copy(update={"adapter": str(find_adapter(run, run.domains[0], adapter))})
    tasks = _load_tasks(run, task_id)
    database = prepare_items(run)[run.domains[0]]
    options = {name: getattr(run.params, name) for name in framework.takes_params}
    if endpoints[role].adapter and "few_shot" in inspect.signature(framework).parameters:
        options |= ZERO_SHOT
    folder = run.paths.chats
    with contextlib.closing(ResponseCache(run.paths.responses)) as cache:
        async with open_clients(endpoints, cache=cache, calls_log=folder / "calls.jsonl", seed=run.params.seed) as clients:
            yield ChatSession(
                System(f"{agent}_{adapter or role}", agent, clients[role], options), clients["simulator"], database,
                tasks or _tasks_of_items(database, run.domains[0]), run.params,
                folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl",
            )  # fmt: skip


def _open_run(profile: str, domain: str, role: str, adapter: str) -> Run:
    if role not in BACKBONES:
        raise ParamsError(f"no backbone '{role}'; there are: {', '.join(BACKBONES)}")
    if adapter and role != "cra":
        raise ParamsError(f"adapter '{adapter}' is for the backbone cra, not for {role}; leave the role out")
    run = open_run("chat", {"profile": profile})
    domain = domain or run.domains[0]
    if domain not in run.domains:
        raise ParamsError(f"profile {profile} has no domain '{domain}'; it has: {', '.join(run.domains)}")
    return open_run("chat", {"profile": profile, "domains": [domain]})


def _load_tasks(run: Run, task_id: str) -> list[Task]:
    """The domain's tasks in random order, the wished one first; none where notebook 02 has not run."""
    domain = run.domains[0]
    paths = [path for path in (run.paths.tasks(domain, split) for split in SPLITS) if path.is_file()]
    if task_id and not paths:
        run.need(run.paths.tasks(domain, SPLITS[0]), "02_persona_diversity")
    tasks = [task for path in paths for task in load_jsonl(path, Task)]
    random.SystemRandom().shuffle(tasks)
    if task_id and task_id not in (known := [task.task_id for task in tasks]):
        raise ArtifactError(f"no task '{task_id}' among the {len(known)} of {paths[0].parent}; there is, for example: {min(known)}")
    return sorted(tasks, key=lambda task: task.task_id != task_id)


def _tasks_of_items(database: ItemDatabase, domain: Domain) -> list[Task]:
    """Each item as a target, in random order."""
    items = random.SystemRandom().sample(database.items, len(database.items))
    return [Task(task_id=f"{domain}/chat/{item.item_id}", domain=domain, user_id="human", persona=HUMAN, target=item) for item in items]
