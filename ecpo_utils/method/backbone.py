"""The language model that is tuned: loaded for training, with a fresh LoRA adapter or one that was trained before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import TrainingError
from ..core.params import Params
from ..llm.adapters import check_adapter
from ..llm.models import fetch_model, find_model

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def weights_dtype() -> torch.dtype:
    """bfloat16 where the device calculates in it; else float16 on a GPU (before Ampere: T4, V100), float32 on a processor.

    A processor that only imitates bfloat16 (on x86 one without AVX-512) took 6 to 128 times as long for products of matrices. The
    adapter that is trained is float32 in any case, as the scaling of float16's gradients asks for.
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    is_fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if is_fast else torch.float32


def load_backbone(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in the type of `weights_dtype` and tokenizer; GGUF weights are dequantized. Library: transformers.

    Args:
        name: A model of `params/models.yaml`.

    Raises:
        ModelError: If the weights cannot be had.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = fetch_model(name)
    folder, options = (path.parent, {"gguf_file": path.name}) if find_model(name).kind == "gguf" else (path, {})
    plain = {"quantization_config": GgufConfig(dequantize=True)} if options else {}
    safe = {"trust_remote_code": False}  # said aloud, or transformers would ask on the terminal
    formats = {} if options else {"use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=weights_dtype(), **options, **plain, **formats, **safe)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options, **safe)
    if options:  # the weights are plain numbers now, but the model still takes itself for a quantized one
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    model.config.name_or_path = model.name_or_path = name
    model.config.use_cache = False
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def add_adapter(model: PreTrainedModel, params: Params) -> PeftModel:
    """A fresh LoRA adapter on all linear layers. Library: PEFT; paper: B.3."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM", r=params.lora_r, lora_alpha=params.lora_alpha, lora_dropout=params.lora_dropout, target_modules="all-linear"
    )
    return get_peft_model(model, config)


def load_adapter(model: PreTrainedModel, name: str, adapter: Path, *, trainable: bool = True) -> PeftModel:
    """An adapter that was trained before, on the model it was trained on.

    Args:
        model: The backbone, from `load_backbone(name)`.
        adapter: Folder in PEFT's layout.
        trainable: Whether training goes on.

    Raises:
        ModelError: If there is no adapter, or it is broken or of another model.
        TrainingError: If it does not fit the backbone.
    """
    from peft import PeftModel

    check_adapter(name, adapter)
    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(f"{adapter} does not fit {name}: {' '.join(str(error).split())[:200]}") from None


def trim_heap() -> None:
    """Give the heap's free pages back to the system; glibc keeps them, other C libraries know no such call."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> None:
    """Leave a GPU to the server that comes next, once nobody holds the model any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
