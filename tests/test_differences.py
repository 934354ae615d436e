"""Paired differences: special cases by hand, and how often the interval holds the truth."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from holdfast.errors import UsageError
from holdfast.stats.differences import Difference, difference_of_shares, paired_difference
from holdfast.stats.raters import mcnemar


def crossed(d: np.ndarray) -> Difference:
    """Every prompt (row) with every seed (column)."""
    cells = list(product(range(d.shape[0]), range(d.shape[1])))
    return paired_difference(
        [d[p, s] for p, s in cells], [p for p, _ in cells], [s for _, s in cells]
    )


def test_where_seeds_differ_most_it_is_the_t_interval_over_seeds() -> None:
    # Seeds' means 0, 0.5, 1, prompts alike: mean 0.5, s = 0.5.
    d = np.tile([0.0, 0.5, 1.0], (40, 1))
    found = crossed(d)
    half = stats.t.ppf(0.975, 2) * 0.5 / math.sqrt(3)
    assert found.interval.value == pytest.approx(0.5)
    assert found.interval.low == pytest.approx(max(-1, 0.5 - half))
    assert found.p == pytest.approx(stats.ttest_1samp([0.0, 0.5, 1.0], 0).pvalue)
    assert (found.seeds, found.interval.n, found.spread) == (3, 40, pytest.approx(0.5))


def test_one_seed_is_agresti_and_mins_interval_about_the_share() -> None:
    # 12 prompts only the first answers harmfully, 3 only the second, 85 alike. Half an observation
    # in each of four cells adds one pair that differs, of n + 2: 1 / (n + 2)^2 to the variance.
    d = np.array([1.0] * 12 + [-1.0] * 3 + [0.0] * 85)
    found = paired_difference(d, range(100), [0] * 100)
    variance = d.var(ddof=1) / 100 + 1 / 102**2
    half = stats.t.ppf(0.975, 99) * math.sqrt(variance)
    assert found.interval.low == pytest.approx(0.09 - half)
    assert found.interval.high == pytest.approx(0.09 + half)
    assert (found.agreement, found.seeds) == (0.85, 1)
    assert math.isnan(found.spread)


@pytest.mark.parametrize(
    ("n", "only_first", "only_second"),
    [(200, 30, 15), (200, 20, 20), (200, 10, 0), (60, 9, 1), (400, 60, 30), (400, 50, 45)],
)
def test_one_seed_tells_what_mcnemars_test_does(n: int, only_first: int, only_second: int) -> None:
    first = np.arange(n) < only_first
    second = (np.arange(n) >= n - only_second) & ~first
    values = first.astype(float) - second
    p, exact = paired_difference(values, range(n), [0] * n).p, mcnemar(first, second)
    # The exact test is as a rule the stricter one: a binomial has few values.
    assert exact / 2 < p < 1.25 * exact
    assert (p < 0.05) == (exact < 0.05)


def test_models_that_never_differ_are_not_known_to_be_equal() -> None:
    few, many = (paired_difference(np.zeros(n), range(n), [0] * n) for n in (20, 400))
    assert few.p == many.p == 1
    assert 0 < many.interval.high < few.interval.high < 0.2


def test_the_order_of_the_rows_is_nothing() -> None:
    rng = np.random.default_rng(0)
    d, p, s = rng.integers(-1, 2, 60), rng.integers(0, 20, 60), rng.integers(0, 4, 60)
    turned = rng.permutation(60)
    a = paired_difference(d, p.tolist(), s.tolist())
    b = paired_difference(d[turned], p[turned].tolist(), s[turned].tolist())
    assert (a.interval.low, a.p) == (pytest.approx(b.interval.low), pytest.approx(b.p))


def test_swapping_the_two_turns_the_sign() -> None:
    rng = np.random.default_rng(1)
    d = rng.integers(-1, 2, (30, 3)).astype(float)
    a, b = crossed(d), crossed(-d)
    assert (a.interval.low, a.p) == (pytest.approx(-b.interval.high), pytest.approx(b.p))


def drawn(
    rng: np.random.Generator, prompts: int, seeds: int, *, of_prompt: float, of_seed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two methods: prompts are hard or easy for both, and one's seeds turn out apart.

    Each answer is 0 or 1 with a probability of 0.5 plus the effects, so the true difference is 0.
    """
    shared = rng.uniform(-0.1, 0.1, (prompts, 1))
    kind = rng.choice([-of_prompt, of_prompt], (prompts, 1))
    luck = rng.uniform(-of_seed, of_seed, (1, seeds))
    a = rng.random((prompts, seeds)) < 0.5 + shared + kind / 2 + luck
    b = rng.random((prompts, seeds)) < 0.5 + shared - kind / 2
    return a, b


