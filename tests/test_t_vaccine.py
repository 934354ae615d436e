"""T-Vaccine against the equations, its draws, and that what rests does not move by a bit."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.methods._batches import Batch, answer_tokens
from holdfast.methods.base import AlignmentData
from holdfast.methods.t_vaccine import TVaccine, TVaccineOptions
from holdfast.models import adapters, encoding
from recorded_steps import accumulated, drifted, micro_batch, nll

MakeTrainer = Callable[..., Any]
Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]


@pytest.fixture
def model(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer), depth=3)


def of_layer(name: str) -> int | None:
    """Return the number of the layer that a weight is in."""
    _, found, rest = name.partition("layers.")
    return int(rest.partition(".")[0]) if found else None


# ------------------------------------------------------------------------------- the probabilities


def test_probabilities_are_shares_of_the_harmful_gradients(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    trainer = make_trainer("t_vaccine", model.double())
    chosen = copy.deepcopy(trainer.stream).take(8)
    found = trainer.layer_probabilities()
    encoded = encoding.encode(trainer.tokenizer, data.harmful, 256)  # type: ignore[arg-type]
    batch = encoding.collate([encoded[i] for i in chosen], trainer.pad)
    outputs: list[Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _m, _args, output: outputs.append(output[0]))
    loss = nll(model, batch, torch.ones(8, dtype=torch.bool)) / answer_tokens(batch)
    norms = [float(g.norm()) for g in torch.autograd.grad(loss, outputs)]
    assert len(set(norms)) == 3
    assert found == pytest.approx([s / sum(norms) for s in norms], rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_layers_without_gradient_share_what_is_left(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    trainer = make_trainer("t_vaccine", model, layers=2)
    assert trainer.layer_probabilities() == pytest.approx([1 / 3] * 3)
    least = sys.float_info.min
    trainer.layer_probabilities = lambda: [least, 1.0, least]
    trainer.draw_batches(iter(()), 0)
    assert 1 in trainer.active
    assert len(trainer.active) == 2


def test_a_gradient_that_is_not_finite_stops(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = math.nan
    with pytest.raises(TrainingError, match=r"not finite at step 1.*Lower the learning rate"):
        make_trainer("t_vaccine", model).train()


# --------------------------------------------------------------------------------------- the draws


def test_layers_are_drawn_in_turn_without_replacement(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    """P{i, j} = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j)."""
    p = [0.5, 0.3, 0.2]
    trainer = make_trainer("t_vaccine", model, layers=2)
    trainer.layer_probabilities = lambda: p
    n, seen = 2000, Counter[tuple[int, ...]]()
    for _ in range(n):
        trainer.draw_batches(iter(()), 0)
        seen[tuple(trainer.active)] += 1
    for i, j in itertools.combinations(range(3), 2):
        wanted = p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j]))
        assert seen[i, j] / n == pytest.approx(wanted, abs=4 * math.sqrt(wanted / n))
    assert sum(seen[pair] for pair in itertools.combinations(range(3), 2)) == n


def test_fewer_layers_than_are_drawn_are_all_active(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("t_vaccine", model)
    assert trainer.options.layers == 8
    trainer.draw_batches(iter(()), 0)
    assert trainer.active == [0, 1, 2]


def test_what_is_done_when(model: PreTrainedModel, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("t_vaccine", model, max_steps=7, measure_every=3, draw_every=2, layers=1)
    measured, choice, did = trainer.layer_probabilities, trainer.rng.choice, list[tuple[str, int]]()

    def measuring() -> list[float]:
        did.append(("measure", trainer.state.global_step))
        found: list[float] = measured()
        return found

    class Drawing:
        def choice(self, *args: Any, **kwargs: Any) -> Any:
            did.append(("draw", trainer.state.global_step))
            return choice(*args, **kwargs)

    trainer.layer_probabilities, trainer.rng = measuring, Drawing()
    trainer.train()
    assert sorted(did) == [
        *(("draw", step) for step in (0, 2, 4, 6)),
        *(("measure", step) for step in (0, 3, 6)),
    ]


# ------------------------------------------------------------------------------------ the gradient


def test_the_gradient_is_that_of_the_active_layers(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("t_vaccine", model.double(), rho=0.5)
    trainer.active = [0, 2]
    batch = micro_batch(trainer, benign=False)
    found = accumulated(trainer, batch)
    rows, tokens = batch["is_safety"], answer_tokens(batch)
    wanted = drifted(model, lambda: nll(model, batch, rows) / tokens, rho=0.5, layers=[0, 2])
    for (name, _), mine, theirs in zip(model.named_parameters(), found, wanted, strict=True):
        if of_layer(name) == 1:
            assert mine is None
        else:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)


def test_with_all_layers_it_is_vaccine_bit_for_bit(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    mine = make_trainer("t_vaccine", copy.deepcopy(model), rho=2.0)
    batch = micro_batch(mine)
    found = accumulated(mine, batch)
    wanted = accumulated(make_trainer("vaccine", model, rho=2.0), batch)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_adapters_of_resting_layers_get_no_gradient(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    adapted: Any = adapters.add_lora(model, 2, seed=0)
    trainer = make_trainer("t_vaccine", adapted)
    trainer.active = [1]
    accumulated(trainer, micro_batch(trainer))
    trained = {of_layer(name) for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained == {1}


# ----------------------------------------------------------------------------------------- resting


def test_resting_layers_do_not_move_by_a_bit(
    model: PreTrainedModel, make_trainer: MakeTrainer, weights_of: Weights
) -> None:
    """Momentum and weight decay of AdamW would move them, and layer 0 has momentum from step 1."""
    trainer = make_trainer(
        "t_vaccine",
        model,
        optim="adamw_torch",
        weight_decay=0.1,
        learning_rate=1e-2,
        max_steps=4,
        draw_every=1,
        layers=1,
        gradient_accumulation_steps=2,
    )
    turns = iter([0, 2, 0, 2])

    class Turns:
        def choice(self, *args: Any, **kwargs: Any) -> Any:
            return np.array([next(turns)])

    trainer.rng = Turns()
    draw, before, active = trainer.draw_batches, list[Any](), list[int]()

    def noting(iterator: Any, n: int) -> list[Batch]:
        batches: list[Batch] = draw(iterator, n)
        active.extend(trainer.active)
        before.append(weights_of(model))
        return batches

    trainer.draw_batches = noting
    trainer.train()
    after = [*before[1:], weights_of(model)]
    assert active == [0, 2, 0, 2]
    for layer, old, new in zip(active, before, after, strict=True):
        moved = {of_layer(name) for name in old if not torch.equal(old[name], new[name])}
        assert moved == {layer, None}
    named = dict(model.named_parameters())
    stateful = {name for name, p in named.items() if p in trainer.optimizer.state}
    assert {of_layer(name) for name in stateful} == {0, 2, None}
    counted = {
        of_layer(name): int(trainer.optimizer.state[named[name]]["step"]) for name in stateful
    }
    assert counted == {0: 2, 2: 2, None: 4}
    assert all(p.requires_grad for p in model.parameters())


def test_all_need_a_gradient_again_when_the_forward_raises(
    model: PreTrainedModel, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer("t_vaccine", model)
    trainer.active = [1]
    needed: list[set[int | None]] = []

    def boom(*args: object) -> None:
        needed.append({of_layer(n) for n, p in model.named_parameters() if p.requires_grad})
        raise RuntimeError("boom")

    model.register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        accumulated(trainer, micro_batch(trainer))
    assert needed == [{1, None}]
    assert all(p.requires_grad for p in model.parameters())


def test_resume_within_an_interval_equals_the_uninterrupted_run(
    model: PreTrainedModel,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    weights_of: Weights,
    same: Same,
) -> None:
    options = {
        "max_steps": 6,
        "optim": "adamw_torch",
        "learning_rate": 3e-3,
        "save_strategy": "steps",
        "save_steps": 3,
        "layers": 1,
        "draw_every": 2,
        "measure_every": 2,
    }
    start = copy.deepcopy(model)
    whole = make_trainer("t_vaccine", model, **options)
    whole.train()
    again = make_trainer("t_vaccine", start, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-3"))
    assert same(weights_of(start), weights_of(model))
    assert again.method_state() == whole.method_state()


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, r"rho=-0\.1 must be a number, at least 0"),
        ({"rho": math.nan}, "rho=nan must be a number, at least 0"),
        ({"layers": 0}, "layers=0 must be a whole number, at least 1"),
        ({"measure_every": 0}, "measure_every=0 must be a whole number, at least 1"),
        ({"draw_every": -1}, "draw_every=-1 must be a whole number, at least 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TVaccineOptions(**options)


def test_no_harmful_rows_is_an_error(
    model: PreTrainedModel, make_trainer: MakeTrainer, data: AlignmentData
) -> None:
    with pytest.raises(UsageError, match="bad.jsonl: no harmful rows"):
        make_trainer("t_vaccine", model, replace(data, harmful=Examples([], name="bad.jsonl")))


def test_published_defaults() -> None:
    config = TVaccineOptions()
    found = (config.rho, config.layers, config.measure_every, config.draw_every)
    assert found == (3.0, 8, 200, 20)
    assert TVaccine.needs == {"harmful"}
