"""Stages of notebooks 06 to 11, and of `ecpo train` and `ecpo export`: the expert's successes, SGPT, rewriting, preference optimization."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from .core.artifacts import load_jsonl, write_jsonl, write_text
from .core.errors import ArtifactError
from .core.params import Params
from .core.schema import Domain, Item, PreferencePair, Rewrite, SFTExample, Task, Trajectory, Verdict
from .dialogue.agents.actions import parse_action
from .dialogue.agents.base import SYSTEM_ERROR
from .dialogue.confirmation import Confirmer
from .dialogue.retrieval import Embedder
from .evaluate.cases import Case
from .evaluate.judges import Pair
from .evaluate.statistics import Rate, mean, proportion
from .evaluate.tables import EXPERT, Played, rate_columns
from .evaluate.transcripts import Transcript
from .evaluate.verdicts import judge_pairs, load_verdicts
from .judging import load_judged, open_judge, sample_tasks
from .method.divergence import PairDivergence, compare_policies
from .method.export import export_model, export_sharegpt, export_trl
from .method.rewriting import build_pairs, rewrite_turns, spoken_before
from .method.search_pairs import search_pairs
from .method.sgpt import build_sft_examples, draw_validation_users, split_by_user
from .method.trainers import TrainingSet
from .method.training import load_history, train_adapter
from .run import Run
from .simulation import ZERO_SHOT, Entry, find_adapter, load_played, play

SGPT = "actcrs_sgpt"
MAX_COMPARED = 20  # pairs on which policies are compared
# the tuned agents: name of the system and of its adapter; all run zero-shot
TUNED = {SGPT: "sgpt", "actcrs_ecpo": "dpo", "actcrs_kto": "kto", "actcrs_simpo": "simpo"}


def domains_to_tune(run: Run) -> list[Domain]:
    """The domains of the run in which a backbone is tuned.

    Raises:
        ParamsError: If there are none.
    """
    return run.domains_among("tuning_domains")


async def play_expert(run: Run) -> Played:
    """The expert's ActCRS on the SGPT tasks, few-shot. Paper: section B.3."""
    return await play(run, [Entry("actcrs_expert.sgpt", role="expert")], domains_to_tune(run), split="sgpt")


async def play_tuned(run: Run, names: Sequence[str], *, split: str = "test") -> Played:
    """Tuned agents of `TUNED` on a split's tasks; on others than the test tasks the system is called NAME.SPLIT."""
    suffix = "" if split == "test" else f".{split}"
    roster = [Entry(f"{name}{suffix}", adapter=TUNED[name], options=ZERO_SHOT) for name in names]
    return await play(run, roster, domains_to_tune(run), split=split)


async def play_untuned(run: Run) -> Played:
    """The untuned small backbone on the test tasks, with and without the worked example."""
    roster = [Entry("actcrs_base"), Entry("actcrs_base_zero_shot", options=ZERO_SHOT)]
    return await play(run, roster, domains_to_tune(run))


def build_sgpt_sets(run: Run, played: Played) -> dict[Domain, TrainingSet]:
    """The supervised examples of each domain, validation by user; writes `examples/sgpt.jsonl`."""
    for domain, systems in played.items():
        write_jsonl(run.paths.examples(domain, "sgpt"), build_sft_examples([row for rows in systems.values() for row in rows]))
    return load_sgpt_sets(run)


def load_sgpt_sets(run: Run) -> dict[Domain, TrainingSet]:
    """The examples that notebook 06 wrote, validation by user."""
    return {domain: _split(run, domain, _load_examples(run, domain)) for domain in domains_to_tune(run)}


def train_sgpt(run: Run, sets: Mapping[Domain, TrainingSet]) -> dict[Domain, Path]:
    """The SGPT adapter of each domain."""
    return {domain: train_adapter("sft", run.params, rows, run.paths.adapter(domain, "sgpt")) for domain, rows in sets.items()}


