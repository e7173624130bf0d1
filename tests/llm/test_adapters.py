"""LoRA adapters for llama.cpp: converted once, and served as PEFT computes them."""

import json
import shutil
from pathlib import Path

import numpy as np
import openai
import pytest

from ecpo_utils.core.errors import ModelError
from ecpo_utils.llm.adapters import check_adapter
from ecpo_utils.llm.gguf_adapters import _permute, gguf_adapter
from ecpo_utils.llm.models import fetch_model
from ecpo_utils.llm.servers import server_spec, serving

ROOT = Path(__file__).resolve().parents[2]

BASE = "smollm2-135m-instruct-q4"
MESSAGES = [
    {"role": "system", "content": "You recommend books."},
    {"role": "user", "content": "I would like a sea story. Which one?"},
]


@pytest.fixture(scope="module")
def backbone():
    from ecpo_utils.method.backbone import load_backbone

    return load_backbone(BASE)


@pytest.fixture(scope="module")
def adapter(backbone, tmp_path_factory) -> Path:
    """A random adapter on the real model, strong enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(backbone[0], LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("adapters") / "random"
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def peft_logprobs(model, tokenizer) -> dict[str, float]:
    """Log-probability of every first token of an answer, by its text."""
    import torch

    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        logs = model.float()(ids).logits[0, -1].log_softmax(-1)
    best = logs.topk(200).indices.tolist()
    return {tokenizer.decode([token]): logs[token].item() for token in best}


def served_logprobs(adapter: Path | None) -> dict[str, float]:
    with serving(server_spec("embedded", BASE, 2, adapter and str(adapter))) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key=server.api_key)
        answer = client.chat.completions.create(
            model=adapter.name if adapter else BASE, messages=MESSAGES, max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=20
        )
    return {each.token: each.logprob for each in answer.choices[0].logprobs.content[0].top_logprobs}


@pytest.mark.slow
def test_a_served_adapter_gives_the_probabilities_of_peft(backbone, adapter):
    from peft import PeftModel

    served, plain = served_logprobs(adapter), served_logprobs(None)
    model = backbone[0]
    tuned = peft_logprobs(model if isinstance(model, PeftModel) else PeftModel.from_pretrained(model, str(adapter)), backbone[1])
    shared = [token for token in list(served)[:8] if token in tuned]
    assert len(shared) == 8
    gaps = [abs(served[token] - tuned[token]) for token in shared]
    assert max(gaps) < 0.5 and next(iter(served)) == next(iter(tuned))  # activations are rounded to 8 bits in the server
    assert max(abs(plain[token] - tuned.get(token, -30.0)) for token in list(plain)[:8]) > 3 * max(gaps)


@pytest.mark.slow
def test_an_adapter_is_converted_once(adapter):
    base = fetch_model(BASE)
    first = gguf_adapter(adapter, base)
    written = first.stat().st_mtime_ns
    assert gguf_adapter(adapter, base) == first and first.stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"), [({"use_dora": True}, "plain LoRA only .*use_dora"), ({"peft_type": "IA3"}, "plain LoRA only .here: IA3")]
)
def test_what_llama_cpp_cannot_serve_is_refused(adapter, tmp_path, monkeypatch, change, expected):
    base = fetch_model(BASE)
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "cache"))
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=expected):
        gguf_adapter(other, base)
    assert not list((tmp_path / "cache").rglob("*.gguf"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgpt", "dpo"])
def test_the_published_adapters_are_valid_with_and_without_their_cards(name, tmp_path):
    adapter = Path(shutil.copytree(ROOT / "results" / "cpu" / "book" / "adapters" / name, tmp_path / name))
    check_adapter(BASE, adapter)
    (adapter / "training.json").unlink()
    check_adapter(BASE, adapter)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda name: None if ".29." in name else name, "it lacks 14 of 420 tensors, layer 29 attn_k lora_A first"),
     (lambda name: name.replace(".29.", ".30."), "it has 14 tensors for modules that the model has not, layer 30 mlp.down_proj")],
)  # fmt: skip
def test_an_adapter_of_a_model_of_other_layers_is_not_served(change, expected, tmp_path):
    from safetensors.numpy import load_file, save_file

    adapter = Path(shutil.copytree(ROOT / "results" / "cpu" / "book" / "adapters" / "sgpt", tmp_path / "sgpt"))
    tensors = {change(name): tensor for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    tensors.pop(None, None)
    save_file(tensors, adapter / "adapter_model.safetensors")
    fault = f"{adapter}/adapter_model.safetensors does not fit {BASE}: {expected}"
    with pytest.raises(ModelError, match=fault), serving(server_spec("embedded", BASE, 1, str(adapter))):
        pass


def test_rotary_rows_are_put_side_by_side():
    rows = np.arange(8).reshape(8, 1)  # two heads of four rows: halves (0 1 | 2 3), (4 5 | 6 7)
    assert _permute(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
