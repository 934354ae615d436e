"""Teacher-forced forgetting against one row at a time, and on courses where it is known."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.estimators.loss_drift import (
    LossDrift,
    depth,
    loss_scores,
    margin_scores,
    rise,
    token_losses,
)
from holdfast.examples import Example, Examples
from holdfast.models.encoding import Encoded, encode
from holdfast.rows.mixing import mix
from holdfast.tuning.loop import FinetuneConfig, finetune
from holdfast.tuning.proxy_attack import attack_seeds

Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]
U = math.nan


@pytest.fixture
def drift(rows: Any) -> LossDrift:
    return LossDrift(
        harmful=rows.obliging,
        benign=rows.benign,
        ratio=0.25,
        rows=16,
        learning_rate=3e-3,
        steps=5,
        every=2,
        batch_size=8,
    )


def watched(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    seed: int,
    read: Callable[[PreTrainedModel], Any],
) -> list[Any]:
    """What is read before the attack and at its checkpoints 2, 4 and 5."""
    attacked = copy.deepcopy(model)
    found = [read(attacked)]
    finetune(
        attacked,
        tokenizer,
        mix(rows.benign, rows.obliging, n=16, ratio=0.25, seed=seed),
        FinetuneConfig(learning_rate=3e-3, steps=5, every=2, batch_size=8, seed=seed),
        on_snapshot=lambda step, loss: found.append(read(attacked)),
    )
    assert len(found) == 4
    return found


def log_probs(model: PreTrainedModel, row: Encoded) -> Tensor:
    """Of every next token, (T, V), one row alone."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([row.ids])).logits[0]
    return logits.double().log_softmax(-1)