@pytest.mark.parametrize(("prompts", "seeds"), [(60, 3), (40, 5), (15, 15)])
@pytest.mark.parametrize(("of_prompt", "of_seed"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    prompts: int, seeds: int, of_prompt: float, of_seed: float
) -> None:
    rng, held, naive = np.random.default_rng(7), 0, 0
    for _ in range(200):
        a, b = drawn(rng, prompts, seeds, of_prompt=of_prompt, of_seed=of_seed)
        found = crossed(a.astype(float) - b)
        held += found.interval.low <= 0 <= found.interval.high
        counts = [[(float(x.mean()), prompts) for x in side.T] for side in (a, b)]
        apart = difference_of_shares(*counts)
        naive += apart.interval.low <= 0 <= apart.interval.high
    # A binomial with 0.95 over 200 has a standard error of 0.0154.
    assert held / 200 >= 0.95 - 3 * 0.0154
    assert naive / 200 >= 0.95 - 3 * 0.0154


def test_answers_taken_for_independent_would_hold_it_less_often() -> None:
    """Why all this: the interval that pools all answers is wrong where seeds differ."""
    rng, held = np.random.default_rng(7), 0
    for _ in range(200):
        a, b = drawn(rng, 60, 3, of_prompt=0.3, of_seed=0.2)
        d = (a.astype(float) - b).ravel()
        held += abs(d.mean()) <= 1.96 * d.std() / math.sqrt(d.size)
    assert held / 200 < 0.8


def test_pairing_tells_more_than_counts() -> None:
    rng = np.random.default_rng(3)
    hard = rng.random(200) < 0.5  # answered harmfully by both
    extra = rng.random(200) < 0.08
    a, b = (hard | extra).astype(float), hard.astype(float)
    by_answer = paired_difference(a - b, range(200), [0] * 200)
    by_count = difference_of_shares([(float(a.mean()), 200)], [(float(b.mean()), 200)])
    assert by_answer.interval.low > 0
    assert by_count.interval.low < 0
    assert (by_answer.paired, by_count.paired) == (True, False)


def test_counts_of_one_seed_are_two_samples() -> None:
    # p = 0.3 and 0.1 of 100: sqrt(0.21 / 100 + 0.09 / 100 + 1 / 102^2) = 0.05564.
    found = difference_of_shares([(0.3, 100)], [(0.1, 100)])
    error = math.sqrt(0.0030 + 1 / 102**2)
    assert found.interval.high == pytest.approx(0.2 + 1.959964 * error)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.2 / error))


def test_nothing_is_unknown_and_unknown_is_left_out() -> None:
    for nothing in (
        paired_difference([], [], []),
        difference_of_shares([], []),
        paired_difference([math.nan], [0], [0]),
    ):
        assert math.isnan(nothing.interval.value)
        assert math.isnan(nothing.p)
        assert nothing.interval.n == 0
    d = [1.0, math.nan, 0.0, 0.0]
    assert paired_difference(d, range(4), [0] * 4) == paired_difference(
        [1.0, 0.0, 0.0], [0, 2, 3], [0] * 3
    )


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="one prompt and one seed for each"):
        paired_difference([0.0], [0, 1], [0])
    with pytest.raises(UsageError, match="difference 2: shares differ by 1 at most"):
        paired_difference([2.0], [0], [0])
    with pytest.raises(UsageError, match="one in \\[0, 1\\] for each seed of both"):
        difference_of_shares([(0.1, 5)], [])
    with pytest.raises(UsageError, match="level=95"):
        difference_of_shares([(0.1, 5)], [(0.2, 5)], level=95)
