"""Intervals, rank statistics and agreement: pure functions on arrays.

Nothing unknown becomes a number: nan goes in as "not measured" and comes out as nan or as a smaller
n, and a statistic that is not defined for its input is nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from holdfast.errors import UsageError


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate; nan if unknown.
        low: Lower end; nan if it cannot be said (one seed).
        high: Upper end.
        n: Observations behind it.
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


# ------------------------------------------------------------------------------------ intervals


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a share (Wilson 1927): honest near 0 and 1, where the normal one is not.

    Returns:
        successes / n with its interval; for n = 0 nan within [0, 1].
    """
    _check_level(level)
    if not 0 <= successes <= n:
        raise UsageError(f"successes={successes}, n={n}: successes must lie between 0 and n")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0, level)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1; the formula leaves a rounding error there.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n, level)


def wilson_around(share: float, n: int, level: float = 0.95) -> Interval:
    """Return a share with the interval of the nearest count out of n, widened to hold the share."""
    found = wilson(round(share * n), n, level)
    return Interval(share, min(found.low, share), max(found.high, share), n, level)


def clustered(successes: int, n: int, clusters: int, level: float = 0.95) -> Interval:
    """Return a share with Wilson's interval for as many observations as there are clusters.

    Several answers to one prompt count as one observation, which is never too many.

    Args:
        successes: Among all.
        n: All.
        clusters: Groups that they come in, at most n.
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
        statistic: Called with as many arrays as are given.
        *arrays: Shapes (n, ...), rows belong together.
        seed: Of the resampling.
        resamples: Number of resamples; those where the statistic is nan are left out.
        level: Confidence level.
        units: (n,) what each row is an observation of, e.g. its prompt: rows of one unit are drawn
            together, or several answers to one prompt would count as several observations. Every
            row by itself if None.

    Raises:
        UsageError: Arrays of different lengths, or fewer than two rows.
    """
    _check_level(level)
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) != 1 or lengths[0] < 2:
        raise UsageError(f"bootstrap of {lengths} rows: give arrays of equal length, 2 or more")
    n = lengths[0]
    columns = [np.asarray(array) for array in arrays]
    rng = np.random.default_rng(seed)
    value = float(statistic(*columns))
    draws = np.empty(resamples)
    members = _members(units) if units is not None else None
    size = n if members is None else len(members)
    for k in range(resamples):
        drawn = rng.integers(0, size, size)
        rows = drawn if members is None else np.concatenate([members[i] for i in drawn])
        draws[k] = statistic(*(column[rows] for column in columns))
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not draws.size:
        return Interval(value, math.nan, math.nan, n, level)
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high), n, level)


def _members(units: Sequence[str]) -> list[np.ndarray]:
    """Return the rows of each unit, in the order in which units are first seen."""
    found: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        found.setdefault(unit, []).append(row)
    return [np.array(rows) for rows in found.values()]


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval.

    Args:
        values: (n,); nan are left out and not counted in n.
        level: Confidence level.

    Returns:
        The interval; with one value its ends are nan, with none all is nan.
    """
    _check_level(level)
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return Interval(math.nan, math.nan, math.nan, 0, level)
    mean, n = float(known.mean()), known.size
    if n == 1 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, n, level)
    from scipy import stats

    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * known.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, level)


def numbered(names: Sequence[Hashable]) -> np.ndarray:
    """Return the number of each name, (n,) from 0 on, in the order in which they first come."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in names], dtype=int)


