"""Prompt texts, one file per purpose; what is constant comes first so that servers can reuse it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ...core.artifacts import digest
from ...core.errors import ArtifactError
from ...core.schema import Message

_FOLDER = Path(__file__).parent


@cache
def load_prompt(name: str) -> str:
    """Text of `NAME.txt`, with {placeholders} for `render`."""
    path = _FOLDER / f"{name}.txt"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.txt")))
        raise ArtifactError(f"no prompt '{name}'; there are: {known}") from None


def render(name: str, **values: object) -> str:
    """A prompt with its placeholders filled; a missing value is a KeyError that names it."""
    return load_prompt(name).format(**values)


def load_examples(name: str) -> list[Message]:
    """Worked examples of `NAME.txt` as chat turns: blocks of a question, a line "===", the answer."""
    messages = []
    for block in load_prompt(name).split("\n\n"):
        question, _, answer = block.partition("\n===\n")
        messages += [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]
    return messages


def prompts_digest() -> str:
    """Digest of all prompt texts: a changed prompt changes what a stage would produce."""
    return digest({path.stem: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.txt"))})
