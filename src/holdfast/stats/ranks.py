"""Rank statistics: how well scores order labels or other scores.

They leave out unknown pairs, accept infinite scores, and return nan where a statistic is not
defined. All are built on ranks rather than on scikit-learn's metrics: those reject infinite scores,
and checking their arguments takes 10 to 15 times as long as the statistic, which a bootstrap pays a
thousand times (1,000 rows: 2.4 ms against 0.17 ms for the AUROC, 1.4 against 0.09 for the average
precision). The tests hold them equal to scikit-learn and scipy.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from holdfast.errors import UsageError
from holdfast.stats.intervals import known_pairs


def rankable(scores: np.ndarray, *, purpose: str, fewest: int) -> np.ndarray:
    """Return the finite scores, which must be several and differ.

    Args:
        scores: (n,), nan = not scored.
        purpose: What they are needed for, as the beginning of a sentence, e.g. "screening".
        fewest: Smallest number of scored rows.

    Raises:
        UsageError: There are too few, or all are equal.
    """
    finite: np.ndarray = scores[np.isfinite(scores)]
    if len(finite) < fewest:
        raise UsageError(
            f"{len(finite)} scored rows (of {len(scores)}): {purpose} needs at least {fewest}. "
            "Score more rows with `holdfast score`, or the aligned model instead of its base."
        )
    if finite.min() == finite.max():
        raise UsageError(
            f"all {len(finite)} scores equal {finite[0]:.3g}: no row is more vulnerable than "
            f"another, and {purpose} needs a difference. Score with another estimator or a longer "
            "proxy attack."
        )
    return finite


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney).

    Args:
        labels: (n,) 1 or True for positives, nan = unknown.
        scores: (n,), nan = not scored; pairs with a nan are left out.

    Returns:
        The area in [0, 1]; nan unless there are both positives and negatives.
    """
    positive, values = _labelled(labels, scores)
    positives = int(positive.sum())
    negatives = positive.size - positives
    if not positives or not negatives:
        return math.nan
    # U of the Mann-Whitney test over its maximum; a tie counts as below by half.
    lower = np.sort(values[~positive])
    below = np.searchsorted(lower, values[positive], side="left").sum()
    not_above = np.searchsorted(lower, values[positive], side="right").sum()
    return float(below + not_above) / (2 * positives * negatives)


def auprc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision: the sum of precision times the rise in recall over all thresholds.

    Args:
        labels: (n,) 1 or True for positives, nan = unknown.
        scores: (n,), nan = not scored; pairs with a nan are left out.

    Returns:
        The area in [0, 1], chance is the share of positives; nan without positives.
    """
    positive, values = _labelled(labels, scores)
    if not positive.any():
        return math.nan
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    hits = np.cumsum(positive[order])
    # A threshold takes all rows with equal scores at once, so only the last of each run counts.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), values.size - 1)
    precision = hits[last] / (last + 1)
    rise = np.diff(hits[last], prepend=0) / hits[-1]
    return float(precision @ rise)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation, ties at their mean rank.

    Returns:
        In [-1, 1]; pairs with a nan are left out; nan with fewer than two pairs, or if one side is
        constant.
    """
    first, second = known_pairs(a, b)
    if first.size < 2 or (first == first[0]).all() or (second == second[0]).all():
        return math.nan
    from scipy import stats

    correlation = np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1]
    return float(correlation)


def quantiles(values: ArrayLike, shares: ArrayLike) -> np.ndarray:
    """Return the quantiles of values, (k,), linear between neighbours, as np.quantile does.

    A quantile that falls on a value is that value: 0.29 of 101 values is the thirtieth, although
    the product of the floats, 28.999999999999996, lies below its place.

    Args:
        values: (n,) finite, at least one.
        shares: (k,) in [0, 1].
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    levels = np.asarray(shares, dtype=np.float64)
    places = levels * (ordered.size - 1)
    nearest = np.round(places).astype(int)
    on_a_value = np.abs(places - nearest) < 1e-9
    return np.where(on_a_value, ordered[nearest], np.quantile(ordered, levels))


def order_statistic(values: ArrayLike, share: float) -> float:
    """Return the smallest value that at least a share of the values do not exceed.

    Args:
        values: (n,) without nan, at least one.
        share: In (0, 1]; rounding of share * n takes no further value.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    place = math.ceil(round(share * ordered.size, 9)) - 1
    return float(ordered[max(0, place)])


def _labelled(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows are positive, (n,) bool, and their scores, (n,), without unknown ones."""
    truth, values = known_pairs(labels, scores)
    valid = np.isin(truth, (0, 1))
    if not valid.all():
        raise UsageError(f"label {truth[~valid][0]:g}: labels must be 0 or 1 (nan if unknown)")
    return truth == 1, values
