"""Real training steps of TRL on a model of a few thousand weights: they change it, resume, and refuse what cannot be trained on."""

import json
import math
import shutil

import pytest
from safetensors.torch import load_file

from ecpo_utils.core.errors import TrainingError
from ecpo_utils.core.schema import PreferencePair
from ecpo_utils.method import training
from ecpo_utils.method.backbone import load_adapter, load_backbone
from ecpo_utils.method.divergence import compare_policies
from ecpo_utils.method.sgpt import build_sft_examples
from ecpo_utils.method.training import TrainingSet, load_history, preference_rows, train_adapter


@pytest.fixture
def examples(make_row):
    return build_sft_examples([make_row(f"game/u{i}/g1") for i in range(2)])


@pytest.fixture
def pairs(examples):
    return [
        PreferencePair(
            prompt=e.prompt,
            chosen=[{"role": "assistant", "content": f"Ask[Which {i}?]"}],
            rejected=e.completion,
            score=1,
            reason="r",
            task_id=e.task_id,
            turn=e.turn,
        )
        for i, e in enumerate(examples)
    ]


@pytest.fixture
def sgpt(tiny, make_params, examples, tmp_path):
    return train_adapter("sft", make_params(), TrainingSet(examples), tmp_path / "adapters" / "sgpt")


def weights(adapter):
    return load_file(adapter / "adapter_model.safetensors")


def test_sft_lowers_the_loss_and_leaves_a_whole_adapter(tiny, make_params, examples, tmp_path):
    params = make_params(sft_num_train_epochs=6.0)
    adapter = train_adapter("sft", params, TrainingSet(examples[:4], examples[4:]), tmp_path / "sgpt")
    history = load_history(adapter)
    losses = [line["loss"] for line in history["history"] if "loss" in line]
    assert losses[-1] < losses[0] - 0.1 and history["steps"] == 12
    evaluations = [line["eval_loss"] for line in history["history"] if "eval_loss" in line]
    assert len(evaluations) == 7 and evaluations[-1] < evaluations[0]
    assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "training.json", "README.md"}
    assert not list(tmp_path.glob(".sgpt*")) and any(
        tensor.abs().sum() > 0 for name, tensor in weights(adapter).items() if "lora_B" in name
    )
    card = (adapter / "README.md").read_text()
    assert history["digest"] in card and "sft_learning_rate" in card and tiny in card


def test_the_loss_is_on_the_agents_action_only(tiny, make_params, examples, tmp_path):
    from datasets import Dataset

    params = make_params()
    model, tokenizer = load_backbone(tiny)
    trainer = training._trainer("sft", params, training.add_adapter(model, params), tokenizer, TrainingSet(examples[:1]), tmp_path)
    assert isinstance(trainer.train_dataset, Dataset)
    batch = next(iter(trainer.get_train_dataloader()))
    learned = tokenizer.decode([token for token in batch["labels"][0].tolist() if token != -100])
    assert learned.strip() == "Ask[Alone or together?]<|im_end|>"


def test_a_finished_training_is_not_repeated_and_changed_data_are_trained_on(sgpt, make_params, examples, monkeypatch):
    before = (sgpt / "adapter_model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_backbone", lambda name: pytest.fail("loaded"))
        train_adapter("sft", make_params(), TrainingSet(examples), sgpt)
    train_adapter("sft", make_params(), TrainingSet(examples[:3]), sgpt)
    assert (sgpt / "adapter_model.safetensors").read_bytes() != before


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_weights(tiny, make_params, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_STEPS", 2)
    params, rows = make_params(sft_num_train_epochs=2.0), TrainingSet(examples)
    whole = train_adapter("sft", params, rows, tmp_path / "whole")
    killed_at = 3

    class Killed(BaseException):
        pass

    def dying(parameter):
        from transformers import TrainerCallback

        class Dying(TrainerCallback):
            def on_step_end(self, args, state, control, **others):
                if state.global_step == killed_at:
                    raise Killed

        return Dying()

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "_finite_loss", dying)
        train_adapter("sft", params, rows, tmp_path / "pieces")
    assert not (tmp_path / "pieces").exists() and list(tmp_path.glob(".pieces.*/checkpoint-2"))
    pieces = train_adapter("sft", params, rows, tmp_path / "pieces")
    assert load_history(pieces)["resumed_from"] == "checkpoint-2"
    for name, tensor in weights(whole).items():
        assert tensor.allclose(weights(pieces)[name], atol=1e-6)


