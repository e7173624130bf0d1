"""LoRA training with TRL: supervised (SGPT) and on preference pairs (DPO, KTO, SimPO). Paper: sections 2.2, 2.4, B.3."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core.artifacts import digest, write_json, writing
from ..core.errors import TrainingError
from ..core.params import Params
from ..core.schema import Message, PreferencePair, SFTExample
from ..llm.adapters import CARD, PEFT_FILES, check_adapter
from ..llm.models import fetch_model, find_model, weights_hashes
from .backbone import add_adapter, free_memory, load_adapter, load_backbone, trim_heap, weights_dtype
from .cards import write_card
from .sequences import TokenizedDialogue, completion_of, join_examples, search_mask, tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
    from trl.trainer.dpo_trainer import DataCollatorForPreference

logger = logging.getLogger(__name__)

Method = Literal["sft", "dpo", "kto", "simpo"]
RECIPE = 1  # raise it when other code would train other weights on the same rows: adapters of an earlier one are then trained anew
DPO_ONLY = ("dpo_learning_rate", "dpo_beta", "dpo_sft_weight")  # the other dpo_* hold for all preference methods
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")  # rows of a step, once they are multiplied
STATES_WITHIN_A_LAYER = 64  # hidden states that one layer takes while it is computed again, with gradients
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


def train_adapter(method: Method, params: Params, rows: TrainingSet, target: Path, *, start: Path | None = None) -> Path:
    """Train a LoRA adapter of the `cra` backbone; goes on where a killed training stopped, and does nothing twice.

    Args:
        method: "sft" begins with a fresh adapter; the others with `start`, which for "dpo" and "kto" is also, frozen,
            the reference (Eq. 3). "simpo" has no reference.
        params: `lora_*`, and `sft_*` or `dpo_*`, `kto_*`, `simpo_*`; `cra` names the backbone.
        rows: What to learn from.
        target: Folder of the adapter: PEFT's two files, `training.json` with the curves, `README.md`.
        start: Adapter to begin with.

    Raises:
        TrainingError: If there is no row or only one pair, if a row is longer than `*_max_length` or the model's context, if the chat
            template changes a prompt to which a reply is added, if `start` does not fit the backbone, if the loss is no number, or if a
            checkpoint holds more than numbers; says what to change.
        ModelError: If the backbone's weights cannot be had, or `start` or a checkpoint is broken or of another model.
    """
    _check_rows(method, rows)
    fetch_model(params.cra.model)  # before its hashes are asked for: on a cluster each notebook may run on another machine
    facts = _facts(method, params, rows, start)
    if _is_trained(target, facts["digest"]):
        logger.info("%s is trained already, %s", target, facts["digest"])
        return target
    _prepare_environment()
    from transformers import set_seed

    set_seed(params.seed)  # of a fresh adapter's weights
    work = target.with_name(f".{target.name}.{facts['digest']}")
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    if checkpoint := last_checkpoint(work):
        check_adapter(params.cra.model, Path(checkpoint), remedy=f"remove {work} to train anew")
    model, tokenizer = load_backbone(params.cra.model)
    if method == "sft":
        rows = TrainingSet(join_examples(rows.train, tokenizer), join_examples(rows.validation, tokenizer))
    lengths = _check_lengths(method, params, rows, tokenizer) | {"validation_rows": len(rows.validation)}
    model = load_adapter(model, params.cra.model, start) if start else add_adapter(model, params)
    with _answers_only(), _nothing_asked():
        trainer = _trainer(method, params, model, tokenizer, rows, work, longest=lengths["longest"])
        if checkpoint:
            logger.info("%s: goes on from %s", target.name, Path(checkpoint).name)
        go_on(trainer, checkpoint, work)
    if trainer.is_world_process_zero():
        facts |= {
            "lengths": lengths,
            "steps": trainer.state.global_step,
            "processes": _num_processes(),
            "rows_at_once": trainer.args.per_device_train_batch_size,
            "resumed_from": Path(checkpoint).name if checkpoint else None,
            "seconds": round(seconds := sum(line.get(STEP_SECONDS, 0.0) for line in trainer.state.log_history), 1),
            "tokens_per_second": round(lengths["tokens"] * trainer.args.num_train_epochs / seconds, 1),
            "device": str(trainer.args.device),
            "dtype": str(next(p for n, p in model.named_parameters() if "lora" not in n).dtype).removeprefix("torch."),
            "history": trainer.state.log_history,
        }
        _publish(model, work, target, facts)
    trainer.accelerator.wait_for_everyone()
    del trainer, model
    free_memory()
    return target


def last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint in a folder that was written to its end; one that a kill cut short is removed. Library: transformers."""
    from transformers.trainer_callback import TrainerState
    from transformers.trainer_utils import get_last_checkpoint

    for folder in work.glob("checkpoint-*"):
        try:
            TrainerState.load_from_json(str(folder / "trainer_state.json"))  # the last file that is written
        except (OSError, ValueError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)  # each process of a launch tries
    return get_last_checkpoint(str(work))


