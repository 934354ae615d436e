"""Agreement of raters beyond chance, and the test of two paired outcomes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from holdfast.errors import UsageError


def kappa(a: ArrayLike, b: ArrayLike) -> float:
    """Agreement of two yes-no ratings beyond chance (Cohen 1960).

    Args:
        a: (n,) bool.
        b: (n,) bool, of the same items.

    Returns:
        1 for perfect agreement, 0 for as much as chance gives; nan without items, or if chance
        alone agrees perfectly (both raters give the same value throughout).

    Raises:
        UsageError: Different lengths, or ratings that are not bool.
    """
    first, second = _ratings(a, b)
    if not first.size or _constant(np.concatenate([first, second])):
        return math.nan
    from sklearn import metrics

    return float(metrics.cohen_kappa_score(first, second))


def kappa_of_table(table: ArrayLike) -> float:
    """Agreement of two raters beyond chance, over any number of values (Cohen 1960).

    Args:
        table: (k, k) how often the first rater gave the row's value and the second the column's.

    Returns:
        As `kappa`.

    Raises:
        UsageError: A table that is not square, or negative counts.
    """
    counts = np.asarray(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or (counts < 0).any():
        raise UsageError(f"table of shape {counts.shape}: give a square table of counts")
    rows, columns = np.nonzero(counts)
    if not rows.size or _constant(np.concatenate([rows, columns])):
        return math.nan
    from sklearn import metrics

    weights = counts[rows, columns]
    return float(metrics.cohen_kappa_score(rows, columns, sample_weight=weights))


def fleiss_kappa(counts: ArrayLike) -> float:
    """Agreement of several raters beyond chance (Fleiss 1971).

    Args:
        counts: (n, k) how many raters gave each of n items each of k values; the same number of
            raters for every item, at least two.

    Returns:
        1 for perfect agreement, 0 for as much as chance gives, which takes all raters to use the
        values equally often; nan without items, or if all give the same value throughout.

    Raises:
        UsageError: Items with different numbers of raters, or with fewer than two.
    """
    table = np.asarray(counts, dtype=np.float64)
    totals = np.unique(table.sum(axis=1)) if table.ndim == 2 else np.empty(0)
    if table.ndim != 2 or totals.size > 1 or (totals < 2).any():
        raise UsageError(
            f"counts of {totals.tolist()} ratings per item: give a table (n, k) with the same "
            "number of ratings for every item, at least two"
        )
    if not table.size:
        return math.nan
    raters = totals[0]
    # Of the raters (raters - 1) ordered pairs on one item, those that agree.
    agreeing = (table * (table - 1)).sum(axis=1)
    observed = float((agreeing / (raters * (raters - 1))).mean())
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

    Raises:
        UsageError: Different lengths, or ratings that are not bool.
    """
    first, second = _ratings(a, b)
    if not first.size:
        return math.nan
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    if not only_first + only_second:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def _ratings(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first = np.asarray(a)
    second = np.asarray(b)
    if first.shape != second.shape or first.ndim != 1:
        raise UsageError(f"shapes {first.shape} and {second.shape}: give two (n,) of equal length")
    for ratings in (first, second):
        # A nan or None would pass bool() as True: an undecided verdict counted as harmful.
        if ratings.size and ratings.dtype != bool:
            raise UsageError(
                f"ratings are {ratings.dtype}, not bool; leave the undecided items out first"
            )
    return first.astype(bool), second.astype(bool)
