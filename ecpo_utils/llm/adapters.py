"""LoRA adapters in PEFT's layout: what a folder must hold to be one of a model. Libraries: gguf, safetensors."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.artifacts import digest, write_json
from ..core.errors import ArtifactError, ModelError
from ..core.paths import cache_root
from .formats import PICKLES
from .models import fetch_model, find_model, weights_hashes

if TYPE_CHECKING:
    from gguf import TensorNameMap

CARD = "training.json"  # beside an adapter's weights: what it was trained on and how
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
PARTS = ("lora_A", "lora_B")  # of each module


def refuse_pickled_adapter(adapter: Path) -> None:
    """Refuse an adapter whose weights are there as a pickle only.

    Raises:
        ModelError: Names the file, and what to do.
    """
    pickles = sorted(path for path in adapter.glob("adapter_model*") if path.suffix in PICKLES)
    if pickles and not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(f"{pickles[0]} is a pickle, which can run code when it is read, and is not loaded; save it as safetensors")


def check_adapter(name: str, adapter: Path, *, remedy: str = "") -> None:
    """Refuse an adapter that is incomplete or broken, or that is one of another model than `name`.

    Its configuration must name the model (or its repository on the hub), `training.json`, if there is one, the model's weights, and its
    tensors must be those of every layer of the model. What else than LoRA it holds is left to whoever loads it.

    Args:
        name: A model of `params/models.yaml`; fetched if need be.
        adapter: Folder in PEFT's layout.
        remedy: What to do about a wrong one, where that is not to remove it or to correct the params file.

    Raises:
        ModelError: Says which file, what is wrong with it, and what to do.
    """
    refuse_pickled_adapter(adapter)
    config, weights = (adapter / file for file in PEFT_FILES)
    for file in (config, weights):
        if not file.is_file():
            raise ModelError(f"{file} is missing; {remedy or 'train the adapter first, or correct its path'}")
    remedy = remedy or f"remove {adapter} to have it trained anew, or correct 'adapter' or 'cra' in the params file"
    settings = _read_object(config, remedy)
    base = settings.get("base_model_name_or_path")
    if not base or base not in (name, find_model(name).hub):
        raise ModelError(f"{config}: base_model_name_or_path is '{base}', not {name} (if it is that model, write so there); {remedy}")
    if (adapter / CARD).is_file():
        card = _read_object(adapter / CARD, remedy)
        if card.get("base_model_files") != weights_hashes(name):
            base = card.get("base_model", "another model")
            raise ModelError(f"{adapter} was trained on {base}, whose weights are not those of {name}; {remedy}")
    if misfit := _misfit(tensor_names(weights, remedy), settings, name):
        raise ModelError(f"{weights} does not fit {name}: {misfit}; {remedy}")


def tensor_names(path: Path, remedy: str) -> set[str]:
    """What a safetensors file holds; its header alone is read.

    Raises:
        ModelError: If the file is cut short or is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is broken ({' '.join(str(error).split())[:100]}); {remedy}") from None


def _read_object(path: Path, remedy: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is broken ({' '.join(str(error).split())[:100]}); {remedy}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is broken (no JSON object); {remedy}")
    return value


def _misfit(keys: Collection[str], settings: dict, name: str) -> str:
    """What the tensors of an adapter lack or have too much, "" if they are those of every layer of a model."""
    there, rename = _base_modules(name)
    tuned = [(module, part) for module, part in map(split_key, keys) if part in PARTS]
    if not tuned:
        return "it holds no LoRA"
    found = {(*_place(rename(module)), part) for module, part in tuned}
    kinds = {kind for _, kind, _ in found}
    wanted = {(layer, kind, part) for layer, kind in map(_place, there) if kind in kinds for part in PARTS}
    if extra := sorted(found - wanted):
        return f"it has {len(extra)} tensors for modules that the model has not, layer {' '.join(extra[0])} first"
    if settings.get("layers_to_transform") is not None:
        return ""
    if lacking := sorted(wanted - found):
        return f"it lacks {len(lacking)} of {len(wanted)} tensors, layer {' '.join(lacking[0])} first"
    targets = settings.get("target_modules")
    for target in targets if isinstance(targets, list) else ():  # else a pattern
        if not any(f".{module}".endswith(f".{target}") for module, _ in tuned):
            return f"it lacks the {target} of its {PEFT_FILES[0]}"
    return ""


def _base_modules(name: str) -> tuple[Collection[str], Callable[[str], str]]:
    """Modules of a model by the names in its files, and how to get these from the names that an adapter has.

    Those of a GGUF file are kept in the cache: to read them takes seconds.
    """
    path = fetch_model(name)
    if find_model(name).kind != "gguf":
        advice = "put the model's own file in its place"
        return {key.removesuffix(".weight") for file in path.glob("*.safetensors") for key in tensor_names(file, advice)}, str
    import gguf

    kept = cache_root() / "adapters" / f"{digest(weights_hashes(name))}.modules.json"
    if kept.is_file():
        facts = json.loads(kept.read_text(encoding="utf-8"))
    else:
        reader = gguf.GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        blocks = int(reader.fields[f"{architecture}.block_count"].contents())
        modules = [tensor.name.removesuffix(".weight") for tensor in reader.tensors]
        facts = {"architecture": architecture, "blocks": blocks, "modules": modules}
        with contextlib.suppress(ArtifactError):  # a cache that others fill
            write_json(kept, facts)
    names = name_map(facts["architecture"], facts["blocks"])
    return facts["modules"], lambda module: names.get_name(module) or module


def name_map(architecture: str, blocks: int) -> TensorNameMap:
    """llama.cpp's names of an architecture's tensors, for so many layers, by those of transformers."""
    import gguf

    return gguf.get_tensor_name_map(next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture), blocks)


def split_key(key: str) -> tuple[str, str]:
    """Module and part ("lora_A", "lora_B") of an adapter's tensor."""
    module, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
    return module, part


def _place(module: str) -> tuple[str, str]:
    """Layer and name in it; what stands before the layer ("model.layers", "h", "blk") is not the same in files and models."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)", module)
    return (found[1], found[2]) if found else ("", module)


def adapter_rank(adapter: Path) -> int:
    """r of a LoRA adapter."""
    return int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
