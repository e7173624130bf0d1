"""Names of all folders and files. Nothing here creates any."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def repository_root() -> Path:
    """The checkout: the nearest folder upwards from the working directory, else from this package,
    that holds `params/models.yaml`."""
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "params" / "models.yaml").is_file():
                return folder
    return Path.cwd()


def cache_root() -> Path:
    """Weights and running servers: `$ECPO_CACHE`, else `$XDG_CACHE_HOME/ecpo`, else `~/.cache/ecpo`."""
    if value := os.environ.get("ECPO_CACHE"):
        return Path(value).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "ecpo"


def add_suffix(stem: Path, suffix: str) -> Path:
    """STEM + suffix. A stem may hold a dot, as `03_simulation.book` does, where `with_suffix` would cut it."""
    return stem.with_name(stem.name + suffix)


@dataclass(frozen=True)
class RunPaths:
    """Files of one run, `runs/PROFILE/...`. Paper sections read and write only these."""

    root: Path
    profile: str
    variant: str = ""  # digest of parameters that differ from the profile's file; such a run has a folder of its own
    scope: str = "all"  # one domain, or "all" of the profile

    @property
    def run(self) -> Path:
        return self.root / "runs" / (f"{self.profile}.{self.variant}" if self.variant else self.profile)

    def fallback(self, path: Path) -> Path:
        """The same file of the profile's own run: what a variant reads of stages that it did not run itself."""
        return self.root / "runs" / self.profile / path.relative_to(self.run)

    @property
    def _suffix(self) -> str:
        return "" if self.scope == "all" else f".{self.scope}"

    @property
    def responses(self) -> Path:
        """Cache of chat answers, shared by all profiles: its keys are contents."""
        return self.root / "runs" / "responses.sqlite"

    @property
    def calls(self) -> Path:
        return self.run / "calls.jsonl"

    @property
    def private_calls(self) -> Path:
        """Calls about files that are not the run's; answers to them are not published."""
        return self.run / "private_calls.jsonl"

    def domain(self, domain: str) -> Path:
        return self.run / domain

    def items(self, domain: str) -> Path:
        return self.domain(domain) / "items.jsonl"

    def data(self, domain: str) -> Path:
        """What notebook 01 counted and probed."""
        return self.domain(domain) / "data.jsonl"

    def index(self, domain: str) -> Path:
        return self.domain(domain) / "items.faiss"

    def summaries(self, domain: str) -> Path:
        """What the item database and the tasks have in place of raw descriptions."""
        return self.domain(domain) / "summaries.jsonl"

    def personas(self, domain: str, source: str = "ailo") -> Path:
        name = "personas.jsonl" if source == "ailo" else f"personas.{source}.jsonl"
        return self.domain(domain) / name

    def tasks(self, domain: str, split: str) -> Path:
        return self.domain(domain) / f"tasks.{split}.jsonl"

    def trajectories(self, domain: str, name: str) -> Path:
        return self.domain(domain) / "trajectories" / f"{name}.jsonl"

    def examples(self, domain: str, name: str) -> Path:
        return self.domain(domain) / "examples" / f"{name}.jsonl"

    def rewrites(self, domain: str, name: str) -> Path:
        """All replies that went to the rewriter, with what became of them."""
        return self.domain(domain) / "rewrites" / f"{name}.jsonl"

    def pairs(self, domain: str, name: str) -> Path:
        return self.domain(domain) / "pairs" / f"{name}.jsonl"

    def adapter(self, domain: str, name: str) -> Path:
        """Folder of a LoRA adapter in PEFT's layout; vLLM serves it under the folder's name."""
        return self.domain(domain) / "adapters" / name

    def divergence(self, domain: str) -> Path:
        """How far the preference adapters lie from the SGPT policy."""
        return self.domain(domain) / "divergence.jsonl"

    @property
    def chats(self) -> Path:
        """Folder of dialogues with a human; no stage reads it."""
        return self.run / "chats"

    def verdicts(self, domain: str, first: str, second: str) -> Path:
        return self.domain(domain) / "verdicts" / f"{first}_vs_{second}.jsonl"

    def planted(self, flaw: str, severity: str) -> Path:
        """Verdicts on dialogues of the scope's domains against themselves with a planted flaw."""
        return self.run / "planted_flaws" / f"{flaw}_{severity}{self._suffix}.jsonl"

    @property
    def separation(self) -> Path:
        """Confirmations of the written pairs with planted flaws."""
        return self.run / "separation.jsonl"

    @property
    def reliability(self) -> Path:
        return self.run / f"judge_reliability{self._suffix}.json"

    def figure(self, name: str) -> Path:
        """Stem of a figure or table; the writer adds .png, .pdf, .csv and .json."""
        return self.run / "figures" / f"{name}{self._suffix}"

    def manifest(self, notebook: str) -> Path:
        return self.run / "manifests" / f"{notebook}{self._suffix}.json"

    def executed(self, notebook: str, scope: str = "all") -> Path:
        suffix = "" if scope == "all" else f".{scope}"
        return self.run / "notebooks" / f"{notebook}{suffix}.ipynb"

    def running(self, notebook: str, scope: str = "all") -> Path:
        """The executed copy while it runs, and for reading after it failed."""
        return self.run / "notebooks" / "unfinished" / self.executed(notebook, scope).name

    def log(self, notebook: str, scope: str = "all") -> Path:
        return self.run / "logs" / self.executed(notebook, scope).with_suffix(".log").name
