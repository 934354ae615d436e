"""SAM and ASAM against the equations written out, and what theory says of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import TrainingError, UsageError
from holdfast.methods.base import AlignmentData
from holdfast.methods.sam import Sam, SamOptions, adaptive_step
from holdfast.models import adapters
from holdfast.models.weights import global_norm, step_along
from recorded_steps import accumulated, assert_trains_with, micro_batch, plain

MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
BOTH = pytest.mark.parametrize("adaptive", [False, True])


@pytest.fixture
def model(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


def ascended(
    model: Any, loss: Callable[[], Tensor], *, adaptive: bool, rho: float, eta: float
) -> list[Tensor]:
    """Return the gradient at theta + eps, coordinate by coordinate as the equations have it."""
    theta = [p.detach().clone() for p in model.parameters()]
    up = plain(model, loss)
    units = [p.abs() + eta if adaptive else torch.ones_like(p) for p in theta]
    norm = math.sqrt(sum(float(((t * g) ** 2).sum()) for t, g in zip(units, up, strict=True)))
    with torch.no_grad():
        for p, t, g in zip(model.parameters(), units, up, strict=True):
            p += rho * t**2 * g / (norm + 1e-7)
    there = plain(model, loss)
    with torch.no_grad():
        for p, old in zip(model.parameters(), theta, strict=True):
            p.copy_(old)
    return there


@BOTH
@pytest.mark.parametrize("accumulation", [1, 2])
def test_three_steps_equal_the_equations(
    accumulation: int, adaptive: bool, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    options = {"adaptive": adaptive, "rho": 0.4, "eta": 0.02}
    trainer = make_trainer(
        "sam", model.double(), gradient_accumulation_steps=accumulation, **options
    )
    assert_trains_with(trainer, partial(ascended, **options))


@BOTH
def test_without_rho_the_gradient_is_sfts_bit_for_bit(
    adaptive: bool, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    mine = make_trainer("sam", copy.deepcopy(model), adaptive=adaptive, **Sam.neutral)
    batch = micro_batch(mine, benign=False)
    found, wanted = accumulated(mine, batch), accumulated(make_trainer("sft", model), batch)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# ------------------------------------------------------------------------------- the adaptive step


def test_an_adaptive_step_by_hand() -> None:
    # T = |w| + 1 = (4, 1); T g = (12, 5), of norm 13; 26 T^2 g / 13 = 2 (16 x 3, 1 x 5).
    (step,) = adaptive_step([torch.tensor([3.0, 5.0])], [torch.tensor([-3.0, 0.0])], 26, eta=1)
    torch.testing.assert_close(step, torch.tensor([96.0, 10.0]))


def test_an_adaptive_step_at_equal_weights_is_sams() -> None:
    """With T = c 1 it is rho c g / ||g||: c times as long."""
    torch.manual_seed(0)
    grads, weights = [torch.randn(3), torch.randn(2, 2)], [torch.ones(3), -torch.ones(2, 2)]
    wanted = step_along(grads, 2 * 0.3)
    for a, b in zip(adaptive_step(grads, weights, 0.3, eta=1.0), wanted, strict=True):
        torch.testing.assert_close(a, b)


@BOTH
def test_only_the_adaptive_step_does_not_see_the_scale_of_the_weights(adaptive: bool) -> None:
    """f(u, v) = (u v - 1)^2 is the same function of (a u, v / a): so should be its perturbed value.

    ASAM is invariant (Kwon et al., theorem 2) at eta 0, SAM is not.
    """

    def perturbed_value(u: float, v: float) -> float:
        w = torch.tensor([u, v], dtype=torch.float64, requires_grad=True)
        (g,) = torch.autograd.grad((w[0] * w[1] - 1) ** 2, [w])
        step = adaptive_step([g], [w], 0.1, eta=0.0) if adaptive else step_along([g], 0.1, eps=0)
        there = w.detach() + step[0]
        return float((there[0] * there[1] - 1) ** 2)

    at_one, at_ten = perturbed_value(2.0, 3.0), perturbed_value(20.0, 0.3)
    assert (at_ten == pytest.approx(at_one, rel=1e-6)) is adaptive


def test_no_other_step_of_the_length_climbs_more(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    """To first order the step gains rho ||g||, and by Cauchy-Schwarz no other gains more."""
    torch.manual_seed(0)
    trainer = make_trainer("sam", model.double(), rho=1e-3)
    batch = micro_batch(trainer, benign=False)
    loss = partial(trainer.scaled_loss, model.train(), batch, 40)
    parameters, start = trainer.trainable_parameters(), float(loss().detach())
    grads = torch.autograd.grad(loss(), parameters)
    with trainer.perturbation(model, batch, 40), torch.no_grad():
        gain = float(loss()) - start
    assert gain == pytest.approx(1e-3 * float(global_norm(grads)), rel=1e-2)
    others = [torch.randn_like(p) for p in parameters]
    with torch.no_grad():
        for p, step in zip(parameters, step_along(others, 1e-3), strict=True):
            p += step
        assert float(loss()) - start < gain


# ------------------------------------------------------------------------ what must not be touched


@BOTH
def test_accumulate_changes_nothing_but_the_gradient(
    adaptive: bool,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    weights_of: Weights,
    same: Same,
) -> None:
    trainer = make_trainer("sam", model, adaptive=adaptive, rho=0.4)
    batch, before = micro_batch(trainer), weights_of(model)
    once, twice = accumulated(trainer, batch), accumulated(trainer, batch, keep=True)
    assert same(weights_of(model), before)
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_weights_come_back_when_the_forward_raises(
    nth: int,
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    weights_of: Weights,
    same: Same,
) -> None:
    """Forward 1 finds the direction, 2 is at the perturbed weights, 3 is the benign rows'."""
    trainer = make_trainer("sam", model.to(torch.bfloat16), rho=0.4)
    before, as_before = weights_of(model), list[bool]()

    def boom(*args: object) -> None:
        as_before.append(same(weights_of(model), before))
        if len(as_before) == nth:
            raise RuntimeError("boom")

    model.register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        accumulated(trainer, micro_batch(trainer))
    assert as_before == [True, False, True][:nth]
    assert same(weights_of(model), before)