async def rewrite_replies(run: Run, played: Played) -> dict[Domain, list[Rewrite]]:
    """Unsatisfactory replies of the SGPT agent, rewritten; writes `rewrites/sgpt.jsonl` and `pairs/sgpt.jsonl`."""
    found, verify = {}, run.params.verify_rewrites
    async with run.clients("rewriter", *(["simulator"] if verify else [])) as clients:
        confirmer = Confirmer(clients["simulator"], Embedder(run.params.embedder), run.params.simulator_mode) if verify else None
        for domain, systems in played.items():
            items = {item.item_id: item for item in load_jsonl(run.need(run.paths.items(domain), "01_environment"), Item)}
            rows = [row for each in systems.values() for row in each]
            path = run.paths.rewrites(domain, "sgpt")
            options = {"threshold": run.params.satisfaction_threshold, "path": path, "confirmer": confirmer}
            options |= {"mode": run.params.rewriter_mode, "reads": run.params.rewriter_reads}
            found[domain] = await rewrite_turns(rows, clients["rewriter"], items, **options)
            write_jsonl(run.paths.pairs(domain, "sgpt"), build_pairs(found[domain]))
    return found


async def judge_rewrites(run: Run, played: Played, rewrites: Mapping[Domain, Sequence[Rewrite]]) -> dict[Domain, list[Verdict]]:
    """Dialogues that end in the rewritten reply against the same ones that end in the original. Paper: Table 5."""
    found = {}
    async with open_judge(run) as judge:
        for domain, pairs in _rewritten_pairs(run, played, rewrites).items():
            path = run.paths.verdicts(domain, "rewritten", "original")
            found[domain] = await judge_pairs(judge, pairs, first="rewritten", second="original", path=path)
    return found


def load_judged_rewrites(run: Run, played: Played, rewrites: Mapping[Domain, Sequence[Rewrite]]) -> dict[Domain, list[Verdict]]:
    """What `judge_rewrites` found in notebook 08.

    Raises:
        ArtifactError: If a file is missing, or lacks a verdict on these very dialogues, or rewrites are of other dialogues.
    """
    found, notebook = {}, "08_rewriting"
    for domain, pairs in _rewritten_pairs(run, played, rewrites).items():
        found[domain] = load_verdicts(run.need(run.paths.verdicts(domain, "rewritten", "original"), notebook), pairs, notebook)
    return found


def _rewritten_pairs(run: Run, played: Played, rewrites: Mapping[Domain, Sequence[Rewrite]]) -> dict[Domain, list[Pair]]:
    """Dialogues that end in a rewritten and in the original reply, `num_judge_pairs` of each domain."""
    found = {}
    for domain, records in rewrites.items():
        turns = {(row.task_id, turn.index): row for each in played[domain].values() for row in each for turn in row.turns}
        kept = sample_tasks([r for r in records if r.dropped is None], run.params.num_judge_pairs, run.params.seed)
        if gone := [record for record in kept if (record.task_id, record.turn) not in turns]:
            raise ArtifactError(
                f"{run.paths.rewrites(domain, 'sgpt')}: the dialogue on {gone[0].task_id} was played anew; "
                "run notebooks/08_rewriting.ipynb again"
            )
        found[domain] = [_endings(turns[record.task_id, record.turn], record) for record in kept]
    return found


def load_preference_sets(run: Run) -> dict[Domain, TrainingSet]:
    """The pairs that notebook 08 wrote, validation by user."""
    pairs = {d: load_jsonl(run.need(run.paths.pairs(d, "sgpt"), "08_rewriting"), PreferencePair) for d in domains_to_tune(run)}
    return {domain: _split(run, domain, rows) for domain, rows in pairs.items()}


def train_preferences(run: Run, sets: Mapping[Domain, TrainingSet]) -> dict[Domain, dict[str, Path]]:
    """One adapter per preference method, each from the SGPT adapter and on the same pairs."""
    return {
        domain: {
            method: train_adapter(method, run.params, rows, run.paths.adapter(domain, method), start=find_adapter(run, domain, "sgpt"))
            for method in run.params.preference_methods
        }
        for domain, rows in sets.items()
    }


