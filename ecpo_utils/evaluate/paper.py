"""The paper's own numbers, to stand beside ours."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml


@cache
def paper_results() -> dict:
    """The content of `paper_results.yaml`; every entry names its source there."""
    return yaml.safe_load((Path(__file__).parent / "paper_results.yaml").read_text(encoding="utf-8"))
