"""An item database holds every title once. Paper: section B.2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..core.matching import normalise
from ..core.schema import Item


def merge_titles(items: Mapping[str, Item]) -> tuple[dict[str, Item], dict[str, str]]:
    """Items without further ones of the same title, and for each of these the id of the one that stands for it: the smallest."""
    first: dict[str, str] = {}
    merged = {}
    for identity in sorted(items):
        name = _name(items[identity])
        if first.setdefault(name, identity) != identity:
            merged[identity] = first[name]
    return {identity: item for identity, item in sorted(items.items()) if identity not in merged}, merged


def new_titles(items: Iterable[Item], known: Iterable[Item]) -> Iterator[Item]:
    """The items whose titles are neither among the known ones nor came before."""
    names = {_name(item) for item in known}
    for item in items:
        if (name := _name(item)) not in names:
            names.add(name)
            yield item


def _name(item: Item) -> str:
    return normalise(item.title) or item.title
