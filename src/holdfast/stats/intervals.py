"""Estimates with confidence intervals: pure functions on arrays.

Nothing unknown becomes a number: nan goes in as "not measured" and comes out as nan or as a smaller
n, and a statistic that is not defined for its input is nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from holdfast.errors import UsageError


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate; nan if unknown.
        low: Lower end; nan if unknown (one seed).
        high: Upper end; nan if unknown.
        n: Number of observations.
        level: Confidence level.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"unknown, n={self.n}"
        ends = f"{self.low:.2f}, {self.high:.2f}"
        if math.isnan(self.low) or math.isnan(self.high):
            ends = "unknown"
        return f"{self.value:.2f} [{ends}], n={self.n}"

    def fields(self, name: str) -> dict[str, float]:
        """Return the value under a name and the ends under name_low and name_high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return a share with its score interval (Wilson 1927), which holds near 0 and 1 as well.

    Returns:
        successes / n with its interval; for n = 0 nan within [0, 1].

    Raises:
        UsageError: Successes outside [0, n], or a level outside (0, 1).
    """
    check_level(level)
    if not 0 <= successes <= n:
        raise UsageError(f"successes={successes}, n={n}: successes must lie between 0 and n")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0, level)
    from scipy import stats

    ends = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high), n, level)


def partly_known(successes: int, unknown: int, n: int, level: float = 0.95) -> Interval:
    """Return a share of observations some of which are unknown, with an interval for both doubts.

    If all unknown observations are failures, the share is successes / n; if all are successes, it
    is (successes + unknown) / n (Manski 1989). The interval is the union of Wilson's intervals of
    the two, so it covers the share with at least the given probability wherever it lies between.

    Args:
        successes: Number of known successes.
        unknown: Number of observations of which nothing is known.
        n: Number of observations.
        level: Confidence level.

    Returns:
        successes / n, the least possible share; nan if nothing is known, with the interval [0, 1].

    Raises:
        UsageError: As `wilson` does.
    """
    least = wilson(successes, n, level)
    if not unknown:
        return least
    if unknown == n:
        return Interval(math.nan, 0.0, 1.0, n, level)
    return replace(least, high=wilson(successes + unknown, n, level).high)


def wilson_around(share: float, n: int, level: float = 0.95) -> Interval:
    """Return a share with the interval of the nearest count out of n, widened to hold the share.

    Without observations, or of an unknown share (nan), the interval is unknown.
    """
    if not n or math.isnan(share):
        return wilson(0, 0, level)
    nearest = wilson(round(share * n), n, level)
    return Interval(share, min(nearest.low, share), max(nearest.high, share), n, level)


def clustered(successes: int, n: int, clusters: int, level: float = 0.95) -> Interval:
    """Return a share with Wilson's interval for as many observations as there are clusters.

    Several answers to one prompt count as one observation, which never overstates what is known.

    Args:
        successes: Successes in all clusters together.
        n: Answers in all clusters together.
        clusters: Number of clusters, at most n.
        level: Confidence level.
    """
    if not n:
        return wilson(0, 0, level)
    return replace(wilson_around(successes / n, clusters, level), n=n)


def bootstrap(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
    units: Sequence[str] | None = None,
) -> Interval:
    """Percentile bootstrap (Efron 1979): rows are resampled, the same rows in every array.

    Args:
        statistic: Called with one argument per array.
        *arrays: Shapes (n, ...), rows belong together.
        seed: Random seed of the resampling.
        resamples: Number of resamples; those where the statistic is nan are left out.
        level: Confidence level.
        units: (n,) what each row is an observation of, e.g. its prompt: rows of one unit are drawn
            together, or several answers to one prompt would count as several observations. If None,
            every row is a unit of its own.

    Raises:
        UsageError: Arrays of different lengths, or fewer than two rows.
    """
    check_level(level)
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) != 1 or lengths[0] < 2:
        raise UsageError(f"bootstrap of {lengths} rows: give arrays of equal length, 2 or more")
    n = lengths[0]
    columns = [np.asarray(array) for array in arrays]
    value = float(statistic(*columns))
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for k, rows in enumerate(_resampled_rows(rng, n, resamples, units)):
        draws[k] = statistic(*(column[rows] for column in columns))
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not draws.size:
        return Interval(value, math.nan, math.nan, n, level)
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high), n, level)


def _resampled_rows(
    rng: np.random.Generator, n: int, resamples: int, units: Sequence[str] | None
) -> Iterator[np.ndarray]:
    """Yield the row numbers of each resample."""
    if units is None:
        for _ in range(resamples):
            yield rng.integers(0, n, n)
        return
    members: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    rows_of_unit = [np.array(rows) for rows in members.values()]
    for _ in range(resamples):
        drawn = rng.integers(0, len(rows_of_unit), len(rows_of_unit))
        yield np.concatenate([rows_of_unit[i] for i in drawn])


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval.

    Args:
        values: (n,); nan are left out and not counted in n.
        level: Confidence level.

    Returns:
        The interval; its ends are nan with one value, and all of it is nan without values.
    """
    check_level(level)
    measured = np.asarray(values, dtype=np.float64)
    measured = measured[~np.isnan(measured)]
    n = measured.size
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0, level)
    mean = float(measured.mean())
    if n == 1 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, n, level)
    from scipy import stats

    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * measured.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, level)


def cluster_ids(names: Sequence[Hashable]) -> np.ndarray:
    """Return the number of each name, (n,), counted from 0 in the order of first appearance."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in names], dtype=int)


def standard_error(values: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the standard error of a mean over repetitions, (n,); None if there is only one.

    Args:
        values: One array (n,) per repetition; a nan in any of them gives nan.
    """
    if len(values) < 2:
        return None
    return np.asarray(np.std(np.stack(values), axis=0, ddof=1) / math.sqrt(len(values)))


def geometric_ratio(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """How many times larger a is than b: exp of the mean difference of logarithms, t interval.

    Args:
        a: (n,) non-negative, e.g. half-lives of a method, one per attack and seed.
        b: (n,) the same attacks and seeds under the baseline.
        level: Confidence level.

    Returns:
        The ratio; pairs with a nan are left out and not counted in n, so put a censored
        half-life's lower bound in its place and say that the ratio is a bound. A zero in a makes
        the ratio 0, a zero in b infinite, both kinds nan; its ends are then nan.

    Raises:
        UsageError: Different lengths or a negative value.
    """
    first, second = known_pairs(a, b)
    if (first < 0).any() or (second < 0).any():
        raise UsageError(f"ratio of {list(a)} and {list(b)}: negative values have no logarithm")
    # Zeros give infinite logarithms; two or three seeds can give ends that overflow.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logs = np.log(first) - np.log(second)
        if np.isnan(logs).any():  # 0 / 0
            return Interval(math.nan, math.nan, math.nan, logs.size, level)
        mean = mean_interval(logs, level)
        value, low, high = np.exp([mean.value, mean.low, mean.high]).tolist()
    return Interval(value, low, high, mean.n, level)


def check_level(level: float) -> None:
    """Reject a confidence level outside (0, 1).

    Raises:
        UsageError: It lies outside.
    """
    if not 0 < level < 1:
        raise UsageError(f"level={level} must lie between 0 and 1, e.g. 0.95")


def known_pairs(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (n,) float64, without the pairs that hold a nan.

    Raises:
        UsageError: Different lengths, or more than one dimension.
    """
    first = np.asarray(a, dtype=np.float64)
    second = np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise UsageError(f"shapes {first.shape} and {second.shape}: give two (n,) of equal length")
    measured = ~(np.isnan(first) | np.isnan(second))
    return first[measured], second[measured]