def go_on(trainer: Trainer, checkpoint: str | None, work: Path) -> None:
    """Train, from a checkpoint if there is one. Library: transformers; of optimizer, scheduler and random state it reads only numbers.

    Where TRL holds the reference as a second adapter, transformers 5.19 would load this one and not the policy; PEFT loads it here.

    Raises:
        TrainingError: If the checkpoint holds something else, which might run code, or is one of another backbone.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if checkpoint and (weights := Path(checkpoint) / PEFT_FILES[1]).is_file():
        try:
            set_peft_model_state_dict(trainer.model, load_file(weights))
        except (RuntimeError, ValueError, KeyError) as error:
            fault = f"{checkpoint} does not fit this backbone ({' '.join(str(error).split())[:100]})"
            raise TrainingError(f"{fault}; remove {work} to train anew") from None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except pickle.UnpicklingError as error:
        fault = f"{checkpoint} holds something else than numbers, which is not read ({' '.join(str(error).split())[:100]})"
        raise TrainingError(f"{fault}; remove {work} to train anew") from None


def load_history(adapter: Path) -> dict:
    """What `training.json` beside an adapter says: data, parameters, curves ("history"), seconds, tokens per second.

    Raises:
        TrainingError: If there is none, or it is broken.
    """
    try:
        history = json.loads((adapter / CARD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"{adapter / CARD} is missing; train the adapter first") from None
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{adapter / CARD} is broken ({error}); remove {adapter} to train it anew") from None
    if not isinstance(history, dict) or "digest" not in history:
        raise TrainingError(f"{adapter / CARD} is broken (no digest); remove {adapter} to train it anew")
    return history


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


def _prefix(method: Method) -> str:
    """Of the parameters that all preference methods share, or of SFT's."""
    return "sft" if method == "sft" else "dpo"