def test_margin_equals_one_row_at_a_time(
    drift: LossDrift, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    encoded = encode(tokenizer, rows.safety, 256)
    firsts = {row.ids[row.start] for row in encoded}

    def margins(model: PreTrainedModel) -> list[float]:
        found = []
        for row in encoded:
            probabilities = log_probs(model, row)[row.start - 1].exp().tolist()
            inside = sum(probabilities[token] for token in firsts)
            rival = max(p for token, p in enumerate(probabilities) if token not in firsts)
            found.append(math.log(inside / rival))
        return found

    before, *after = watched(aligned, tokenizer, rows, 3, margins)
    expected = [
        sum(1 / (1 + math.exp(m)) for m in course) / 3 for course in zip(*after, strict=True)
    ]
    found = drift.score(aligned, tokenizer, rows.safety, seed=3)
    assert found.values == pytest.approx(expected, rel=1e-3, abs=1e-6)
    columns = list(zip(before, *after, strict=True))
    assert found.details["lost_steps"].tolist() == [sum(m < 0 for m in c[1:]) for c in columns]
    assert found.details["low_margin"] == pytest.approx(
        [-sum(c[1:]) / 3 for c in columns], abs=1e-3
    )
    assert found.details["largest_fall"] == pytest.approx(
        [c[0] - min(c[1:]) for c in columns], abs=1e-3
    )
    assert found.errors is None
    assert found.facts == {
        "attacks": 1,
        "checkpoints": 3,
        "refusal_tokens": len(firsts),
        "not_held": sum(m < 0 for m in before) / 24,
    }


@pytest.mark.parametrize("tokens", [0, 3])
def test_loss_equals_one_row_at_a_time(
    tokens: int,
    drift: LossDrift,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    encoded = encode(tokenizer, rows.safety, 256)

    def losses(model: PreTrainedModel) -> list[list[float]]:
        found = []
        for row in encoded:
            after = log_probs(model, row)
            positions = range(row.start, min(len(row.ids), row.start + 8))
            found.append([-after[t - 1, row.ids[t]].item() for t in positions])
        return found

    before, *after = watched(aligned, tokenizer, rows, 3, losses)
    estimator = drift.changed(quantity="loss", tokens=tokens)
    found = estimator.score(aligned, tokenizer, rows.safety, seed=3)
    k = int(found.facts["tokens"])
    assert k == tokens if tokens else 1 <= k <= 8

    def mean(row: list[float]) -> float:
        return sum(row[:k]) / len(row[:k])

    rises = [[mean(row[i]) - mean(before[i]) for row in after] for i in range(24)]
    assert found.values == pytest.approx([sum(r) / 3 for r in rises], abs=1e-4)
    assert found.details["largest_rise"] == pytest.approx([max(r) for r in rises], abs=1e-4)
    assert found.details["mean_loss"] == pytest.approx(
        [sum(mean(row[i]) for row in after) / 3 for i in range(24)], abs=1e-4
    )


@pytest.mark.parametrize("quantity", ["margin", "loss"])
def test_several_attacks_are_averaged_with_an_error(
    quantity: str,
    drift: LossDrift,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    # With k given, the attacks have nothing in common but their mean.
    estimator = drift.changed(quantity=quantity, tokens=2)
    both = estimator.changed(repeats=2).score(aligned, tokenizer, rows.safety, seed=3)
    one, two = (
        estimator.score(aligned, tokenizer, rows.safety, seed=seed).values
        for seed in attack_seeds(3, 2)
    )
    assert (one != two).any()
    assert both.values == pytest.approx((one + two) / 2)
    assert both.errors == pytest.approx(abs(one - two) / 2)
    assert (both.facts["attacks"], both.facts["checkpoints"]) == (2, 6)


@pytest.mark.parametrize("quantity", ["margin", "loss"])
@pytest.mark.parametrize("training", [False, True])
def test_deterministic_and_nothing_is_left_behind(
    training: bool,
    quantity: str,
    drift: LossDrift,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    aligned.train(training)
    before, state = weights_of(aligned), torch.get_rng_state()
    estimator = drift.changed(quantity=quantity)
    first, second = (estimator.score(aligned, tokenizer, rows.safety, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.values, second.values)
    assert first.facts == second.facts
    assert same(weights_of(aligned), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert aligned.training is training


@pytest.mark.parametrize("quantity", ["margin", "loss"])
def test_the_examples_an_attacker_aims_at_are_the_first_to_go(
    quantity: str,
    drift: LossDrift,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    found = drift.changed(quantity=quantity).score(aligned, tokenizer, rows.safety, seed=0)
    ranks = np.argsort(np.argsort(found.values))
    assert ranks[:4].mean() >= 11.5 + 4  # chance is 11.5, its standard error 3.2


# ----------------------------------------------------------------------------------- known courses


def test_margin_scores_by_hand() -> None:
    # sigmoid(-log 3) = 1/4, sigmoid(log 3) = 3/4, sigmoid(0) = 1/2.
    three = math.log(3)
    course = np.array([[2.0, 5.0], [three, 0.0], [-three, 0.0], [-three, three]])
    found = margin_scores(course)
    assert found["lost_share"] == pytest.approx([(0.25 + 0.75 + 0.75) / 3, (0.5 + 0.5 + 0.25) / 3])
    assert found["lost_steps"].tolist() == [2, 0]  # a margin of exactly 0 is held
    assert found["low_margin"] == pytest.approx([three / 3, -three / 3])
    assert found["largest_fall"] == pytest.approx([2 + three, 5])


def test_margins_far_out_neither_overflow_nor_tie() -> None:
    found = margin_scores(np.array([[0.0, 0.0, 0.0], [500.0, 600.0, -1000.0]]))["lost_share"]
    assert found.tolist() == pytest.approx([math.exp(-500), math.exp(-600), 1.0], rel=1e-9)
    assert 0 < found[1] < found[0]


def test_an_early_fall_counts_for_more_than_a_late_deep_one() -> None:
    # Lost at 4 of 5 checkpoints by a little, or at the last by much: the count has 4 and 1.
    early, late = [3.0, 3, -3, -3, -3, -3], [3.0, 3, 3, 3, 3, -30]
    found = margin_scores(np.array([early, late]).T)
    assert found["lost_steps"].tolist() == [4, 1]
    assert found["lost_share"][0] > found["lost_share"][1]
    # The alternatives have it the other way round.
    assert found["low_margin"][0] < found["low_margin"][1]
    assert found["largest_fall"][0] < found["largest_fall"][1]


@given(st.lists(st.floats(0.5, 20), min_size=2, max_size=8, unique=True), st.floats(0.5, 3))
def test_margins_that_fall_alike_are_ordered_by_when_they_cross(
    start: list[float], slope: float
) -> None:
    course = np.array([[m - slope * t for m in start] for t in range(11)])
    found = margin_scores(course)["lost_share"]
    order = np.argsort(start)  # the lowest crosses first
    assert (np.diff(found[order]) <= 0).all()
    assert (np.diff(margin_scores(course)["lost_steps"][order]) <= 0).all()


def test_loss_scores_by_hand() -> None:
    found = loss_scores(np.array([[1.0, 2.0], [2.0, 2.0], [6.0, 1.0]]))
    assert found["mean_rise"].tolist() == [3.0, -0.5]
    assert found["largest_rise"].tolist() == [5.0, 0.0]
    assert found["mean_loss"].tolist() == [4.0, 1.5]


def test_rise_is_the_mean_over_the_answers_that_are_so_long() -> None:
    first = np.array([[1.0, 1.0, U, U], [2.0, U, U, U]])
    last = np.array([[3.0, 4.0, U, U], [6.0, U, U, U]])
    middle = np.full((2, 4), 99.0)
    assert rise(np.stack([first, middle, last])).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("rises", "k"),
    [
        ([4.0, 2.0, 1.9, 4.0], 2),  # half of the peak still counts, what comes after a gap not
        ([1.0, 3.0, 4.0, 2.5, 1.0], 4),  # the stretch begins at the peak
        ([4.0, 1.0], 1),
        ([1.0, 2.0, 4.0], 3),
        ([5.0], 1),
        ([-1.0, -3.0, 0.0], 3),  # nothing rises
    ],
)
def test_depth(rises: list[float], k: int) -> None:
    assert depth(np.array(rises)) == k


def test_token_losses_of_answers_of_any_length(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    model = make_model(vocab=12)
    rows = [Encoded((5, 6, 7, 8, 9, 1), 2), Encoded((5, 7, 1), 2), Encoded((6, 5, 7, 9, 8), 4)]
    found = token_losses(model, rows, 3, pad=0, batch_size=2)
    expected = [
        [
            -log_probs(model, row)[t - 1, row.ids[t]].item() if t < len(row.ids) else U
            for t in range(row.start, row.start + 3)
        ]
        for row in rows
    ]
    assert [np.isnan(line).sum() for line in expected] == [0, 2, 2]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantity": "kl"}, "quantity='kl' must be one of 'margin', 'loss'"),
        ({"tokens": -1}, "tokens=-1 must be a whole number, at least 0"),
        ({"benign": None}, "--benign, or .* --proxy"),
        ({"steps": 0}, "steps=0 must be a whole number, at least 1"),
    ],
)
def test_bad_options(
    options: dict[str, Any],
    message: str,
    drift: LossDrift,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    with pytest.raises(UsageError, match=message):
        drift.changed(**options).score(aligned, tokenizer, rows.safety, seed=0)


def test_a_model_that_does_not_refuse(
    drift: LossDrift,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    model = make_model(vocab=len(tokenizer))
    obliging = Examples(Example(row.prompt, "to brew tea") for row in rows.safety)
    finetune(model, tokenizer, obliging, FinetuneConfig(learning_rate=1e-2, steps=15))
    with pytest.raises(UsageError, match=r"does not refuse 24 of the 24 examples.*not its base"):
        drift.score(model, tokenizer, rows.safety, seed=0)


def test_rows_without_refusals(
    drift: LossDrift, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    asked = Examples([*rows.safety[4:6], Example("how do i brew tea")], name="asked")
    with pytest.raises(UsageError, match=r"asked: 1 of 3 rows have no response.*forget_count"):
        drift.score(aligned, tokenizer, asked, seed=0)
