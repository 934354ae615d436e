"""Ratios of half-lives: the t interval where all were reached, and honest where some were not."""

from __future__ import annotations

import math
from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from scipy import optimize, stats

from holdfast.errors import UsageError
from holdfast.stats.intervals import geometric_ratio
from holdfast.stats.ratios import Pair, Ratio, censored_ratio
from holdfast.stats.survival import Median, Time, median_time

NO = [False] * 6


def ratio_of(
    a: list[float],
    b: list[float],
    a_censored: list[bool],
    b_censored: list[bool],
    level: float = 0.95,
    seeds: list[int] | None = None,
) -> Ratio:
    """The ratio of pairs that are written as columns."""
    first = zip(a, a_censored, strict=True)
    second = zip(b, b_censored, strict=True)
    pairs = [
        Pair(Time(*time_a), Time(*time_b), seed)
        for time_a, time_b, seed in zip(first, second, seeds or [None] * len(a), strict=True)
    ]
    return censored_ratio(pairs, level)


def median_of(steps: list[float], censored: list[bool]) -> Median:
    """The median of times that are written as columns."""
    return median_time([Time(*time) for time in zip(steps, censored, strict=True)])


def test_without_censoring_it_is_the_t_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(1.0, 0.4, 6)).tolist(), np.exp(rng.normal(0.0, 0.3, 6)).tolist()
    found = ratio_of(a, b, NO, NO)
    plain = geometric_ratio([x / y for x, y in zip(a, b, strict=True)], [1.0] * 6)
    # log(a) - log(b) is log(a / b) but for rounding, which machines do differently.
    assert astuple(found.interval) == pytest.approx(astuple(plain))
    # The likelihood's own interval, which the shortcut leaves out, is the same.
    from holdfast.stats.ratios import _fitted, _LogRatios

    d = np.log(a) - np.log(b)
    fit = _fitted(_LogRatios(d, np.zeros(6)), 0.95)
    wanted = [math.log(v) for v in (found.interval.value, found.interval.low, found.interval.high)]
    assert [fit.value, fit.low, fit.high] == pytest.approx(wanted, abs=1e-5)


def test_it_is_scipys_fit_of_censored_data() -> None:
    exact, above = np.array([0.3, 0.8, 0.5, 1.1]), np.array([0.9, 0.7])
    data = stats.CensoredData(uncensored=exact, right=above)
    mu, _ = stats.norm.fit(data)
    a = np.exp(np.concatenate([exact, above])).tolist()
    found = ratio_of(a, [1.0] * 6, [False] * 4 + [True] * 2, NO)
    assert math.log(found.interval.value) == pytest.approx(mu, abs=1e-3)
    assert (found.used, found.censored, found.bound) == (6, 2, "")
    # Larger than if the censored ones had ended where the attack did.
    assert found.interval.value > geometric_ratio(a, [1.0] * 6).value


def test_a_baseline_that_was_not_reached_pulls_the_other_way() -> None:
    a, b = [2.0, 2.5, 1.5, 2.0], [1.0, 1.0, 1.0, 1.0]
    last = [False, False, False, True]
    found = ratio_of(a, b, [False] * 4, last)
    assert found.interval.value < geometric_ratio(a, b).value


def test_pairs_that_say_nothing_are_left_out() -> None:
    a, b = [2.0, 3.0, 9.0, math.nan], [1.0, 1.0, 9.0, 1.0]
    both = [False, False, True, False]
    found = ratio_of(a, b, both, both)
    assert astuple(found.interval) == pytest.approx(
        astuple(geometric_ratio([2.0, 3.0], [1.0, 1.0]))
    )
    assert (found.used, found.censored) == (2, 0)


