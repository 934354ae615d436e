"""Booster against its equation, the sign of its term, and what it must leave alone."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.methods._batches import Batch
from holdfast.methods.base import AlignmentData
from holdfast.methods.booster import BoosterOptions
from holdfast.models import encoding
from holdfast.models.weights import gradients

Make = Callable[..., PreTrainedModel]
MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma3_text", "opt", "gpt_neox", "phi")


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


class Recorder:
    """Keeps the alignment batches of every step."""

    def __init__(self, trainer: Any) -> None:
        self.steps: list[list[Batch]] = []
        self.draw = trainer.draw_batches
        trainer.draw_batches = self

    def __call__(self, iterator: Any, n: int) -> list[Batch]:
        batches: list[Batch] = self.draw(iterator, n)
        self.steps.append([dict(b) for b in batches])
        return batches


def mean_loss(model: Any, batches: list[Batch]) -> Tensor:
    """Return the mean loss over all answer tokens of some batches."""
    parts = []
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logp = logits[:, :-1].float().log_softmax(-1)
        labels = batch["labels"][:, 1:]
        own = logp.gather(2, labels.clamp(min=0)[..., None])[..., 0]
        parts.append(-own[labels != encoding.IGNORE])
    return torch.cat(parts).mean()


def flat_grad(model: Any, batches: list[Batch]) -> Tensor:
    gradient = torch.autograd.grad(mean_loss(model, batches), list(model.parameters()))
    return torch.cat([g.flatten() for g in gradient])


def move(model: Any, step: Tensor) -> None:
    with torch.no_grad():
        for p, s in zip(
            model.parameters(), step.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p += s.view_as(p)


def flat(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def harmful_rows(trainer: Any) -> Batch:
    batch: Batch = encoding.collate(trainer.harmful, trainer.pad)
    return batch


# --------------------------------------------------------------------------- against a slow twin


@pytest.mark.parametrize(("accumulation", "clip"), [(1, 0.0), (2, 0.0), (2, 0.5)])
def test_three_steps_equal_the_equation(
    accumulation: int, clip: float, model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    model = model.double()
    theirs: Any = copy.deepcopy(model)
    trainer = make_trainer(
        "booster",
        model,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=clip,
        alpha=0.3,
        lam=2.0,
    )
    stream, recorder = copy.deepcopy(trainer.stream), Recorder(trainer)
    trainer.train()
    for batches in recorder.steps:
        harmful = [
            encoding.collate([trainer.harmful[i] for i in stream.take(8)], trainer.pad)
            for _ in batches
        ]
        wanted, here = flat_grad(theirs, batches), flat_grad(theirs, harmful)
        theta = flat(theirs)
        move(theirs, -0.3 * here / here.norm())
        g = wanted + 2.0 * (here - flat_grad(theirs, harmful))
        move(theirs, theta - flat(theirs))
        move(theirs, -0.1 * (g if clip == 0 else g * min(1.0, clip / float(g.norm()))))
    assert len(recorder.steps) == 3
    torch.testing.assert_close(flat(model), flat(theirs), rtol=0, atol=1e-6)


def test_accumulation_equals_one_large_batch(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    again = copy.deepcopy(model)
    whole = make_trainer("booster", model)
    parts = make_trainer(
        "booster", again, gradient_accumulation_steps=2, per_device_train_batch_size=4
    )
    whole.train()
    parts.train()
    torch.testing.assert_close(flat(again), flat(model), rtol=0, atol=1e-4)
    assert parts.method_state() == whole.method_state()


# ------------------------------------------------------------------------------------ properties


def gain(trainer: Any, alpha: float) -> float:
    """Return by how much a harmful step on all harmful rows lowers their loss."""
    model, rows = copy.deepcopy(trainer.model).eval(), [harmful_rows(trainer)]
    here, g = mean_loss(model, rows), flat_grad(model, rows)
    move(model, -alpha * g / g.norm())
    return float((here - mean_loss(model, rows)).detach())


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_a_harmful_step_gains_less_than_after_sft(
    alpha: float, aligned: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    """And with the sign of the term turned round it gains more."""
    options = {"max_steps": 4, "learning_rate": 2e-3, "per_device_train_batch_size": 16}
    plain = make_trainer("sft", copy.deepcopy(aligned), **options)
    mine, turned = (
        make_trainer("booster", copy.deepcopy(aligned), alpha=alpha, lam=20.0, **options)
        for _ in range(2)
    )
    plain.harmful = mine.harmful
    object.__setattr__(turned.options, "lam", -20.0)  # which no user may set
    before = gain(mine, alpha)
    for trainer in (plain, mine, turned):
        trainer.train()
    assert gain(mine, alpha) < before
    assert gain(mine, alpha) < gain(plain, alpha) < gain(turned, alpha)
    logged = [e["harmful_gain"] for e in mine.state.log_history if "harmful_gain" in e]
    assert len(logged) == 4
    assert logged[0] == pytest.approx(before, abs=1e-4)  # a step sees all 16 rows


def test_lam_zero_is_sft_bit_for_bit(
    model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights, same: Same
) -> None:
    again = copy.deepcopy(model)
    make_trainer("sft", model).train()
    trainer = make_trainer("booster", again, lam=0.0)
    trainer.train()
    assert same(weights_of(model), weights_of(again))
    assert trainer.stream.order == []


def test_dropout_is_not_taken_for_a_gain(
    make_model: Make, tokenizer: PreTrainedTokenizerBase, make_trainer: MakeTrainer
) -> None:
    """A step of no length gains nothing, but two dropout masks would differ."""
    model = make_model("opt", vocab=len(tokenizer), dropout=0.5)
    again = copy.deepcopy(model)
    make_trainer("sft", model, max_steps=1).train()
    make_trainer("booster", again, max_steps=1, alpha=1e-6).train()
    torch.testing.assert_close(flat(again), flat(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_a_step(
    architecture: str,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    make_trainer: MakeTrainer,
) -> None:
    model = make_model(architecture, vocab=len(tokenizer))
    before = flat(model)
    make_trainer("booster", model, max_steps=1).train()
    assert bool(torch.isfinite(flat(model)).all())
    assert not torch.equal(flat(model), before)


def test_one_copy_of_the_weights_above_a_training_step(
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    live_bytes = importlib.import_module("step_time").LiveBytes
    model = make_model(vocab=len(tokenizer), width=192)
    trainer = make_trainer("booster", model, per_device_train_batch_size=2)
    drawn = copy.deepcopy(trainer.stream).take(2)
    batch = trainer.collate_rows([trainer.harmful[i] for i in drawn])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    peaks = []
    for act in (
        lambda: trainer.accumulate(model, batch, None),
        lambda: trainer.before_update(torch.zeros(1)),
    ):
        with live_bytes([*model.parameters(), *(p.grad for p in model.parameters())]) as met:
            act()
        peaks.append(met.peak)
    copy_of_weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert peaks[1] - peaks[0] < 1.1 * copy_of_weights


# -------------------------------------------------------------------------------- shared mechanism


def test_gradients_are_added_at_fp16s_scale(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("booster", model)
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 8.0)
    ones = [torch.ones_like(p) for p in model.parameters()]
    for expected in (4.0, 8.0):  # no gradient yet, then one to add to
        trainer.add_gradient(ones, 0.5)
        assert all(bool((p.grad == expected).all()) for p in model.parameters())


def test_small_gradients_do_not_vanish_in_fp16(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("booster", model)
    batch = trainer.harmful_batch(4)

    def loss() -> Tensor:
        return trainer.answer_loss(model, batch) * 1e-5

    def zeros(grads: Sequence[Tensor]) -> int:
        return sum(int((g == 0).sum()) for g in grads)

    wanted = gradients(loss(), list(model.parameters()))
    with torch.autocast("cpu", torch.float16):
        trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 2.0**16)
        value, found = trainer.gradient_of(model, loss)
        unscaled = gradients(loss(), list(model.parameters()))
        trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: 2.0**120)  # overflows
        _, retried = trainer.gradient_of(model, loss)
    assert float(value) == pytest.approx(float(loss().detach()), rel=1e-2)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm()) < 0.05 * float(b.norm())
    assert zeros(unscaled) > 1.1 * zeros(found)
    assert all(torch.equal(a, b) for a, b in zip(retried, unscaled, strict=True))


@pytest.mark.parametrize("method", ["booster", "repnoise", "tar"])
def test_no_harmful_rows_are_no_endless_loop(
    method: str, model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    with pytest.raises(UsageError, match="none: no harmful rows"):
        make_trainer(method, model, replace(data, harmful=Examples([], name="none")))


def test_a_harmful_loss_that_is_not_finite_stops_before_the_optimizer(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("booster", model)
    with torch.no_grad():
        model.lm_head.weight[7] = math.nan
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        trainer.before_update(torch.zeros(1))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, r"alpha=0\.0 must be a number, above 0"),
        ({"alpha": math.nan}, "alpha=nan must be a number, above 0"),
        ({"lam": -1.0}, r"lam=-1\.0 must be a number, at least 0"),
        ({"lam": math.inf}, "lam=inf must be a number, at least 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        BoosterOptions(**options)
