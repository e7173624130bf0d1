"""Real training steps of TRL on a model of a few thousand weights: they change it, resume, and refuse what cannot be trained on."""

import contextlib
import functools
import json
import math
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecpo_utils.core.errors import ModelError, TrainingError
from ecpo_utils.core.schema import PreferencePair, SFTExample
from ecpo_utils.llm.models import find_model
from ecpo_utils.method import backbone, trainers, training
from ecpo_utils.method.backbone import add_adapter, load_adapter, load_backbone, trim_heap, weights_dtype
from ecpo_utils.method.batches import BATCH, prefix_of
from ecpo_utils.method.divergence import compare_policies
from ecpo_utils.method.sequences import join_examples, tokens
from ecpo_utils.method.sgpt import build_sft_examples
from ecpo_utils.method.trainers import TrainingSet, answers_only, build_trainer, device_options, preference_rows
from ecpo_utils.method.training import load_history, train_adapter


@pytest.fixture
def examples(make_row):
    return build_sft_examples([make_row(f"game/u{i}/g1") for i in range(2)])


@pytest.fixture
def dialogue():
    """The three actions of one dialogue, each with all that was said before it."""
    said = [{"role": "system", "content": "You find games."}]
    rows = []
    for turn, (heard, action) in enumerate([("A game.", "Ask[Alone or together?]"), ("Alone.", "Search[alone]"),
                                            ("1. Harbour of Glass", 'Recommend["Harbour of Glass"]')]):  # fmt: skip
        said = [*said, {"role": "user", "content": f"{heard}\nAction:"}]
        answer = {"role": "assistant", "content": action}
        rows.append(SFTExample(prompt=said, completion=[answer], task_id="game/u1/g1", turn=min(turn, 1)))
        said = [*said, answer]
    return rows


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
    assert losses[-1] < losses[0] - 0.1 and history["steps"] == 24
    evaluations = [line["eval_loss"] for line in history["history"] if "eval_loss" in line]
    assert len(evaluations) == 7 and evaluations[-1] < evaluations[0]
    assert {tensor.dtype for tensor in weights(adapter).values()} == {torch.float16}
    assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "training.json", "README.md"}
    assert not list(tmp_path.glob(".sgpt*")) and any(
        tensor.abs().sum() > 0 for name, tensor in weights(adapter).items() if "lora_B" in name
    )
    card = (adapter / "README.md").read_text()
    assert history["digest"] in card and "sft_learning_rate" in card and tiny in card


