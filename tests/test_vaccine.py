"""Vaccine against the equations, on every architecture, and what it must leave alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.methods.vaccine import Vaccine, VaccineOptions
from holdfast.models import adapters
from holdfast.models.attention import output_gradients
from holdfast.models.weights import global_norm
from recorded_steps import accumulated, assert_trains_with, drifted, micro_batch

ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma", "opt", "gpt_neox", "phi")
Make = Callable[..., PreTrainedModel]
MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_three_steps_equal_the_equations(
    accumulation: int, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        "vaccine", model.double(), gradient_accumulation_steps=accumulation, rho=0.5
    )
    assert_trains_with(trainer, partial(drifted, rho=0.5))


def test_without_rho_the_gradient_is_sfts_bit_for_bit(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    mine = make_trainer("vaccine", copy.deepcopy(model), **Vaccine.neutral)
    batch = micro_batch(mine, benign=False)
    found, wanted = accumulated(mine, batch), accumulated(make_trainer("sft", model), batch)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_small_drift_raises_the_loss_as_theory_says(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    """To first order by <g, eps> = rho ||g||, g over the outputs of all layers together."""
    trainer = make_trainer("vaccine", model.double(), rho=1e-3)
    batch = micro_batch(trainer, benign=False)
    loss = partial(trainer.scaled_loss, model, batch, 40)
    slope = float(global_norm(output_gradients(trainer.attentions, loss)))
    start = loss().item()
    with trainer.perturbation(model, batch, 40):
        assert loss().item() - start == pytest.approx(1e-3 * slope, rel=0.02)
        # A pass that is not trained on is left alone: with LoRA, that of DPO's reference.
        with torch.no_grad():
            assert loss().item() == start


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_in_half_precision_with_checkpointing(
    architecture: str,
    make_model: Make,
    make_trainer: MakeTrainer,
    tokenizer: PreTrainedTokenizerBase,
    weights_of: Weights,
    same: Same,
) -> None:
    """What is computed again is the same: checkpointing changes no bit of the gradient."""
    adapted = adapters.add_lora(
        make_model(architecture, vocab=len(tokenizer)).to(torch.bfloat16), 2, seed=0
    )
    found = {}
    for name, method, on in (
        ("sft", "sft", False),
        ("plain", "vaccine", False),
        ("checkpointing", "vaccine", True),
    ):
        model: Any = copy.deepcopy(adapted).train()
        if on:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        trainer, before = make_trainer(method, model), weights_of(model)
        found[name] = accumulated(trainer, micro_batch(trainer))
        assert same(weights_of(model), before)
    for a, b in zip(found["plain"], found["checkpointing"], strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(found["plain"], found["sft"], strict=True))


def test_accumulate_adds_to_the_gradient_and_leaves_no_hook(
    model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights, same: Same
) -> None:
    trainer = make_trainer("vaccine", model)
    batch, before = micro_batch(trainer), weights_of(model)
    once, twice = accumulated(trainer, batch), accumulated(trainer, batch, keep=True)
    assert same(weights_of(model), before)
    assert not any(module._forward_hooks for module in model.modules())
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_no_hook_stays_when_the_forward_raises(
    nth: int, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    """Forward 1 finds the drift, 2 has it, 3 is the benign rows' and has none."""
    trainer = make_trainer("vaccine", model)
    hooked: list[bool] = []

    def boom(*args: object) -> None:
        hooked.append(any(m._forward_hooks for m in model.modules()))
        if len(hooked) == nth:
            raise RuntimeError("boom")

    model.get_output_embeddings().register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        accumulated(trainer, micro_batch(trainer))
    assert hooked == [True, True, False][:nth]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("rho", [-0.1, math.nan])
def test_bad_options(rho: float) -> None:
    with pytest.raises(UsageError, match=f"rho={rho} must be a number, at least 0"):
        VaccineOptions(rho=rho)


def test_published_default() -> None:
    assert VaccineOptions().rho == 2.0
