"""What every estimator must do, on a tiny model that refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import plugins
from holdfast.contracts import Estimate, Estimator
from holdfast.judges.refusal import Refusal

SMALL = {
    "rows": 16,
    "ratio": 0.25,
    "steps": 12,
    "every": 2,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "max_new_tokens": 16,
}
"""Values for options of these names: the models here are tiny and the rows few."""

UNAIMED = {
    "weight_noise": "both signs of a random direction see curvature only, neither the attacker's "
    "rows nor how near the edge an example stands: its planted examples rank anywhere",
}
"""Estimators that need not rank planted examples high, and why."""

Make = Callable[..., Estimator]


@pytest.fixture(params=plugins.available("estimators"))
def make(request: pytest.FixtureRequest, rows: Any) -> Make:
    """Return a builder of each estimator with all that it needs or can use."""
    cls = plugins.find("estimators", request.param)
    known = cls.model_fields
    options = {name: value for name, value in SMALL.items() if name in known}

    def build(**resources: Any) -> Estimator:
        offered = {
            "harmful": rows.harmful,
            "benign": rows.benign,
            "base": "world",
            "proxies": (),
            "judge": Refusal(),  # more easily set off than the exact one
            **resources,
        }
        asked = cls.needs | cls.accepts
        assert asked <= offered.keys(), f"{request.param} asks for {asked}: say what to give it"
        made: Estimator = cls(**options, **{name: offered[name] for name in sorted(asked)})
        return made

    return build


Run = Callable[..., Estimate]


@pytest.fixture
def run(aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any) -> Run:
    def score(estimator: Estimator, examples: Any = None, seed: int = 0) -> Estimate:
        return estimator.score(
            aligned, tokenizer, rows.safety if examples is None else examples, seed=seed
        )

    return score


def test_one_finite_or_unknown_value_per_example(make: Make, run: Run, rows: Any) -> None:
    found = run(make())
    assert found.values.shape == (len(rows.safety),)
    assert found.values.dtype == np.float64
    assert not np.isinf(found.values).any()
    assert np.isfinite(found.values).mean() > 0.5
    assert len(set(found.values[np.isfinite(found.values)])) > 1
    for name, array in found.details.items():
        assert array.shape == (len(rows.safety),), name
    for name, value in found.facts.items():
        assert isinstance(value, (int, float, str)), name


def test_the_same_seed_gives_the_same_scores(make: Make, run: Run) -> None:
    np.testing.assert_array_equal(run(make(), seed=5).values, run(make(), seed=5).values)


def test_permuting_the_examples_permutes_the_scores(make: Make, run: Run, rows: Any) -> None:
    order = np.random.default_rng(1).permutation(len(rows.safety)).tolist()
    straight, turned = run(make()), run(make(), rows.safety.select(order))
    np.testing.assert_allclose(turned.values, straight.values[order], atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_weights_mode_and_random_state_are_left_alone(
    training: bool,
    make: Make,
    run: Run,
    aligned: PreTrainedModel,
    weights_of: Callable[..., dict[str, Tensor]],
    same: Callable[..., bool],
) -> None:
    aligned.train(training)
    before, state = weights_of(aligned), torch.get_rng_state()
    flags = [p.requires_grad for p in aligned.parameters()]
    run(make())
    assert same(weights_of(aligned), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert aligned.training is training
    assert [p.requires_grad for p in aligned.parameters()] == flags
    assert all(p.grad is None for p in aligned.parameters())


def test_planted_examples_rank_in_the_upper_half(make: Make, run: Run, rows: Any) -> None:
    """They were learned last and least, and the attacker's rows are their very prompts."""
    estimator = make(harmful=rows.obliging)
    name = type(estimator).__module__.rpartition(".")[2]
    if name in UNAIMED:
        pytest.skip(UNAIMED[name])
    values = run(estimator).values
    known = np.isfinite(values)
    assert known[:4].any()
    ranks = np.full(len(values), np.nan)
    # Ties share their mean rank, so that a count of zero for all is no success.
    ranks[known] = [
        (values[known] < v).sum() + ((values[known] == v).sum() - 1) / 2 for v in values[known]
    ]
    assert np.nanmean(ranks[:4]) > np.nanmean(ranks)
