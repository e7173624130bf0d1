"""Fixtures for all tests. `stub_endpoint.py` and `stub_hub.py` beside this file hold the servers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_models import ScriptedStudy
from stub_endpoint import StubEndpoint


@pytest.fixture
def stub_endpoint() -> Iterator[StubEndpoint]:
    """A scripted OpenAI-compatible endpoint; give it an `answer` function or a `script`."""
    endpoint = StubEndpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def study(stub_endpoint: StubEndpoint, tmp_path: Path) -> Iterator[ScriptedStudy]:
    """Scripted roles behind that endpoint, and clients of it."""
    study = ScriptedStudy(stub_endpoint, tmp_path)
    yield study
    study.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts disks of a given size ("64k"); skips where this user may not."""
    mounted = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk-{size}"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
