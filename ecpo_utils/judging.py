"""Stages of notebooks 04 and 05, and of `ecpo judge`: systems of a run against the expert, released logs, damaged dialogues, two files."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from .core.artifacts import load_resumable, write_json, write_jsonl
from .core.errors import ArtifactError
from .core.schema import Domain, Verdict
from .evaluate.damage import FLAWS, SEVERITIES, damage
from .evaluate.judges import Judge, Pair, make_judge
from .evaluate.tables import EXPERT, Played
from .evaluate.transcripts import Transcript, cut_at_line_break, load_transcripts, pair_transcripts, trajectory_transcript
from .evaluate.verdicts import judge_pairs, load_verdicts, rule_verdicts
from .run import Run
from .simulation import BACKBONES, load_played

T = TypeVar("T")
Verdicts = Mapping[Any, "Sequence[Verdict] | Verdicts"]  # by system, flaw or domain, or by one and then the other
EXPERT_LOG = "actcrs_gpt"  # the released log of the expert: ActCRS on GPT-4o mini


@contextlib.asynccontextmanager
async def open_judge(run: Run, *, private: bool = False) -> AsyncIterator[Judge]:
    """The judge of a run's parameters, with the server it needs; `private` where it reads files that are not the run's."""
    async with run.clients("judge", private=private) as clients:
        yield make_judge(run.params.judge_mode, clients["judge"], max_words=run.params.judge_max_words)


def sample_tasks(values: Sequence[T], num: int, seed: int) -> list[T]:
    """So many values, drawn by `seed`, in their old order; all of them where there are no more (0: all)."""
    if not 0 < num < len(values):
        return list(values)
    return [values[i] for i in sorted(random.Random(seed).sample(range(len(values)), num))]


async def judge_systems(
    run: Run, played: Played, comparisons: Sequence[tuple[str, str]]
) -> dict[Domain, dict[tuple[str, str], list[Verdict]]]:
    """Hold systems of a run against each other; writes `verdicts/A_vs_B.jsonl`, resumes, pays for no call twice.

    Args:
        run: The open run.
        played: Per domain and system the trajectories on the same tasks.
        comparisons: Names (first, second); the first one's win rate is asked for.
    """
    found: dict[Domain, dict[tuple[str, str], list[Verdict]]] = {domain: {} for domain in played}
    async with open_judge(run) as judge:
        for domain, first, second, pairs in _system_pairs(played, comparisons):
            path = run.paths.verdicts(domain, first, second)
            found[domain][first, second] = await judge_pairs(judge, pairs, first=first, second=second, path=path, keep_others=True)
    return found


def load_judged(
    run: Run, played: Played, comparisons: Sequence[tuple[str, str]], notebook: str
) -> dict[Domain, dict[tuple[str, str], list[Verdict]]]:
    """What `judge_systems` found in an earlier notebook; arguments as there.

    Raises:
        ArtifactError: If a file is missing, or lacks a verdict on these very dialogues; names `notebook`.
    """
    found: dict[Domain, dict[tuple[str, str], list[Verdict]]] = {domain: {} for domain in played}
    for domain, first, second, pairs in _system_pairs(played, comparisons):
        path = run.need(run.paths.verdicts(domain, first, second), notebook)
        found[domain][first, second] = load_verdicts(path, pairs, notebook)
    return found


def _system_pairs(played: Played, comparisons: Sequence[tuple[str, str]]) -> Iterator[tuple[Domain, str, str, list[Pair]]]:
    for domain, systems in played.items():
        spoken = {name: [trajectory_transcript(row) for row in rows] for name, rows in systems.items()}
        for first, second in comparisons:
            yield domain, first, second, pair_transcripts(spoken[first], spoken[second], names=(first, second))


def framework_comparisons(frameworks: Sequence[str]) -> list[tuple[str, str]]:
    """Who is held against whom: everyone against the expert's ActCRS (Table 1), small backbones against their experts (Table 4)."""
    systems = [f"{framework}_{backbone}" for backbone in BACKBONES for framework in frameworks]
    table1 = [(system, EXPERT) for system in systems if system != EXPERT] if "actcrs" in frameworks else []
    table4 = [(f"{framework}_base", f"{framework}_expert") for framework in frameworks]
    return list(dict.fromkeys([*table1, *table4]))


