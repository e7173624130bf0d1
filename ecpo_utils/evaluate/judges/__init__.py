"""Judges that compare two dialogues on the same task. `base` is the interface; each way of judging is one module."""

from ...core.errors import ParamsError
from ...llm.client import ChatClient
from .base import DIMENSIONS, Judge, Pair
from .narrow import NarrowJudge
from .tokens import TokenJudge
from .words import WordedJudge

__all__ = ["DIMENSIONS", "JUDGES", "Judge", "NarrowJudge", "Pair", "TokenJudge", "WordedJudge", "find_judge", "make_judge"]

JUDGES: dict[str, type[Judge]] = {judge.name: judge for judge in (WordedJudge, TokenJudge, NarrowJudge)}


def find_judge(mode: str) -> type[Judge]:
    """The class of a `judge_mode`.

    Raises:
        ParamsError: If none is registered under this name.
    """
    if mode not in JUDGES:
        raise ParamsError(f"no judge mode '{mode}'; there are: {', '.join(JUDGES)}; see docs/judge.md")
    return JUDGES[mode]


def make_judge(mode: str, client: ChatClient, *, max_words: int = 0) -> Judge:
    """The judge of a `judge_mode`; arguments as of `Judge`, errors as of `find_judge`."""
    return find_judge(mode)(client, max_words=max_words)