@BOTH
def test_lora_alone_is_perturbed(
    adaptive: bool, model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights
) -> None:
    """At B = 0 the gradient of A is 0; eta keeps B itself from being held at 0 in ASAM."""
    adapted = adapters.add_lora(model, 2, seed=0)
    trainer = make_trainer("sam", adapted, adaptive=adaptive, rho=0.4)
    before = weights_of(adapted)
    with trainer.perturbation(adapted, micro_batch(trainer, benign=False), 40):
        there = weights_of(adapted)
    moved = {name for name in before if not torch.equal(there[name], before[name])}
    assert moved
    assert all("lora_B" in name for name in moved)


def test_benign_rows_alone_see_the_clean_weights(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("sam", copy.deepcopy(model), rho=0.4)
    batch = trainer.collate_positions(range(trainer.n_safety, trainer.n_safety + 4))
    found, wanted = accumulated(trainer, batch), accumulated(make_trainer("sft", model), batch)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_loss_that_is_not_finite_stops(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = math.nan
    with pytest.raises(TrainingError, match=r"loss is nan at step 1.*rho"):
        make_trainer("sam", model, replace(data, benign=None)).train()


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("name", ["rho", "eta"])
@pytest.mark.parametrize("value", [-0.1, math.nan])
def test_bad_options(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=f"{name}={value} must be a number, at least 0"):
        SamOptions(**options)


def test_published_defaults() -> None:
    config = SamOptions()
    assert (config.rho, config.adaptive, config.eta) == (0.05, False, 0.01)
