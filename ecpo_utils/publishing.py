"""A run packed into `results/` and `figures/`, unpacked again, and its figures drawn from there without any model."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .core.artifacts import iter_json_lines, iter_lines, replacing, sha256_file, write_json, writing
from .core.errors import ArtifactError
from .core.params import load_profile
from .core.paths import RunPaths, add_suffix, repository_root
from .evaluate.figures import save_exhibit
from .exhibits import draw_exhibits
from .llm.cache import ResponseCache
from .run import Run

# what notebooks, figures and later runs read; logs and indexes can be made again
ROWS = ("*/*.jsonl", "*/trajectories/*.jsonl", "*/examples/*.jsonl", "*/rewrites/*.jsonl", "*/pairs/*.jsonl", "*/verdicts/*.jsonl",
        "planted_flaws/*.jsonl", "separation.jsonl")  # fmt: skip
WHOLE = ("*/adapters/[!.]*/*", "judge_reliability*.json", "manifests/*.json")
CONTENTS = "contents.json"
ANSWERS = "answers"  # folder of what the models said, a file for each publication: a run under newer code replays from there


def publish_run(profile: str, *, replace: bool = False) -> list[str]:
    """Pack `runs/PROFILE` into `results/PROFILE` and copy its figures to `figures/`; returns lines that say what was written.

    Args:
        profile: Whose run.
        replace: Whether published files that the run no longer has are dropped.

    Raises:
        ArtifactError: If nothing has run yet, if a published file would be lost, or a file cannot be written.
    """
    root = repository_root()
    paths, target = RunPaths(root, profile), root / "results" / profile
    if not any(_files(paths.run, ROWS)):
        raise ArtifactError(f"{paths.run} holds no rows; run: ecpo run --profile {profile}")
    new, old = (target.with_name(f".{profile}.{name}") for name in ("new", "old"))  # the earlier one stays until this one is whole
    with writing(target):
        if old.is_dir() and not target.exists():  # an earlier publishing was stopped between its last two steps
            old.rename(target)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
        for source in _files(paths.run, ROWS):
            if source.parent == paths.chats:  # a person's own words
                continue
            packed = new / f"{source.relative_to(paths.run)}.gz"
            packed.parent.mkdir(parents=True, exist_ok=True)
            packed.write_bytes(gzip.compress(source.read_bytes(), mtime=0))  # the same rows are the same bytes
        for source in _files(paths.run, WHOLE):
            copy = new / source.relative_to(paths.run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        _pack_answers(paths, target / ANSWERS, new / ANSWERS)
        packed = sorted(path for path in new.rglob("*") if path.is_file())
        contents = {str(path.relative_to(new)): sha256_file(path) for path in packed}
        if not replace and (target / CONTENTS).is_file() and (lost := sorted(_contents(target).keys() - contents)):
            shutil.rmtree(new)
            raise ArtifactError(
                f"the run lacks {len(lost)} files that are published, {lost[0]} first; run: ecpo restore --profile {profile}, "
                f"or to drop them: ecpo publish --profile {profile} --replace"
            )
        write_json(new / CONTENTS, contents)
        size = sum(path.stat().st_size for path in packed) / 1e6
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        figures = sorted((paths.run / "figures").glob("*"))
        (root / "figures").mkdir(exist_ok=True)
        for source in figures:
            shutil.copyfile(source, root / "figures" / source.name)
    return [f"results/{profile}: {len(packed)} files, {size:.1f} MB", f"figures: {len(figures)} files"]


def restore_run(profile: str) -> tuple[int, int]:
    """Unpack `results/PROFILE` into the run's folder, where a file is missing, and its answers into the cache.

    Returns:
        How many files were missing, and how many answers.

    Raises:
        ArtifactError: If nothing is published, or a file is not the one that was.
    """
    root = repository_root()
    paths, source = RunPaths(root, profile), root / "results" / profile
    restored = _unpack(source, paths)
    with contextlib.closing(ResponseCache(paths.responses)) as cache:
        return restored, cache.add(answer for name, shard in _published(source) if _is_shard(name) for answer in _answers(shard))


def _unpack(source: Path, paths: RunPaths) -> int:
    """Put all files but the answers where a run has them, if they are missing there; returns how many were."""
    restored = 0
    for name, packed in _published(source):
        target = paths.run / name.removesuffix(".gz")
        if _is_shard(name) or target.is_file():
            continue
        with replacing(target) as temporary:
            temporary.write_bytes(gzip.decompress(packed.read_bytes()) if name.endswith(".gz") else packed.read_bytes())
        restored += 1
    return restored


def draw_published(profile: str) -> list[str]:
    """Draw `figures/` again from `results/PROFILE` alone; returns a line for each exhibit.

    Raises:
        ArtifactError: If nothing is published, or a file cannot be written.
    """
    root = repository_root()
    source, params, lines = root / "results" / profile, load_profile(root / "params" / f"{profile}.yaml"), []
    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths(Path(folder), profile)
        _unpack(source, paths)
        drawn, missing = draw_exhibits(Run("figures", params, paths))
        missing = {name: reason.replace(str(paths.run), str(source.relative_to(root))) for name, reason in missing.items()}
        for name, drawing in drawn.items():
            stem = root / "figures" / name
            rows = add_suffix(stem, ".csv")
            before = rows.read_text(encoding="utf-8") if rows.is_file() else None
            provenance = _provenance(stem, paths)
            if not provenance:
                missing[name] = f"notebook {name[:2]} had not come to its end when this was published"
                continue
            title = provenance.pop("title", name)
            save_exhibit(stem, drawing.table, provenance, title=title, figure=drawing.figure, page=drawing.page)
            same = before == rows.read_text(encoding="utf-8")
            lines.append(f"{name}: {'the same numbers' if same else 'new' if before is None else 'other numbers than before'}")
    return [*lines, *(f"{name}: not drawn, {reason}" for name, reason in missing.items())]


def _published(source: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of a publication; one that is not what was published is an ArtifactError."""
    for name, expected in _contents(source).items():
        packed = source / name
        if not packed.is_file() or sha256_file(packed) != expected:
            raise ArtifactError(f"{packed} is not the file that was published; get it anew, or run: ecpo publish --profile {source.name}")
        yield name, packed


