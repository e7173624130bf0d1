"""TRL's trainers for SFT, DPO, KTO and SimPO with this study's settings, and what these need beside them. Paper: section 2.4, Eq. 3."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import TrainingError
from ..core.params import Params
from ..core.schema import PreferencePair, SFTExample
from .backbone import trim_heap, weights_dtype
from .batches import BATCH, Method, choose_batch, prefix_of
from .sequences import TokenizedDialogue, completion_of, search_mask, tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
    from trl.trainer.dpo_trainer import DataCollatorForPreference

SAVE_STEPS = 10  # on two cores a step of DPO takes most of a minute
STEP_SECONDS = "step_seconds"  # key of a log line


@dataclass(frozen=True)
class TrainingSet:
    """Rows to train on, and rows of other users to watch the training with.

    Attributes:
        train: SFT examples for "sft", preference pairs for the others.
        validation: Of the same kind; may be empty.
    """

    train: Sequence[SFTExample | PreferencePair | TokenizedDialogue]
    validation: Sequence[SFTExample | PreferencePair | TokenizedDialogue] = ()


def preference_rows(method: Method, pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """Pairs as TRL's trainers take them: KTO wants two labelled completions for each pair, SimPO text.

    KTO reads its rows in order and takes the other rows of a batch for mismatched answers to a prompt, so the rejected reply
    beside a chosen one is that of another pair. SimPO's trainer ends an answer with the end mark, and would set a second one
    behind the line break with which many chat templates end.
    """
    if method == "simpo":
        return [_as_text(pair, tokenizer) for pair in pairs]
    if method == "dpo":
        return [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    half = len(pairs) // 2
    others = [*pairs[half:], *pairs[:half]]
    labelled = [((one.prompt, one.chosen, True), (other.prompt, other.rejected, False)) for one, other in zip(pairs, others, strict=True)]
    return [{"prompt": prompt, "completion": answer, "label": label} for both in labelled for prompt, answer, label in both]


def _as_text(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A pair by the chat template; the answers end with the end mark."""
    prompt, mark = tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True), tokenizer.eos_token
    row = {"prompt": prompt}
    for name in ("chosen", "rejected"):
        whole = tokenizer.apply_chat_template([*pair.prompt, *getattr(pair, name)], tokenize=False)
        answer = completion_of(whole, prompt, pair.task_id, pair.turn)
        row[name] = answer[: answer.rindex(mark) + len(mark)] if mark in answer else answer
    return row


def prepare_environment() -> None:
    """Settings that are no arguments of the libraries: no reports to services, no note on experimental trainers."""
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # which TRL's trainers would report to when they are made
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def device_options() -> dict[str, bool]:
    """What a trainer does on a GPU only; on a processor it takes the weights in the type that they have."""
    import torch

    on_gpu, dtype = torch.cuda.is_available(), weights_dtype()
    mixed = {"bf16": on_gpu and dtype == torch.bfloat16, "fp16": on_gpu and dtype == torch.float16}
    return {**mixed, "use_cpu": not on_gpu, "gradient_checkpointing": on_gpu, "dataloader_pin_memory": on_gpu}


def build_trainer(
    method: Method,
    params: Params,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: TrainingSet,
    work: Path,
    *,
    longest: int | None = None,
    precompute_ref_log_probs: bool | None = None,
) -> Trainer:
    """The TRL trainer of a method, with this study's settings in TRL's own words.

    The reference reads all rows before the training on a processor, and beside each step on a GPU, unless `precompute_ref_log_probs`
    says otherwise. `longest` is the number of tokens of the longest row, by default what it may be.
    """
    from datasets import Dataset

    device = device_options()
    reference = {"precompute_ref_log_probs": device["use_cpu"] if precompute_ref_log_probs is None else precompute_ref_log_probs}
    options = {name: getattr(params, f"{prefix_of(method)}_{name}") for name in ("num_train_epochs", "max_length")}
    options |= device | choose_batch(method, params, model, longest or options["max_length"])
    a_step = math.prod(getattr(params, f"{prefix_of(method)}_{name}") for name in BATCH)
    options |= {
        "output_dir": str(work),
        "learning_rate": getattr(params, f"{method}_learning_rate"),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1 if len(rows.train) * options["num_train_epochs"] > a_step else 0,  # of a single step the rate would be 0
        "seed": params.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_steps": SAVE_STEPS,
        "save_total_limit": 2,
        "eval_strategy": "epoch" if rows.validation else "no",
        "eval_on_start": bool(rows.validation),
        "per_device_eval_batch_size": options["per_device_train_batch_size"],
        "report_to": "none",
        "disable_tqdm": False,
    }

    def dataset(part: Sequence) -> Dataset | None:
        if not part:
            return None
        if method == "sft":
            return Dataset.from_list([{"input_ids": row.input_ids, "completion_mask": row.completion_mask} for row in part])
        return Dataset.from_list(preference_rows(method, part, tokenizer))

    common = {
        "model": model,
        "train_dataset": dataset(rows.train),
        "eval_dataset": dataset(rows.validation),
        "processing_class": tokenizer,
        "callbacks": [_watch(f"{method}_learning_rate")],
    }
    if method == "sft":
        from trl import SFTConfig, SFTTrainer

        return _kept_whole(SFTTrainer(args=_one_gpu(SFTConfig(**options, completion_only_loss=True)), **common), rows, method)
    if method == "dpo":
        from trl import DPOConfig, DPOTrainer

        if params.dpo_sft_weight:
            options |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, params.dpo_sft_weight]}
            common["data_collator"] = _with_searches([*rows.train, *rows.validation], tokenizer, params.dpo_max_length)
        dpo = DPOConfig(**options, **reference, beta=params.dpo_beta)
        return _kept_whole(DPOTrainer(args=_one_gpu(dpo), **common), rows, method)
    if method == "kto":
        from trl import KTOConfig, KTOTrainer

        kto = KTOConfig(**options, **reference, beta=params.kto_beta)
        return _kept_whole(KTOTrainer(args=_one_gpu(kto), **common), rows, method)
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    simpo = CPOConfig(**options, beta=params.simpo_beta, simpo_gamma=params.simpo_gamma, loss_type="simpo", cpo_alpha=0.0)
    return _kept_whole(CPOTrainer(args=_one_gpu(simpo), **common), rows, method)


