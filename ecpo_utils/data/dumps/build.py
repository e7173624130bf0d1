"""`ecpo data build`: from a dump's two files to a small folder of our records, with its facts and its rejects."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import duckdb

from ... import __version__
from ...core.artifacts import digest, iter_json_lines, write_json, write_jsonl, writing
from ...core.errors import ParamsError
from ...core.schema import Domain, Item
from ..folder import FACTS, ITEMS, REJECTS, REVIEWS
from ..titles import merge_titles, new_titles
from .engine import MEMORY_GB, Engine
from .items import iter_items
from .kinds import Kind, inspect
from .rejects import Rejects
from .reviews import ReviewPass
from .selection import Selection, find_users
from .sources import SOURCES
from .users import UserRule


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        source: "amazon" for the domains book and game, "yelp" for yelp.
        out: The folder that params name as `data_dir`; the domain's is one in it.
        catalogue: Whether all items of the meta file are taken, not only those that the sampled users reviewed.
    """

    domain: Domain
    source: str
    reviews: Path
    meta: Path
    out: Path
    rule: UserRule = field(default_factory=UserRule)
    seed: int = 0
    catalogue: bool = False
    memory_gb: float = MEMORY_GB


def build_folder(options: BuildOptions) -> dict:
    """Write `items.jsonl`, `reviews.jsonl`, `rejects.jsonl` and `data.json`; returns the facts that the last one holds.

    The same build again is no work; one that was stopped goes on where it was.

    Raises:
        ParamsError: If source and domain do not belong together.
        ArtifactError: If a file cannot be read or written.
        SchemaError: If a file is of another kind, or no user qualifies.
    """
    started = time.time()
    if (options.domain == "yelp") != (options.source == "yelp"):
        raise ParamsError(f"domain {options.domain} is not of source {options.source}: yelp is yelp's, book and game are amazon's")
    source = SOURCES[options.source]
    kinds = inspect(options.reviews, source, "reviews"), inspect(options.meta, source, "meta")
    folder = options.out / options.domain
    stamps = {"reviews": _stamp(options.reviews), "meta": _stamp(options.meta)}
    key = digest([{**asdict(options), "out": "", "memory_gb": 0}, stamps, duckdb.__version__, __version__])
    if (facts := _known(folder, key)) is not None:
        return facts
    work = folder / ".work"
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Engine(work, options.memory_gb)) as engine:
        facts = {"domain": options.domain, "source": source.label, "files": stamps, **_build(options, kinds, folder, engine)}
    facts |= {"engine": f"duckdb {duckdb.__version__}", "version": __version__, "key": key, "seconds": round(time.time() - started, 1)}
    write_json(folder / FACTS, facts)
    shutil.rmtree(work, ignore_errors=True)
    return facts


def _build(options: BuildOptions, kinds: tuple[Kind, Kind], folder: Path, engine: Engine) -> dict:
    """Write all but the facts, which are returned."""
    source, work = SOURCES[options.source], folder / ".work"
    review_pass = ReviewPass(engine, source, options.reviews, kinds[0], work, options.seed)
    spill, sample = find_users(engine, review_pass, options.rule)
    selection = Selection(review_pass, sample, options.rule)
    wanted, found = {review.item_id for review in selection.reviews}, Rejects()
    items: dict[str, Item] = {}
    others = work / "others.jsonl"
    with writing(others), open(others, "w", encoding="utf-8") as file:
        for item in iter_items(engine, source, options.meta, kinds[1], work, None if options.catalogue else wanted, found):
            if item.item_id in wanted:
                items[item.item_id] = item
            else:
                file.write(item.model_dump_json() + "\n")
    rejects = spill.rejects
    rejects.extend(found)
    reviews = selection.join(items, rejects)
    base, merged = merge_titles({review.item_id: items[review.item_id] for review in reviews})
    reviews = [review.model_copy(update={"item_id": merged.get(review.item_id, review.item_id)}) for review in reviews]
    (folder / FACTS).unlink(missing_ok=True)  # from here until they are written again, the folder is not whole
    write_jsonl(folder / ITEMS, itertools.chain(base.values(), new_titles(_records(others), base.values())))
    write_jsonl(folder / REVIEWS, reviews)
    rejects.save(folder / REJECTS)
    return {
        "rule": asdict(options.rule),
        "seed": options.seed,
        "catalogue": options.catalogue,
        "counts": {
            "review_lines": spill.num_lines,
            "meta_lines": found.num_lines,
            "share_of_users_kept": spill.share,
            **{f"{name}_in_share": count for name, count in sample.counts.items()},
            "users": len({review.user_id for review in reviews}),
            "reviews": len(reviews),
            "items_reviewed": len(base),
            "items_merged_by_title": len(merged),
        },
        "dropped": dict(rejects.dropped.most_common()),
        "repaired": dict(rejects.repaired.most_common()),
    }


def _stamp(path: Path) -> dict:
    stat = path.stat()
    return {"path": str(path), "bytes": stat.st_size, "modified": stat.st_mtime}


def _known(folder: Path, key: str) -> dict | None:
    """Facts of an earlier build with the same options, whose files are all there."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    there = all((folder / name).is_file() for name in (ITEMS, REVIEWS, REJECTS))
    return facts if there and isinstance(facts, dict) and facts.get("key") == key else None


def _records(path: Path) -> Iterator[Item]:
    return (Item.model_validate(row) for _, row in iter_json_lines(path))