def measure_divergence(run: Run, sets: Mapping[Domain, TrainingSet], adapters: Mapping[Domain, Mapping[str, Path]]) -> pd.DataFrame:
    """Every preference adapter against the SGPT adapter: KL per token, margin, share of pairs with a positive one, log-probabilities.

    `shared_kept` is the share of pairs with a common beginning that the policy, decoding greedily, writes to its end: below
    `shared_kept_sgpt`, it changes what the pairs left alone.

    On the first pairs that it was trained on, on those of the validation users, and on searches against the reply that followed, of
    validation users if there are any: a policy that likes the reply better looks nothing up. Writes `divergence.jsonl`.
    """
    tables = []
    for domain, paths in adapters.items():
        rows, held_out = [], sets[domain].validation or sets[domain].train
        searches = search_pairs(held_out, _played(run, domain, f"{SGPT}.ecpo", "07_expectation_confirmation", "ecpo"))
        compared = {"train": sets[domain].train, "validation": sets[domain].validation, "searches": searches}
        for method, path in paths.items():
            for name, pairs in compared.items():
                if pairs:
                    found = compare_policies(run.params.cra.model, path, find_adapter(run, domain, "sgpt"), pairs[:MAX_COMPARED])
                    rows.append({"domain": domain, "method": method, "profile": run.label, "pairs": name} | _divergence(found))
        tables.append(pd.DataFrame(rows))
        lines = [json.dumps(row) + "\n" for row in tables[-1].to_dict("records")]  # pandas' own JSON rounds to ten digits
        write_text(run.paths.divergence(domain), "".join(lines))
    return pd.concat(tables, ignore_index=True)


def load_divergence(run: Run) -> pd.DataFrame:
    """What `measure_divergence` found."""
    paths = [run.need(run.paths.divergence(domain), "09_preference_optimization") for domain in domains_to_tune(run)]
    return pd.DataFrame([json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()])


def _divergence(found: Sequence[PairDivergence]) -> dict:
    return {
        "n": len(found),
        **rate_columns("kl_per_token", mean(each.kl_per_token for each in found)),
        **rate_columns("margin", mean(each.margin for each in found)),
        **rate_columns("chosen_preferred", proportion(sum(each.margin > 0 for each in found), len(found))),
        **rate_columns("chosen_likelier", proportion(sum(each.chosen_logp > each.rejected_logp for each in found), len(found))),
        **rate_columns("shared_kept", _share(each.keeps_shared for each in found)),
        **rate_columns("shared_kept_sgpt", _share(each.reference_keeps_shared for each in found)),
        "chosen_logp": sum(each.chosen_logp for each in found) / len(found),
        "rejected_logp": sum(each.rejected_logp for each in found) / len(found),
        "chosen_tokens": sum(each.chosen_tokens for each in found) / len(found),
        "rejected_tokens": sum(each.rejected_tokens for each in found) / len(found),
    }


def _share(values: Iterable[bool | None]) -> Rate:
    known = [value for value in values if value is not None]
    return proportion(sum(known), len(known))


def _history(run: Run, domain: Domain, name: str) -> dict:
    """`load_history` of an adapter.

    Raises:
        ArtifactError: If it was not trained yet, or from another SGPT adapter than the one that is there.
    """
    adapter, start = find_adapter(run, domain, name), find_adapter(run, domain, "sgpt")
    history = load_history(adapter)
    if name != "sgpt" and history["start"] != load_history(start)["digest"]:
        raise ArtifactError(f"{adapter} was trained from another adapter than {start}; run notebooks 07 to 09 again")
    return history


async def play_main(run: Run) -> Played:
    """Expert, untuned backbone and all tuned agents on the test tasks; what other notebooks played is kept. Paper: Table 1."""
    roster = [Entry(EXPERT, role="expert"), Entry("actcrs_base")]
    roster += [Entry(name, adapter=TUNED[name], options=ZERO_SHOT) for name in tuned_systems(run.params)]
    return await play(run, roster, domains_to_tune(run))


def main_comparisons(params: Params) -> list[tuple[str, str]]:
    """Everyone against the expert, and every preference method against SGPT."""
    tuned = tuned_systems(params)
    return [(name, EXPERT) for name in ("actcrs_base", *tuned)] + [(name, SGPT) for name in tuned if name != SGPT]


