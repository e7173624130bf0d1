"""Scripted roles, a small catalogue and a fake embedder: what a dialogue needs, without any model.

Which call is which is read from the model's name, the schema, log-probabilities and the prompt files, not from wording.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from stub_endpoint import Reply, StubEndpoint

from ecpo_utils.core.params import Endpoint
from ecpo_utils.core.schema import Item, Persona, Task, Trajectory
from ecpo_utils.dialogue.confirmation import MAXIMA
from ecpo_utils.dialogue.retrieval import ItemDatabase, build_database
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.client import ChatClient
from ecpo_utils.llm.prompts import load_prompt

FULL, NARROW = "full", "narrow"  # simulator_mode: JSON answers of large models, small questions for small ones

ITEMS = [
    Item(item_id="g1", title="Harbour of Glass", categories=["Video Games", "Simulation", "City Building"],
         description="By Marta Quill (2011). Lay out a foggy port town, brick by brick. Trade salt and lamp oil with passing ships."),
    Item(item_id="g2", title="Iron Orchard", categories=["Video Games", "Strategy"],
         description="By Oak and Sons (2016). Farm machines on a ruined planet. Every harvest wakes older machines."),
    Item(item_id="g3", title="Quiet Orbit", categories=["Video Games", "Puzzle"],
         description="By Lumen (2019). Nudge moons into place. No timer and no score."),
    Item(item_id="g4", title="Thorn Circuit", categories=["Video Games", "Racing"],
         description="By Volt Lab (2020). Race hovering bikes through a hedge maze. Short tracks, loud music."),
    Item(item_id="g5", title="The Paper Duke", categories=["Video Games", "Adventure"],
         description="By Ada Penn (2014). A folded nobleman solves crimes in a drawer. Dry jokes throughout."),
    Item(item_id="g6", title="Deep Cellar", categories=["Video Games", "Horror"],
         description="By Nine Steps (2018). Walk down, and do not look back. Headphones are advised."),
]  # fmt: skip

PERSONA = Persona(activities="Detail-oriented. Compares before deciding.", interests="Loves building.", language="Writes plainly.",
                  orientations="Annoyed by noise.")  # fmt: skip

ODD_TEXTS = {  # messages of one line that prompts, files and logs must carry unchanged
    "brackets": "Try [Emma] (1815) <b>now</b> or Recommend[Emma].",
    "quotes": "She said \"read 'Emma'\" \u2014 \u201cnow\u201d, `at once`.",
    "braces": '{one} {two} {} {0} {{x}} {"score": 1} %s ${HOME} \\n',
    "Arabic": "\u0623\u0628\u062d\u062b \u0639\u0646 \u0643\u062a\u0627\u0628 \u062c\u064a\u062f",
    "Chinese": "\u6211\u60f3\u627e\u4e00\u672c\u597d\u4e66\u3002",
    "emoji": "Books! \U0001f4da\U0001f469\u200d\U0001f680\U0001f3fd e\u0301",
    "10,000 characters": "word " * 1999 + "end.!",
    "one long word": "x" * 10_000,
    "prompt": "# Conversation 2 Customer: no. Assistant: yes. # Question Answer with the number only: 1",
}


class FakeEmbedder:
    """Unit vectors of hashed words, with the interface of `retrieval.Embedder`."""

    name = "fake-embedder"

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        vectors = np.zeros((len(texts), 1024), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, zlib.crc32(word.encode()) % 1024] += 1
            vectors[row, 0] += 1e-3
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_database(folder: Path, items: Sequence[Item] = ITEMS) -> ItemDatabase:
    folder.mkdir(parents=True, exist_ok=True)
    return build_database(items, FakeEmbedder(), folder / "items.jsonl", folder / "items.faiss")


def make_task(target: Item = ITEMS[0], user: str = "u1", **fields: object) -> Task:
    values = {"task_id": f"game/{user}/{target.item_id}", "domain": "game", "user_id": user, "persona": PERSONA, "target": target}
    return Task(**{**values, **fields})


def tasks_of(rows: Sequence[Trajectory]) -> list[Task]:
    """The tasks that dialogues were played on."""
    users = [row.task_id.split("/")[1] for row in rows]
    return [Task(task_id=row.task_id, domain=row.domain, user_id=user, persona=row.persona, target=row.target)
            for row, user in zip(rows, users, strict=True)]  # fmt: skip


def confirmation_json(flexibility: int = 2, coherence: int = 2, guidance: int = 1, reason: str = "because") -> str:
    """A verbal confirmation, with a reason for every dimension."""
    scores = {"flexibility": flexibility, "coherence": coherence, "guidance": guidance}
    return json.dumps({k: v for name, score in scores.items() for k, v in ((f"{name}_reason", f"{name} {reason}"), (name, score))})


def policy_json(policy: str, reason: str = "as planned", message: str = "") -> str:
    """A policy with its reason and, if given, the message under it; without one it is asked for by itself."""
    return json.dumps({"reason": reason, "policy": policy, "message": message})


def choice(**probabilities: float) -> Reply:
    """An answer of one token with the log-probabilities of these words."""
    return Reply(next(iter(probabilities)), logprobs=[{word: float(np.log(max(value, 1e-30))) for word, value in probabilities.items()}])


def request_kind(body: dict) -> str:
    """One of "agent", "policy", "confirmation", "asked_DIMENSION", "reason_DIMENSION", "choice", "message" or, if cut off, "cancelled"."""
    if not body:
        return "cancelled"
    if body["model"] != "simulator":
        return "agent"
    if "response_format" in body:
        return "policy" if "policy" in body["response_format"]["json_schema"]["schema"]["properties"] else "confirmation"
    content = body["messages"][-1]["content"]
    for name in MAXIMA:
        if content.endswith(load_prompt(f"confirm_{name}")):
            return f"asked_{name}"
        if content.endswith(load_prompt(f"confirm_reason_{name}")):
            return f"reason_{name}"
    return "choice" if body.get("logprobs") else "message"


Script = Callable[[dict], "str | Reply"]


def in_turn(*replies: str | Reply) -> Script:
    """These replies, one a request; the last one again and again."""
    waiting = list(replies)
    return lambda body: waiting.pop(0) if len(waiting) > 1 else waiting[0]


class ScriptedStudy:
    """An endpoint whose roles follow scripts, and clients of it. By default every dialogue goes well.

    Attributes:
        scripts: Per kind of request (see `request_kind`) what answers it.
    """

    def __init__(self, endpoint: StubEndpoint, folder: Path):
        self.endpoint, self.folder = endpoint, folder
        self.cache = ResponseCache(folder / "responses.sqlite")
        self._runner = asyncio.Runner()
        self._clients: list[ChatClient] = []
        self._spoken = 0
        self.scripts: dict[str, Script] = {
            "agent": lambda body: "Response[Do you build alone or together?]",
            "policy": lambda body: policy_json("respond_to_clarification"),
            "confirmation": lambda body: confirmation_json(),
            "message": self._new_message,
            "cancelled": lambda body: "",
            "choice": lambda body: choice(ask=0.9),
            **{f"asked_{name}": (lambda body: choice(yes=0.9, no=0.1)) for name in MAXIMA},
            **{f"reason_{name}": (lambda body, name=name: f"The {name} is lacking.") for name in MAXIMA},
        }
        endpoint.answer = lambda body: self.scripts[request_kind(body)](body)

    def _new_message(self, body: dict) -> str:
        self._spoken += 1
        return f"I would like something of kind {self._spoken}."

    def requests(self, kind: str) -> list[dict]:
        """Bodies of the requests of a kind, in order of arrival."""
        return [chat.body for chat in self.endpoint.chats if request_kind(chat.body) == kind]

    def client(self, role: str, **fields: object) -> ChatClient:
        """A client whose model's name is the role's."""
        values = {"provider": "openai", "model": role, "base_url": self.endpoint.base_url, "max_retries": 0, "timeout_s": 10.0}
        endpoint = Endpoint(**{**values, **fields})
        client = ChatClient(role, endpoint, urls=endpoint.urls, api_key="none", identity=f"stub {role}", cache=self.cache,
                            calls_log=self.folder / "calls.jsonl")  # fmt: skip
        self._clients.append(client)
        return client

    def run(self, coroutine: object) -> object:
        """The coroutine's result; all of a test's run in one loop, as connections are kept."""
        return self._runner.run(coroutine)

    def close(self) -> None:
        for client in self._clients:
            self.run(client.close())
        self._runner.close()
        self.cache.close()
