"""Reader of the dialogue logs published with the paper, `test_log/book/*.log`."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from pydantic import field_validator

from ..core.artifacts import iter_lines, parse_record
from ..core.errors import SchemaError
from ..core.schema import Message, Record

logger = logging.getLogger(__name__)

HEADER = re.compile(r"User (\d+)\s+Item (\d+):\s*")
RULE = re.compile(r"={80,}\s*")  # 118 after a dialogue, 80 after the footer
_ROLE = re.compile(r"(user|assistant): ")
_FOOTER = re.compile(r"(?!Total (?:user tokens|system tokens|rounds):)(Average|Total)\b.*")
_TOTAL = re.compile(r"Total correct recommendations: (\d{1,9})/(\d{1,9})\s*")
_FIELDS = {  # in the order in which a log writes them
    "rec_rewards": "rec_rewards",
    "avg_rec_reward": "avg_rec_reward",
    "action_rewards": "action_rewards",
    "avg_action_reward": "avg_action_reward",
    "expression_rewards": "expression_rewards",
    "avg_expression_reward": "avg_expression_reward",
    "Correct recommendation": "correct",
    "Recall": "recall",
    "Total user tokens": "user_tokens",
    "Total system tokens": "system_tokens",
    "Total rounds": "rounds",
}
_ORDER = {name: index for index, name in enumerate(_FIELDS)}


class LogDialogue(Record):
    """One dialogue of a released log. A field that the log's age does not know is None.

    Attributes:
        row: 0-based row of the task file, "User N" in the log.
        item: Index of the target among the task's items, always 0 in the release.
        rec_rewards: 0-5 per rated agent reply, 0 for a reply that was not rated; the others likewise.
        avg_rec_reward: Mean of the non-zero ratings, 0 if all are zero; the others likewise.
        user_tokens: As logged, private JSON included.
    """

    row: int
    item: int
    messages: list[Message]
    correct: bool
    recall: bool | None = None
    rec_rewards: list[float | None] | None = None
    avg_rec_reward: float | None = None
    action_rewards: list[float | None] | None = None
    avg_action_reward: float | None = None
    expression_rewards: list[float | None] | None = None
    avg_expression_reward: float | None = None
    user_tokens: int
    system_tokens: int
    rounds: int

    @field_validator("rec_rewards", "action_rewards", "expression_rewards", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        try:
            return json.loads(value.replace("None", "null")) if isinstance(value, str) else value
        except RecursionError:
            raise ValueError("nested too deeply") from None

    @property
    def replies(self) -> list[str]:
        """The agent's messages."""
        return [message["content"] for message in self.messages if message["role"] == "assistant"]

    @property
    def ended_by_user(self) -> bool:
        """Whether the last word is the user's: a closing message that the agent does not answer."""
        return bool(self.messages) and self.messages[-1]["role"] == "user"


def load_release_log(path: Path) -> list[LogDialogue]:
    """All dialogues of a log, in the log's order (that of completion, not of rows).

    Only a rule, a header and a user message in this order begin a dialogue, and only the run of fields
    before the next rule ends it, so text that looks like one of them stays text. The footer is optional;
    a warning is logged where it counts otherwise than the dialogues do.

    Raises:
        ArtifactError: If the file is missing or cannot be read.
        SchemaError: If it is no such log, holds no dialogue, or one is cut; names file and line.
    """
    lines = [line for _, line in iter_lines(path)]
    starts = [index for index in range(len(lines)) if _starts_dialogue(lines, index)]
    first = next((i for i, line in enumerate(lines) if line.strip() and not RULE.fullmatch(line)), None)
    if first is None:
        raise SchemaError(f"{path}: the log holds no dialogue")
    if not starts or first < starts[0]:
        raise SchemaError(f"{path}:{first + 1}: expected 'User N  Item M:' and a line 'user: ...', got {lines[first][:60]!r}")
    dialogues = [_dialogue(path, lines, start, stop) for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True)]
    _check_footer(path, lines[starts[-1] :], dialogues)
    return dialogues


