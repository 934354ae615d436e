"""What every guard must do, with all weights and with LoRA."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.guards.base import Guard
from holdfast.models import adapters, checkpoints
from holdfast.options import describe
from holdfast.stages.attacking.guards import FIELDS
from holdfast.tuning.loop import FinetuneConfig, finetune

CONFIG = FinetuneConfig(learning_rate=3e-3, steps=4, batch_size=4, every=2, seed=4)
SMALL = {"safety_steps": 2, "user_steps": 3, "fisher_rows": 4, "number": 3, "share": 0.25}
"""Values for options of these names: the models here are tiny and the tunings short."""

Build = Callable[..., Guard]
Tune = Callable[..., PreTrainedModel]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]


@pytest.fixture(params=plugins.available("guards"))
def build(request: pytest.FixtureRequest, rows: Any, base: Path) -> Build:
    """Return a builder of each guard with all that it needs."""
    cls = plugins.find("guards", request.param)
    offered = {"safety": rows.safety, "harmful": rows.harmful, "base": str(base)}
    options = {name: value for name, value in SMALL.items() if name in cls.model_fields}

    def make(**changes: Any) -> Guard:
        given = {name: offered[name] for name in sorted(cls.needs)}
        made: Guard = cls(**{**options, **given, **changes})
        return made

    return make


@pytest.fixture(scope="session")
def base(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """Return a saved model that stands for the one before the alignment."""
    path = tmp_path_factory.mktemp("guards") / "base"
    checkpoints.save(make_model(vocab=len(tokenizer), seed=1), tokenizer, path)
    return path


@pytest.fixture(params=["full", "lora"])
def fresh(
    request: pytest.FixtureRequest,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        model = make_model(vocab=len(tokenizer))
        return model if request.param == "full" else adapters.add_lora(model, 2, seed=0)

    return make


@pytest.fixture
def tune(
    fresh: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, rows: Any
) -> Tune:
    """Return a function that tunes a fresh model on twelve rows and returns it."""

    def run(guard: Guard, config: FinetuneConfig = CONFIG, **kwargs: Any) -> PreTrainedModel:
        model = fresh()
        finetune(model, tokenizer, rows.benign[:12], replace(config, guard=guard), **kwargs)
        return model

    return run


def test_is_a_frozen_dataclass_that_says_what_it_needs(build: Build) -> None:
    guard = build()
    assert isinstance(guard, Guard)
    assert guard.needs <= FIELDS.keys()
    assert guard.neutral
    with pytest.raises(ValueError, match="frozen"):
        setattr(guard, "anything", 1)  # noqa: B010


def test_the_neutral_options_are_no_guard_bit_for_bit(
    build: Build, tune: Tune, weights_of: Weights, same: Same
) -> None:
    neutral = build(**build().neutral)
    assert same(weights_of(tune(neutral)), weights_of(tune(Guard())))


def test_it_does_something_and_the_same_thing_again(
    build: Build, tune: Tune, weights_of: Weights, same: Same
) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = weights_of(tune(build()))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(weights_of(tune(build())), one)
    assert not same(weights_of(tune(Guard())), one)
    assert all(bool(torch.isfinite(value).all()) for value in one.values())


def test_the_customers_steps_stay_and_checkpoints_do_not_disturb(
    build: Build, tune: Tune, weights_of: Weights, same: Same
) -> None:
    """A repair at a checkpoint is undone, and the model that was measured last is released."""
    seen: list[int] = []
    measured: list[dict[str, Tensor]] = []
    models_seen: list[PreTrainedModel] = []

    class Watched(type(build())):  # type: ignore[misc]
        def begin(self, tuning: Any) -> None:
            models_seen.append(tuning.model)
            super().begin(tuning)

    def look(done: int, loss: float) -> None:
        seen.append(done)
        measured.append(weights_of(models_seen[0]))

    guard = build()
    watched = Watched(**{name: getattr(guard, name) for name in type(guard).model_fields})
    often = tune(watched, replace(CONFIG, every=1), on_snapshot=look)
    assert seen == [1, 2, 3, 4]
    assert same(weights_of(often), measured[-1])
    assert same(weights_of(often), weights_of(tune(guard)))


def test_with_adapters_the_rest_stays_while_it_trains(
    build: Build, fresh: Callable[[], PreTrainedModel], tokenizer: Any, rows: Any
) -> None:
    model = fresh()
    still = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}

    class Unrepaired(type(build())):  # type: ignore[misc]
        def repair(self, tuning: Any) -> tuple[()]:
            return ()

    guard = build()
    plain = Unrepaired(**{name: getattr(guard, name) for name in type(guard).model_fields})
    finetune(model, tokenizer, rows.benign[:12], replace(CONFIG, guard=plain))
    named = dict(model.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in still.items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("at", [2, 3])
def test_resumed_equals_uninterrupted(
    at: int, build: Build, tune: Tune, weights_of: Weights, same: Same, tmp_path: Path
) -> None:
    points: dict[str, list[tuple[int, float]]] = {"whole": [], "parts": []}
    config = replace(CONFIG, every=1)
    whole = tune(build(), config, on_snapshot=lambda *p: points["whole"].append(p))

    def press(done: int, loss: float) -> None:
        points["parts"].append((done, loss))
        if done == at:
            os.kill(os.getpid(), signal.SIGINT)

    resume = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        tune(build(), config, on_snapshot=press, resume=resume)
    again = tune(build(), config, on_snapshot=lambda *p: points["parts"].append(p), resume=resume)
    assert same(weights_of(again), weights_of(whole))
    assert points["parts"] == points["whole"]


def test_options_below_their_least_are_refused(build: Build) -> None:
    options = [option for option in describe(type(build())) if option.range]
    assert options
    for option in options:
        with pytest.raises(UsageError, match=f"{option.name}=-2 must be a .*number"):
            build(**{option.name: -2})


def test_a_forward_that_raises_leaves_hooks_and_weights(
    build: Build, fresh: Callable[[], PreTrainedModel], tokenizer: Any, rows: Any
) -> None:
    model = fresh()
    before = copy.deepcopy(model.state_dict())

    def boom(*args: object) -> None:
        raise RuntimeError("boom")

    handle = model.register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        finetune(model, tokenizer, rows.benign[:12], replace(CONFIG, guard=build()))
    handle.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not model.training
