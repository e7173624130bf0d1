"""A language model of a few thousand weights, trajectories to learn from, and parameters that train in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_models import ITEMS, PERSONA

from ecpo_utils.core.params import Params, build_params, load_params_file
from ecpo_utils.core.paths import repository_root
from ecpo_utils.core.schema import Confirmation, Message, Retrieval, Step, Trajectory, Turn

TINY = "smollm2-135m-instruct"  # a hub-only entry of the registry, so that any folder of this name is taken for it
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama model of two layers with random weights, and a tokenizer of bytes, where $ECPO_MODELS looks for them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / TINY
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=8192, eos_token_id=fast.eos_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Its name for `load_backbone`."""
    monkeypatch.setenv("ECPO_MODELS", str(tiny_folder.parent))
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "cache"))
    return TINY


@pytest.fixture
def make_params() -> Callable[..., Params]:
    """The quick profile's parameters with the tiny model as backbone and some changed."""

    def make(**changes: object) -> Params:
        values = load_params_file(repository_root() / "params" / "quick.yaml")
        values |= {"cra": {"provider": "vllm", "model": TINY}, "sft_learning_rate": 1e-2, "dpo_learning_rate": 1e-3, "lora_r": 4}
        return build_params({**values, **changes}, "test")

    return make


def system(example: bool = False) -> Message:
    from ecpo_utils.dialogue.agents.base import NOUNS
    from ecpo_utils.llm.prompts import load_prompt, render

    text = render("actcrs_system", noun=NOUNS["game"], top_k=2)
    return {"role": "system", "content": text + ("\n\n" + load_prompt("actcrs_example_game") if example else "")}


def step(message: str, output: str, *, retrieved: list[str] | None = None, example: bool = False) -> Step:
    from ecpo_utils.dialogue.agents.actions import parse_action

    action = parse_action(output)
    retrieval = Retrieval(query=action.argument, item_ids=retrieved) if retrieved else None
    messages = [system(example), {"role": "user", "content": f"{message}\nAction:"}]
    return Step(messages=messages, output=output, action=action, retrieval=retrieval)


def confirmed(flexibility: int = 2, coherence: int = 2, guidance: int = 1) -> Confirmation:
    scores = {"flexibility": flexibility, "coherence": coherence, "guidance": guidance}
    full = {"flexibility": 2, "coherence": 2, "guidance": 1}
    return Confirmation(**scores, reasons={name: f"the {name} is lacking" if scores[name] < full[name] else "" for name in scores})


@pytest.fixture
def make_row() -> Callable[..., Trajectory]:
    """A dialogue of two turns: a question, then a search and a recommendation of g1."""

    def make(
        task: str = "game/u1/g1", *, success: bool = True, example: bool = True, status: str = "complete", **fields: object
    ) -> Trajectory:
        recommend = f'Recommend[How about "{ITEMS[0 if success else 1].title}"?]'
        turns = [
            Turn(index=0, policy="ask_recommendation", user_message="A game, please.", reply="Alone or together?",
                 steps=[step("User: A game, please.", "Ask[Alone or together?]", example=example)], confirmation=confirmed(guidance=0)),
            Turn(index=1, policy="respond_to_clarification", user_message="Alone.", reply=recommend[10:-1],
                 steps=[step("User: Alone.", "Search[alone]", retrieved=["g1", "g2"], example=example),
                        step("Observation:\n1. Harbour of Glass", recommend, example=example)], confirmation=confirmed()),
        ]  # fmt: skip
        values = {"task_id": task, "domain": "game", "system": "actcrs_expert", "config": "c", "target": ITEMS[0], "persona": PERSONA,
                  "status": status, "turns": turns, "recommended_at": 1 if success else None}  # fmt: skip
        return Trajectory(**{**values, **fields})

    return make
