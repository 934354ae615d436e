"""How many prompts or seeds a comparison needs, before it is run.

Two shares of n prompts each differ by chance by about 2 sqrt(2 p (1 - p) / n): with 120 prompts and
shares near one half that is 13 points, so a table of single points says nothing at that size.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from holdfast.errors import UsageError

MANY_DISCORDANT = 20_000
"""Expected discordant prompts above which the normal approximation, with a continuity correction,
stands for the exact test: they differ by less than one in a thousand.
"""
STEADY = 100
"""Variance of the number of discordant prompts above which power has no teeth: the ripple is below
exp(-2 pi^2 100 / 3^2) of its size.
"""
ROUNDING = 1e-12
"""By how much a sum of shares may miss 0 or 1."""
SMALLEST_STEP = 1e-6
"""Relative precision of the smallest difference."""


def prompts_needed(
    share: float,
    difference: float,
    *,
    power: float = 0.8,
    level: float = 0.95,
    agreement: float | None = None,
) -> int:
    """Return the prompts needed to detect a difference between two shares.

    Two independent samples (Fleiss, Levin & Paik 2003, eq. 4.14, without continuity correction),
    with p' = share + difference and m their mean,

        n = [z_a sqrt(2 m (1 - m)) + z_b sqrt(p (1 - p) + p' (1 - p'))]^2 / difference^2,

    whose power, enumerated, falls short of the promise by less than 0.01, and exceeds it for shares
    near 0 or 1. With `agreement`, the same prompts for both models, compared by McNemar's exact
    test: n is the first number from which on its power stays at or above the promise (it rises in
    sawteeth, so a smaller number may reach it by luck); see `paired_power`.

    Args:
        share: Share of the first model, in [0, 1].
        difference: Second minus first, not 0, with share + difference in [0, 1].
        power: Probability of detecting it, in (0, 1).
        level: Confidence level of the two-sided test.
        agreement: Share of prompts on which both models are judged alike; None for two samples.

    Returns:
        Prompts for each model.

    Raises:
        UsageError: A number out of range, or models that agree too often to differ this much.
    """
    _check_shares(share, difference, agreement)
    _check_probabilities(power, level)
    if agreement is not None:
        return _pairs_of_answers_needed(1 - agreement, abs(difference), power, level)
    other = share + difference
    mean = share + difference / 2
    null = math.sqrt(2 * mean * (1 - mean))
    alternative = math.sqrt(share * (1 - share) + other * (1 - other))
    return max(2, _by_normal(null, alternative, difference, power, level))


def _by_normal(
    null: float, alternative: float, difference: float, power: float, level: float
) -> int:
    """Return n by the normal approximation, from the test's standard deviations without 1 / n."""
    z_level = NormalDist().inv_cdf(0.5 + level / 2)
    z_power = NormalDist().inv_cdf(power)
    return math.ceil(((z_level * null + z_power * alternative) / difference) ** 2)


# ------------------------------------------------------------------------- McNemar's exact test


def paired_power(
    numbers: Sequence[int], discordant: float, difference: float, level: float = 0.95
) -> np.ndarray:
    """Return the power of McNemar's exact test at several numbers of prompts, (k,), exactly.

    Of n prompts, D ~ Binomial(n, discordant) are judged differently, and of these
    X ~ Binomial(D, (1 + difference / discordant) / 2) one way. The test rejects where X or D - X is
    at most c(D), the largest c with 2 P(Binomial(D, 1/2) <= c) <= 1 - level:

        power(n) = sum over D of P(D) [P(X <= c(D)) + P(X >= D - c(D))].

    Args:
        numbers: (k,) numbers of prompts, increasing.
        discordant: Share of prompts judged differently.
        difference: Between the two shares, at most `discordant`.
        level: Confidence level of the two-sided test.
    """
    from scipy import stats

    n = np.asarray(numbers)[:, None]
    # Outside of these counts there is less than 1e-10 of the probability.
    first = int(stats.binom.ppf(1e-11, n[0], discordant)[0])
    last = int(stats.binom.isf(1e-11, n[-1], discordant)[0])
    counts = np.arange(max(0, first), last + 1)
    critical = _critical_counts(counts, level)
    one_way = (1 + difference / discordant) / 2
    rejected = np.asarray(stats.binom.cdf(critical, counts, one_way))
    rejected += stats.binom.sf(counts - critical - 1, counts, one_way)
    weights = np.asarray(stats.binom.pmf(counts, n, discordant))
    return np.asarray(weights @ rejected)


def _critical_counts(counts: np.ndarray, level: float) -> np.ndarray:
    """Return for each D the largest c with 2 P(Binomial(D, 1/2) <= c) <= 1 - level, or -1."""
    from scipy import stats

    half = (1 - level) / 2
    critical = stats.binom.ppf(half, counts, 0.5)  # the smallest whose probability reaches it
    # The test compares p values with 1 - level as `holdfast` does, up to rounding.
    beyond = stats.binom.cdf(critical, counts, 0.5) > half * (1 + 1e-12)
    return np.asarray(critical - beyond)


