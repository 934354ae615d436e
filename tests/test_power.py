"""The power calculator against simulation, published numbers, and its own inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from holdfast.errors import UsageError
from holdfast.stats.power import (
    paired_power,
    pairs_needed,
    prompts_needed,
    smallest_difference,
)


def test_equals_a_textbooks_table() -> None:
    # Fleiss, Levin & Paik, table A.4 adds 2 / difference for continuity; without it 0.5 against 0.6
    # at 5 % and 80 % is 387.3 by hand: (1.95996 sqrt(0.495) + 0.84162 sqrt(0.49))^2 / 0.01.
    by_hand = (1.959964 * math.sqrt(2 * 0.55 * 0.45) + 0.841621 * math.sqrt(0.25 + 0.24)) ** 2
    assert prompts_needed(0.5, 0.1) == math.ceil(by_hand / 0.01) == 388


@pytest.mark.parametrize(("share", "difference"), [(0.1, 0.1), (0.5, -0.15), (0.02, 0.05)])
def test_so_many_prompts_show_it_as_often_as_promised(share: float, difference: float) -> None:
    n = prompts_needed(share, difference)
    rng = np.random.default_rng(0)
    a, b = rng.binomial(n, share, 4000), rng.binomial(n, share + difference, 4000)
    mean = (a + b) / (2 * n)
    z = (b - a) / n / np.sqrt(2 * mean * (1 - mean) / n)
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.03)


def enumerated(n: int, share: float, other: float) -> float:
    """The power of the pooled z test of two samples, over all pairs of counts."""
    counts = np.arange(n + 1)
    first, second = counts[:, None], counts[None, :]
    mean = (first + second) / (2 * n)
    error = np.sqrt(2 * mean * (1 - mean) / n)
    rejected = np.abs(first - second) / n >= 1.959964 * error
    rejected &= first != second
    return float(stats.binom.pmf(counts, n, share) @ rejected @ stats.binom.pmf(counts, n, other))


@pytest.mark.parametrize(
    ("share", "difference"),
    [(0.1, 0.1), (0.5, 0.1), (0.5, -0.15), (0.02, 0.05), (0.0, 0.1), (0.9, 0.1), (0.2, 0.6)],
)
def test_two_samples_keep_the_promise_up_to_a_hundredth(share: float, difference: float) -> None:
    n = prompts_needed(share, difference)
    assert enumerated(n, share, share + difference) >= 0.79
    assert enumerated(max(2, n // 2), share, share + difference) < 0.8


def slow_power(n: int, discordant: float, difference: float, alpha: float = 0.05) -> float:
    """The power of McNemar's exact test over all tables, with p values by the library."""
    one_way, power = (1 + difference / discordant) / 2, 0.0
    for d in range(n + 1):
        weight = math.comb(n, d) * discordant**d * (1 - discordant) ** (n - d)
        for x in range(d + 1):
            p = stats.binomtest(x, d).pvalue if d else 1.0
            chance = math.comb(d, x) * one_way**x * (1 - one_way) ** (d - x)
            power += weight * chance * (p <= alpha)
    return power


@pytest.mark.parametrize(
    ("n", "discordant", "difference"),
    [(5, 1.0, 1.0), (6, 1.0, 1.0), (12, 0.5, 0.3), (30, 0.2, 0.1), (25, 0.3, 0.3), (20, 1.0, 0.4)],
)
def test_paired_power_is_the_sum_over_all_tables(
    n: int, discordant: float, difference: float
) -> None:
    fast = paired_power([n], discordant, difference)
    assert fast == pytest.approx([slow_power(n, discordant, difference)], abs=1e-9)


@pytest.mark.parametrize(
    ("difference", "agreement"),
    [(0.05, 0.9), (0.1, 0.8), (0.2, 0.5), (0.3, 0.0), (0.4, 0.6), (0.8, 0.2), (0.9, 0.1)],
)
def test_the_same_prompts_keep_the_promise_from_there_on(
    difference: float, agreement: float
) -> None:
    n = prompts_needed(0.1, difference, agreement=agreement)
    powers = paired_power(range(n - 1, 3 * n), max(1 - agreement, difference), difference)
    assert powers[0] < 0.8 <= powers[1:].min()


def test_the_same_prompts_need_fewer() -> None:
    n = prompts_needed(0.3, 0.05, agreement=0.9)
    # Connor's approximation gives 312, at which the exact test has a power of 0.76.
    assert n == 337 < prompts_needed(0.3, 0.05) / 2
    assert slow_share(312) < 0.78
    assert slow_share(n) == pytest.approx(0.8, abs=0.02)


