"""A LoRA adapter trained from rows to its folder: checked, resumed, published whole. Paper: sections 2.2, 2.4, B.3."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.artifacts import digest, write_json, writing
from ..core.errors import TrainingError
from ..core.params import Params
from ..core.schema import Message, PreferencePair
from ..llm.adapters import CARD, PEFT_FILES, check_adapter
from ..llm.models import fetch_model, find_model, weights_hashes
from .backbone import add_adapter, free_memory, load_adapter, load_backbone
from .batches import Method, num_launched, prefix_of
from .cards import write_card
from .sequences import completion_of, join_examples, tokens
from .trainers import STEP_SECONDS, TrainingSet, answers_only, build_trainer, nothing_asked, prepare_environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

logger = logging.getLogger(__name__)

RECIPE = 1  # raise it when other code would train other weights on the same rows: adapters of an earlier one are then trained anew
DPO_ONLY = ("dpo_learning_rate", "dpo_beta", "dpo_sft_weight")  # the other dpo_* hold for all preference methods


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
    prepare_environment()
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
    with answers_only(), nothing_asked():
        trainer = build_trainer(method, params, model, tokenizer, rows, work, longest=lengths["longest"])
        if checkpoint:
            logger.info("%s: goes on from %s", target.name, Path(checkpoint).name)
        go_on(trainer, checkpoint, work)
    if trainer.is_world_process_zero():
        facts |= {
            "lengths": lengths,
            "steps": trainer.state.global_step,
            "processes": num_launched(),
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


def _check_lengths(method: Method, params: Params, rows: TrainingSet, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Token counts of the training rows; a row that would be cut, or is longer than the model reads, is an error."""
    key = f"{prefix_of(method)}_max_length"
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
