"""Dialogues as a judge reads them: the spoken words only, from trajectories or from released logs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.artifacts import load_jsonl
from ..core.errors import SchemaError
from ..core.schema import Message, Trajectory
from ..data.release import LogDialogue, detect_format, load_release_log

logger = logging.getLogger(__name__)

LONGEST_WORD = 200  # characters
QUESTION_MARKS = ("?", "？", "؟")
FORMATS = {".log": "log", ".jsonl": "trajectories"}
SPEAKERS = {"user": "Customer", "assistant": "Assistant"}


@dataclass(frozen=True)
class Transcript:
    """What was said in one dialogue.

    Attributes:
        task_id: What the dialogues of different systems are matched by.
        messages: User and assistant messages in order.
        target: Its item, None where the source does not tell: then it is not known whether tasks of one name are the same.
    """

    task_id: str
    messages: tuple[Message, ...]
    target: str | None = None

    @property
    def user(self) -> str:
        """Whose dialogue: see `user_of`."""
        return user_of(self.task_id, self.target)

    @property
    def replies(self) -> list[str]:
        """The agent's messages that hold more than blanks."""
        return [m["content"] for m in self.messages if m["role"] == "assistant" and m["content"].strip()]

    def render(self, max_words: int = 0) -> str:
        """As text, one message a paragraph; messages of more than `max_words` words are cut (0: none is)."""
        return "\n".join(f"{SPEAKERS[m['role']]}: {clip(m['content'], max_words)}" for m in self.messages)


def user_of(task_id: str, target: str | None) -> str:
    """DOMAIN/USER of DOMAIN/USER/ITEM; tasks of the release, DOMAIN/ROW, by their target, which both of a user's test tasks share."""
    return task_id.rpartition("/")[0] if task_id.count("/") > 1 else f"{task_id.partition('/')[0]}/{target or task_id}"


def clip_characters(word: str) -> str:
    """A word of sane length, its middle left out: text without blanks would otherwise be one word of any length."""
    return word if len(word) <= LONGEST_WORD else word[: LONGEST_WORD // 2] + "..." + word[-LONGEST_WORD // 2 :]


def clip(text: str, max_words: int) -> str:
    """The first words of a text, with " ..." where some are left out; blanks and line breaks become one blank."""
    words = text.encode("utf-8", "replace").decode().split()  # half a surrogate pair could not be sent
    words = [clip_characters(word) for word in words] if max_words else words
    return " ".join(words[:max_words]) + " ..." if 0 < max_words < len(words) else " ".join(words)


def trajectory_transcript(row: Trajectory) -> Transcript:
    """The messages of a trajectory; a failed dialogue has those that were said before it failed."""
    messages: list[Message] = []
    for turn in row.turns:
        messages.append({"role": "user", "content": turn.user_message})
        if turn.reply is not None:
            messages.append({"role": "assistant", "content": turn.reply})
    return Transcript(row.task_id, tuple(messages), row.target.item_id)


def log_transcript(dialogue: LogDialogue) -> Transcript:
    """The messages of a released dialogue; it is matched by the row of the task file, which the log does not name."""
    return Transcript(f"user {dialogue.row} item {dialogue.item}", tuple(dialogue.messages))


def load_transcripts(path: Path) -> list[Transcript]:
    """Dialogues of a trajectories file (`.jsonl`) or a released log (`.log`), packed as `.gz` or not; of other names the first line tells.

    Raises:
        ArtifactError: If the file is missing or cannot be read.
        SchemaError: If it is of neither format, holds no dialogue, or a task twice.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if (FORMATS.get(suffix) or detect_format(path, "trajectories", "log")) == "log":
        found = [log_transcript(dialogue) for dialogue in load_release_log(path)]
    else:
        found = [trajectory_transcript(row) for row in load_jsonl(path, Trajectory)]
    if not found:
        raise SchemaError(f"{path} holds no dialogue")
    _by_task(found, str(path))
    return found


def _by_task(transcripts: Sequence[Transcript], name: str) -> dict[str, Transcript]:
    found: dict[str, Transcript] = {}
    for transcript in transcripts:
        if found.setdefault(transcript.task_id, transcript) is not transcript:
            raise SchemaError(f"{name} holds task '{transcript.task_id}' twice; a pair needs one dialogue per task")
    return found


def cut_at_line_break(transcript: Transcript) -> Transcript:
    """What the release's script judged: the lines before the first one that names no speaker.

    A message of several lines ends there and all that follows is lost, unless its next line itself begins
    with "user:" or "assistant:"; the script took such a line for a message.
    """
    log = "\n".join(f"{message['role']}: {message['content']}" for message in transcript.messages)
    kept: list[Message] = []
    for line in log.split("\n") if log else ():
        role, colon, content = line.partition(":")
        if not colon or role not in SPEAKERS:
            break
        kept.append({"role": role, "content": content.removeprefix(" ")})
    return replace(transcript, messages=tuple(kept))


def pair_transcripts(
    first: Sequence[Transcript], second: Sequence[Transcript], *, names: tuple[str, str] = ("first", "second")
) -> list[tuple[Transcript, Transcript]]:
    """Dialogues on the same tasks, in the first system's order; a warning counts the tasks that only one has.

    Raises:
        SchemaError: If no task is shared, a shared one has two targets, or one side holds a task twice.
    """
    sides = _by_task(first, names[0]), _by_task(second, names[1])
    pairs = [(transcript, sides[1][task]) for task, transcript in sides[0].items() if task in sides[1]]
    if not pairs:
        examples = " and ".join(f"'{next(iter(side))}'" if side else "no dialogue" for side in sides)
        raise SchemaError(f"{names[0]} and {names[1]} share no task (they hold for instance {examples}); judge dialogues on the same tasks")
    for one, other in pairs:
        if one.target and other.target and one.target != other.target:
            raise SchemaError(
                f"task '{one.task_id}' is about '{one.target}' in {names[0]} and about '{other.target}' in {names[1]}; "
                "judge dialogues on the same tasks"
            )
    if left := len(first) + len(second) - 2 * len(pairs):
        logger.warning("%s and %s share %d tasks; %d dialogues on other tasks are left out", *names, len(pairs), left)
    return pairs
