"""Fixtures for all tests. `stub_endpoint.py` and `stub_hub.py` beside this file hold the servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stub_endpoint import StubEndpoint


@pytest.fixture
def stub_endpoint() -> Iterator[StubEndpoint]:
    """A scripted OpenAI-compatible endpoint; give it an `answer` function or a `script`."""
    endpoint = StubEndpoint()
    yield endpoint
    endpoint.close()
