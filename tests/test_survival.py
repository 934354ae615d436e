"""Ratios of half-lives: the t interval where all were reached, and honest where some were not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.errors import UsageError
from holdfast.stats import geometric_ratio
from holdfast.survival import censored_ratio

NO = [False] * 6


def test_without_censoring_it_is_the_t_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(1.0, 0.4, 6)).tolist(), np.exp(rng.normal(0.0, 0.3, 6)).tolist()
    found = censored_ratio(a, b, NO, NO)
    assert found.interval == geometric_ratio([x / y for x, y in zip(a, b, strict=True)], [1.0] * 6)
    # The likelihood's own interval, which the shortcut leaves out, is the same.
    from holdfast.survival import _fitted

    d = np.log(a) - np.log(b)
    mu, low, high = _fitted(d, np.array([]), np.array([]), 0.95)
    wanted = [math.log(v) for v in (found.interval.value, found.interval.low, found.interval.high)]
    assert [mu, low, high] == pytest.approx(wanted, abs=1e-5)


def test_it_is_scipys_fit_of_censored_data() -> None:
    from scipy import stats

    exact, above = np.array([0.3, 0.8, 0.5, 1.1]), np.array([0.9, 0.7])
    data = stats.CensoredData(uncensored=exact, right=above)
    mu, _ = stats.norm.fit(data)
    a = np.exp(np.concatenate([exact, above])).tolist()
    found = censored_ratio(a, [1.0] * 6, [False] * 4 + [True] * 2, NO)
    assert math.log(found.interval.value) == pytest.approx(mu, abs=1e-3)
    assert (found.used, found.censored, found.bound) == (6, 2, False)
    # Larger than if the censored ones had ended where the attack did.
    assert found.interval.value > geometric_ratio(a, [1.0] * 6).value


def test_a_baseline_that_was_not_reached_pulls_the_other_way() -> None:
    a, b = [2.0, 2.5, 1.5, 2.0], [1.0, 1.0, 1.0, 1.0]
    last = [False, False, False, True]
    found = censored_ratio(a, b, [False] * 4, last)
    assert found.interval.value < geometric_ratio(a, b).value


def test_pairs_that_say_nothing_are_left_out() -> None:
    a, b = [2.0, 3.0, 9.0, math.nan], [1.0, 1.0, 9.0, 1.0]
    both = [False, False, True, False]
    found = censored_ratio(a, b, both, both)
    assert found.interval == geometric_ratio([2.0, 3.0], [1.0, 1.0])
    assert (found.used, found.censored) == (2, 0)


@pytest.mark.parametrize("exact", [0, 1])
def test_too_few_that_were_reached_give_a_bound(exact: int) -> None:
    censored = [i >= exact for i in range(3)]
    found = censored_ratio([4.0, 4.0, 5.0], [1.0, 1.0, 1.0], censored, [False] * 3)
    assert found.bound
    assert found.interval.value == pytest.approx(80 ** (1 / 3))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, covered, ratios = np.random.default_rng(1), 0, []
    for _ in range(100):
        d = rng.normal(math.log(3), 0.5, 8)
        censored = d > math.log(3.5)  # about two in five
        found = censored_ratio(
            np.exp(np.where(censored, math.log(3.5), d)).tolist(),
            [1.0] * 8,
            censored.tolist(),
            [False] * 8,
        )
        if found.bound:
            covered += 1
            continue
        covered += found.interval.low <= 3 <= found.interval.high
        ratios.append(found.interval.value)
    # A binomial with 0.95 over 100 has a standard error of 0.022.
    assert 0.88 <= covered / 100 <= 1
    assert np.median(ratios) == pytest.approx(3, rel=0.1)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="as many of each"):
        censored_ratio([1.0], [1.0, 2.0], [False], [False])
    with pytest.raises(UsageError, match="not negative"):
        censored_ratio([-1.0], [1.0], [False], [False])


def test_a_model_that_was_broken_from_the_start_has_ratio_0() -> None:
    found = censored_ratio([0.0, 2.0], [1.0, 1.0], [False, False], [False, False])
    assert found.interval.value == 0