def _as_text(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A pair by the chat template; the answers end with the end mark."""
    prompt, mark = tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True), tokenizer.eos_token
    row = {"prompt": prompt}
    for name in ("chosen", "rejected"):
        whole = tokenizer.apply_chat_template([*pair.prompt, *getattr(pair, name)], tokenize=False)
        answer = completion_of(whole, prompt, pair.task_id, pair.turn)
        row[name] = answer[: answer.rindex(mark) + len(mark)] if mark in answer else answer
    return row


def _check_rows(method: Method, rows: TrainingSet) -> None:
    if not rows.train:
        wanted = "raise num_sgpt_tasks" if method == "sft" else "raise satisfaction_threshold or num_ecpo_tasks"
        raise TrainingError(f"{method}: there is nothing to train on; {wanted}")
    if method != "sft" and len(rows.train) < 2:
        wanted = "raise satisfaction_threshold or num_ecpo_tasks" + (", or lower validation_share" if rows.validation else "")
        raise TrainingError(f"{method}: one preference pair only, at least 2 are needed; {wanted}")


def _facts(method: Method, params: Params, rows: TrainingSet, start: Path | None) -> dict:
    """What decides an adapter, and its digest."""
    recipe = {"recipe": RECIPE} if RECIPE > 1 else {}  # the first adapters were published without one
    prefixes = ("lora_", "sft_") if method == "sft" else ("dpo_", f"{method}_")
    not_used = () if method == "dpo" else DPO_ONLY
    decides = {
        "method": method,
        "base_model": params.cra.model,
        "base_model_files": weights_hashes(params.cra.model),
        "start": load_history(start)["digest"] if start and (start / CARD).is_file() else str(start),
        "seed": params.seed,
        "params": {key: value for key, value in params.model_dump().items() if key.startswith(prefixes) and key not in not_used},
        "data": digest([[row.model_dump() for row in part] for part in (rows.train, rows.validation)]),
        "rows": {"train": len(rows.train), "validation": len(rows.validation)},
        **recipe,
    }
    return {**decides, "digest": digest(decides)}


def _is_trained(target: Path, wanted: str) -> bool:
    return all((target / file).is_file() for file in (*PEFT_FILES, CARD)) and load_history(target)["digest"] == wanted


def _prepare_environment() -> None:
    """Settings that are no arguments of the libraries: no reports to services, no note on experimental trainers."""
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # which TRL's trainers would report to when they are made
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _check_lengths(method: Method, params: Params, rows: TrainingSet, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Token counts of the training rows; a row that would be cut, or is longer than the model reads, is an error."""
    key = f"{_prefix(method)}_max_length"
    limit, counts = getattr(params, key), []
    context = find_model(params.cra.model).context_tokens
    for number, row in enumerate([*rows.train, *rows.validation]):
        sizes = [len(row.input_ids)] if method == "sft" else [_count(tokenizer, row, answer) for answer in (row.chosen, row.rejected)]
        found = f"{method}: dialogue {row.task_id} turn {row.turn} has {max(sizes)} tokens"
        if max(sizes) > context:
            reads = f"{params.cra.model} reads {context} (context_tokens in params/models.yaml), whatever {key} (now {limit}) allows"
            raise TrainingError(f"{found}, {reads}; lower max_turns or retriever_top_k, or take a cra model with a longer context")
        if max(sizes) > limit:
            raise TrainingError(f"{found}; raise {key} (now {limit})")
        if number < len(rows.train):
            counts += sizes
    return {"rows": len(rows.train), "tokens": sum(counts), "mean": sum(counts) / len(counts), "longest": max(counts)}


def _count(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, answer: Sequence[Message]) -> int:
    prompt, whole = tokens(tokenizer, pair.prompt, add_generation_prompt=True), tokens(tokenizer, [*pair.prompt, *answer])
    completion_of(whole, prompt, pair.task_id, pair.turn)  # TRL would only warn
    return len(whole)


def _num_processes() -> int:
    """How many processes `accelerate launch` or `torchrun` started for this training, 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share_batch(params: Params, prefix: str, num_processes: int, *, at_once: int = 1) -> dict[str, int]:
    """Rows a device takes at once, and steps to accumulate, so that all processes together take as many rows a step as one would.

    A training is thereby the same on any number of GPUs, and goes on on another one. Of a pair KTO makes two rows, and it estimates
    its KL term from the mismatched rows of a device's batch: it takes two `at_once` for each one that the parameters say.

    Raises:
        TrainingError: If the rows of a step cannot be shared out evenly.
    """
    size, accumulated = (getattr(params, f"{prefix}_{name}") for name in BATCH)
    size *= at_once
    share, rest = divmod(size * accumulated, num_processes)
    if rest or math.gcd(share, size) % at_once:
        keys = " x ".join(f"{prefix}_{name}" for name in BATCH)
        raise TrainingError(f"{size * accumulated} rows a step ({keys}) cannot be shared by {num_processes} processes; change one of them")
    size = math.gcd(share, size)
    return dict(zip(BATCH, (size, share // size), strict=True))


def enlarge_batch(batch: Mapping[str, int], memory_bytes: int, row_bytes: int) -> dict[str, int]:
    """More rows at once and as many steps to accumulate fewer, up to what fits: the rows of a step stay the same.

    Args:
        batch: From `share_batch`.
        memory_bytes: What the rows may take.
        row_bytes: What one takes, from `estimate_row_bytes`.
    """
    size, accumulated = (batch[name] for name in BATCH)
    fitting = max(memory_bytes // row_bytes, size)  # what the parameters say is tried in any case
    times = max(number for number in range(1, accumulated + 1) if accumulated % number == 0 and number * size <= fitting)
    return dict(zip(BATCH, (size * times, accumulated // times), strict=True))


def estimate_row_bytes(method: Method, config: PretrainedConfig, longest: int) -> int:
    """Memory that a row of `longest` tokens, or a pair of such rows, takes on a GPU in 16 bits, roughly.

    With gradient checkpointing a token leaves one hidden state in each layer; the layer that is computed again takes some more.
    SimPO's trainer alone holds the logits of all tokens, in 32 bits, with what their loss and gradient take.
    """
    hidden = 2 * config.hidden_size * (config.num_hidden_layers + STATES_WITHIN_A_LAYER)
    logits = 3 * 4 * config.vocab_size if method == "simpo" else 0
    return (hidden + logits) * longest * (1 if method == "sft" else 2)


def _batch(method: Method, params: Params, model: PreTrainedModel | PeftModel, longest: int) -> dict[str, int]:
    """Rows at once and steps to accumulate: on a GPU as many at once as half of what its weights leave of its memory holds.

    Not with KTO, nor with an SFT loss beside DPO's: what they learn depends on which rows are together. All processes must come to
    the same numbers: the smallest GPU in sight decides, whatever else lies on it.
    """
    import torch

    batch = share_batch(params, _prefix(method), _num_processes(), at_once=2 if method == "kto" else 1)
    if not torch.cuda.is_available() or method == "kto" or (method == "dpo" and params.dpo_sft_weight):
        return batch
    memory = min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(torch.cuda.device_count()))
    return enlarge_batch(batch, (memory - model.get_memory_footprint()) // 2, estimate_row_bytes(method, model.config, longest))


def device_options() -> dict[str, bool]:
    """What a trainer does on a GPU only; on a processor it takes the weights in the type that they have."""
    import torch

    on_gpu, dtype = torch.cuda.is_available(), weights_dtype()
    mixed = {"bf16": on_gpu and dtype == torch.bfloat16, "fp16": on_gpu and dtype == torch.float16}
    return {**mixed, "use_cpu": not on_gpu, "gradient_checkpointing": on_gpu, "dataloader_pin_memory": on_gpu}


def _trainer(
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
    options = {name: getattr(params, f"{_prefix(method)}_{name}") for name in ("num_train_epochs", "max_length")}
    options |= device | _batch(method, params, model, longest or options["max_length"])
    a_step = math.prod(getattr(params, f"{_prefix(method)}_{name}") for name in BATCH)
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
            raise TrainingError(f"the trainer took {len(taken)} of {expected} rows; raise {_prefix(method)}_max_length")
    return trainer


@contextlib.contextmanager
def _nothing_asked() -> Iterator[None]:
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
def _answers_only() -> Iterator[None]:
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


def _publish(model, work: Path, target: Path, facts: dict) -> None:  # noqa: ANN001
    """Put the finished adapter in its place at once; the checkpoints go."""
    done = work / "done"
    with writing(target):
        shutil.rmtree(done, ignore_errors=True)
        model.save_pretrained(str(done), selected_adapters=["default"], save_embedding_layers=False)
        _halve(done / PEFT_FILES[1], f"lower {facts['method']}_learning_rate")
        write_json(done / CARD, facts)
        write_card(done / "README.md", facts)
        shutil.rmtree(target, ignore_errors=True)
        done.rename(target)
    with contextlib.suppress(OSError):
        shutil.rmtree(work)


def _halve(weights: Path, advice: str) -> None:
    """Weights in 16 bits, as they are served; an adapter is published, and this is half of its size.

    Raises:
        TrainingError: If some are no numbers, or too large: the last step is not followed by a loss that would tell.
    """
    import numpy as np
    from safetensors.numpy import load_file, save_file

    with np.errstate(over="ignore"):
        halved = {name: tensor.astype("float16") for name, tensor in load_file(weights).items()}
    if broken := sorted(name for name, tensor in halved.items() if not np.isfinite(tensor).all()):
        raise TrainingError(f"after the last step {len(broken)} of {len(halved)} tensors hold no numbers, {broken[0]} first; {advice}")
    save_file(halved, weights, metadata={"format": "pt"})
