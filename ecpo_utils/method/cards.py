"""The model card beside an adapter: what it is, what it was made from, how to load it."""

from __future__ import annotations

from pathlib import Path

from ..core.artifacts import write_text

_PURPOSE = {
    "sft": "SGPT: supervised on the actions of the expert's successful dialogues",
    "dpo": "ECPO: DPO on original and rewritten replies, SGPT as start and frozen reference",
    "kto": "ECPO with the KTO loss, SGPT as start and frozen reference",
    "simpo": "ECPO with the SimPO loss, SGPT as start, no reference",
}


def write_card(path: Path, facts: dict) -> Path:
    """Write an adapter's README.md.

    Args:
        path: The file.
        facts: As `training.json` holds them.
    """
    settings = "\n".join(f"| `{key}` | {value} |" for key, value in sorted(facts["params"].items()))
    files = "\n".join(f"- `{name}` SHA-256 `{value}`" for name, value in facts["base_model_files"].items())
    weight = facts["params"].get("dpo_sft_weight")
    beside = f"; beside DPO's an SFT loss of weight {weight} on the chosen replies and the searches before them" if weight else ""
    is_gguf = any(name.endswith(".gguf") for name in facts["base_model_files"])
    folder = (
        "\nFor PEFT and vLLM these GGUF weights have to be a plain model folder, BASE: `ecpo export model BASE --adapter none` with the\n"
        "profile whose `cra` they are (`--profile`) writes it.\n"
    )
    return write_text(
        path,
        f"""---
base_model: {facts["base_model"]}
library_name: peft
tags: [lora, conversational-recommendation, ecpo]
---
# LoRA adapter of an ActCRS agent

{_PURPOSE[facts["method"]]}{beside}.

Base model `{facts["base_model"]}` of `params/models.yaml`:
{files}

Trained on {facts["lengths"]["rows"]} rows ({facts["lengths"]["validation_rows"]} of other users for validation), {facts["steps"]} steps,
{facts["seconds"]} s on {facts["device"]} in {facts["dtype"]}, {facts["tokens_per_second"]} tokens per second. Seed {facts["seed"]}.
Digest `{facts["digest"]}`; data `{facts["data"]}`; start `{facts["start"]}`.

| parameter | value |
| --- | --- |
{settings}

The agent runs zero-shot: its system prompt has no worked example. Load it with PEFT (`PeftModel.from_pretrained`), with
`vllm serve BASE --enable-lora --lora-modules NAME=FOLDER`, or name its folder as `adapter` of the `cra` endpoint in a params file.
{folder if is_gguf else ""}""",
    )