def _starts_dialogue(lines: list[str], index: int) -> bool:
    """Whether a header stands here, after a rule or nothing, and before a message (or the fields of an empty dialogue)."""
    if not HEADER.fullmatch(lines[index]) or not "".join(lines[index + 1 : index + 2]).startswith(("user: ", "rec_rewards: ")):
        return False
    before = next((line for line in reversed(lines[:index]) if line.strip()), None)
    return before is None or bool(RULE.fullmatch(before))


def _dialogue(path: Path, lines: list[str], start: int, stop: int) -> LogDialogue:
    """The dialogue whose header is line `start` (from 0) and whose rule and footer end before `stop`."""
    while not lines[stop - 1].strip() or RULE.fullmatch(lines[stop - 1]) or _FOOTER.fullmatch(lines[stop - 1]):
        stop -= 1
    row, item = HEADER.fullmatch(lines[start]).groups()
    fields_at, fields = _fields(lines, start + 1, stop)
    if "correct" not in fields or "rounds" not in fields:
        raise SchemaError(
            f"{path}:{stop}: the dialogue of user {row} (line {start + 1}) does not end with its fields, of which "
            f"'Total rounds' is the last, but with {lines[stop - 1][:60]!r}; is the log cut?"
        )
    text = lines[start + 1 : fields_at]
    value = {"row": row, "item": item, "messages": _messages(text), **fields}
    dialogue = parse_record(LogDialogue, value, f"{path}:{fields_at + 1}")
    return _check_rounds(path, start, text, dialogue)


def _fields(lines: list[str], start: int, stop: int) -> tuple[int, dict[str, str]]:
    """Where the fields at the end of lines `start` to `stop` begin, and their values by our names."""
    fields, earliest = {}, len(_FIELDS)
    while stop > start:
        name, colon, value = lines[stop - 1].partition(": ")
        if not colon or _ORDER.get(name, earliest) >= earliest:
            break
        earliest = _ORDER[name]
        fields[_FIELDS[name]] = value.strip()
        stop -= 1
    return stop, fields


def _messages(text: list[str], *, after_blank: bool = True) -> list[Message]:
    """Messages, user first and in turn; any other line continues the message before it.

    Args:
        text: The lines between header and fields.
        after_blank: Whether a message may begin after an empty line.
    """
    messages: list[Message] = []
    for index, line in enumerate(text):
        match, due = _ROLE.match(line), "assistant" if len(messages) % 2 else "user"
        if match and match.group(1) == due and (after_blank or index == 0 or text[index - 1].strip()):
            messages.append({"role": due, "content": line[match.end() :]})
        elif messages:
            messages[-1]["content"] += "\n" + line
    return messages


def _check_rounds(path: Path, start: int, text: list[str], dialogue: LogDialogue) -> LogDialogue:
    """Hold the messages against 'Total rounds', the number of user messages in every known log.

    Too many mean that a reply quotes a dialogue. A quote stands after an empty line, a message does not.
    """
    for messages in (dialogue.messages, _messages(text, after_blank=False)):
        if sum(message["role"] == "user" for message in messages) == dialogue.rounds:
            return dialogue.model_copy(update={"messages": messages})
    cut = next((index for index, line in enumerate(text) if HEADER.fullmatch(line)), None)
    if cut is not None:
        raise SchemaError(f"{path}:{start + 2 + cut}: a new dialogue begins before the one of line {start + 1} has ended; is the log cut?")
    logger.warning("%s:%d: user %d: 'Total rounds: %d' differs from the user messages", path, start + 1, dialogue.row, dialogue.rounds)
    return dialogue


def _check_footer(path: Path, tail: list[str], dialogues: list[LogDialogue]) -> None:
    """Warn where the log's own count of successes is not that of the dialogues read."""
    footer = next((match for match in map(_TOTAL.fullmatch, reversed(tail)) if match), None)
    found = (sum(dialogue.correct for dialogue in dialogues), len(dialogues))
    if footer and found != (int(footer[1]), int(footer[2])):
        logger.warning("%s: footer counts %s/%s correct, the dialogues %d/%d", path, footer[1], footer[2], *found)
