"""What a training costs beside TRL by itself, on the same rows with the same LoRA adapter in the same number format.

    python benchmarks/training.py [--profile cpu] [--domain book] [--dialogues 4] [--pairs 4] [--repeats 1]

The rows are the first ones of a run (`ecpo restore --profile cpu` brings the published one). TRL's own run has the settings of the
profile and else its defaults: one row for each action of a dialogue, the reference model beside each step. Both trainings are one
epoch, in a process of their own, with the loading of the model. Tokens are those of the rows as TRL's own run reads them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from table import Row, peak_bytes, print_table

from ecpo_utils.core.artifacts import load_jsonl
from ecpo_utils.core.params import Params, load_profile
from ecpo_utils.core.paths import RunPaths, repository_root
from ecpo_utils.core.schema import PreferencePair, SFTExample
from ecpo_utils.method.backbone import add_adapter, load_adapter, load_backbone
from ecpo_utils.method.sequences import tokens
from ecpo_utils.method.trainers import TrainingSet
from ecpo_utils.method.training import train_adapter

Rows = Sequence[SFTExample | PreferencePair]


def train_here(method: str, params: Params, rows: Rows, start: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train_adapter(method, params, TrainingSet(rows), Path(folder) / method, start=start)


def train_bare(method: str, params: Params, rows: Rows, start: Path | None) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    model, tokenizer = load_backbone(params.cra.model)
    model = load_adapter(model, params.cra.model, start) if start else add_adapter(model, params)
    config, trainer = (SFTConfig, SFTTrainer) if method == "sft" else (DPOConfig, DPOTrainer)
    columns = ("prompt", "completion") if method == "sft" else ("prompt", "chosen", "rejected")
    names = ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length")
    options = {name: getattr(params, f"{method}_{name}") for name in names}
    if method == "sft":  # of joined dialogues; by itself TRL steps after as many actions
        options["gradient_accumulation_steps"] *= round(len(rows) / len({row.task_id for row in rows}))
    with tempfile.TemporaryDirectory() as folder:
        trainer(
            model=model,
            args=config(output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", **options),
            train_dataset=Dataset.from_list([{name: getattr(row, name) for name in columns} for row in rows]),
            processing_class=tokenizer,
        ).train()


def measured(train: Callable[[], None]) -> tuple[float, float]:
    """Seconds and peak bytes of a training in this process."""
    began = time.perf_counter()
    train()
    return time.perf_counter() - began, peak_bytes()


def num_tokens(params: Params, rows: Rows) -> int:
    """Tokens that TRL's own run reads in an epoch."""
    _, tokenizer = load_backbone(params.cra.model)
    return sum(len(tokens(tokenizer, [*row.prompt, *answer])) for row in rows for answer in _answers(row))


def _answers(row: SFTExample | PreferencePair) -> tuple:
    return (row.completion,) if isinstance(row, SFTExample) else (row.chosen, row.rejected)


def compare(method: str, params: Params, rows: Rows, start: Path | None, repeats: int) -> list[Row]:
    found = {}
    for name, train in [("TRL by itself", train_bare), ("this study", train_here)] * repeats:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found.setdefault(name, []).append(pool.submit(measured, partial(train, method, params, rows, start)).result())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        count = pool.submit(num_tokens, params, rows).result()
    seconds = {name: median(run[0] for run in runs) for name, runs in found.items()}
    per_second = [Row(f"{method}: tokens per second, {name}", count / each, "", f"{each:.0f} s") for name, each in seconds.items()]
    ratio = Row(f"{method}: times as fast", seconds["TRL by itself"] / seconds["this study"], "over 1", f"{len(rows)} rows, {count} tokens")
    return [*per_second, ratio, *(Row(f"{method}: GB, {name}", max(run[1] for run in runs) / 1e9, "") for name, runs in found.items())]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--domain", default="book")
    parser.add_argument("--dialogues", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1, help="the median is shown")
    options = parser.parse_args(arguments)
    root = repository_root()
    once = {"sft_num_train_epochs": 1.0, "dpo_num_train_epochs": 1.0, "dpo_sft_weight": 0.0}
    params = load_profile(root / f"params/{options.profile}.yaml").model_copy(update=once)
    paths = RunPaths(root, options.profile)
    examples = load_jsonl(paths.examples(options.domain, "sgpt"), SFTExample)
    dialogues = [list(rows) for _, rows in groupby(examples, key=lambda row: row.task_id)][: options.dialogues]
    pairs = load_jsonl(paths.pairs(options.domain, "sgpt"), PreferencePair)[: options.pairs]
    rows = compare("sft", params, [row for dialogue in dialogues for row in dialogue], None, options.repeats)
    rows += compare("dpo", params, pairs, paths.adapter(options.domain, "sgpt"), options.repeats)
    print_table("training", rows)
    return rows


if __name__ == "__main__":
    main()