def standard_error(values: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the standard error of a mean over repetitions, (n,); None if there is only one.

    Args:
        values: One array (n,) per repetition; what is nan in one of them is nan.
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
    first, second = _paired(a, b)
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


# ----------------------------------------------------------------------------- rank statistics


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney).

    Args:
        labels: (n,) 1 or True for positives, nan = unknown.
        scores: (n,), nan = not scored; pairs with a nan are left out.

    Returns:
        The area in [0, 1]; nan unless there are both positives and negatives.
    """
    positive, known = _labelled(labels, scores)
    count = int(positive.sum())
    if count in (0, positive.size):
        return math.nan
    surplus = _midranks(known)[positive].sum() - count * (count + 1) / 2
    return float(surplus / (count * (positive.size - count)))


def auprc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision: the sum of precision times the rise in recall over all thresholds.

    Args:
        labels: (n,) 1 or True for positives, nan = unknown.
        scores: (n,), nan = not scored; pairs with a nan are left out.

    Returns:
        The area in [0, 1], chance is the share of positives; nan without positives.
    """
    positive, known = _labelled(labels, scores)
    if not positive.any():
        return math.nan
    order = np.argsort(-known, kind="stable")
    hits, ranked = np.cumsum(positive[order]), known[order]
    # A threshold takes all rows with equal scores at once, so only the last of each run counts.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), known.size - 1)
    precision = hits[last] / (last + 1)
    return float(np.sum(precision * np.diff(hits[last], prepend=0)) / hits[-1])


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation, ties at their mean rank.

    Returns:
        In [-1, 1]; pairs with a nan are left out; nan if fewer than two pairs or one is constant.
    """
    first, second = _paired(a, b)
    if first.size < 2:
        return math.nan
    x, y = (_midranks(values) - (first.size + 1) / 2 for values in (first, second))
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return min(1.0, max(-1.0, float(x @ y) / spread)) if spread else math.nan


def _midranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


# ------------------------------------------------------------------------------------ agreement


def jaccard(a: AbstractSet[object], b: AbstractSet[object]) -> float:
    """Share of the union that both sets hold; nan for two empty sets."""
    union = len(a | b)
    return len(a & b) / union if union else math.nan


def jaccard_by_chance(n: int, size_a: int, size_b: int) -> float:
    """Expected Jaccard index of two independent random subsets of n items with these sizes.

    Exact: the overlap k is hypergeometric, so it is the mean of k / (size_a + size_b - k).
    """
    if not (0 <= size_a <= n and 0 <= size_b <= n):
        raise UsageError(f"sizes {size_a} and {size_b} must lie between 0 and n={n}")
    if size_a + size_b == 0:
        return math.nan
    from scipy import stats

    overlap = np.arange(max(0, size_a + size_b - n), min(size_a, size_b) + 1)
    chance = stats.hypergeom.pmf(overlap, n, size_a, size_b)
    return float(np.sum(chance * overlap / (size_a + size_b - overlap)))


def common_forgotten_ratio(sets: Collection[AbstractSet[object]]) -> float:
    """Share of the smallest set that all sets hold: do attacks forget the same examples?

    Source: Vulnerability-Aware Alignment, arXiv:2506.03850. Nan if there are no sets or one is
    empty.
    """
    smallest = min((len(items) for items in sets), default=0)
    if not smallest:
        return math.nan
    first, *others = sets
    return len(set(first).intersection(*others)) / smallest


def kappa(a: ArrayLike, b: ArrayLike) -> float:
    """Agreement of two yes-no ratings beyond chance (Cohen 1960).

    Args:
        a: (n,) bool.
        b: (n,) bool, of the same items.

    Returns:
        1 for perfect agreement, 0 for that of chance; nan if chance alone agrees perfectly (both
        raters say one and the same thing throughout) or there are no items.
    """
    first, second = _ratings(a, b)
    if not first.size:
        return math.nan
    observed = float((first == second).mean())
    p, q = float(first.mean()), float(second.mean())
    chance = p * q + (1 - p) * (1 - q)
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def kappa_of_table(table: ArrayLike) -> float:
    """Agreement of two raters beyond chance, over any number of values (Cohen 1960).

    Args:
        table: (k, k) how often the first rater gave the row's value and the second the column's.

    Returns:
        As `kappa`.
    """
    counts = np.asarray(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or (counts < 0).any():
        raise UsageError(f"table of shape {counts.shape}: give a square table of counts")
    total = counts.sum()
    if not total:
        return math.nan
    chance = float(counts.sum(axis=0) @ counts.sum(axis=1)) / total**2
    observed = float(np.trace(counts)) / total
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def fleiss_kappa(counts: ArrayLike) -> float:
    """Agreement of several raters beyond chance (Fleiss 1971).

    Args:
        counts: (n, k) how many raters gave each of n items each of k values; as many raters for
            every item, two at least.

    Returns:
        1 for perfect agreement, 0 for that of chance, which takes all raters to use the values
        equally often; nan if they give one and the same value throughout, or without items.
    """
    table = np.asarray(counts, dtype=np.float64)
    raters = np.unique(table.sum(axis=1)) if table.ndim == 2 else np.empty(0)
    if table.ndim != 2 or raters.size > 1 or (raters < 2).any():
        raise UsageError(
            f"counts of {raters.tolist()} ratings an item: give (n, k), as many for every item and "
            "two at least"
        )
    if not table.size:
        return math.nan
    m = raters[0]
    observed = float(((table * (table - 1)).sum(axis=1) / (m * (m - 1))).mean())
    shares = table.sum(axis=0) / table.sum()
    chance = float(shares @ shares)
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p value that two paired yes-no outcomes are equally frequent (McNemar, exact).

    Args:
        a: (n,) bool.
        b: (n,) bool, of the same items.

    Returns:
        The binomial probability of a split of the discordant pairs at least as uneven; 1 if no
        pair is discordant, nan without items.
    """
    first, second = _ratings(a, b)
    if not first.size:
        return math.nan
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    from scipy import stats

    tail = stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    return min(1.0, 2 * float(tail))


