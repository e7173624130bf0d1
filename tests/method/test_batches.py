"""Rows that a device takes at once: the rows of a step stay what the parameters say."""

import math
from types import SimpleNamespace

import pytest
import torch

from ecpo_utils.core.errors import TrainingError
from ecpo_utils.method.batches import BATCH, choose_batch, enlarge_batch, estimate_row_bytes, prefix_of, share_batch


@pytest.mark.parametrize(
    ("rows", "processes", "expected"),
    [((2, 16), 1, (2, 16)), ((2, 16), 4, (2, 4)), ((4, 2), 4, (2, 1)), ((1, 8), 8, (1, 1)), ((3, 4), 4, (3, 1))],
)
def test_all_processes_together_take_the_rows_of_one(make_params, rows, processes, expected):
    names = "per_device_train_batch_size", "gradient_accumulation_steps"
    params = make_params(**{f"dpo_{name}": value for name, value in zip(names, rows, strict=True)})
    found = share_batch(params, "dpo", processes)
    assert tuple(found[name] for name in names) == expected


def test_kto_has_two_rows_at_once_on_any_number_of_gpus(make_params):
    params = make_params(dpo_per_device_train_batch_size=1, dpo_gradient_accumulation_steps=4)
    assert [tuple(share_batch(params, "dpo", number, at_once=2).values()) for number in (1, 2, 4)] == [(2, 4), (2, 2), (2, 1)]
    with pytest.raises(TrainingError, match="8 rows a step .* cannot be shared by 8"):
        share_batch(params, "dpo", 8, at_once=2)


def test_kto_takes_as_many_pairs_a_step_however_the_product_is_written(make_params):
    for size, accumulated in ((1, 32), (2, 16), (4, 8)):
        params = make_params(dpo_per_device_train_batch_size=size, dpo_gradient_accumulation_steps=accumulated)
        assert math.prod(share_batch(params, "dpo", 1, at_once=2).values()) == 64


def test_rows_that_cannot_be_shared_evenly_name_the_parameters(make_params):
    params = make_params(sft_per_device_train_batch_size=1, sft_gradient_accumulation_steps=2)
    with pytest.raises(TrainingError, match=r"2 rows a step \(sft_per_device_train_batch_size x sft_gradient.*\) cannot be shared by 4"):
        share_batch(params, "sft", 4)


@pytest.mark.parametrize(
    ("batch", "fitting", "expected"),
    [((1, 32), 5, (4, 8)), ((2, 16), 64, (32, 1)), ((2, 16), 7, (4, 8)), ((2, 16), 0, (2, 16)), ((2, 16), -3, (2, 16)), ((3, 1), 9, (3, 1)),
     ((1, 6), 5, (3, 2))],
)  # fmt: skip
def test_a_gpu_takes_as_many_rows_at_once_as_fit_and_the_rows_of_a_step_stay(batch, fitting, expected):
    found = tuple(enlarge_batch(dict(zip(BATCH, batch, strict=True)), fitting * 100 + 99, 100).values())
    assert found == expected and math.prod(found) == math.prod(batch)


def test_a_row_takes_memory_by_its_tokens_layers_and_width():
    config = SimpleNamespace(hidden_size=4096, num_hidden_layers=32, vocab_size=128_256)  # an 8B model
    assert estimate_row_bytes("sft", config, 1000) == 2 * 4096 * (32 + 64) * 1000
    assert estimate_row_bytes("dpo", config, 1000) == 2 * estimate_row_bytes("sft", config, 1000)
    assert estimate_row_bytes("simpo", config, 1000) == estimate_row_bytes("dpo", config, 1000) + 2 * 12 * 128_256 * 1000


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [("sft", {}, (8, 1)), ("dpo", {}, (4, 2)), ("simpo", {}, (4, 2)), ("dpo", {"dpo_sft_weight": 1.0}, (1, 8)), ("kto", {}, (2, 8))],
)
def test_a_batch_grows_on_a_gpu_only_and_where_the_training_stays_the_same(method, changes, expected, make_params, monkeypatch):
    config = SimpleNamespace(hidden_size=64, num_hidden_layers=2, vocab_size=0)
    model = SimpleNamespace(config=config, get_memory_footprint=lambda: 10**6)
    names = [f"{prefix_of(method)}_{name}" for name in BATCH]
    params = make_params(**dict(zip(names, (1, 8), strict=True)), **changes)
    assert math.prod(choose_batch(method, params, model, 100).values()) == math.prod(expected)
    assert choose_batch(method, params, model, 100) == share_batch(params, prefix_of(method), 1, at_once=1 + (method == "kto"))
    sizes = [10**6 + 8 * 2 * 64 * 66 * 100 * 2, 10**12]  # of two GPUs; half of what is left of the smaller holds eight rows
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(total_memory=sizes[gpu]))
    assert tuple(choose_batch(method, params, model, 100).values()) == expected