def _with_searches(pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, max_length: int) -> DataCollatorForPreference:
    """TRL's collator, which also marks the agent's own searches in the prompts: they cancel in DPO's loss and are kept by the SFT loss.

    The log-probabilities in the curves are then those of reply and searches.
    """
    import torch
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    masks = {tuple(tokens(tokenizer, pair.prompt, add_generation_prompt=True)): search_mask(pair, tokenizer) for pair in pairs}

    class WithSearches(DataCollatorForPreference):
        def torch_call(self, examples: list[dict]) -> dict:
            batch = super().torch_call(examples)
            for marks, example in zip(batch["completion_mask"], [*examples, *examples], strict=True):  # all chosen, then all rejected
                mask = masks[tuple(example["prompt_ids"])]
                marks[: len(mask)] = torch.tensor(mask)
            return batch

    return WithSearches(pad_token_id=tokenizer.pad_token_id, max_length=max_length)


def _one_gpu(args: TrainingArguments) -> TrainingArguments:
    """Without a launcher transformers would copy the model to every GPU in sight (DataParallel), which TRL refuses."""
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


def _kept_whole(trainer: Trainer, rows: TrainingSet, method: Method) -> Trainer:
    """TRL drops rows whose prompt fills `max_length` without a word."""
    for taken, given in ((trainer.train_dataset, rows.train), (trainer.eval_dataset, rows.validation)):
        expected = len(given) * (2 if method == "kto" else 1)
        if given and len(taken) != expected:
            raise TrainingError(f"the trainer took {len(taken)} of {expected} rows; raise {prefix_of(method)}_max_length")
    return trainer


@contextlib.contextmanager
def nothing_asked() -> Iterator[None]:
    """Keep PEFT, which would ask the hub for the backbone's name at each checkpoint, from it: when it saves it reads this variable."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not find a config file")  # that it did not ask
            yield
    finally:
        os.environ.pop("HF_HUB_OFFLINE")
        os.environ |= {"HF_HUB_OFFLINE": before} if before is not None else {}


@contextlib.contextmanager
def answers_only() -> Iterator[None]:
    """Let a processor, as TRL lets a GPU, project only those positions to the vocabulary that are learned from.

    On a processor TRL 1.16 projects the prompts too and drops the result, which takes as long as the rest of a step.
    """
    import torch
    from trl.trainer import utils

    before = utils._use_triton
    if not torch.cuda.is_available():
        utils._use_triton = lambda device: True  # in that module it decides this and nothing else
    try:
        yield
    finally:
        utils._use_triton = before


def _watch(parameter: str) -> object:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Times each step, so that a resumed training knows all of them, and ends one whose loss is no number; its checkpoints stay.

        At each checkpoint Linux gets back what rows of changing length leave free in the heap, which may be gigabytes.
        """

        def on_step_begin(self, args, state, control, **others) -> None:  # noqa: ANN001, ANN003
            self.began = time.perf_counter()

        def on_save(self, args, state, control, **others) -> None:  # noqa: ANN001, ANN003
            trim_heap()

        def on_log(self, args, state, control, logs: Mapping[str, float] | None = None, **others) -> None:  # noqa: ANN001, ANN003
            logs = logs or {}
            if "loss" in logs:
                state.log_history[-1][STEP_SECONDS] = round(time.perf_counter() - self.began, 3)
            for loss in (logs[name] for name in ("loss", "eval_loss") if name in logs):
                if not math.isfinite(loss):
                    raise TrainingError(f"the loss is {loss} at step {state.global_step}; lower {parameter} (now {args.learning_rate:g})")

    return Watch()
