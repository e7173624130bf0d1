"""Readers of the task and persona files published with the paper, and of its logs (`release_log`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from ..core.artifacts import iter_json_lines, iter_lines, load_jsonl, parse_record
from ..core.errors import ArtifactError, SchemaError
from ..core.params import Params
from ..core.schema import Domain, PersonaRecord, Task
from .fields import parse_price
from .release_log import HEADER, RULE, LogDialogue, load_release_log

__all__ = [
    "Format",
    "LogDialogue",
    "detect_format",
    "load_persona_texts",
    "load_release_log",
    "load_release_personas",
    "load_release_tasks",
    "release_lacks",
]

Format = Literal["trajectories", "tasks", "personas_v0", "random_personas", "personas", "log"]
KEYS: dict[Format, tuple[str, ...]] = {  # of JSON lines, tried in this order
    "trajectories": ("task_id", "turns"),
    "tasks": ("UserID", "Persona", "Items"),
    "personas_v0": ("UserID", "FilledValues"),
    "random_personas": ("UserID", "Persona"),
    "personas": ("user_id", "persona"),
}
RELEASED: tuple[Format, ...] = ("tasks", "personas_v0", "random_personas")  # which hold personas
LINGUISTICS = ("Information Density", "Expression Style", "Tone")


def release_lacks(params: Params) -> list[str]:
    """What the folder that `release_dir` names lacks, in words; nothing where none is named."""
    if not params.release_dir:
        return []
    needed = "task" if params.data_source == "release" else "test_log"
    folder = Path(params.release_dir) / (needed if needed == "task" else "")
    if folder.is_dir():
        return []
    return [f"there is no folder {folder.absolute()}; set release_dir to the folder that holds the release's {needed}/"]


def detect_format(path: Path, *wanted: Format) -> Format:
    """What a file is, by its first line: one of the release's layouts, or our trajectories or personas.

    Args:
        path: A text file, or one packed as `.gz`.
        *wanted: Formats that will do; without any, all.

    Raises:
        ArtifactError: If the file is missing or cannot be read (a directory, or a pipe, which cannot be read again).
        SchemaError: If it is none of them; names file and line.
    """
    wanted = wanted or (*KEYS, "log")
    if path.is_fifo():
        raise ArtifactError(f"cannot read {path}: a pipe can be read only once; write it to a file first")
    number, first = next(((n, line) for n, line in iter_lines(path) if line.strip() and not RULE.fullmatch(line)), (0, ""))
    if not number:
        raise SchemaError(f"{path}: the file is empty; expected {_describe(wanted)}")
    if "log" in wanted and HEADER.fullmatch(first):
        return "log"
    if not first.lstrip().startswith(("{", "[")):
        raise SchemaError(f"{path}:{number}: unknown format, begins {first[:60]!r}; expected {_describe(wanted)}")
    number, row = next(iter_json_lines(path))
    for name in (name for name in KEYS if name in wanted):
        if all(key in row for key in KEYS[name]) and ("task_id" in row) == ("task_id" in KEYS[name]):
            return name
    raise SchemaError(f"{path}:{number}: unknown format, an object with the keys {list(row)[:8]}; expected {_describe(wanted)}")


def _describe(wanted: Sequence[Format]) -> str:
    """Formats as a message lists them, those of this package first."""
    ours, released = (
        [f"{name} (keys {', '.join(keys)})" for name, keys in KEYS.items() if name in wanted and (name in RELEASED) == theirs]
        for theirs in (False, True)
    )
    parts = [f"JSON lines of our {' or '.join(ours)}"] if ours else []
    parts += [f"JSON lines of the release's {', '.join(released)}"] if released else []
    parts += ["a dialogue log of the release ('User N  Item M:')"] if "log" in wanted else []
    return ", or ".join(parts)


def load_release_tasks(path: Path, domain: Domain) -> list[Task]:
    """Tasks of `{Book,Game,Yelp}_{train,test}.jsonl`; the id is `domain/row`, with the row that logs call "User N".

    The three linguistic values become the persona's `language`; interests and orientations are not in
    these files. Yelp items have no id, so the name serves; a price such as "from 8.48" is read as 8.48.

    Raises:
        ArtifactError: If the file is missing.
        SchemaError: If it is no task file, or a row lacks a key; names file, line and key.
    """
    detect_format(path, "tasks")
    return [_task(row, number, domain, f"{path}:{number}") for number, row in iter_json_lines(path)]


def _task(row: dict, number: int, domain: Domain, where: str) -> Task:
    items = _need(row, "Items", where)
    if not isinstance(items, list) or len(items) != 1:
        raise SchemaError(f"{where}: Items: expected a list of one item, the target")
    item, name = items[0], str(_need(items[0], "ItemName", f"{where}: Items.0"))
    target = {
        "item_id": str(item.get("ItemID") or name),
        "title": name,
        "categories": item.get("Categories") or [],
        "description": item.get("Description") or "",
        "price": parse_price(item.get("Price")),
    }
    task = {"task_id": f"{domain}/{number - 1}", "domain": domain, "user_id": str(_need(row, "UserID", where)), "target": target}
    return parse_record(Task, task | {"persona": _task_persona(_need(row, "Persona", where), where)}, where)


def _need(value: object, key: str, where: str) -> object:
    if not isinstance(value, dict) or value.get(key) in (None, ""):
        raise SchemaError(f"{where}: no '{key}'; see data_formats of the release")
    return value[key]


def _task_persona(persona: object, where: str) -> dict[str, str]:
    linguistics = _need(persona, "Linguistics", f"{where}: Persona")
    missing = [key for key in LINGUISTICS if not isinstance(linguistics, dict) or key not in linguistics]
    if missing:
        raise SchemaError(f"{where}: Persona.Linguistics: no '{missing[0]}'; see data_formats of the release")
    return {
        "activities": " ".join(_strings(_need(persona, "Activities", f"{where}: Persona"))),
        "language": " ".join(_strings(linguistics)),
    }


def load_release_personas(path: Path) -> list[PersonaRecord]:
    """Personas of any of the release's three layouts (`RELEASED`), one per row and in file order, duplicates kept.

    In `personas_v0.jsonl` behavioural traits stand for Activities, content preferences for Interests,
    linguistic traits for Language, basic information and experience feedback for Orientations.

    Raises:
        ArtifactError: If the file is missing.
        SchemaError: If it is none of the three, or a row lacks a key; names file, line and key.
    """
    name = detect_format(path, *RELEASED)
    source = "random" if name == "random_personas" else "release"
    records = []
    for where, user_id, persona in _persona_rows(path, name):
        values = _task_persona(persona, where) if name == "tasks" else _grouped_persona(persona, where)
        records.append(parse_record(PersonaRecord, {"user_id": user_id, "persona": values, "source": source}, where))
    return records


def _grouped_persona(persona: dict, where: str) -> dict[str, str]:
    orientations = [persona.get("Basic Information"), persona.get("Experience Feedback")]
    return {
        "activities": " ".join(_strings(_need(persona, "Behavioral Traits", where))),
        "interests": " ".join(_strings(persona.get("Content Preferences"))),
        "language": " ".join(_strings(_need(persona, "Linguistic Traits", where))),
        "orientations": " ".join(_strings(orientations)),
    }


def load_persona_texts(path: Path) -> list[str]:
    """One text per persona in file order, duplicates kept, as diversity is measured on. Paper: Figure 4.

    Takes the release's three layouts (all string values of the persona, joined by spaces) and our own
    `personas.jsonl` (`Persona.text()`).

    Raises:
        ArtifactError: If the file is missing.
        SchemaError: If it is none of these; names file and line.
    """
    name = detect_format(path, *RELEASED, "personas")
    if name == "personas":
        return [record.persona.text() for record in load_jsonl(path, PersonaRecord)]
    return [" ".join(_strings(persona)) for _, _, persona in _persona_rows(path, name)]


def _persona_rows(path: Path, name: Format) -> Iterator[tuple[str, str, dict]]:
    """Place, user id and persona object of every row of a release file."""
    key = "FilledValues" if name == "personas_v0" else "Persona"
    for number, row in iter_json_lines(path):
        where = f"{path}:{number}"
        persona = _need(row, key, where)
        if not any(_strings(persona)):
            raise SchemaError(f"{where}: {key}: no text in it; expected an object with groups of texts")
        yield where, str(_need(row, "UserID", where)), persona


def _strings(value: object) -> list[str]:
    """All non-empty strings in a value, depth first. Without recursion, for a file may nest as deep as it likes."""
    found, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            found += [part] if part.strip() else []
        else:
            waiting += reversed(list(part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()))
    return found
