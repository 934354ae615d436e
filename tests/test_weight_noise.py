"""Random noise on the weights: its shape, its size, and what it does to each row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.estimators.weight_noise import WeightNoise, matrices, noise
from holdfast.examples import Example, Examples
from holdfast.models import adapters, encoding
from holdfast.models.losses import answer_losses, first_margins, refusal_tokens
from holdfast.tuning.loop import FinetuneConfig, finetune

Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]


# ------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("shape", [(3, 4), (5, 1), (2, 3, 4)])
def test_every_row_of_the_noise_has_that_rows_norm(shape: tuple[int, ...]) -> None:
    theta = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    theta[0] = 0.0
    (step,) = noise([theta], 0.25, seed=0, draw=0)
    for row, moved in zip(theta, step, strict=True):
        expected = 0.25 * math.sqrt(sum(x * x for x in row.flatten().tolist()))
        assert math.sqrt(sum(x * x for x in moved.flatten().tolist())) == pytest.approx(expected)
    assert not step[0].any()


def test_noise_is_its_seeds_and_draws_own() -> None:
    theta = [torch.ones(4, 5), torch.ones(4, 5)]

    def made(size: float = 1.0, **which: int) -> list[Tensor]:
        return list(noise(theta, size, **{"seed": 0, "draw": 0, **which}))

    state = torch.get_rng_state()
    a, b = made()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(a, b)
    assert all(torch.equal(x, y) for x, y in zip(made(), made(), strict=True))
    assert all(torch.equal(x, -y) for x, y in zip(made(), made(-1.0), strict=True))
    assert not torch.equal(made(draw=1)[0], a)
    assert not torch.equal(made(seed=1)[0], a)


def test_noise_points_nowhere_in_particular() -> None:
    # Components of a random unit vector in d dimensions have mean 0 and variance 1/d.
    theta = torch.zeros(2000, 8)
    theta[:, 0] = 2.0
    (step,) = noise([theta], 1.0, seed=3, draw=0)
    assert step.mean(0).tolist() == pytest.approx([0.0] * 8, abs=5 * 2 / math.sqrt(8 * 2000))
    assert step.square().mean(0).tolist() == pytest.approx([4 / 8] * 8, rel=0.15)


def test_matrices_are_shaken_frozen_or_not_and_vectors_are_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Embedding(4, 2))
    model[0].requires_grad_(False)
    assert [tuple(p.shape) for p in matrices(model)] == [(2, 3), (4, 2)]


# ----------------------------------------------------------------------------------------- scores


def slow(
    model: PreTrainedModel,
    rows: list[encoding.Encoded],
    quantity: str,
    sizes: list[float],
    draws: int,
) -> np.ndarray:
    """(draws, sizes, n): the quantity after each step, the weights set one row at a time."""
    kept = {key: p.detach().clone() for key, p in model.named_parameters() if p.dim() >= 2}
    tokens, found = refusal_tokens(rows), []
    for draw in range(draws):
        for size in sizes:
            steps = noise(list(kept.values()), 1.0, seed=0, draw=draw)
            moved = dict(model.named_parameters())
            with torch.no_grad():
                for (key, old), step in zip(kept.items(), steps, strict=True):
                    for r in range(len(old)):
                        moved[key][r] = old[r] + size * step[r]
            if quantity == "loss":
                found.append(answer_losses(model, rows, pad=0).numpy())
            else:
                found.append(-first_margins(model, rows, tokens, pad=0).numpy())
    with torch.no_grad():
        for key, old in kept.items():
            dict(model.named_parameters())[key].copy_(old)
    return np.array(found).reshape(draws, len(sizes), -1)


@pytest.mark.parametrize("quantity", ["margin", "loss"])
def test_scores_are_the_mean_rise_over_directions_and_signs(
    quantity: str, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    found = WeightNoise(quantity=quantity, draws=3).score(aligned, tokenizer, rows.safety, seed=0)
    step = float(found.facts["step"])
    encoded = encoding.encode(tokenizer, rows.safety, 256)
    (free,) = slow(aligned, encoded, quantity, [0.0], 1)[0]
    shaken = slow(aligned, encoded, quantity, [step, -step], 3)
    rises = [[(up + down) / 2 - free[i] for i, (up, down) in enumerate(draw.T)] for draw in shaken]
    mean = [sum(column) / 3 for column in zip(*rises, strict=True)]
    assert found.values == pytest.approx(mean, abs=1e-3)
    error = [np.std(column, ddof=1) / math.sqrt(3) for column in zip(*rises, strict=True)]
    assert found.errors == pytest.approx(error, abs=1e-3)
    assert ("flip_rate" in found.details) is (quantity == "margin")


def test_sigma_flips_half_of_what_refuses(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    found = WeightNoise(draws=2).score(aligned, tokenizer, rows.safety, seed=0)
    encoded = encoding.encode(tokenizer, rows.safety, 256)
    step = float(found.facts["step"])
    shaken = slow(aligned, encoded, "margin", [step, -step], 2)
    # All 24 rows are in the sample; the search allows a sixteenth more than asked.
    assert 0.5 <= (shaken > 0).mean() <= 0.5 + 1 / 16 + 0.01
    assert found.details["flip_rate"].tolist() == pytest.approx((shaken > 0).mean((0, 1)).tolist())
    # One sigma for all quantities: it is always found on the margin.
    other = WeightNoise(quantity="loss", draws=2).score(aligned, tokenizer, rows.safety, seed=0)
    assert other.facts["step"] == step


def test_one_direction_has_no_error(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    assert WeightNoise(draws=1).score(aligned, tokenizer, rows.safety, seed=0).errors is None


def test_nothing_is_left_behind_in_any_precision(
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    for model in (aligned.train(), aligned.bfloat16()):
        before, state = weights_of(model), torch.get_rng_state()
        score = WeightNoise(quantity="first_token", draws=1, sample=8).score
        found = [score(model, tokenizer, rows.safety, seed=4).values for _ in range(2)]
        np.testing.assert_array_equal(found[0], found[1])
        assert np.isfinite(found[0]).all()
        assert same(weights_of(model), before)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training


def test_weights_come_back_when_the_model_fails_on_the_way(
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    before, moved = weights_of(aligned), [False]

    def boom(*args: object) -> None:
        moved.append(not same(weights_of(aligned), before))
        if moved[-1]:
            raise RuntimeError("boom")

    handle = aligned.register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        WeightNoise().score(aligned, tokenizer, rows.safety, seed=0)
    handle.remove()
    assert moved[-1]
    assert same(weights_of(aligned), before)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt", "gpt_neox", "lora"])
def test_architectures(
    architecture: str,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    lora = architecture == "lora"
    model = make_model("llama" if lora else architecture, vocab=len(tokenizer))
    finetune(model, tokenizer, rows.safety, FinetuneConfig(learning_rate=1e-2, steps=12))
    if lora:
        # The base is frozen and the adapters' second half is zero: there is still noise.
        model = adapters.add_lora(model, 2, seed=0)
    before = weights_of(model)
    found = WeightNoise(draws=2).score(model, tokenizer, rows.safety, seed=0)
    assert np.isfinite(found.values).all()
    assert len(set(found.values)) == 24
    assert found.values.mean() > 0  # half of the refusals are gone
    assert same(weights_of(model), before)


def test_more_directions_say_it_more_precisely(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    few, many = (
        WeightNoise(draws=n, sample=4).score(aligned, tokenizer, rows.safety, seed=0).errors
        for n in (3, 12)
    )
    assert few is not None
    assert many is not None
    # A standard error falls with the square root of the number of draws: to a half.
    assert np.median(many) / np.median(few) == pytest.approx(0.5, abs=0.25)


# ------------------------------------------------------------------------------------- bad input


def test_no_draws(aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any) -> None:
    with pytest.raises(UsageError, match="draws=0 must be a whole number, at least 1"):
        WeightNoise(draws=0).score(aligned, tokenizer, rows.safety, seed=0)


def test_an_unknown_quantity_is_said_before_any_search(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    with pytest.raises(UsageError, match="quantity='x' must be one of 'margin', 'loss', 'first"):
        WeightNoise(quantity="x").score(aligned, tokenizer, rows.safety, seed=0)


def test_a_model_that_does_not_refuse(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    wanted = Examples(Example(row.prompt, "to brew tea") for row in rows.safety)
    with pytest.raises(UsageError, match=r"does not refuse 100% of all 24 examples.*not its base"):
        WeightNoise(draws=1).score(aligned, tokenizer, wanted, seed=0)


def test_a_single_row(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    with pytest.raises(UsageError, match="1 cannot be ranked"):
        WeightNoise(draws=1).score(aligned, tokenizer, rows.safety[:1], seed=0)
