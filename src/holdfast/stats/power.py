"""How many prompts or seeds a comparison needs, before it is run.

Two shares of n prompts each differ by chance by about 2 sqrt(2 p (1 - p) / n): with 120 prompts and
shares near one half that is 13 points, so a table of single points says nothing at that size.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from holdfast.errors import UsageError


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

    or, with `agreement`, the same prompts for both models, compared by McNemar's test (Connor
    1987): with psi = 1 - agreement the share of prompts on which the models differ,

        n = [z_a sqrt(psi) + z_b sqrt(psi - difference^2)]^2 / difference^2.

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
    other = share + difference
    if not (0 <= share <= 1 and 0 <= other <= 1 and difference):
        raise UsageError(
            f"share {share:g} and difference {difference:g}: both shares must lie in [0, 1] and "
            "differ"
        )
    _check_probabilities(power, level)
    if agreement is None:
        mean = share + difference / 2
        null = math.sqrt(2 * mean * (1 - mean))
        alternative = math.sqrt(share * (1 - share) + other * (1 - other))
    else:
        discordant = 1 - agreement
        if not abs(difference) <= discordant <= 1:
            raise UsageError(
                f"agreement {agreement:g}: models that differ by {abs(difference):g} agree on at "
                f"most {1 - abs(difference):g} of the prompts"
            )
        null = math.sqrt(discordant)
        alternative = math.sqrt(discordant - difference**2)
    z_level = NormalDist().inv_cdf(0.5 + level / 2)
    z_power = NormalDist().inv_cdf(power)
    return max(2, math.ceil(((z_level * null + z_power * alternative) / difference) ** 2))


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
    for _ in range(60):  # halving leaves less than a rounding error
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


def _check_probabilities(power: float, level: float) -> None:
    if not (0 < power < 1 and 0 < level < 1):
        raise UsageError(f"power {power:g} and level {level:g} must lie between 0 and 1")
