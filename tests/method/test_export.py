"""Exports can be read by what they are for: transformers, LLaMA-Factory's format, TRL's columns."""

import json
from types import SimpleNamespace

import pytest

from ecpo_utils import tuning
from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.core.schema import PreferencePair
from ecpo_utils.llm.models import Model, locate_model
from ecpo_utils.llm.servers import ServerSpec, check_loadable
from ecpo_utils.method.backbone import load_adapter, load_backbone
from ecpo_utils.method.cards import write_card
from ecpo_utils.method.export import export_model, export_sharegpt, export_trl
from ecpo_utils.method.sgpt import build_sft_examples
from ecpo_utils.method.trainers import TrainingSet
from ecpo_utils.method.training import train_adapter


@pytest.fixture
def examples(make_row):
    return build_sft_examples([make_row()])


@pytest.fixture
def pairs(examples):
    chosen = [{"role": "assistant", "content": "Ask[Which?]"}]
    row = examples[0]
    return [PreferencePair(prompt=row.prompt, chosen=chosen, rejected=row.completion, score=1, reason="r", task_id=row.task_id, turn=0)]


def test_a_merged_model_computes_what_model_and_adapter_do(tiny, make_params, examples, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = train_adapter("sft", make_params(sft_num_train_epochs=3.0), TrainingSet(examples), tmp_path / "sgpt")
    folder = export_model(tiny, adapter, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.apply_chat_template(examples[0].prompt, add_generation_prompt=True, return_dict=False)])
    base = load_backbone(tiny)[0]
    with torch.no_grad():
        plain = base(ids).logits
        tuned = load_adapter(base, tiny, adapter, trainable=False)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(ids).logits
    assert (merged - tuned).abs().max() < 0.1 * (tuned - plain).abs().max()
    with pytest.raises(ArtifactError, match="merged is there already; name a new folder"):
        export_model(tiny, adapter, folder)


def test_the_backbone_alone_is_a_plain_model_folder_that_can_be_registered_for_vllm(tiny, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(tuning, "find_adapter", lambda *names: pytest.fail("asked for"))
    run = SimpleNamespace(params=SimpleNamespace(cra=SimpleNamespace(model=tiny)))
    folder, wanted = tuning.export_merged(run, "book", "none", tmp_path / "plain"), load_backbone(tiny)[0].state_dict()
    entry = {"kind": "transformers", "licence": "Apache-2.0", "size_mb": 1, "context_tokens": 8192, "path": folder}
    monkeypatch.setattr("ecpo_utils.llm.models.load_registry", lambda: {"plain": Model(name="plain", **entry)})
    check_loadable(ServerSpec("vllm", "plain"))
    found = AutoModelForCausalLM.from_pretrained(locate_model("plain"), dtype=torch.bfloat16)
    assert found.config.use_cache and found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name].to(torch.bfloat16)) for name, value in found.state_dict().items())
    assert (folder / "tokenizer.json").is_file() and (folder / "chat_template.jinja").is_file()


def test_sharegpt_holds_system_turns_and_both_replies(examples, pairs, tmp_path):
    export_sharegpt(examples, pairs, tmp_path / "out")
    sft, preference, info = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("sft", "preference", "dataset_info"))
    assert sft[0]["system"] == examples[0].prompt[0]["content"]
    assert [turn["from"] for turn in sft[0]["conversations"]] == ["human", "gpt"]
    assert sft[0]["conversations"][-1]["value"] == "Ask[Alone or together?]"
    assert preference[0]["chosen"] == {"from": "gpt", "value": "Ask[Which?]"}
    assert preference[0]["rejected"]["value"] == "Ask[Alone or together?]" and preference[0]["conversations"][-1]["from"] == "human"
    assert {entry["file_name"] for entry in info.values()} == {"sft.json", "preference.json"} and info["ecpo_preference"]["ranking"]


def test_trl_files_have_the_columns_of_its_trainers(examples, pairs, tmp_path):
    from datasets import load_dataset

    export_trl(examples, pairs, tmp_path / "out")
    read = {name: load_dataset("json", data_files=str(tmp_path / "out" / f"{name}.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
            for name in ("sft", "preference")}  # fmt: skip
    assert set(read["sft"].column_names) == {"prompt", "completion"} and len(read["sft"]) == len(examples)
    assert set(read["preference"].column_names) == {"prompt", "chosen", "rejected"}
    assert read["preference"][0]["chosen"] == pairs[0].chosen


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_card_names_an_sft_loss_beside_dpo_and_the_plain_folder_of_gguf_weights(weight, tmp_path):
    file = "model.Q4.gguf" if weight else "model.safetensors"
    facts = {"method": "dpo", "base_model": "m", "base_model_files": {file: "0" * 64}, "params": {"dpo_sft_weight": weight}, "seed": 0,
             "lengths": {"rows": 2, "validation_rows": 0}, "steps": 1, "seconds": 1.0, "device": "cpu", "dtype": "bfloat16",
             "tokens_per_second": 1.0, "digest": "d", "data": "d", "start": "s"}  # fmt: skip
    card = write_card(tmp_path / "README.md", facts).read_text()
    assert ("reference; beside DPO's an SFT loss of weight 0.5 on the chosen replies" in card) is bool(weight)
    assert ("`ecpo export model BASE --adapter none`" in card) is bool(weight)
    assert weight or "SGPT as start and frozen reference.\n" in card