def cost_table(run: Run) -> pd.DataFrame:
    """What each stage of the training data took: units, calls, tokens, in all and per pair; then the trainings' seconds."""
    rows = []
    for domain in domains_to_tune(run):
        stages: dict[str, Sequence[Trajectory | Rewrite]] = {
            "expert dialogues": _played(run, domain, "actcrs_expert.sgpt", "06_sgpt", "sgpt"),
            "SGPT dialogues": _played(run, domain, f"{SGPT}.ecpo", "07_expectation_confirmation", "ecpo"),
            "rewrites": load_jsonl(run.need(run.paths.rewrites(domain, "sgpt"), "08_rewriting"), Rewrite),
        }
        num_pairs = sum(record.dropped is None for record in stages["rewrites"])
        for stage, records in stages.items():
            used = [usage for record in records for usage in record.usage.values()]
            counts = {
                "calls": sum(usage.calls for usage in used),
                "tokens": sum(usage.prompt_tokens + usage.completion_tokens for usage in used),
            }
            per_pair = {f"{name}_per_pair": value / num_pairs if num_pairs else None for name, value in counts.items()}
            rows.append({"domain": domain, "stage": stage, "units": len(records), **counts, **per_pair})
        for name in dict.fromkeys(TUNED[system] for system in tuned_systems(run.params)):
            history = _history(run, domain, name)
            seen = {"units": history["lengths"]["rows"], "seconds": history["seconds"], "tokens_per_second": history["tokens_per_second"]}
            rows.append({"domain": domain, "stage": f"training {name}", **seen})
    return pd.DataFrame(rows)


def load_cases(run: Run) -> list[Case]:
    """Each test task as the SGPT agent and as the agent of the first preference method played it, with the judge's verdict.

    Raises:
        ArtifactError: If notebook 10 was not run to its end, or dialogues were played anew since.
    """
    after = next(name for name, adapter in TUNED.items() if adapter == run.params.preference_methods[0])
    played = load_played(run, [SGPT, after], domains_to_tune(run), "10_main_results")
    judged = load_judged(run, played, [(after, SGPT)], "10_main_results")
    return [
        Case(old, new, [verdict for verdict in judged[domain][after, SGPT] if verdict.task_id == old.task_id])
        for domain, systems in played.items()
        for old, new in zip(systems[SGPT], systems[after], strict=True)
    ]


def _played(run: Run, domain: Domain, name: str, notebook: str, split: str) -> list[Trajectory]:
    return load_played(run, [name], [domain], notebook, split=split)[domain][name]


def export_merged(run: Run, domain: Domain, adapter: str, folder: Path) -> Path:
    """A domain's adapter merged into the backbone, or with "none" the backbone alone, as a model folder."""
    return export_model(run.params.cra.model, None if adapter == "none" else find_adapter(run, domain, adapter), folder)


def export_data(run: Run, domain: Domain, form: Literal["sharegpt", "trl"], folder: Path) -> list[Path]:
    """A domain's examples and pairs for LLaMA-Factory ("sharegpt") or TRL; pairs may be missing still."""
    path = run.paths.pairs(domain, "sgpt")
    pairs = load_jsonl(path, PreferencePair) if path.is_file() else []
    return (export_sharegpt if form == "sharegpt" else export_trl)(_load_examples(run, domain), pairs, folder)


def tuned_systems(params: Params) -> list[str]:
    """Names of the tuned agents of this run, SGPT first."""
    return [name for name, adapter in TUNED.items() if adapter == "sgpt" or adapter in params.preference_methods]


def _load_examples(run: Run, domain: Domain) -> list[SFTExample]:
    return load_jsonl(run.need(run.paths.examples(domain, "sgpt"), "06_sgpt"), SFTExample)


def _split(run: Run, domain: Domain, rows: Sequence[SFTExample | PreferencePair]) -> TrainingSet:
    """SGPT and the preference methods hold out the same users."""
    paths = [run.need(run.paths.tasks(domain, split), "02_persona_diversity") for split in ("sgpt", "ecpo")]
    users = {task.task_id: task.user_id for path in paths for task in load_jsonl(path, Task)}
    held_out = draw_validation_users(set(users.values()), share=run.params.validation_share, seed=run.params.seed)
    return TrainingSet(*split_by_user(rows, users, held_out))


def _endings(row: Trajectory, record: Rewrite) -> tuple[Transcript, Transcript]:
    """The dialogue up to a reply, once with the rewritten and once with the original one."""
    turn = row.turns[record.turn]
    before = spoken_before(row, turn)
    name = f"{row.task_id} turn {record.turn}"
    replies = parse_action(record.rewritten).argument, turn.reply or SYSTEM_ERROR
    one, other = (Transcript(name, (*before, {"role": "assistant", "content": reply})) for reply in replies)
    return one, other
