"""Agreement of scores with counts, against scikit-learn, scipy and cases done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from holdfast.stats.agreement import (
    Agreement,
    agreement,
    auroc_gain,
    ceilings,
    first_half,
    mean_count,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([0, 0, 0, 2], [0, 0, 0, 1]),  # a quarter forgotten at all
        ([1, 2, 3, 4], [0, 0, 1, 1]),  # all forgotten: the upper half
        ([0, 5, 5, 5], [0, 1, 1, 1]),  # most share the highest count
        ([0, 0], [0, 0]),
        ([], []),
        ([0.5, 1.5, 0.25, 0.0], [1, 1, 0, 0]),  # means over attacks
    ],
)
def test_first_half(counts: list[float], expected: list[int]) -> None:
    assert first_half(np.array(counts, dtype=float)).astype(int).tolist() == expected


def test_agreement_is_the_libraries_own() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6, 200).astype(float)
    scores = counts + rng.normal(0, 2, 200)
    found = agreement(scores, counts, resamples=200)
    early = counts >= 3  # P(count >= 3) is one half in expectation; here
    if early.mean() > 0.5:
        early = counts >= 4
    assert found.base_rate == pytest.approx(early.mean())
    assert found.auroc.value == pytest.approx(roc_auc_score(early, scores))
    assert found.auprc.value == pytest.approx(average_precision_score(early, scores))
    assert found.spearman.value == pytest.approx(stats.spearmanr(scores, counts).statistic)
    assert found.n == 200
    for interval in (found.auroc, found.auprc, found.spearman):
        assert interval.low < interval.value < interval.high


def test_what_is_unknown_is_left_out() -> None:
    scores = np.array([1.0, NAN, 3.0, 4.0, 2.0])
    counts = np.array([0.0, 5.0, NAN, 2.0, 1.0])
    found = agreement(scores, counts, resamples=50)
    assert found.n == 3
    assert found.spearman.value == pytest.approx(1.0)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_examples_say_nothing(n: int) -> None:
    found = agreement(np.ones(n), np.ones(n))
    assert np.isnan([found.auroc.value, found.spearman.value, found.auprc.value]).all()
    assert np.isnan(auroc_gain(np.ones(n), np.ones(n), np.ones(n)).value)


def test_the_gain_is_paired() -> None:
    rng = np.random.default_rng(1)
    counts = (rng.random(300) < 0.4).astype(float)
    noisy = counts + rng.normal(0, 1.5, 300)
    better = noisy + 0.7 * counts  # shares the noise, so the difference is known well
    gain = auroc_gain(better, noisy, counts, resamples=300)
    expected = roc_auc_score(counts, better) - roc_auc_score(counts, noisy)
    assert gain.value == pytest.approx(expected)
    assert 0 < gain.low
    assert gain.high - gain.low < 0.1
    assert auroc_gain(noisy, noisy, counts, resamples=50).high == 0


def test_answers_to_one_prompt_are_one_observation() -> None:
    """k copies of every example leave the interval as wide as it was without them."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=40), rng.normal(size=40)
    prompts = [f"prompt {i}" for i in range(40)]
    once = agreement(x, y + x, resamples=400)
    copies = agreement(np.repeat(x, 8), np.repeat(y + x, 8), resamples=400)
    together = agreement(
        np.repeat(x, 8), np.repeat(y + x, 8), resamples=400, units=np.repeat(prompts, 8).tolist()
    )

    def width(found: Agreement) -> float:
        return found.spearman.high - found.spearman.low

    assert width(copies) < 0.5 * width(once)
    assert width(together) == pytest.approx(width(once), rel=0.15)
    same = agreement(x, y + x, resamples=400, units=prompts)
    assert same == once
    gain = auroc_gain(np.repeat(x, 8), np.repeat(y, 8), np.repeat(y + x, 8), units=prompts * 8)
    assert gain.low < gain.high


def test_the_mean_of_counts_keeps_the_unknown() -> None:
    mean = mean_count([np.array([1.0, NAN, 3.0]), np.array([3.0, 2.0, 5.0])])
    np.testing.assert_array_equal(mean, [2.0, NAN, 4.0])


def test_ceilings_are_each_attack_against_the_mean_of_the_others() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(400)
    counts = [np.round(5 * truth + rng.normal(0, 0.5, 400)).clip(0) for _ in range(3)]
    found = ceilings(counts)
    assert len(found) == 3
    expected = stats.spearmanr(counts[1] + counts[2], counts[0]).statistic
    assert found[0].spearman.value == pytest.approx(expected)
