"""How well scores predict what attacks make a model forget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from holdfast.stats.intervals import Interval, bootstrap, mean_interval
from holdfast.stats.ranks import auprc, auroc, spearman


def first_half(counts: np.ndarray) -> np.ndarray:
    """Return which examples are among the first half to be forgotten, (n,) bool.

    The label is count >= c for the smallest c >= 1 that at most half of the examples reach; where
    more than half share the highest count, those have the label. "Forgotten at least once", the
    paper's label, is c = 1; a hard attack gives it to nearly all examples, and it says nothing.

    Args:
        counts: (n,) ForgotNum, or its mean over attacks; finite.
    """
    highest = counts.max(initial=0)
    for cut in np.unique(counts[counts > 0]):
        if (counts >= cut).mean() <= 0.5:
            return np.asarray(counts >= cut)
    return np.asarray((counts == highest) & (highest > 0))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Scores against the ForgotNum of an attack, or of the mean over several.

    Attributes:
        spearman: Rank correlation with the count.
        auroc: Area under the ROC curve for the first half to be forgotten.
        auprc: Average precision for the same label; chance is `base_rate`.
        base_rate: Share of examples with the label; nan without examples.
        n: Examples that have both a score and a count.
    """

    spearman: Interval
    auroc: Interval
    auprc: Interval
    base_rate: float
    n: int


def agreement(
    scores: np.ndarray,
    counts: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 500,
    units: Sequence[str] | None = None,
) -> Agreement:
    """Compare scores with counts; intervals are bootstraps over the examples, or over `units`.

    The label is cut once, on all examples; a resample keeps it.

    Args:
        scores: (n,) higher = forgotten sooner; nan = not scored.
        counts: (n,) ForgotNum; nan = not refused before the attack, or not tracked.
        seed: Random seed of the bootstrap.
        resamples: Number of resamples of the bootstrap.
        units: (n,) prompt of each example, where some have several answers: a model forgets a
            prompt, so these are one observation.
    """
    measured = np.isfinite(scores) & np.isfinite(counts)
    n = int(measured.sum())
    measured_scores = scores[measured]
    measured_counts = counts[measured]
    measured_units = _selected(units, measured)
    early = first_half(measured_counts)

    def interval(statistic: Callable[..., float], truth: np.ndarray) -> Interval:
        if n < 2:
            return Interval(np.nan, np.nan, np.nan, n)
        return bootstrap(
            statistic, truth, measured_scores, seed=seed, resamples=resamples, units=measured_units
        )

    return Agreement(
        spearman=interval(spearman, measured_counts),
        auroc=interval(auroc, early),
        auprc=interval(auprc, early),
        base_rate=float(early.mean()) if n else float("nan"),
        n=n,
    )


def auroc_gain(
    scores: np.ndarray,
    baseline: np.ndarray,
    counts: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 500,
    units: Sequence[str] | None = None,
) -> Interval:
    """Return by how much the scores' AUROC exceeds a baseline's on the same examples.

    The bootstrap is paired: a resample takes the same examples for both.

    Args:
        scores: (n,).
        baseline: (n,).
        counts: (n,) ForgotNum.
        seed: Random seed of the bootstrap.
        resamples: Number of resamples of the bootstrap.
        units: As in `agreement`.
    """
    measured = np.isfinite(scores) & np.isfinite(baseline) & np.isfinite(counts)
    n = int(measured.sum())
    if n < 2:
        return Interval(np.nan, np.nan, np.nan, n)

    def gain(labels: np.ndarray, own: np.ndarray, other: np.ndarray) -> float:
        return auroc(labels, own) - auroc(labels, other)

    return bootstrap(
        gain,
        first_half(counts[measured]),
        scores[measured],
        baseline[measured],
        seed=seed,
        resamples=resamples,
        units=_selected(units, measured),
    )


def _selected(units: Sequence[str] | None, rows: np.ndarray) -> list[str] | None:
    return None if units is None else list(compress(units, rows))


def mean_over_models(intervals: Sequence[Interval], *, least: float) -> Interval:
    """Return the mean over models with its t interval; a single model keeps its own.

    Args:
        intervals: One interval per model.
        least: Smallest value that the statistic can have (the greatest is 1); ends are cut to it.
    """
    if len(intervals) == 1:
        return intervals[0]
    mean = mean_interval([interval.value for interval in intervals])
    low, high = np.clip([mean.low, mean.high], least, 1.0).tolist()
    return Interval(mean.value, low, high, mean.n, mean.level)


def mean_count(counts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean ForgotNum over attacks, (n,).

    An example that one of the attacks could not count (nan) is unknown in the mean as well: its
    mean over the others would be on another scale than its neighbours'.
    """
    return np.asarray(np.mean(np.stack(counts), axis=0))


def ceilings(
    counts: Sequence[np.ndarray], *, units: Sequence[str] | None = None
) -> list[Agreement]:
    """Return how well the mean of all other attacks predicts each attack.

    This is how reliable one attack's label is: no score can be expected to agree better with it.
    With the mean over attacks, which is less noisy than each of them, a score may agree better.

    Args:
        counts: At least two arrays (n,) over the same examples.
        units: As in `agreement`.
    """
    return [
        agreement(mean_count([*counts[:i], *counts[i + 1 :]]), attack, units=units)
        for i, attack in enumerate(counts)
    ]