def test_the_loss_is_on_the_agents_actions_only(tiny, make_params, dialogue, tmp_path):
    params = make_params()
    model, tokenizer = load_backbone(tiny)
    rows = TrainingSet(join_examples(dialogue, tokenizer))
    trainer = build_trainer("sft", params, add_adapter(model, params), tokenizer, rows, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    learned = tokenizer.decode([token for token in batch["labels"][0].tolist() if token != -100])
    assert batch["labels"].shape[0] == 1
    assert learned.split("<|im_end|>\n") == ["Ask[Alone or together?]", "Search[alone]", 'Recommend["Harbour of Glass"]', ""]


def test_a_joined_dialogue_is_learned_as_its_examples_one_by_one(tiny, dialogue):
    model, tokenizer = load_backbone(tiny)
    model = model.float()

    def loss(ids, mask):
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        wanted = torch.tensor(ids[1:]).masked_fill(torch.tensor(mask[1:]) == 0, -100)
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()

    (joined,) = join_examples(dialogue, tokenizer)
    apart = [join_examples([example], tokenizer)[0] for example in dialogue]
    assert joined.turn == dialogue[-1].turn and sum(joined.completion_mask) == sum(sum(each.completion_mask) for each in apart)
    parts = sum(loss(each.input_ids, each.completion_mask) for each in apart)
    assert loss(joined.input_ids, joined.completion_mask) == pytest.approx(parts, rel=1e-5)


def test_examples_that_do_not_continue_each_other_stay_apart(tiny, dialogue, examples):
    _, tokenizer = load_backbone(tiny)
    other = [row.model_copy(update={"task_id": "game/other/g1"}) for row in dialogue]
    assert [each.task_id for each in join_examples([*dialogue, *other], tokenizer)] == [dialogue[0].task_id, "game/other/g1"]
    assert len(join_examples([dialogue[0], dialogue[2]], tokenizer)) == 1  # an unusable step between two may be missing
    changed = dialogue[1].model_copy(update={"prompt": [dialogue[1].prompt[0], *dialogue[1].prompt[2:]]})
    assert len(join_examples([dialogue[0], changed, dialogue[2]], tokenizer)) == 3
    assert len(join_examples(examples, tokenizer)) == len(examples)  # the scripted steps hold no history


@pytest.mark.parametrize("method", ["sft", "dpo", "simpo"])
def test_a_chat_template_whose_generation_prompt_is_not_part_of_the_dialogue_is_refused(method, tiny, make_params, dialogue, pairs):
    _, tokenizer = load_backbone(tiny)
    tokenizer.chat_template = tokenizer.chat_template.replace("{% endif %}", "<think>{% endif %}")
    with pytest.raises(TrainingError, match=r"dialogue game/u\d/g1 turn 0: with its reply the prompt reads otherwise .*chat_template"):
        if method == "sft":
            join_examples(dialogue, tokenizer)
        elif method == "dpo":
            training._check_lengths(method, make_params(), TrainingSet(pairs), tokenizer)
        else:
            preference_rows(method, pairs, tokenizer)


def test_only_the_answers_are_projected_and_the_loss_is_the_same(sgpt, tiny, make_params, pairs, tmp_path, monkeypatch):
    from trl.trainer import utils

    params, losses, rows = make_params(), {}, {"all": 0, "answers": 0}
    project = utils._ChunkedLogProbFunction.apply

    def count(states, weight, bias, labels, *others):
        rows[name] += len(labels)
        return project(states, weight, bias, labels, *others)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", count)
    for name, context in {"all": contextlib.nullcontext(), "answers": answers_only()}.items():
        model, tokenizer = load_backbone(tiny)
        with context:
            trainer = build_trainer("dpo", params, load_adapter(model, tiny, sgpt), tokenizer, TrainingSet(pairs), tmp_path / name)
            trainer.train()
        losses[name] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses["answers"] == pytest.approx(losses["all"], rel=1e-4)
    assert 0 < rows["answers"] < rows["all"] / 20  # a prompt is some fifty times as long as a reply


def test_a_finished_training_is_not_repeated_and_changed_data_are_trained_on(sgpt, make_params, examples, monkeypatch):
    before = (sgpt / "adapter_model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_backbone", lambda name: pytest.fail("loaded"))
        train_adapter("sft", make_params(), TrainingSet(examples), sgpt)
    train_adapter("sft", make_params(), TrainingSet(examples[:3]), sgpt)
    assert (sgpt / "adapter_model.safetensors").read_bytes() != before


def test_a_training_asks_and_tells_the_hub_nothing(tiny, make_params, examples, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(trainers, "SAVE_STEPS", 2)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked = []
    monkeypatch.setattr("huggingface_hub.utils._telemetry._TELEMETRY_QUEUE.put", asked.append)
    monkeypatch.setattr("peft.utils.other.file_exists", lambda *words, **options: asked.append(words))
    train_adapter("sft", make_params(sft_num_train_epochs=2.0), TrainingSet(examples), tmp_path / "sgpt")
    assert asked == [] and "HF_HUB_OFFLINE" not in os.environ
    assert not [warning for warning in recwarn if "config file" in str(warning.message)]


def test_the_weights_are_fetched_before_their_hashes_are_asked_for(make_params, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fetch_model", lambda name: (_ for _ in ()).throw(ModelError(f"no source has {name}")))
    monkeypatch.setattr(training, "weights_hashes", lambda name: pytest.fail("asked"))
    with pytest.raises(ModelError, match="no source has"):
        train_adapter("sft", make_params(), TrainingSet(examples), tmp_path / "sgpt")


def test_another_recipe_of_the_code_trains_anew_and_the_first_is_in_no_digest(sgpt, make_params, examples, monkeypatch):
    first = load_history(sgpt)
    assert "recipe" not in first and training.RECIPE == 1
    monkeypatch.setattr(training, "RECIPE", 2)
    second = load_history(train_adapter("sft", make_params(), TrainingSet(examples), sgpt))
    assert second["recipe"] == 2 and second["digest"] != first["digest"]


class Killed(BaseException):
    pass


def dying_at(killed_at):
    def watch(parameter):
        class Dying(type(training_watch(parameter))):
            def on_step_end(self, args, state, control, **others):
                if state.global_step == killed_at:
                    raise Killed

        return Dying()

    training_watch = trainers._watch
    return watch


@pytest.mark.parametrize(
    ("method", "beforehand"), [("sft", None), ("dpo", None), ("dpo", False), ("kto", None), ("kto", False), ("simpo", None)]
)
def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_weights(
    method, beforehand, sgpt, make_params, examples, pairs, tmp_path, monkeypatch
):
    """Also where the reference is asked beside each step, as on a GPU."""
    monkeypatch.setattr(training, "build_trainer", functools.partial(build_trainer, precompute_ref_log_probs=beforehand))
    monkeypatch.setattr(trainers, "SAVE_STEPS", 2)
    trimmed = []
    monkeypatch.setattr(trainers, "trim_heap", lambda: trimmed.append(1))
    rates = {f"{name}_learning_rate": 5e-3 for name in ("dpo", "kto", "simpo")}
    params = make_params(sft_num_train_epochs=2.0, dpo_num_train_epochs=3.0, **rates)
    rows, start = (TrainingSet(examples), None) if method == "sft" else (TrainingSet(pairs), sgpt)
    whole = train_adapter(method, params, rows, tmp_path / "whole", start=start)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainers, "_watch", dying_at(3))
        train_adapter(method, params, rows, tmp_path / "pieces", start=start)
    (work,) = tmp_path.glob(".pieces.*")
    assert not (tmp_path / "pieces").exists() and (work / "checkpoint-2").is_dir()
    shutil.copytree(work / "checkpoint-2", work / "checkpoint-3")  # one that the kill cut short
    (work / "checkpoint-3" / "trainer_state.json").unlink()
    pieces = train_adapter(method, params, rows, tmp_path / "pieces", start=start)
    history, steps = load_history(pieces), load_history(whole)["steps"]
    assert history["resumed_from"] == "checkpoint-2" and history["steps"] == steps and trimmed
    timed = [line["step_seconds"] for line in history["history"] if "loss" in line]
    assert len(timed) == steps and history["seconds"] == pytest.approx(sum(timed), abs=0.1)
    if start:
        assert any((tensor - weights(start)[name]).abs().max() > 0.01 for name, tensor in weights(whole).items())
    for name, tensor in weights(whole).items():
        assert tensor.allclose(weights(pieces)[name], atol=1e-6)


def kill_after_a_checkpoint(params, rows, folder, start, monkeypatch):
    """Begin to train the adapter `a` in a folder; returns where its checkpoint lies."""
    monkeypatch.setattr(trainers, "SAVE_STEPS", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainers, "_watch", dying_at(2))
        train_adapter("dpo", params, rows, folder / "a", start=start)
    (work,) = folder.glob(".a.*")
    return work


def test_a_checkpoint_of_another_backbone_is_refused(sgpt, make_params, pairs, tmp_path, monkeypatch):
    params, rows = make_params(dpo_num_train_epochs=3.0), TrainingSet(pairs)
    work = kill_after_a_checkpoint(params, rows, tmp_path, sgpt, monkeypatch)
    wider = {name: torch.cat([tensor, tensor]) for name, tensor in weights(work / "checkpoint-1").items()}
    save_file(wider, work / "checkpoint-1" / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match=f"checkpoint-1 does not fit this backbone .*; remove {work} to train anew"):
        train_adapter("dpo", params, rows, tmp_path / "a", start=sgpt)


SPOILT = {
    "a layer fewer": r"adapter_model.safetensors does not fit .*: it lacks 14 of 28 tensors, layer 1 mlp.down_proj lora_A first",
    "a layer more": r"adapter_model.safetensors does not fit .*: it has 14 tensors for modules that the model has not, layer 2 mlp.down",
    "half a module": r"adapter_model.safetensors does not fit .*: it lacks 1 of 28 tensors, layer 1 self_attn.v_proj lora_A first",
    "a kind fewer": r"adapter_model.safetensors does not fit .*: it lacks the .*o_proj of its adapter_config.json",
    "no LoRA": r"adapter_model.safetensors does not fit .*: it holds no LoRA",
    "another name": r"adapter_config.json: base_model_name_or_path is 'another-model', not smollm2-135m-instruct",
    "no name": r"adapter_config.json: base_model_name_or_path is 'None', not smollm2-135m-instruct",
    "weights cut short": r"adapter_model.safetensors is broken \(",
    "empty weights": r"adapter_model.safetensors is broken \(",
    "config cut short": r"adapter_config.json is broken \(",
    "config of another kind": r"adapter_config.json is broken \(no JSON object\)",
}


def spoil(folder, fault):
    config, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    tensors, data = weights(folder), file.read_bytes()
    changed = {
        "a layer fewer": {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name},
        "a layer more": tensors | {name.replace(".layers.1.", ".layers.2."): tensor.clone() for name, tensor in tensors.items()},
        "half a module": {name: tensor for name, tensor in tensors.items() if ".1.self_attn.v_proj.lora_A" not in name},
        "a kind fewer": {name: tensor for name, tensor in tensors.items() if "o_proj" not in name},
        "no LoRA": {"base_model.model.lm_head.weight": torch.zeros(1)},
    }
    texts = {
        "another name": json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "another-model"}),
        "no name": json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}),
        "config cut short": config.read_text()[:40],
        "config of another kind": "[]",
    }
    if fault in changed:
        save_file(changed[fault], file)
    elif fault in texts:
        config.write_text(texts[fault])
    else:
        file.write_bytes(data[: len(data) // 2] if fault == "weights cut short" else b"")


def test_a_checkpoint_that_is_broken_or_of_another_model_is_refused(sgpt, make_params, pairs, tmp_path, monkeypatch):
    params, rows = make_params(dpo_num_train_epochs=3.0), TrainingSet(pairs)
    work = kill_after_a_checkpoint(params, rows, tmp_path, sgpt, monkeypatch)
    shutil.copytree(work / "checkpoint-1", tmp_path / "whole")
    monkeypatch.setattr(training, "load_backbone", lambda name: pytest.fail("loaded"))
    for fault, message in SPOILT.items():
        shutil.rmtree(work / "checkpoint-1")
        shutil.copytree(tmp_path / "whole", work / "checkpoint-1")
        spoil(work / "checkpoint-1", fault)
        with pytest.raises(ModelError, match=f"^{work}/checkpoint-1/{message}.*; remove {work} to train anew$"):
            train_adapter("dpo", params, rows, tmp_path / "a", start=sgpt)


@pytest.mark.parametrize("card", [True, False])
def test_a_start_that_is_broken_or_of_another_model_is_refused(card, sgpt, tiny, make_params, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_backbone", lambda name: (None, backbone_tokenizer))
    backbone_tokenizer = load_backbone(tiny)[1]
    for number, (fault, message) in enumerate(SPOILT.items()):
        other = shutil.copytree(sgpt, tmp_path / f"{number}")
        spoil(other, fault)
        if not card:
            (other / "training.json").unlink()
        remedy = f"remove {other} to have it trained anew, or correct 'adapter' or 'cra' in the params file"
        with pytest.raises(ModelError, match=f"^{other}/{message}.*; {remedy}$"):
            train_adapter("dpo", make_params(), TrainingSet(pairs), tmp_path / "a", start=other)


def test_an_adapter_may_name_the_models_repository_and_leave_layers_out_if_it_says_so(sgpt, tiny, tmp_path):
    config = json.loads((sgpt / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny
    spoil(sgpt, "a layer fewer")
    changes = {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "layers_to_transform": [0]}
    (sgpt / "adapter_config.json").write_text(json.dumps(config | changes))
    load_adapter(load_backbone(tiny)[0], tiny, sgpt)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\x00"])
def test_a_broken_card_is_told_with_what_to_do(content, sgpt, tiny, make_params, pairs, tmp_path):
    (sgpt / "training.json").write_text(content)
    broken = f"^{sgpt}/training.json is broken .*; remove {sgpt} to train it anew$"
    for train in (
        lambda: load_history(sgpt),
        lambda: train_adapter("sft", make_params(), TrainingSet(pairs), sgpt),
        lambda: train_adapter("dpo", make_params(), TrainingSet(pairs), tmp_path / "a", start=sgpt),
    ):
        with pytest.raises(TrainingError, match=broken):
            train()
    if content != "{}":
        with pytest.raises(ModelError, match=f"^{sgpt}/training.json is broken .*; remove {sgpt} to have it trained anew"):
            load_adapter(None, tiny, sgpt)


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
    start = compare_policies(tiny, sgpt, sgpt, pairs)
    for after, before in zip(found, start, strict=True):  # the margin is what the two log-probabilities moved apart
        moved = after.chosen_logp - before.chosen_logp - (after.rejected_logp - before.rejected_logp)
        assert after.margin == pytest.approx(moved, abs=0.1)


def test_the_sft_loss_beside_dpo_is_on_the_chosen_reply_and_on_the_searches_before_it(tiny, dialogue):
    """The question asked before the search is a reply of an earlier turn: no part of either."""
    _, tokenizer = load_backbone(tiny)
    last, other = dialogue[-1], [{"role": "assistant", "content": "Response[No.]"}]
    pair = PreferencePair(prompt=last.prompt, chosen=last.completion, rejected=other, score=1, reason="r", task_id="t", turn=1)
    prompt = tokens(tokenizer, pair.prompt, add_generation_prompt=True)
    chosen, rejected = (tokens(tokenizer, [*pair.prompt, *answer])[len(prompt) :] for answer in (pair.chosen, pair.rejected))
    row = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    batch = trainers._with_searches([pair], tokenizer, 4096)([row])
    read = [tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    end = "<|im_end|>\n"
    assert read == [f'Search[alone]{end}Recommend["Harbour of Glass"]{end}', f"Search[alone]{end}Response[No.]{end}"]


def test_an_sft_loss_beside_dpo_makes_the_chosen_likelier_not_only_the_rejected_less(sgpt, make_params, pairs, tmp_path):
    lines = {}
    for weight in (0.0, 1.0):
        params = make_params(dpo_num_train_epochs=6.0, dpo_learning_rate=5e-3, dpo_sft_weight=weight)
        history = load_history(train_adapter("dpo", params, TrainingSet(pairs), tmp_path / f"dpo{weight}", start=sgpt))["history"]
        lines[weight] = [line for line in history if "loss" in line]
    assert lines[0.0][0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and lines[1.0][0]["loss"] > math.log(2) + 0.5
    assert lines[1.0][-1]["logps/chosen"] > lines[0.0][-1]["logps/chosen"] + 1
    assert lines[1.0][-1]["rewards/margins"] > 0


def test_a_policy_against_itself_has_no_divergence(sgpt, tiny, pairs):
    for each in compare_policies(tiny, sgpt, sgpt, pairs[:2]):
        assert each.kl_per_token == pytest.approx(0, abs=1e-7) and each.margin == pytest.approx(0, abs=1e-6)
        assert each.chosen_logp < 0 and each.rejected_logp < 0
        assert each.chosen_tokens == len("Ask[Which 0?]") + len("<|im_end|>\n") - 9  # bytes; the end mark is one token


@pytest.mark.parametrize(
    ("chosen", "rejected", "other_at", "expected"),
    [
        ("Recommend[Emma. Is it?]", "Recommend[Emma. Does it?]", {"policy": 5}, (False, True)),
        ("Recommend[Emma. Is it?]", "Recommend[Emma. Does it?]", {"policy": 18, "default": 0}, (True, False)),
        ("Search[Emma]", "Ask[Why?]", {"policy": 0}, (None, None)),
    ],
)
def test_a_policy_that_parts_from_what_both_replies_begin_with_is_told(
    chosen, rejected, other_at, expected, sgpt, tiny, pairs, monkeypatch
):
    """One token is a character of these ASCII replies; `Recommend[Emma. ` is shared. `other_at`: where another token is likeliest."""

    def log_probabilities(model, name, ids, begin):
        likeliest = ids[begin:].clone()
        if name in other_at:
            likeliest[other_at[name]] += 1
        return torch.nn.functional.one_hot(likeliest, model.config.vocab_size).float().mul(9).log_softmax(-1)

    monkeypatch.setattr("ecpo_utils.method.divergence._log_probabilities", log_probabilities)
    replies = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))}
    (found,) = compare_policies(tiny, sgpt, sgpt, [pairs[0].model_copy(update=replies)])
    assert (found.keeps_shared, found.reference_keeps_shared) == expected


@pytest.mark.parametrize("beforehand", [True, False])
def test_the_reference_is_the_sgpt_policy_and_stays_frozen(beforehand, sgpt, tiny, make_params, pairs, tmp_path):
    """Asked before the training, as on a CPU, or beside each step, as on a GPU."""
    from trl.trainer.utils import use_adapter

    model, tokenizer = load_backbone(tiny)
    plain = load_adapter(model, tiny, sgpt, trainable=False)

    def log_probability(model, pair, answer):
        (row,) = join_examples([SFTExample(prompt=pair.prompt, completion=answer, task_id="t", turn=0)], tokenizer)
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float().log_softmax(-1)
        chosen = scores.gather(1, torch.tensor(row.input_ids[1:])[:, None])[:, 0]
        return (chosen * torch.tensor(row.completion_mask[1:])).sum().item()

    wanted = [log_probability(plain, pair, pair.chosen) for pair in pairs]
    policy = load_adapter(load_backbone(tiny)[0], tiny, sgpt)
    trainer = build_trainer(
        "dpo", make_params(), policy, tokenizer, TrainingSet(pairs), tmp_path, precompute_ref_log_probs=beforehand
    )  # fmt: skip

    def reference():
        if beforehand:
            return list(trainer.train_dataset["ref_chosen_logps"])
        with use_adapter(policy, adapter_name="ref"):
            return [log_probability(policy.eval(), pair, pair.chosen) for pair in pairs]

    before = reference()
    assert before == pytest.approx(wanted, rel=0.01)  # bfloat16
    trainer.train()
    assert reference() == before and [log_probability(policy.eval(), pair, pair.chosen) for pair in pairs] != before
    first = next(line for line in trainer.state.log_history if "loss" in line)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_kto_rows_are_labelled_completions(pairs, tiny):
    _, tokenizer = load_backbone(tiny)
    rows = preference_rows("kto", pairs[:4], tokenizer)
    assert rows[:2] == [
        {"prompt": pairs[0].prompt, "completion": pairs[0].chosen, "label": True},
        {"prompt": pairs[2].prompt, "completion": pairs[2].rejected, "label": False},
    ]
    assert sorted(row["completion"][0]["content"] for row in rows) == sorted(
        answer[0]["content"] for pair in pairs[:4] for answer in (pair.chosen, pair.rejected)
    )
    (row,) = preference_rows("dpo", pairs[:1], tokenizer)
    assert row == {name: getattr(pairs[0], name) for name in ("prompt", "chosen", "rejected")}


def test_simpo_learns_one_end_mark_per_answer(sgpt, tiny, make_params, pairs, tmp_path):
    model, tokenizer = load_backbone(tiny)
    trainer = build_trainer("simpo", make_params(), load_adapter(model, tiny, sgpt), tokenizer, TrainingSet(pairs), tmp_path)
    for row, pair in zip(trainer.train_dataset, pairs, strict=True):
        for name in ("chosen", "rejected"):
            labels = row[f"{name}_labels"]
            learned = tokenizer.decode([token for token in labels if token != -100])
            assert learned == getattr(pair, name)[0]["content"] + "<|im_end|>"
            assert tokenizer.decode(row[f"{name}_input_ids"]).startswith("<|im_start|>system") and labels[0] == -100


@pytest.mark.parametrize("method", ["sft", "dpo", "simpo"])
def test_more_rows_at_once_learn_the_same(method, tiny, make_params, examples, pairs, sgpt, tmp_path):
    rows, start = (TrainingSet(examples[:4]), None) if method == "sft" else (TrainingSet(pairs[:4]), sgpt)
    found = {}
    for size in (1, 4):
        names = [f"{prefix_of(method)}_{name}" for name in BATCH]
        params = make_params(**dict(zip(names, (size, 4 // size), strict=True)), sft_num_train_epochs=1.0, dpo_num_train_epochs=1.0)
        found[size] = load_history(train_adapter(method, params, rows, tmp_path / f"{size}", start=start))
    assert [found[size]["rows_at_once"] for size in found] == [1, 4] and found[1]["steps"] == found[4]["steps"] == 1
    losses, norms = ([found[size]["history"][0][key] for size in found] for key in ("loss", "grad_norm"))
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and norms[0] == pytest.approx(norms[1], rel=0.05)  # bfloat16


@pytest.mark.parametrize(
    ("gpu", "native", "expected"),
    [
        (False, True, (torch.bfloat16, False, False)),
        (False, False, (torch.float32, False, False)),
        (True, True, (torch.bfloat16, True, False)),
        (True, False, (torch.float16, False, True)),
    ],
)
def test_what_only_imitates_bfloat16_trains_in_another_type_with_a_float32_adapter(gpu, native, expected, tiny, make_params, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        patch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
        patch.setattr(torch.cuda, "is_available", lambda: gpu)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
        dtype, options = weights_dtype(), device_options()
    assert (dtype, options["bf16"], options["fp16"]) == expected and options["use_cpu"] is not gpu
    monkeypatch.setattr(backbone, "weights_dtype", lambda: dtype)
    model = add_adapter(load_backbone(tiny)[0], make_params())
    assert {value.dtype for value in model.parameters() if not value.requires_grad} == {dtype}
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}


def test_without_a_launcher_one_of_several_gpus_is_used(tmp_path):
    from trl import SFTConfig

    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    args._n_gpu = 4  # as transformers finds them, once it has set up its devices
    assert args.n_gpu == 4 and trainers._one_gpu(args).n_gpu == 1


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


def test_rows_longer_than_the_model_reads_name_its_context_whatever_the_parameter_allows(tiny, make_params, examples, pairs, monkeypatch):
    monkeypatch.setattr(training, "find_model", lambda name: find_model(name).model_copy(update={"context_tokens": 48}))
    _, tokenizer = load_backbone(tiny)
    reads = rf"turn 0 has \d+ tokens, {tiny} reads 48 \(context_tokens in params/models.yaml\), whatever"
    for method, rows in (("sft", join_examples(examples, tokenizer)), ("dpo", pairs)):
        for limit in (64, 4096):
            expected = rf"^{method}: dialogue game/u0/g1 {reads} {method}_max_length \(now {limit}\) allows; lower max_turns"
            with pytest.raises(TrainingError, match=expected):
                training._check_lengths(method, make_params(**{f"{method}_max_length": limit}), TrainingSet(rows), tokenizer)


def test_weights_that_are_no_numbers_after_the_last_step_are_not_published(tiny, make_params, pairs, sgpt, tmp_path):
    params = make_params(dpo_learning_rate=1e30, dpo_num_train_epochs=1.0, dpo_gradient_accumulation_steps=2)
    with pytest.raises(TrainingError, match=r"after the last step \d+ of \d+ tensors hold no numbers, .*; lower dpo_learning_rate"):
        train_adapter("dpo", params, TrainingSet(pairs[:2]), tmp_path / "a", start=sgpt)
    assert not (tmp_path / "a").exists()


def test_a_validation_loss_that_is_no_number_ends_the_training_too():
    watch = trainers._watch("dpo_learning_rate")
    state, args = SimpleNamespace(global_step=7, log_history=[{}]), SimpleNamespace(learning_rate=0.5)
    watch.on_log(args, state, None, logs={"eval_loss": 0.7})
    with pytest.raises(TrainingError, match=r"the loss is nan at step 7; lower dpo_learning_rate \(now 0.5\)"):
        watch.on_log(args, state, None, logs={"eval_loss": float("nan")})


def test_a_training_of_one_step_changes_the_weights(tiny, make_params, pairs, sgpt, tmp_path):
    params = make_params(dpo_num_train_epochs=1.0, dpo_gradient_accumulation_steps=2)
    adapter = train_adapter("dpo", params, TrainingSet(pairs[:2]), tmp_path / "a", start=sgpt)
    facts = load_history(adapter)
    assert facts["steps"] == 1 and facts["history"][0]["learning_rate"] > 0
    assert any((tensor != weights(adapter)[name]).any() for name, tensor in weights(sgpt).items())


def test_a_loss_that_is_no_number_ends_the_training(tiny, make_params, examples, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower sft_learning_rate"):
        train_adapter("sft", make_params(sft_learning_rate=1e30), TrainingSet(examples), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_adapter_of_other_weights_is_refused(sgpt, tiny, make_params, pairs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sgpt, other)
    card = json.loads((other / "training.json").read_text())
    (other / "training.json").write_text(json.dumps({**card, "base_model_files": {"model.safetensors": "0" * 64}}))
    with pytest.raises(ModelError, match=f"{other} was trained on {tiny}, whose weights are not those of {tiny}"):
        train_adapter("dpo", make_params(), TrainingSet(pairs), tmp_path / "a", start=other)
    (other / "training.json").unlink()
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "r": 2}))
    with pytest.raises(TrainingError, match=f"{other} does not fit {tiny}"):
        train_adapter("dpo", make_params(), TrainingSet(pairs), tmp_path / "a", start=other)
    with pytest.raises(ModelError, match="adapter_config.json is missing; train the adapter first"):
        train_adapter("dpo", make_params(), TrainingSet(pairs), tmp_path / "a", start=tmp_path / "nowhere")


def test_giving_memory_back_is_harmless_where_the_library_knows_no_such_call(monkeypatch):
    trim_heap()
    monkeypatch.setattr("ecpo_utils.method.backbone.ctypes.CDLL", lambda name: object())
    trim_heap()
