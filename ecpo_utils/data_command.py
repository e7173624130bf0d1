"""`ecpo data`: its options, and what it does and says about dumps, released task files and downloads."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from .core.errors import ArtifactError, ParamsError
from .core.schema import Domain
from .data.dumps.fetch import RemoteFile, partial_path
from .data.release import load_release_tasks

PAPER_REVIEWS = 30  # of a sampled user, exactly: the release's rule


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ecpo data build` and `ecpo data fetch`."""
    actions = parser.add_subparsers(required=True, dest="action", metavar="build|fetch")
    text = "make a small folder of our records from Amazon or Yelp files, or check the released task files"
    build = actions.add_parser("build", help=text, description=text)
    build.add_argument("--domain", required=True, choices=get_args(Domain))
    build.add_argument("--source", required=True, choices=["amazon", "yelp", "release"])
    build.add_argument("--reviews", type=Path, metavar="PATH", help="review file: .jsonl, .json, either as .gz, or Yelp's .tar or .tgz")
    build.add_argument("--meta", type=Path, metavar="PATH", help="meta or business file; may be the same archive")
    build.add_argument("--release-dir", type=Path, metavar="FOLDER", help="with --source release: the folder that holds task/")
    build.add_argument("--out", type=Path, default=Path("data"), metavar="FOLDER", help="what data_dir names; a folder per domain in it")
    build.add_argument("--users", type=int, default=100, metavar="N", help="users to sample (100, as the paper)")
    build.add_argument("--min-reviews", type=int, default=PAPER_REVIEWS, metavar="N", help="of a user (30, as the release)")
    build.add_argument("--max-reviews", type=int, default=PAPER_REVIEWS, metavar="N", help="of a user; 0 for no limit (30, as the release)")
    build.add_argument("--min-liked", type=int, default=4, metavar="N", help="items that a user rated --min-rating or more (4)")
    build.add_argument("--min-rating", type=float, default=4.0, metavar="STARS", help="of a liked item (4)")
    build.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample")
    build.add_argument("--catalogue", action="store_true", help="take every item of the meta file, not only those the users reviewed")
    build.add_argument("--memory-gb", type=float, default=2.0, metavar="GB", help="of the reading engine's buffers (2)")
    text = "download the public files of Amazon Reviews 2023, or say how to get Yelp's"
    fetch = actions.add_parser("fetch", help=text, description=text)
    fetch.add_argument("--domain", required=True, choices=get_args(Domain))
    fetch.add_argument("--source", required=True, choices=["amazon", "yelp"])
    fetch.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    fetch.add_argument("--from", dest="origin", default="hub", choices=["hub", "site"], help="Hugging Face hub (plain) or its site (gzip)")
    fetch.add_argument("--site", default="", metavar="URL", help="a mirror laid out like the site")
    fetch.add_argument("--yes", action="store_true", help="do not ask")


def build(options: argparse.Namespace) -> list[str]:
    """Build a folder, or check released files; returns lines that say what came out and which params lead there.

    Raises:
        ParamsError: If options do not go together.
        ArtifactError: If a file cannot be read or written.
        SchemaError: If a file is of another kind, or no user qualifies.
    """
    if options.source == "release":
        return _check_release(options.release_dir, options.domain)
    if not options.reviews or not options.meta:
        raise ParamsError(f"--source {options.source} needs --reviews PATH and --meta PATH")
    from .data.dumps.build import BuildOptions, build_folder
    from .data.dumps.users import UserRule

    out = options.out.resolve()
    rule = UserRule(options.users, options.min_reviews, options.max_reviews, options.min_liked, options.min_rating)
    wrong = [("--users", rule.num_users < 1), ("--min-reviews", rule.min_reviews < 1), ("--min-liked", rule.min_liked < 0)]
    wrong += [("--max-reviews", rule.max_reviews != 0 and rule.max_reviews < rule.min_reviews)]
    wrong += [("--min-rating", not 1 <= rule.min_rating <= 5), ("--memory-gb", not 0.5 <= options.memory_gb < math.inf)]
    wrong += [("--seed", options.seed < 0)]
    if names := [name for name, is_wrong in wrong if is_wrong]:
        raise ParamsError(f"{names[0]} is out of range")
    facts = build_folder(
        BuildOptions(
            options.domain,
            options.source,
            options.reviews.resolve(),
            options.meta.resolve(),
            out,
            rule,
            options.seed,
            options.catalogue,
            options.memory_gb,
        )
    )
    counts = facts["counts"]
    lines = [
        f"{options.domain}: {counts['users']} users, {counts['reviews']} reviews, {counts['items_reviewed']} items, from "
        f"{counts['review_lines']:,} lines of reviews and {counts['meta_lines']:,} of items in {facts['seconds']} s"
    ]
    for what in ("dropped", "repaired"):
        if facts[what]:
            lines.append(f"{what}: " + ", ".join(f"{count} {reason}" for reason, count in facts[what].items()) + "; see rejects.jsonl")
    return [*lines, f"{out / options.domain}", f"in params: data_source: folder, data_dir: {out}"]


def _check_release(folder: Path | None, domain: Domain) -> list[str]:
    if not folder:
        raise ParamsError("--source release needs --release-dir FOLDER, the folder that holds the release's task/")
    folder = folder.resolve()
    counts = {}
    for split in ("train", "test"):
        tasks = load_release_tasks(folder / "task" / f"{domain.capitalize()}_{split}.jsonl", domain)
        counts[split] = f"{len(tasks)} {split} tasks of {len({task.user_id for task in tasks})} users"
    return [f"{domain}: {counts['train']}, {counts['test']}", f"in params: data_source: release, release_dir: {folder}"]


def is_there(file: RemoteFile, folder: Path) -> bool:
    """Whether a download is there, as far as its length tells."""
    path = folder / Path(file.name).name
    return path.is_file() and path.stat().st_size == file.size


def check_space(files: Sequence[RemoteFile], folder: Path) -> None:
    """Refuse to begin downloads that the disk cannot hold; what came of them before counts as there."""
    parts = [partial_path(file, folder) for file in files]
    needed = sum(file.size for file in files) - sum(part.stat().st_size for part in parts if part.is_file())
    there = next(each for each in (folder.resolve(), *folder.resolve().parents) if each.is_dir())
    if (free := shutil.disk_usage(there).free) < needed:
        raise ArtifactError(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")