async def judge_released(run: Run) -> dict[str, dict[str, list[Verdict]]]:
    """Every released log against the expert's, on `num_judge_pairs` of the tasks that all logs share, dialogues whole and cut.

    Returns:
        By "whole", "cut" (at the first line break, as the release's script judged them) and "rule" (whole
        ones by `rule_verdicts`, which costs nothing: on all shared tasks), and log; empty where `release_dir` is not set.

    Raises:
        ArtifactError: If `release_dir` is set and holds no logs.
    """
    if not run.params.release_dir:
        return {}
    folder = Path(run.params.release_dir) / "test_log" / "book"
    logs = {path.stem: load_transcripts(path) for path in sorted(folder.glob("*.log"))}
    if EXPERT_LOG not in logs:
        raise ArtifactError(f"{folder} holds no {EXPERT_LOG}.log; set release_dir to the folder that holds the release's test_log/")
    expert = logs.pop(EXPERT_LOG)
    shared = set.intersection(*({t.task_id for t in log} for log in [expert, *logs.values()]))
    chosen = set(sample_tasks(sorted(shared), run.params.num_judge_pairs, run.params.seed))
    found: dict[str, dict[str, list[Verdict]]] = {"whole": {}, "cut": {}, "rule": {}}
    async with open_judge(run) as judge:
        for name, log in logs.items():
            all_shared = [pair for pair in pair_transcripts(log, expert, names=(name, EXPERT_LOG)) if pair[0].task_id in shared]
            whole = [pair for pair in all_shared if pair[0].task_id in chosen]
            cut = [(cut_at_line_break(one), cut_at_line_break(other)) for one, other in whole]
            for form, pairs in (("whole", whole), ("cut", cut)):
                path = run.paths.verdicts("book", f"released_{form}_{name}", EXPERT_LOG)
                found[form][name] = await judge_pairs(judge, pairs, first=name, second=EXPERT_LOG, path=path)
            found["rule"][name] = rule_verdicts(all_shared, first=name, second=EXPERT_LOG)
            write_jsonl(run.paths.verdicts("book", f"released_rule_{name}", EXPERT_LOG), found["rule"][name])
    return found


def load_originals(run: Run) -> list[Transcript]:
    """Dialogues of the expert's ActCRS in notebook 03, the first `num_judge_pairs` of each domain that hold two replies or more.

    Raises:
        ArtifactError: If none does, for a reply cannot be repeated then.
    """
    found = []
    for systems in load_played(run, [EXPERT], run.domains, "03_simulation", limit="num_simulation_tasks").values():
        told = [t for t in map(trajectory_transcript, systems[EXPERT]) if len(t.replies) > 1]
        found += told[: run.params.num_judge_pairs or None]
    if not found:
        files = " and ".join(str(run.paths.trajectories(domain, EXPERT)) for domain in run.domains)
        raise ArtifactError(
            f"no dialogue of {files} holds two replies, as flaws to plant need; run notebook 03_simulation with max_turns of 2 or more, "
            "and look at the 'error' of its dialogues"
        )
    return found


def _damaged_pairs(run: Run, originals: Sequence[Transcript]) -> dict[tuple[str, str], list[Pair]]:
    """Originals with their damaged twins, by (flaw, severity), and with themselves as ("none", "none")."""
    cases: dict[tuple[str, str], list[Pair]] = {("none", "none"): [(original, original) for original in originals]}
    for flaw in FLAWS:
        for severity in SEVERITIES:
            damaged = [
                (original, damage(original, flaw, severity, others=_of_others(originals, i), seed=run.params.seed))
                for i, original in enumerate(originals)
            ]
            cases[flaw, severity] = [(original, changed) for original, changed in damaged if changed]
    return cases


def _of_others(originals: Sequence[Transcript], index: int) -> list[Transcript]:
    """The dialogues of other users than the one at `index`, the next ones first, so that each lends to few."""
    return [other for other in [*originals[index + 1 :], *originals[:index]] if other.user != originals[index].user]


async def judge_damaged(run: Run, originals: Sequence[Transcript]) -> dict[tuple[str, str], list[Verdict]]:
    """Originals against themselves with planted flaws, by (flaw, severity), and against themselves as ("none", "none").

    Writes `planted_flaws/FLAW_SEVERITY.jsonl`, without a row where no dialogue can be damaged so.
    """
    cases = _damaged_pairs(run, originals)
    async with open_judge(run) as judge:
        return {
            case: await judge_pairs(judge, pairs, first="original", second="_".join(case), path=run.paths.planted(*case))
            for case, pairs in cases.items()
        }