def slow_share(n: int) -> float:
    """How often McNemar's exact test finds 7.5 % one way and 2.5 % the other, simulated."""
    rng = np.random.default_rng(1)
    tables = rng.multinomial(n, [0.075, 0.025, 0.9], 4000)
    p = [stats.binomtest(int(a), int(a + b)).pvalue if a + b else 1.0 for a, b, _ in tables]
    return float(np.mean(np.array(p) <= 0.05))


@pytest.mark.parametrize("agreement", [None, 0.9])
def test_the_inverse(agreement: float | None) -> None:
    seen = smallest_difference(0.2, 400, agreement=agreement)
    assert prompts_needed(0.2, seen, agreement=agreement) <= 400
    assert prompts_needed(0.2, 0.98 * seen, agreement=agreement) > 400
    assert math.isnan(smallest_difference(0.2, 3, agreement=agreement))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.99, "difference": 0.05}, r"both shares must lie in \[0, 1\]"),
        ({"share": 0.5, "difference": 0.0}, "differ"),
        ({"share": 0.5, "difference": 0.1, "power": 1.0}, "power 1 and level 0.95"),
        ({"share": 0.5, "difference": 0.1, "agreement": 0.95}, "agree on 0 to 0.9 of"),
        ({"share": 0.5, "difference": 0.1, "agreement": 90}, "agreement 90.*agree on 0 to 0.9"),
        ({"share": 10, "difference": 3}, "share 10 and difference 3.*10 % is 0.1"),
        ({"share": math.nan, "difference": 0.1}, "share nan"),
        ({"share": 0.5, "difference": math.nan}, "difference nan"),
        ({"share": 0.5, "difference": 0.1, "agreement": math.nan}, "agreement nan"),
    ],
)
def test_bad_numbers(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prompts_needed(**options)
    with pytest.raises(UsageError, match="two prompts or more"):
        smallest_difference(0.5, 1)


def test_shares_that_only_rounding_puts_out_of_range_are_accepted() -> None:
    # 0.7 + 0.3 is 1 less than 1.0000000000000002 and 1 - 0.9 is less than 0.1.
    assert prompts_needed(0.1, 0.9) == prompts_needed(0.0999999999999999, 0.9)
    assert prompts_needed(0.3, 0.1, agreement=0.9) == 78
    assert prompts_needed(0.9, -0.9, agreement=0.1) == 7


@pytest.mark.parametrize(("difference", "spread"), [(1.0, 1.0), (-0.5, 0.4), (0.2, 0.5)])
def test_so_many_pairs_show_it_as_often_as_promised(difference: float, spread: float) -> None:
    n = pairs_needed(difference, spread)
    assert n is not None
    drawn = np.random.default_rng(0).normal(difference, spread, (4000, n))
    p = stats.ttest_1samp(drawn, 0, axis=1).pvalue
    assert np.mean(p < 0.05) >= 0.78
    fewer = stats.ttest_1samp(drawn[:, : n - 1], 0, axis=1).pvalue if n > 2 else np.ones(1)
    assert np.mean(fewer < 0.05) < 0.82


def test_some_differences_no_number_of_pairs_would_show() -> None:
    assert pairs_needed(0.001, 1.0) is None
    assert pairs_needed(0.0, 1.0) is None
    assert pairs_needed(1.0, math.nan) is None
    with pytest.raises(UsageError, match="power 2"):
        pairs_needed(1.0, 1.0, power=2)


@pytest.mark.parametrize(("difference", "spread"), [(1.0, 1.0), (0.5, 0.4), (0.2, 0.5), (0.1, 0.9)])
def test_pairs_needed_equals_statsmodels(difference: float, spread: float) -> None:
    from statsmodels.stats.power import TTestPower

    pairs = TTestPower().solve_power(effect_size=difference / spread, power=0.8, alpha=0.05)
    assert pairs_needed(difference, spread) == max(2, math.ceil(pairs))


@pytest.mark.parametrize(("share", "difference"), [(0.1, 0.1), (0.5, 0.15), (0.02, 0.05)])
def test_prompts_needed_equals_statsmodels(share: float, difference: float) -> None:
    from statsmodels.stats.proportion import samplesize_proportions_2indep_onetail

    n = samplesize_proportions_2indep_onetail(difference, share, power=0.8, alpha=0.05)
    assert prompts_needed(share, difference) == math.ceil(n)
