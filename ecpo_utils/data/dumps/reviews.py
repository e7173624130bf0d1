"""One pass over a review file: the reviews of a share of the users go to a columnar spill, faulty lines get a second look."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
from tqdm import tqdm

from ...core.artifacts import digest, write_json, writing
from ...core.errors import SchemaError
from ..fields import plain_text
from .engine import Engine, quoted, raw_lines
from .kinds import Kind
from .lines import read_object, review_notes
from .rejects import Rejects
from .sources import DumpSource
from .unpack import BLANK_LINE, Piece, Unpacker, fill_blank_lines

DIRECT_FROM_BYTES = 1 << 26  # a smaller file is read with care at once, which then costs nothing


@dataclass
class Spill:
    """Where a pass stands: what it wrote, and how far it came.

    Attributes:
        parts: Parquet files of sound reviews, with columns line, sound, and the source's.
        end: Bytes of the unpacked dump that are in them; `num_lines` likewise.
        careful: Whether lines were counted and faulty ones looked at; otherwise the file had none.
        done: Whether the pass came to the file's end.
    """

    share: float
    parts: list[Path] = field(default_factory=list)
    end: int = 0
    num_lines: int = 0
    careful: bool = True
    done: bool = False
    rejects: Rejects = field(default_factory=Rejects)


@dataclass
class ReviewPass:
    """A review file, and the folder in which its spill and its state are kept until the build is done."""

    engine: Engine
    source: DumpSource
    path: Path
    kind: Kind
    folder: Path
    seed: int

    def run(self, share: float, *, careful: bool = False) -> Spill:
        """Reviews of all users whose hash lies in `share`; a pass that was stopped goes on where its last piece ended.

        A large plain file is read by the engine as it lies on disk. If a line of it is faulty, or with `careful`, and
        for all other files, the text is read in pieces whose lines are counted.

        Raises:
            ArtifactError: If a file cannot be read or written.
        """
        stat = self.path.stat()
        key = digest([str(self.path), stat.st_size, stat.st_mtime_ns, self.source.label, share, self.seed, duckdb.__version__])
        spill = self._load(key, share, careful)
        if spill.done:
            return spill
        direct = self.kind.plain and not careful and not spill.parts and stat.st_size >= DIRECT_FROM_BYTES
        with tqdm(total=stat.st_size, desc=f"{self.path.name}", unit="B", unit_scale=True, mininterval=0.5) as progress:
            if direct:
                read = self._read_direct(share, progress)
                if read.done:
                    self._save(key, read)
                    return read
                progress.reset()
            self._read_pieces(spill, key, progress)
        return spill

    def _read_direct(self, share: float, progress: tqdm) -> Spill:
        part = self.folder / "direct.parquet"
        self.folder.mkdir(parents=True, exist_ok=True)
        read = self.engine.copy_reviews(self.source, self.path, part, share=share, seed=self.seed, numbered=False, progress=progress)
        faulty = self.engine.rows(f"SELECT count(*) FROM read_parquet({quoted(part)}) WHERE NOT sound")[0][0]
        return Spill(share, [part], num_lines=read, careful=False, done=not faulty)

    def _read_pieces(self, spill: Spill, key: str, progress: tqdm) -> None:
        unpacker = Unpacker(self.path, self.kind, self.source, "reviews", progress.update)
        with contextlib.closing(unpacker.pieces(self.folder, skip=spill.end)) as pieces:
            for piece in pieces:
                self._read_piece(spill, piece)
                self._save(key, spill)
        if unpacker.damage:
            spill.rejects.add(self.path, spill.num_lines + 1, f"{unpacker.damage}; what stood behind this line is lost")
        spill.done = True
        self._save(key, spill)

    def _read_piece(self, spill: Spill, piece: Piece) -> None:
        number = len(spill.parts)
        part, fixed = self.folder / f"part-{number:05d}.parquet", self.folder / f"part-{number:05d}.fixed.jsonl"
        options = {"share": spill.share, "seed": self.seed}
        if self.engine.copy_reviews(self.source, piece.path, part, numbered=True, **options) != piece.num_lines:
            fill_blank_lines(piece.path)
            self.engine.copy_reviews(self.source, piece.path, part, numbered=True, **options)
        faulty = [line for (line,) in self.engine.rows(f"SELECT line FROM read_parquet({quoted(part)}) WHERE NOT sound ORDER BY line")]
        with writing(fixed), open(fixed, "w", encoding="utf-8") as file:
            for line, raw in raw_lines(piece.path, faulty):
                if raw != BLANK_LINE and (row := self._second_look(spill, spill.num_lines + line, raw)):
                    file.write(json.dumps({"line": line, **row}) + "\n")
        repaired = part.with_suffix(".repaired.parquet")
        self.engine.copy_repaired(self.source, fixed, repaired, **options)
        files = f"[{quoted(part)}, {quoted(repaired)}]"
        both = f"SELECT line + {spill.num_lines} AS line, * EXCLUDE (line) FROM read_parquet({files}) WHERE sound"
        merged = part.with_suffix(".merged.parquet")
        self.engine.rows(f"COPY ({both}) TO {quoted(merged)} (FORMAT parquet, COMPRESSION snappy)")
        for path in (part, fixed, repaired):
            path.unlink()
        spill.parts.append(merged)
        spill.end, spill.num_lines = piece.end, spill.num_lines + piece.num_lines

    def _second_look(self, spill: Spill, line: int, raw: bytes) -> dict | None:
        """The values of a faulty line if it can be repaired; either way it is counted."""
        sample = raw[:200].decode("utf-8", "replace")
        try:
            row, notes = read_object(raw)
            review = self.source.parse_review(row, "line")
        except SchemaError as error:
            spill.rejects.add(self.path, line, str(error).removeprefix("line: "), sample)
            return None
        for note in (*notes, *review_notes(row, self.source.texts)):
            spill.rejects.add(self.path, line, note, sample, kept=True)
        columns = self.source.review_columns
        values = {key: plain_text(row.get(key), key, "line") for key, kind in columns.items() if kind == "VARCHAR"}
        times = {"timestamp": review.timestamp_ms} if "timestamp" in columns else {}
        return {**values, self.source.rating: review.rating, **times}

    def _load(self, key: str, share: float, careful: bool) -> Spill:
        """The state of an earlier pass over the same file with the same options, or a fresh one."""
        try:
            state = json.loads((self.folder / "reviews.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Spill(share)
        parts = [self.folder / name for name in state.get("parts", [])]
        if state.get("key") != key or careful and not state["careful"] or not all(part.is_file() for part in parts):
            return Spill(share)
        return Spill(share, parts, state["end"], state["num_lines"], state["careful"], state["done"], Rejects.load(state["rejects"]))

    def _save(self, key: str, spill: Spill) -> None:
        state = {"key": key, "parts": [part.name for part in spill.parts], "rejects": spill.rejects.dump()}
        state |= {name: getattr(spill, name) for name in ("end", "num_lines", "careful", "done")}
        write_json(self.folder / "reviews.json", state)
