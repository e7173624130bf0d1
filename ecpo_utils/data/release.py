"""Readers of the task and persona files published with the paper, and of its logs (`release_log`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..core.artifacts import iter_json_lines, load_jsonl, parse_record
from ..core.errors import SchemaError
from ..core.schema import Domain, PersonaRecord, Task
from .amazon import parse_price
from .release_log import HEADER, RULE, LogDialogue, load_release_log, read_lines

__all__ = [
    "Format",
    "LogDialogue",
    "detect_format",
    "load_persona_texts",
    "load_release_log",
    "load_release_personas",
    "load_release_tasks",
]

Format = Literal["tasks", "personas_v0", "random_personas", "personas", "log"]
KEYS: dict[Format, tuple[str, ...]] = {  # tried in this order
    "tasks": ("UserID", "Persona", "Items"),
    "personas_v0": ("UserID", "FilledValues"),
    "random_personas": ("UserID", "Persona"),
    "personas": ("user_id", "persona"),
}
LINGUISTICS = ("Information Density", "Expression Style", "Tone")


def detect_format(path: Path) -> Format:
    """What a file is: one of the release's layouts, or our `personas.jsonl`.

    Raises:
        ArtifactError: If the file is missing or cannot be read (a directory, say).
        SchemaError: If it is none of them; names file and line.
    """
    lines = read_lines(path)
    first = next((line for line in lines if line.strip() and not RULE.fullmatch(line)), None)
    if first is None:
        raise SchemaError(f"{path}: the file is empty; expected {_known()}")
    if HEADER.fullmatch(first):
        return "log"
    if not first.lstrip().startswith("{"):
        raise SchemaError(f"{path}:{lines.index(first) + 1}: unknown format, begins {first[:60]!r}; expected {_known()}")
    number, row = next(iter_json_lines(path))
    for name, keys in KEYS.items():
        if all(key in row for key in keys) and "task_id" not in row:
            return name
    raise SchemaError(f"{path}:{number}: unknown format, an object with the keys {list(row)[:8]}; expected {_known()}")


def _known() -> str:
    layouts = ", ".join(f"{name} (keys {', '.join(keys)})" for name, keys in KEYS.items())
    return f"JSON lines of {layouts}, or a dialogue log ('User N  Item M:')"


def load_release_tasks(path: Path, domain: Domain) -> list[Task]:
    """Tasks of `{Book,Game,Yelp}_{train,test}.jsonl`; the id is `domain/row`, with the row that logs call "User N".

    The three linguistic values become the persona's `language`; interests and orientations are not in
    these files. Yelp items have no id, so the name serves; a price such as "from 8.48" is read as 8.48.

    Raises:
        ArtifactError: If the file is missing.
        SchemaError: If it is no task file, or a row lacks a key; names file, line and key.
    """
    if detect_format(path) != "tasks":
        raise SchemaError(f"{path}: a {detect_format(path)} file, not tasks; expected rows with {', '.join(KEYS['tasks'])}")
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
    """Personas of any of the release's three layouts, one per row and in file order, duplicates kept.

    In `personas_v0.jsonl` behavioural traits stand for Activities, content preferences for Interests,
    linguistic traits for Language, basic information and experience feedback for Orientations.

    Raises:
        ArtifactError: If the file is missing.
        SchemaError: If it is none of the three, or a row lacks a key; names file, line and key.
    """
    name = detect_format(path)
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
    name = detect_format(path)
    if name == "personas":
        return [record.persona.text() for record in load_jsonl(path, PersonaRecord)]
    return [" ".join(_strings(persona)) for _, _, persona in _persona_rows(path, name)]


def _persona_rows(path: Path, name: Format) -> Iterator[tuple[str, str, dict]]:
    """Place, user id and persona object of every row of a release file."""
    if name not in ("tasks", "personas_v0", "random_personas"):
        raise SchemaError(f"{path}: a {name} file, not personas of the release; expected {_known()}")
    key = "FilledValues" if name == "personas_v0" else "Persona"
    for number, row in iter_json_lines(path):
        where = f"{path}:{number}"
        persona = _need(row, key, where)
        if not any(_strings(persona)):
            raise SchemaError(f"{where}: {key}: no text in it; expected an object with groups of texts")
        yield where, str(_need(row, "UserID", where)), persona


def _strings(value: object) -> list[str]:
    """All non-empty strings in a value, depth first."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]