@pytest.mark.parametrize("method", ["dpo", "kto", "simpo"])
def test_preference_methods_start_at_the_sgpt_policy_and_prefer_the_chosen_after(method, sgpt, tiny, make_params, pairs, tmp_path):
    params = make_params(dpo_num_train_epochs=4.0, dpo_learning_rate=5e-3, kto_learning_rate=5e-3, simpo_learning_rate=5e-3)
    adapter = train_adapter(method, params, TrainingSet(pairs), tmp_path / method, start=sgpt)
    lines = [line for line in load_history(adapter)["history"] if "loss" in line]
    if method == "dpo":
        assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-4) and lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    if method == "kto":
        assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    found = compare_policies(tiny, adapter, sgpt, pairs)
    assert sum(each.margin for each in found) > 0 and all(each.kl_per_token > 0 for each in found)


def test_a_policy_against_itself_has_no_divergence(sgpt, tiny, pairs):
    for each in compare_policies(tiny, sgpt, sgpt, pairs[:2]):
        assert each.kl_per_token == pytest.approx(0, abs=1e-7) and each.margin == pytest.approx(0, abs=1e-6)
        assert each.chosen_tokens == len("Ask[Which 0?]") + len("<|im_end|>\n") - 9  # bytes; the end mark is one token


def test_the_reference_is_the_sgpt_policy_and_stays_frozen(sgpt, tiny, make_params, pairs, tmp_path):
    model, tokenizer = load_backbone(tiny)
    model = load_adapter(model, tiny, sgpt)
    trainer = training._trainer("dpo", make_params(), model, tokenizer, TrainingSet(pairs), tmp_path)
    values = dict(trainer.model.named_parameters())
    before = {name: value.detach().clone() for name, value in values.items() if ".ref." in name}
    assert before and all(value.equal(values[name.replace(".ref.", ".default.")]) for name, value in before.items())
    trainer.train()
    assert all(value.equal(values[name]) for name, value in before.items())
    assert any(not value.equal(values[name.replace(".ref.", ".default.")]) for name, value in before.items())


def test_kto_rows_are_labelled_completions(pairs):
    assert preference_rows("kto", pairs[:1]) == [
        {"prompt": pairs[0].prompt, "completion": pairs[0].chosen, "label": True},
        {"prompt": pairs[0].prompt, "completion": pairs[0].rejected, "label": False},
    ]
    assert preference_rows("simpo", pairs[:1]) == [{"prompt": pairs[0].prompt, "chosen": pairs[0].chosen, "rejected": pairs[0].rejected}]


def test_nothing_to_train_on_says_which_number_to_raise(tiny, make_params, pairs, tmp_path):
    with pytest.raises(TrainingError, match="sft: there is nothing to train on; raise num_sgpt_tasks"):
        train_adapter("sft", make_params(), TrainingSet([]), tmp_path / "a")
    with pytest.raises(TrainingError, match="dpo: there is nothing to train on; raise satisfaction_threshold"):
        train_adapter("dpo", make_params(), TrainingSet([]), tmp_path / "a")
    with pytest.raises(TrainingError, match="one preference pair only"):
        train_adapter("dpo", make_params(), TrainingSet(pairs[:1]), tmp_path / "a")


def test_rows_longer_than_the_context_name_the_dialogue_and_the_parameter(tiny, make_params, examples, sgpt, pairs, tmp_path):
    with pytest.raises(TrainingError, match=r"sft: dialogue game/u0/g1 turn 0 has \d+ tokens; raise sft_max_length \(now 64\)"):
        train_adapter("sft", make_params(sft_max_length=64), TrainingSet(examples), tmp_path / "a")
    with pytest.raises(TrainingError, match=r"dpo: dialogue game/u0/g1 turn 0 has \d+ tokens; raise dpo_max_length"):
        train_adapter("dpo", make_params(dpo_max_length=64), TrainingSet(pairs), tmp_path / "a", start=sgpt)


def test_a_loss_that_is_no_number_ends_the_training(tiny, make_params, examples, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower sft_learning_rate"):
        train_adapter("sft", make_params(sft_learning_rate=1e30), TrainingSet(examples), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_adapter_of_other_weights_is_refused(sgpt, tiny, make_params, pairs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sgpt, other)
    card = json.loads((other / "training.json").read_text())
    (other / "training.json").write_text(json.dumps({**card, "base_model_files": {"model.safetensors": "0" * 64}}))
    with pytest.raises(TrainingError, match=f"{other} was trained on {tiny}, whose weights are not those of {tiny}"):
        train_adapter("dpo", make_params(), TrainingSet(pairs), tmp_path / "a", start=other)
    (other / "training.json").unlink()
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "r": 2}))
    with pytest.raises(TrainingError, match=f"{other} does not fit {tiny}"):
        train_adapter("dpo", make_params(), TrainingSet(pairs), tmp_path / "a", start=other)
    with pytest.raises(TrainingError, match="adapter_config.json is missing; train the adapter first"):
        train_adapter("dpo", make_params(), TrainingSet(pairs), tmp_path / "a", start=tmp_path / "nowhere")