def _pairs_of_answers_needed(
    discordant: float, difference: float, power: float, level: float
) -> int:
    """Return the first number of prompts from which on McNemar's exact test has the power."""
    discordant = max(discordant, difference)  # 1 - 0.9 is less than 0.1 by rounding
    null = math.sqrt(discordant)
    alternative = math.sqrt(max(0.0, discordant - difference**2))
    approximate = _by_normal(null, alternative, difference, power, level)
    # The exact test is the normal one with a continuity correction, which takes up to
    # 2 / difference more prompts; a tooth of its power is two or three discordant prompts wide.
    if approximate * discordant > MANY_DISCORDANT:
        return approximate + math.ceil(2 / difference)
    margin = math.ceil(4 / difference + 30 / discordant) + 30

    def short(numbers: Sequence[int]) -> np.ndarray:
        return paired_power(numbers, discordant, difference, level) < power

    lowest = max(1, approximate - margin)
    while lowest > 1 and not short([lowest])[0]:
        lowest = max(1, lowest - margin)
    numbers = range(lowest, approximate + margin)
    # Where the number of discordant prompts varies by several teeth, they cancel out: the power
    # rises steadily. Elsewhere every number is tried.
    if approximate * discordant * (1 - discordant) > STEADY:
        return bisect.bisect_left(numbers, 1, key=lambda n: int(not short([n])[0])) + lowest
    last_short = np.flatnonzero(short(numbers))
    return max(2, lowest + (int(last_short[-1]) + 1 if last_short.size else 0))


def smallest_difference(
    share: float,
    n: int,
    *,
    power: float = 0.8,
    level: float = 0.95,
    agreement: float | None = None,
) -> float:
    """Return the smallest rise from a share that n prompts detect; nan if they detect none.

    Raises:
        UsageError: Fewer than two prompts, or a number out of range.
    """
    if n < 2:
        raise UsageError(f"n={n}: a comparison needs two prompts or more")
    if not 0 <= share <= 1:
        raise UsageError(f"share {share:g} must lie in [0, 1]")
    largest = 1 - share if agreement is None else min(1 - share, 1 - agreement)
    if largest <= 0:
        return math.nan

    def enough(difference: float) -> bool:
        return n >= prompts_needed(share, difference, power=power, level=level, agreement=agreement)

    if not enough(largest):
        return math.nan
    low = 0.0
    high = largest
    while high - low > SMALLEST_STEP * high:
        middle = (low + high) / 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def pairs_needed(
    difference: float, spread: float, *, power: float = 0.8, level: float = 0.95, most: int = 10_000
) -> int | None:
    """Return the pairs (seeds) needed to detect a mean difference by a paired t test.

    Exact: the t statistic of n pairs has a noncentral t distribution with n - 1 degrees of freedom
    and noncentrality sqrt(n) difference / spread.

    Args:
        difference: Mean over pairs.
        spread: Standard deviation over pairs.
        power: Probability of detecting it, in (0, 1).
        level: Confidence level of the two-sided test.
        most: Largest number of pairs to try.

    Returns:
        Pairs; None if `most` are not enough, or if the difference or spread is 0 or unknown.

    Raises:
        UsageError: A probability out of range.
    """
    _check_probabilities(power, level)
    if not (math.isfinite(difference) and math.isfinite(spread) and difference and spread > 0):
        return None
    from scipy import stats

    def enough(n: int) -> bool:
        critical = float(stats.t.ppf(0.5 + level / 2, n - 1))
        noncentrality = math.sqrt(n) * abs(difference) / spread
        return float(stats.nct.sf(critical, n - 1, noncentrality)) >= power

    too_few = 1
    sufficient = 2
    while not enough(sufficient):
        if sufficient >= most:
            return None
        too_few = sufficient
        sufficient = min(2 * sufficient, most)
    while sufficient - too_few > 1:
        middle = (too_few + sufficient) // 2
        if enough(middle):
            sufficient = middle
        else:
            too_few = middle
    return sufficient


def _check_shares(share: float, difference: float, agreement: float | None) -> None:
    other = share + difference
    if not (0 <= share <= 1 and -ROUNDING <= other <= 1 + ROUNDING and abs(difference) > ROUNDING):
        raise UsageError(
            f"share {share:g} and difference {difference:g}: both shares must lie in [0, 1] and "
            "differ; 10 % is 0.1"
        )
    if agreement is None:
        return
    # 1 - 0.9 is less than 0.1 by rounding.
    if not abs(difference) - ROUNDING <= 1 - agreement <= 1:
        raise UsageError(
            f"agreement {agreement:g}: models that differ by {abs(difference):g} agree on 0 to "
            f"{1 - abs(difference):g} of the prompts"
        )


def _check_probabilities(power: float, level: float) -> None:
    if not (0 < power < 1 and 0 < level < 1):
        raise UsageError(f"power {power:g} and level {level:g} must lie between 0 and 1")