# ---------------------------------------------------------------------- many tests at one time


def benjamini_hochberg(p: ArrayLike) -> np.ndarray:
    """Correct p values so that alpha bounds the expected share of false findings.

    Args:
        p: (k,); nan = not tested: stays nan and is not counted.

    Returns:
        (k,), Benjamini and Hochberg 1995. It holds for independent and for positively dependent
        tests; levels of one factor exclude each other, for which it is known to hold in practice.
    """
    from scipy import stats

    found = np.array(p, dtype=np.float64)
    tested = np.isfinite(found)
    if tested.any():
        found[tested] = stats.false_discovery_control(found[tested])
    return found


def holm(p: ArrayLike) -> np.ndarray:
    """Correct p values so that alpha bounds the probability of any false finding (Holm 1979).

    Args:
        p: (k,); nan = not tested: stays nan and is not counted.

    Returns:
        (k,); it holds however the tests depend on one another.
    """
    found = np.array(p, dtype=np.float64)
    order = np.argsort(found)[: int(np.isfinite(found).sum())]  # nan are sorted to the end
    scaled = found[order] * np.arange(order.size, 0, -1)
    # No p value may be corrected to less than a smaller one.
    found[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return found


# --------------------------------------------------------------------------------------- checks


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(f"level={level} must lie between 0 and 1, e.g. 0.95")


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (n,) float64 without the pairs that hold a nan."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (a, b))
    if first.shape != second.shape or first.ndim != 1:
        raise UsageError(f"shapes {first.shape} and {second.shape}: give two (n,) of equal length")
    known = ~(np.isnan(first) | np.isnan(second))
    return first[known], second[known]


def _labelled(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    truth, known = _paired(labels, scores)
    if not np.isin(truth, (0, 1)).all():
        other = truth[~np.isin(truth, (0, 1))][0]
        raise UsageError(f"label {other:g}: labels must be 0 or 1 (nan if unknown)")
    return truth == 1, known


def _ratings(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 1:
        raise UsageError(f"shapes {first.shape} and {second.shape}: give two (n,) of equal length")
    for ratings in (first, second):
        # A nan or None would pass bool() as True: an undecided verdict counted as harmful.
        if ratings.size and ratings.dtype != bool:
            raise UsageError(
                f"ratings are {ratings.dtype}, not bool; leave the undecided items out first"
            )
    return first.astype(bool), second.astype(bool)
