"""Which files of a model folder may be read: numbers and text, nothing that can run code. Weights are safetensors or GGUF."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "adapter_config.json")


def refuse_code(folder: Path) -> None:
    """Refuse a folder of a transformers model whose loading would run code, or whose weights are pickles.

    A pickle beside safetensors is left alone: loaders take the safetensors.

    Raises:
        ModelError: Names the file, and what to do.
    """
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.name.startswith("pytorch_model") and path.suffix in PICKLES and not any(path.parent.glob("*.safetensors")):
            raise ModelError(f"{path} is a pickle, which can run code when it is read, and is not loaded; save the weights as safetensors")
    for name in CONFIGS:
        if isinstance(config := _load(folder / name), dict) and "auto_map" in config:
            raise ModelError(f"{folder / name} asks for code of its own (auto_map), which is never run; take a model without it")
    modules = _load(folder / "modules.json")
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type")) if isinstance(module, dict) else "none"
        if not kind.startswith("sentence_transformers."):
            asked = f"{folder / 'modules.json'} asks for code of its own ({kind[:80]})"
            raise ModelError(f"{asked}, which is never run; take a model without it")


def _load(path: Path) -> object:
    """A JSON file's value, {} where it is missing or spoilt, which its loader will tell."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
