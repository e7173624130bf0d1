"""A folder of our own records that `ecpo data build` made: a domain's items and reviews, and what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.artifacts import load_jsonl
from ..core.errors import ArtifactError
from ..core.params import Params
from ..core.schema import Domain, Item, Review
from .builtin import load_builtin

ITEMS, REVIEWS, REJECTS, FACTS = "items.jsonl", "reviews.jsonl", "rejects.jsonl", "data.json"


def folder_lacks(data_dir: str, domains: Sequence[Domain]) -> list[str]:
    """What is missing of some domains, and how it is made."""
    files = [(domain, Path(data_dir).expanduser() / domain / name) for domain in domains for name in (ITEMS, REVIEWS)]
    how = "make it with: ecpo data build --domain {} --out {} ..."
    return [f"{path} is missing; {how.format(domain, data_dir)}" for domain, path in files if not path.is_file()]


def load_folder(data_dir: str, domain: Domain) -> tuple[dict[str, Item], list[Review]]:
    """Items by id and reviews of a domain, as `load_builtin` gives them.

    Args:
        data_dir: The parameter; holds a folder per domain.
        domain: Which.

    Raises:
        ArtifactError: If there is no such folder; says how to make it.
        SchemaError: If a line is broken; names file and line.
    """
    folder = Path(data_dir).expanduser() / domain
    if lacks := folder_lacks(data_dir, [domain]):
        raise ArtifactError(lacks[0])
    items = {item.item_id: item for item in load_jsonl(folder / ITEMS, Item)}
    return items, [review for review in load_jsonl(folder / REVIEWS, Review) if review.item_id in items]


def load_data(params: Params, domain: Domain) -> tuple[dict[str, Item], list[Review]]:
    """Items by id and reviews of a domain, built-in or of the folder `data_dir`; see `load_folder`."""
    return load_folder(params.data_dir, domain) if params.data_source == "folder" else load_builtin(domain)
