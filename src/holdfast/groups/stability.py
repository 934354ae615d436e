"""Reliability of groups: doubt of single examples, resampling, and other thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from holdfast.errors import UsageError
from holdfast.groups.thresholds import Rule, find_cuts, finite_scores, levels
from holdfast.stats.intervals import Interval
from holdfast.stats.ranks import quantiles

TOO_CLOSE = 0.25
"""Doubt above which an example is too close to call; with one threshold, 0.5 is a coin toss."""


def doubt(
    values: np.ndarray,
    errors: np.ndarray | None,
    low: np.ndarray,
    high: np.ndarray,
    repeats: int | None = None,
) -> np.ndarray | None:
    """Return the probability that each example's true score lies outside its group's band.

    The true score is assumed to follow Student's t around the measured score. With one threshold c
    the doubt is T(-|s - c| / error), at most one half. Errors from few repeats give wide tails; if
    the number of repeats is unknown, a normal distribution is used instead.

    Repeats that tie, as counts do, have an error of 0, although the score is not exact. Such errors
    are replaced by the median of the errors above 0; if there are none, the doubt is unknown. This
    is a convention that errs towards doubt.

    Args:
        values: (n,) scores; nan = not scored.
        errors: (n,) standard errors; nan = unknown; None if all are unknown.
        low: (n,) lower end of the band of each example's group, -inf for the lowest group.
        high: (n,) upper end.
        repeats: Number of repeats behind the errors, 2 or more; None if unknown.

    Returns:
        (n,) in [0, 1]; nan where the score or the error is unknown, or if all errors of repeats
        are 0. None without errors.
    """
    if errors is None:
        return None
    from scipy.special import ndtr, stdtr

    below = ndtr if repeats is None else partial(stdtr, max(repeats - 1, 1))
    if repeats is not None:
        errors = _replace_zeros(errors)
    measured = np.isfinite(values) & np.isfinite(errors) & (errors >= 0)
    probability = np.where(measured, 0.0, np.nan)
    moves = measured & (errors > 0)  # a score without error has no doubt
    v = values[moves]
    e = errors[moves]
    probability[moves] = below((low[moves] - v) / e) + below((v - high[moves]) / e)
    return probability


def _replace_zeros(errors: np.ndarray) -> np.ndarray:
    """Replace errors of 0 by the median of the errors above 0, or by nan if there are none."""
    above = errors[np.isfinite(errors) & (errors > 0)]
    return np.where(errors == 0, np.median(above) if len(above) else np.nan, errors)


@dataclass(frozen=True, slots=True)
class Stability:
    """How the result of a rule depends on the sample of examples.

    Attributes:
        rule: The rule.
        cuts: Each threshold with its 95 % percentile bootstrap interval.
        jaccard: Jaccard index of the examples above the threshold of the full data and above the
            threshold of a resample: mean over resamples (and over cuts, with more than two groups)
            with 2.5 and 97.5 % quantiles over resamples.
        flips: (n,) share of resamples in which an example changes its label; nan = not scored.
        failed: Number of resamples that the rule could not cut; they are left out.
        resamples: Number of all resamples.
    """

    rule: Rule
    cuts: tuple[Interval, ...]
    jaccard: Interval
    flips: np.ndarray
    failed: int
    resamples: int

    @property
    def unstable_share(self) -> float:
        """Share of the scored examples whose label changes in more than 5 % of the resamples."""
        measured = self.flips[~np.isnan(self.flips)]
        return float((measured > 0.05).mean()) if len(measured) else float("nan")


def stability(values: np.ndarray, rule: Rule, *, resamples: int = 200, seed: int = 0) -> Stability:
    """Apply a rule to resamples of the examples and compare the results with the full data.

    Only the sample of examples varies; for the errors of the scores see `doubt`.

    Args:
        values: (n,) scores; nan = not scored.
        rule: The rule.
        resamples: Number of resamples.
        seed: Random seed of the resampling.

    Raises:
        UsageError: The rule cannot cut the full data.
    """
    x = finite_scores(values)
    at = find_cuts(x, rule).at
    own_levels = levels(x, at)
    rng = np.random.default_rng(seed)
    cuts = []
    agreements = []
    flips = np.zeros(len(x))
    for _ in range(resamples):
        try:
            other = find_cuts(x[rng.integers(0, len(x), len(x))], rule).at
        except UsageError:
            continue
        cuts.append(other)
        agreements.append(
            np.mean([threshold_jaccard(x, a, b) for a, b in zip(at, other, strict=True)])
        )
        flips += levels(x, other) != own_levels
    flip_share = np.full(len(values), np.nan)
    if cuts:
        flip_share[np.isfinite(values)] = flips / len(cuts)
    columns = np.array(cuts).reshape(-1, len(at))
    return Stability(
        rule=rule,
        cuts=tuple(_interval(cut, columns[:, i], len(x)) for i, cut in enumerate(at)),
        jaccard=_interval(float("nan"), np.array(agreements), len(x), mean=True),
        flips=flip_share,
        failed=resamples - len(cuts),
        resamples=resamples,
    )


def _interval(value: float, draws: np.ndarray, n: int, *, mean: bool = False) -> Interval:
    if not len(draws):
        return Interval(value, float("nan"), float("nan"), n)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(draws.mean()) if mean else value, float(low), float(high), n)


def threshold_jaccard(values: np.ndarray, a: float, b: float) -> float:
    """Return the Jaccard index of the sets above two thresholds; nan if both are empty.

    One set contains the other, so the index is the smaller size over the larger.
    """
    small, large = sorted((int((values > a).sum()), int((values > b).sum())))
    return small / large if large else float("nan")


def sensitivity(
    values: np.ndarray, reference: float, *, thresholds: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """Return the groups that other thresholds would give, as columns of a table.

    Args:
        values: (n,) scores; those that are not finite are ignored.
        reference: The threshold to compare with.
        thresholds: Other thresholds; the quantiles 0.05, 0.10 ... 0.95 of the scores if None.

    Returns:
        "threshold" (ascending, each once), "vulnerable" (examples above it), "share" (of the
        scored ones) and "jaccard" (with the examples above `reference`).
    """
    x = finite_scores(values)
    if thresholds is None:
        thresholds = quantiles(x, np.arange(1, 20) / 20).tolist()
    cuts = np.unique(np.asarray(thresholds, dtype=np.float64))
    sizes = np.array([int((x > cut).sum()) for cut in cuts])
    return {
        "threshold": cuts,
        "vulnerable": sizes,
        "share": sizes / len(x),
        "jaccard": np.array([threshold_jaccard(x, cut, reference) for cut in cuts]),
    }