@pytest.mark.parametrize("exact", [0, 1])
def test_too_few_that_were_reached_give_a_bound(exact: int) -> None:
    censored = [i >= exact for i in range(3)]
    found = ratio_of([4.0, 4.0, 5.0], [1.0, 1.0, 1.0], censored, [False] * 3)
    assert found.bound == "lower"
    assert found.interval.value == pytest.approx(80 ** (1 / 3))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, covered, ratios = np.random.default_rng(1), 0, []
    for _ in range(100):
        d = rng.normal(math.log(3), 0.5, 8)
        censored = d > math.log(3.5)  # about two in five
        found = ratio_of(
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
    with pytest.raises(UsageError, match="not negative"):
        ratio_of([1.0], [-2.0], [False], [True])
    with pytest.raises(UsageError, match="not negative"):
        ratio_of([-1.0], [1.0], [False], [False])


def test_a_model_that_was_broken_from_the_start_has_ratio_0() -> None:
    found = ratio_of([0.0, 2.0], [1.0, 1.0], [False, False], [False, False])
    assert found.interval.value == 0


def test_the_p_value_is_that_of_the_interval() -> None:
    a, b = [4.0, 5.0, 6.0, 9.0], [1.5, 2.0, 1.2, 1.0]
    plain = ratio_of(a, b, [False] * 4, [False] * 4)
    gaps = np.log(a) - np.log(b)
    assert plain.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    assert plain.spread == pytest.approx(gaps.std(ddof=1))
    # At the level of its own p value the interval just ends at 1.
    some = [False, False, False, True]
    found = ratio_of(a, b, some, [False] * 4)
    assert ratio_of(a, b, some, [False] * 4, level=1 - found.p).interval.low == pytest.approx(
        1, abs=1e-3
    )
    assert found.fitted


def test_bounds_alone_are_counted_not_measured() -> None:
    # Two of two pairs are longer for certain: 2 / 2^2.
    found = ratio_of([4.0, 4.0], [1.0, 1.0], [True, True], [False, False])
    assert (found.p, found.fitted, found.bound) == (0.5, False, "lower")
    # A half-life of more than 1 may be above or below one of 4.
    assert math.isnan(ratio_of([1.0], [4.0], [True], [False]).p)


def test_an_interval_is_open_where_nothing_bounds_it() -> None:
    long, short = [1000.0] * 4, [400.0, 430.0, 470.0, 500.0]
    above = ratio_of(long, short, [True] * 4, [False] * 4)
    assert (above.bound, above.interval.high) == ("lower", math.inf)
    assert above.interval.low == pytest.approx(geometric_ratio(long, short).low)
    below = ratio_of(short, long, [False] * 4, [True] * 4)
    assert (below.bound, below.interval.low) == ("upper", 0)
    assert below.interval.high == pytest.approx(1 / above.interval.low)
    half = [True, True, False, False]
    both = ratio_of([*long[:2], *short[:2]], [*short[:2], *long[:2]], half, half[::-1])
    assert (both.bound, both.interval.low, both.interval.high) == ("unknown", 0, math.inf)


def test_a_bound_is_told_where_the_sign_test_tells_it_too() -> None:
    a, b, ended, reached = [400.0] * 6, [100.0] * 6, [True] * 6, [False] * 6
    assert ratio_of(a[:2], b[:2], ended[:2], reached[:2]).outcome == "unclear"
    assert ratio_of(a, b, ended, reached).outcome == "longer"
    assert ratio_of(b, a, reached, ended).outcome == "shorter"
    # Where those that say nothing are far below 1, six that are longer do not make it shorter.
    more = ratio_of([*a, 1.0, 1.0], [*b, 1e9, 1e9], [*ended, True, True], [False] * 8)
    assert (more.p < 0.05, more.interval.value < 1, more.outcome) == (True, True, "unclear")


# --------------------------------------------------------------------------------- Kaplan-Meier


def product_limit(steps: list[float], censored: list[bool]) -> float:
    """The median from the product over steps of 1 - broken / at risk."""
    alive = Fraction(1)
    for step in sorted(set(steps)):
        at_risk = sum(s >= step for s in steps)
        reached = sum(s == step and not c for s, c in zip(steps, censored, strict=True))
        alive *= 1 - Fraction(reached, at_risk)
        if alive <= Fraction(1, 2):
            return step
    return math.inf


@pytest.mark.parametrize("seed", range(10))
def test_the_median_is_the_product_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 12, 9).astype(float).tolist()
    censored = (rng.random(9) < 0.4).tolist()
    found = median_of(steps, censored)
    if all(censored):
        assert math.isinf(found.interval.value)
    else:
        assert found.interval.value == product_limit(steps, censored)
    assert found.interval.low <= found.interval.value <= found.interval.high
    assert found.censored == sum(censored)


