"""The precision of a model: how the option is resolved, and what runs in it."""

import pytest
import torch
from torch import nn

from holdfast.errors import UsageError
from holdfast.models import checkpoints, precision
from holdfast.models.precision import (
    SMALLEST,
    attention_in_float32,
    autocast,
    computing,
    computing_in,
    in_float32,
)
from holdfast.stages.config import ModelConfig

CPU = torch.device("cpu")


@pytest.fixture
def native(monkeypatch):
    """Return a function that sets whether the processor has bfloat16."""

    def set_native(value):
        monkeypatch.setattr(precision, "_processor_has_bfloat16", lambda: value)

    return set_native


@pytest.mark.parametrize(
    ("option", "has_bfloat16", "weights", "expected"),
    [
        ("auto", True, SMALLEST, "bfloat16"),
        ("auto", True, SMALLEST - 1, "float32"),
        ("auto", False, SMALLEST, "float32"),
        ("float32", True, SMALLEST, "float32"),
        ("float32", False, 1, "float32"),
        ("bfloat16", True, 1, "bfloat16"),
    ],
)
def test_the_option_is_resolved(native, option, has_bfloat16, weights, expected):
    native(has_bfloat16)
    assert precision.resolve(option, CPU, weights) == expected


def test_emulated_bfloat16_is_refused_with_a_way_out(native):
    native(False)
    with pytest.raises(UsageError, match=r"only emulates bfloat16.*precision=auto"):
        precision.resolve("bfloat16", CPU, SMALLEST)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bw": True}, False),  # enough to emulate it
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"architecture": "arm64", "bf16": True}, True),
        ({"architecture": "arm64"}, False),
    ],
)
def test_processors_that_multiply_bfloat16(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision.has_bfloat16(CPU) is expected


def test_other_devices_do_not_have_bfloat16():
    assert precision.has_bfloat16(torch.device("meta")) is False


def test_the_world_is_float32_on_every_machine(native, tmp_path):
    native(True)
    settings = {"out": tmp_path, "device": "cpu"}
    assert ModelConfig(**settings).computing("world") == "float32"
    assert ModelConfig(**settings, precision="bfloat16").computing("world") == "bfloat16"


def test_weights_are_counted_from_the_files_as_in_memory():
    loaded = checkpoints.load("world", device="cpu")
    parts = checkpoints.parts_of(checkpoints.resolve("world"))
    counted = checkpoints.weight_count(checkpoints.weight_files(parts.base))
    assert counted == precision.weights_of(loaded.model)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_under_autocast_is_computed_in_float32(masked):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4).bfloat16() for _ in range(3))
    mask = torch.randn(5, 5).bfloat16() if masked else None
    attend = torch.nn.functional.scaled_dot_product_attention
    wide = None if mask is None else mask.float()
    expected = attend(query.float(), key.float(), value.float(), attn_mask=wide).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), attention_in_float32(CPU, autocast=True):
        assert torch.equal(attend(query, key, value, attn_mask=mask), expected)
    seen = []
    with attention_in_float32(CPU, autocast=True):  # no autocast: nothing is changed
        seen.append(attend(query, key, value, attn_mask=mask))
    assert torch.equal(seen[0], attend(query, key, value, attn_mask=mask))


def test_forward_passes_run_in_the_precision_of_the_block():
    layer = nn.Linear(2, 2)
    inputs = torch.ones(1, 2)
    with autocast(CPU):
        assert layer(inputs).dtype == torch.float32
    with computing_in("bfloat16"):
        assert computing() == "bfloat16"
        with autocast(CPU):
            assert layer(inputs).dtype == torch.bfloat16
            with in_float32(CPU):
                assert layer(inputs).dtype == torch.float32
    assert computing() == "float32"