def _is_shard(name: str) -> bool:
    return name.startswith(f"{ANSWERS}/")


def _pack_answers(paths: RunPaths, published: Path, new: Path) -> None:
    """Keep the published answers and add those that the run used since; a chat with a person has a log of its own."""
    if published.is_dir():
        shutil.copytree(published, new)
    shards = sorted(new.glob("*.gz"))
    known = {key[:16] for shard in shards for key, _ in _answers(shard)}
    used = {row["request"] for _, row in iter_json_lines(paths.calls)} if paths.calls.is_file() else set()
    with contextlib.closing(ResponseCache(paths.responses)) as cache:
        lines = [json.dumps([key, value], ensure_ascii=False) + "\n" for key, value in cache.select(used - known)]
    if lines:
        new.mkdir(parents=True, exist_ok=True)
        (new / f"{len(shards) + 1:03d}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def _answers(shard: Path) -> Iterator[tuple[str, dict]]:
    for _, line in iter_lines(shard):
        yield tuple(json.loads(line))


def _provenance(stem: Path, paths: RunPaths) -> dict:
    """What was stated when the exhibit was made, else what its notebook stated at its end; {} if it did not come to it.

    A drawing changes nothing of what was stated, unless another profile's stands there.
    """
    path = add_suffix(stem, ".json")
    stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stated.get("profile") == paths.profile:
        return stated
    manifests = sorted((paths.run / "manifests").glob(f"{stem.name[:2]}_*.json"))
    return json.loads(manifests[0].read_text(encoding="utf-8")) if manifests else {}


def _files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())


def _contents(source: Path) -> dict[str, str]:
    try:
        return json.loads((source / CONTENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(path.parent.name for path in source.parent.glob(f"*/{CONTENTS}"))) or "none"
        raise ArtifactError(f"nothing is published under {source}; there are: {known}") from None
    except json.JSONDecodeError as error:
        again = f"get it anew, or remove it and run: ecpo publish --profile {source.name}"
        raise ArtifactError(f"{source / CONTENTS} is broken ({error}); {again}") from None
