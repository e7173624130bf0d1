"""What other tools take: a merged model, and data sets for LLaMA-Factory (ShareGPT) and TRL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.artifacts import write_json, write_text, writing
from ..core.errors import ArtifactError
from ..core.schema import Message, PreferencePair, SFTExample
from .backbone import load_adapter, load_backbone

SPEAKERS = {"user": "human", "assistant": "gpt"}


def export_model(name: str, adapter: Path | None, folder: Path) -> Path:
    """The backbone, with an adapter merged into it, as an ordinary model folder in bfloat16 for transformers and vLLM.

    Args:
        name: The backbone in `params/models.yaml`.
        adapter: Folder in PEFT's layout; None for the backbone alone, which of GGUF weights is the plain folder that vLLM needs.
        folder: Where to write; must be empty or missing.

    Raises:
        ModelError, TrainingError: If backbone or adapter is missing, or they do not belong together.
        ArtifactError: If the folder holds something or cannot be written.
    """
    import torch

    _check_empty(folder)
    model, tokenizer = load_backbone(name)
    if adapter:
        model = load_adapter(model, name, adapter, trainable=False).merge_and_unload()
    model.config.use_cache = True
    with writing(folder):
        model.to(torch.bfloat16).save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    return folder


def export_sharegpt(examples: Sequence[SFTExample], pairs: Sequence[PreferencePair], folder: Path) -> list[Path]:
    """`sft.json`, `preference.json` and LLaMA-Factory's `dataset_info.json`.

    Train the first with `mask_history: true`: only the last message of each conversation is the agent's to learn.

    Raises:
        ArtifactError: If the folder holds something or cannot be written.
    """
    _check_empty(folder)
    sft = [_conversation([*row.prompt, *row.completion]) for row in examples]
    preference = [{**_conversation(row.prompt), "chosen": _said(row.chosen[-1]), "rejected": _said(row.rejected[-1])} for row in pairs]
    columns = {"messages": "conversations", "system": "system"}
    answers = {"chosen": "chosen", "rejected": "rejected"}
    info = {
        "ecpo_sft": {"file_name": "sft.json", "formatting": "sharegpt", "columns": columns},
        "ecpo_preference": {"file_name": "preference.json", "formatting": "sharegpt", "ranking": True, "columns": columns | answers},
    }
    files = {"sft.json": sft, "preference.json": preference, "dataset_info.json": info}
    return [write_json(folder / name, content) for name, content in files.items()]


def export_trl(examples: Sequence[SFTExample], pairs: Sequence[PreferencePair], folder: Path) -> list[Path]:
    """`sft.jsonl` and `preference.jsonl` with the columns that TRL's trainers read, in its conversational form.

    Raises:
        ArtifactError: If the folder holds something or cannot be written.
    """
    _check_empty(folder)
    parts = {"sft.jsonl": (examples, {"prompt", "completion"}), "preference.jsonl": (pairs, {"prompt", "chosen", "rejected"})}
    return [
        write_text(folder / name, "".join(row.model_dump_json(include=columns) + "\n" for row in rows))
        for name, (rows, columns) in parts.items()
    ]


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} is there already; name a new folder")


def _conversation(messages: Sequence[Message]) -> dict:
    system = " ".join(message["content"] for message in messages if message["role"] == "system")
    return {"system": system, "conversations": [_said(message) for message in messages if message["role"] != "system"]}


def _said(message: Message) -> dict[str, str]:
    return {"from": SPEAKERS[message["role"]], "value": message["content"]}