def load_damaged(run: Run, originals: Sequence[Transcript]) -> dict[tuple[str, str], list[Verdict]]:
    """What `judge_damaged` found in notebook 05.

    Raises:
        ArtifactError: If a file is missing, or lacks a verdict on these very dialogues.
    """
    notebook = "05_judge_validation"
    cases = _damaged_pairs(run, originals)
    return {case: load_verdicts(run.need(run.paths.planted(*case), notebook), pairs, notebook) for case, pairs in cases.items()}


def rule_damaged(run: Run, originals: Sequence[Transcript]) -> dict[tuple[str, str], list[Verdict]]:
    """The same pairs by `rule_verdicts`, without any model; writes `planted_flaws/rule_FLAW_SEVERITY.jsonl`."""
    found = {}
    for case, pairs in _damaged_pairs(run, originals).items():
        found[case] = rule_verdicts(pairs, first="original", second="_".join(case))
        write_jsonl(run.paths.planted("rule", "_".join(case)), found[case])
    return found


def save_reliability(run: Run, note: str, judged: Verdicts) -> Path:
    """Write the line that notebooks with a win rate quote, with what it rests on and whose verdicts; returns the file."""
    return write_json(run.paths.reliability, {"note": note, "judges": _judges(judged), **run.provenance()})


def find_reliability(run: Run) -> Path:
    """What notebook 05 wrote, for the domain of the run or else for all.

    Raises:
        ArtifactError: If it was not run yet.
    """
    own = run.paths.reliability
    return own if own.is_file() else run.need(replace(run.paths, scope="all").reliability, "05_judge_validation")


def load_reliability(run: Run, judged: Verdicts) -> str:
    """The line that notebook 05 wrote; of verdicts of another judge, or of one that was changed since, it says nothing.

    Args:
        run: The open run.
        judged: Verdicts that stand beside the line.

    Raises:
        ArtifactError: If notebook 05 was not run yet.
    """
    checked = json.loads(find_reliability(run).read_text(encoding="utf-8"))
    if not set(_judges(judged)) <= set(checked.get("judges", [])):
        return "this judge was not checked; run notebooks/05_judge_validation.ipynb with the same parameters"
    return checked["note"]


def _judges(judged: Verdicts) -> list[str]:
    """Whose verdicts these are, by the digests that they hold."""
    parts = (_judges(part) if isinstance(part, Mapping) else [verdict.judge for verdict in part] for part in judged.values())
    return sorted({judge for part in parts for judge in part})


async def judge_files(
    run: Run, first: Path, second: Path, *, num_pairs: int = 0, cut: bool = False, out: Path | None = None
) -> tuple[list[Verdict], int]:
    """Two files of dialogues on the same tasks, as `ecpo judge` compares them.

    Args:
        run: The open run.
        first: Whose win rate is asked for; `second` the other file.
        num_pairs: So many pairs, drawn by the run's seed; 0 for all.
        cut: Whether dialogues end at their first line break.
        out: Where the verdicts are written as they come; what it holds already is not judged again.

    Returns:
        The verdicts, and the number of tasks that only one of the files has.

    Raises:
        ArtifactError, SchemaError: If a file cannot be read, or the two share no task, or `out` cannot be written, is one of
            the two or holds verdicts on these tasks that rest on something else: before any call.
    """
    sides = load_transcripts(first), load_transcripts(second)
    if out and (out.suffix == ".gz" or (out.exists() and (out.samefile(first) or out.samefile(second)))):
        raise ArtifactError(f"{out} cannot hold the verdicts; name a .jsonl file other than those that are judged")
    pairs = pair_transcripts(*sides, names=(str(first), str(second)))
    not_shared = sum(map(len, sides)) - 2 * len(pairs)
    pairs = sample_tasks(pairs, num_pairs, run.params.seed)
    if cut:
        pairs = [(cut_at_line_break(one), cut_at_line_break(other)) for one, other in pairs]
    async with open_judge(run, private=True) as judge:
        if out:
            _expect_own_verdicts(out, judge, pairs)
        return await judge_pairs(judge, pairs, first=first.stem, second=second.stem, path=out, keep_others=True), not_shared


def _expect_own_verdicts(path: Path, judge: Judge, pairs: Sequence[Pair]) -> None:
    """Nobody's verdicts are dropped for those of another comparison."""
    configs = {pair[0].task_id: judge.config(pair) for pair in pairs}
    for row in load_resumable(path, Verdict):
        if row.judge != judge.identity or configs.get(row.task_id, row.config) != row.config:
            raise ArtifactError(f"{path} holds verdicts of another judge or on other dialogues ({row.task_id}); name another file")
