"""A run packed into `results/` and `figures/`, unpacked again, and its figures drawn from there without any model."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .core.artifacts import sha256_file, write_json, writing
from .core.errors import ArtifactError
from .core.params import load_profile
from .core.paths import RunPaths, add_suffix, repository_root
from .evaluate.figures import save_exhibit
from .exhibits import draw_exhibits
from .run import Run

# what notebooks, figures and later runs read; calls.jsonl, logs and indexes can be made again
ROWS = ("*/*.jsonl", "*/trajectories/*.jsonl", "*/examples/*.jsonl", "*/rewrites/*.jsonl", "*/pairs/*.jsonl", "*/verdicts/*.jsonl",
        "planted_flaws/*.jsonl", "separation.jsonl")  # fmt: skip
WHOLE = ("*/adapters/[!.]*/*", "judge_reliability*.json", "manifests/*.json")
CONTENTS = "contents.json"


def publish_run(profile: str) -> list[str]:
    """Pack `runs/PROFILE` into `results/PROFILE` and copy its figures to `figures/`; returns lines that say what was written.

    Raises:
        ArtifactError: If nothing has run yet, or a file cannot be written.
    """
    root = repository_root()
    paths, target = RunPaths(root, profile), root / "results" / profile
    if not any(_files(paths.run, ROWS)):
        raise ArtifactError(f"{paths.run} holds no rows; run: ecpo run --profile {profile}")
    new = target.with_name(f".{profile}.new")  # the earlier one stays until this one is whole
    with writing(target):
        shutil.rmtree(new, ignore_errors=True)
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
        packed = sorted(path for path in new.rglob("*") if path.is_file())
        write_json(new / CONTENTS, {str(path.relative_to(new)): sha256_file(path) for path in packed})
        size = sum(path.stat().st_size for path in packed) / 1e6
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
        figures = sorted((paths.run / "figures").glob("*"))
        (root / "figures").mkdir(exist_ok=True)
        for source in figures:
            shutil.copyfile(source, root / "figures" / source.name)
    return [f"results/{profile}: {len(packed)} files, {size:.1f} MB", f"figures: {len(figures)} files"]


def restore_run(profile: str, root: Path | None = None) -> int:
    """Unpack `results/PROFILE` into the run's folder under `root`, where a file is missing; returns how many were.

    Raises:
        ArtifactError: If nothing is published, or a file is not the one that was.
    """
    source = repository_root() / "results" / profile
    paths, restored = RunPaths(root or repository_root(), profile), 0
    for name, expected in _contents(source).items():
        packed, target = source / name, paths.run / name.removesuffix(".gz")
        if target.is_file():
            continue
        if not packed.is_file() or sha256_file(packed) != expected:
            raise ArtifactError(f"{packed} is not the file that was published; get it anew, or run: ecpo publish --profile {profile}")
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(gzip.decompress(packed.read_bytes()) if name.endswith(".gz") else packed.read_bytes())
        restored += 1
    return restored


def draw_published(profile: str) -> list[str]:
    """Draw `figures/` again from `results/PROFILE` alone; returns a line for each exhibit.

    Raises:
        ArtifactError: If nothing is published, or a file cannot be written.
    """
    root = repository_root()
    params, lines = load_profile(root / "params" / f"{profile}.yaml"), []
    with tempfile.TemporaryDirectory() as folder:
        restore_run(profile, Path(folder))
        drawn, missing = draw_exhibits(Run("figures", params, RunPaths(Path(folder), profile)))
        for name, (table, figure) in drawn.items():
            stem = root / "figures" / name
            rows = add_suffix(stem, ".csv")
            before = rows.read_text(encoding="utf-8") if rows.is_file() else None
            provenance = _provenance(stem, params.profile)
            title = provenance.pop("title", name)
            save_exhibit(stem, table, provenance, title=title, figure=figure)
            same = before == rows.read_text(encoding="utf-8")
            lines.append(f"{name}: {'the same numbers' if same else 'new' if before is None else 'other numbers than before'}")
    return [*lines, *(f"{name}: not drawn, {reason}" for name, reason in missing.items())]


def _provenance(stem: Path, profile: str) -> dict:
    """What was stated when the exhibit was made; a drawing changes nothing of it."""
    path = add_suffix(stem, ".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"notebook": stem.name[:2], "profile": profile}


def _files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())


def _contents(source: Path) -> dict[str, str]:
    try:
        return json.loads((source / CONTENTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(path.parent.name for path in source.parent.glob(f"*/{CONTENTS}"))) or "none"
        raise ArtifactError(f"nothing is published under {source}; there are: {known}") from None
