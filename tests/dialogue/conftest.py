"""Fixtures of the dialogue tests: scripted models, a small item database, weights that are easy to work by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_models import ScriptedStudy, in_turn, make_database
from stub_endpoint import Reply

from ecpo_utils.core.schema import Message, Step
from ecpo_utils.dialogue.agents import Agent
from ecpo_utils.dialogue.retrieval import ItemDatabase
from ecpo_utils.llm.client import Meter


@pytest.fixture
def database(tmp_path: Path) -> ItemDatabase:
    return make_database(tmp_path / "game")


@pytest.fixture
def make_framework(study: ScriptedStudy, database: ItemDatabase) -> Callable[..., Agent]:
    """An agent of a framework whose backbone gives these outputs, one a call, the last one again and again."""

    def make(framework: type[Agent], *outputs: str | Reply, **options: object) -> Agent:
        if outputs:
            study.scripts["agent"] = in_turn(*outputs)
        options = {"top_k": 2, "temperature": 0.0, "meter": Meter(), **options}
        return framework(study.client("expert"), database, "game", **options)

    return make


@pytest.fixture
def say(study: ScriptedStudy) -> Callable[[Agent, str], tuple[str, list[Step]]]:
    """One turn: the reply and its steps."""

    def say(agent: Agent, message: str) -> tuple[str, list[Step]]:
        steps: list[Step] = []
        return study.run(agent.reply(message, steps)), steps

    return say


@pytest.fixture
def received(study: ScriptedStudy) -> Callable[[], list[list[Message]]]:
    """The messages of all requests to the backbone so far."""
    return lambda: [body["messages"] for body in study.requests("agent")]