@pytest.mark.parametrize("n", [12, 24, 38, 44, 46, 54, 60])
def test_a_curve_that_rests_at_one_half_has_its_median_there(n: int) -> None:
    # Half are reached at 1, 2, ... n / 2; the others last longer. The float product ends at
    # 0.5000000000000001 for 24, 38, 44, 46 and 54.
    half = n // 2
    steps = [*map(float, range(1, half + 1)), *[1000.0] * half]
    median = median_of(steps, [i >= half for i in range(n)])
    assert median.interval.value == half
    assert median.interval.low <= half <= median.interval.high
    # One fewer, and more than half last longer.
    assert math.isinf(median_of(steps[1:], [i >= half for i in range(1, n)]).interval.value)


def test_a_curve_may_rest_at_one_half_after_some_were_censored() -> None:
    # Three of nine reached at 1 leave 2/3, two censored at 2 leave four at risk, and one of these
    # reached at 3 leaves 2/3 x 3/4 = 1/2.
    steps = [1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 9.0, 9.0, 9.0]
    censored = [False, False, False, True, True, False, True, True, True]
    assert median_of(steps, censored).interval.value == 3


def test_without_censoring_it_is_the_middle_one() -> None:
    assert median_of([10.0, 30.0, 20.0], [False] * 3).interval.value == 20


def test_what_was_not_reached_by_half_is_longer_than_was_looked() -> None:
    found = median_of([10.0, 40.0, 40.0], [False, True, True])
    assert math.isinf(found.interval.value)
    assert math.isinf(found.interval.high)
    none = median_of([40.0] * 8, [True] * 8)
    assert (none.interval.low, none.interval.value) == (40, math.inf)
    assert math.isnan(median_of([math.nan], [False]).interval.value)


def test_few_attacks_leave_the_lower_end_open() -> None:
    # All five of five below the median's true place has a chance of 1 in 32, above 2.5 %.
    assert median_of([10.0] * 5, [False] * 5).interval.low == 0
    assert median_of([10.0] * 6, [False] * 6).interval.low == 10


def test_the_medians_interval_holds_the_truth() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        life, ended = rng.exponential(1 / math.log(2), 12), rng.uniform(0.5, 4, 12)
        found = median_of(np.minimum(life, ended).tolist(), (life > ended).tolist())
        held += found.interval.low <= 1 <= found.interval.high  # the median is 1
    assert held / 200 >= 0.95 - 3 * 0.0154


def test_half_lives_are_checked() -> None:
    with pytest.raises(UsageError, match="not negative"):
        median_of([1.0, -2.0], [False, True])
    with pytest.raises(UsageError, match="not negative"):
        median_of([-1.0], [False])


# ---------------------------------------------------------------------------------- by seed


