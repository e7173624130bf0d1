"""How many rows a device takes at once, on however many devices: the rows of a step stay what the parameters say."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from ..core.errors import TrainingError
from ..core.params import Params

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

Method = Literal["sft", "dpo", "kto", "simpo"]
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")  # rows of a step, once they are multiplied
STATES_WITHIN_A_LAYER = 64  # hidden states that one layer takes while it is computed again, with gradients


def prefix_of(method: Method) -> str:
    """Of the parameters that all preference methods share, or of SFT's."""
    return "sft" if method == "sft" else "dpo"


def num_launched() -> int:
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


def choose_batch(method: Method, params: Params, model: PreTrainedModel | PeftModel, longest: int) -> dict[str, int]:
    """Rows at once and steps to accumulate: on a GPU as many at once as half of what its weights leave of its memory holds.

    Not with KTO, nor with an SFT loss beside DPO's: what they learn depends on which rows are together. All processes must come to
    the same numbers: the smallest GPU in sight decides, whatever else lies on it.
    """
    import torch

    batch = share_batch(params, prefix_of(method), num_launched(), at_once=2 if method == "kto" else 1)
    if not torch.cuda.is_available() or method == "kto" or (method == "dpo" and params.dpo_sft_weight):
        return batch
    memory = min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(torch.cuda.device_count()))
    return enlarge_batch(batch, (memory - model.get_memory_footprint()) // 2, estimate_row_bytes(method, model.config, longest))
