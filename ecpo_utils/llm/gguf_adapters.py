"""LoRA adapters in PEFT's layout, converted for llama.cpp's server. Libraries: gguf, safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..core.artifacts import sha256_file
from ..core.errors import ModelError
from ..core.paths import cache_root
from .adapters import PARTS, name_map, split_key

PERMUTED = {"llama": ("q_proj", "k_proj")}  # llama.cpp stores these with the two halves of each rotary pair side by side


def gguf_adapter(adapter: Path, base: Path) -> Path:
    """The adapter as a GGUF file for a base model's GGUF file; converted once, kept in the cache.

    Args:
        adapter: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        base: GGUF file of the model that it was trained on.

    Raises:
        ModelError: If the adapter is no plain LoRA, or does not fit the model.
    """
    weights = adapter / "adapter_model.safetensors"
    target = cache_root() / "adapters" / f"{sha256_file(weights)[:16]}-{base.stem}.gguf"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        _convert(adapter, base, partial)
        partial.replace(target)
    return target


def _convert(adapter: Path, base: Path, target: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    unsupported = [key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    if config.get("peft_type") != "LORA" or unsupported:
        raise ModelError(f"{adapter}: llama.cpp serves plain LoRA only (here: {config.get('peft_type')}, {', '.join(unsupported)})")
    facts = _facts(base)
    architecture, blocks = facts["general.architecture"], int(facts[f"{facts['general.architecture']}.block_count"])
    names = name_map(architecture, blocks)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for key, tensor in sorted(load_file(adapter / "adapter_model.safetensors").items()):
        module, part = split_key(key)
        name = names.get_name(module)
        if part not in PARTS or name is None:
            raise ModelError(f"{adapter}: {key} has no place in a {architecture} model of llama.cpp")
        if part == "lora_B" and module.endswith(PERMUTED.get(architecture, ())):
            kind = "head_count" if module.endswith("q_proj") else "head_count_kv"
            tensor = _permute(tensor, int(facts[f"{architecture}.attention.{kind}"]))
        writer.add_tensor(f"{name}.weight.{part.lower()}", np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _facts(path: Path) -> dict[str, object]:
    import gguf

    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items() if "tokenizer" not in key}


def _permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotary projection from the order of transformers to that of llama.cpp."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