def test_attacks_on_one_seeds_model_are_no_independent_observations() -> None:
    """Three seeds of two attacks: without censoring the t interval over the seeds' means."""
    logs = np.array([[1.0, 1.2], [0.4, 0.2], [0.7, 0.9]])
    a, b, no = np.exp(logs).ravel().tolist(), [1.0] * 6, [False] * 6
    found = ratio_of(a, b, no, no, seeds=[0, 0, 1, 1, 2, 2])
    means = logs.mean(1)
    half = stats.t.ppf(0.975, 2) * means.std(ddof=1) / math.sqrt(3)
    ends = [math.log(found.interval.low), math.log(found.interval.high)]
    assert ends == pytest.approx([means.mean() - half, means.mean() + half], rel=1e-6)
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=1e-6)
    alone = ratio_of(a, b, no, no)
    assert (found.seeds, alone.seeds, found.interval.value) == (3, 0, alone.interval.value)
    assert alone.interval.low > found.interval.low


def test_an_interval_is_never_narrower_for_the_seeds() -> None:
    """Seeds that are alike by chance do not make attacks that differ certain."""
    a, b, no = np.exp([0.2, 1.8, 0.3, 1.7, 0.25, 1.75]).tolist(), [1.0] * 6, [False] * 6
    alone = ratio_of(a, b, no, no)
    assert ratio_of(a, b, no, no, seeds=[0, 0, 1, 1, 2, 2]).interval == alone.interval
    one = ratio_of(a, b, no, no, seeds=[4] * 6)
    assert (one.interval, one.seeds) == (alone.interval, 1)


def test_with_censoring_the_sandwich_is_that_of_a_plain_optimizer() -> None:
    """Written out for the likelihood in sigma, with derivatives by differences."""
    rng = np.random.default_rng(3)
    seeds = np.repeat(np.arange(6), 3)
    d = rng.normal(0.8, 0.4, 6)[seeds] + rng.normal(0, 0.2, 18)
    ended = d > np.quantile(d, 0.7)
    d = np.minimum(d, np.quantile(d, 0.7))
    found = ratio_of(
        np.exp(d).tolist(), [1.0] * 18, ended.tolist(), [False] * 18, seeds=seeds.tolist()
    )

    def each(theta: np.ndarray) -> np.ndarray:
        normal = stats.norm(theta[0], theta[1])
        return np.where(ended, normal.logsf(d), normal.logpdf(d))

    best = optimize.minimize(lambda t: -each(t).sum(), [0.8, 0.5], method="Nelder-Mead").x
    e, f = 1e-4 * np.eye(2)
    gradients = np.stack([(each(best + s) - each(best - s)) / 2e-4 for s in (e, f)])

    def curved(s: np.ndarray, t: np.ndarray) -> float:
        corners = each(best + s + t) - each(best + s - t) - each(best - s + t) + each(best - s - t)
        return float(corners.sum()) / 4e-8

    hessian = np.array([[curved(e, e), curved(e, f)], [curved(f, e), curved(f, f)]])
    sums = np.stack([gradients[:, seeds == s].sum(1) for s in range(6)])
    bread = np.linalg.inv(hessian)
    variance = (bread @ sums.T @ sums @ bread)[0, 0] * 6 / 5
    half = stats.t.ppf(0.975, 5) * math.sqrt(variance)
    assert math.log(found.interval.low) == pytest.approx(best[0] - half, abs=2e-3)
    assert math.log(found.interval.high) == pytest.approx(best[0] + half, abs=2e-3)


def test_of_a_hundred_runs_of_alike_models_few_say_that_they_differ() -> None:
    """Models differ by seed, attacks hardly: pairs taken for independent say so far too often."""
    rng, seeds, no = np.random.default_rng(0), np.repeat(np.arange(5), 4), [False] * 20
    said = {"pairs": 0, "seeds": 0}
    for _ in range(100):
        d = rng.normal(0, 0.3, 5)[seeds] + rng.normal(0, 0.1, 20)
        a = np.exp(d).tolist()
        said["pairs"] += ratio_of(a, [1.0] * 20, no, no).outcome != "unclear"
        said["seeds"] += ratio_of(a, [1.0] * 20, no, no, seeds=seeds.tolist()).outcome != "unclear"
    assert said["seeds"] <= 10 < 30 < said["pairs"]
