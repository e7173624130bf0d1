"""Fixtures of the dialogue tests: scripted models, a small item database, weights that are easy to work by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_models import ScriptedStudy, make_database
from stub_endpoint import StubEndpoint

from ecpo_utils.dialogue.retrieval import ItemDatabase


@pytest.fixture
def study(stub_endpoint: StubEndpoint, tmp_path: Path) -> Iterator[ScriptedStudy]:
    study = ScriptedStudy(stub_endpoint, tmp_path)
    yield study
    study.close()


@pytest.fixture
def database(tmp_path: Path) -> ItemDatabase:
    return make_database(tmp_path / "game")
