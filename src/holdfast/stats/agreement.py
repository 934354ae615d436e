"""How well scores foresee what attacks make a model forget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.stats.intervals import (
    Interval,
    auprc,
    auroc,
    bootstrap,
    mean_interval,
    spearman,
)


def first_half(counts: np.ndarray) -> np.ndarray:
    """Return which examples are among the first half to be forgotten, (n,) bool.

    The label is count >= c for the smallest c >= 1 that at most half of the examples reach; where
    more than half share the highest count, those are it. "Forgotten at least once", the paper's
    label, is c = 1; under a hard attack nearly all examples are that, and it says nothing.

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
        auroc: Of being among the first half to be forgotten.
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
        counts: (n,) ForgotNum; nan = not held before the attack, or not tracked.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        units: (n,) prompt of each example, where some have several answers: a model forgets a
            prompt, so these are one observation.
    """
    known = np.isfinite(scores) & np.isfinite(counts)
    x, y = scores[known], counts[known]
    drawn = _known(units, known)
    early = first_half(y)

    def interval(statistic: Callable[..., float], truth: np.ndarray) -> Interval:
        if len(x) < 2:
            return Interval(np.nan, np.nan, np.nan, len(x))
        return bootstrap(statistic, truth, x, seed=seed, resamples=resamples, units=drawn)

    return Agreement(
        spearman=interval(spearman, y),
        auroc=interval(auroc, early),
        auprc=interval(auprc, early),
        base_rate=float(early.mean()) if len(x) else float("nan"),
        n=len(x),
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
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        units: As in `agreement`.
    """
    known = np.isfinite(scores) & np.isfinite(baseline) & np.isfinite(counts)
    if known.sum() < 2:
        return Interval(np.nan, np.nan, np.nan, int(known.sum()))
    early = first_half(counts[known])

    def gain(labels: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        return auroc(labels, x) - auroc(labels, y)

    return bootstrap(
        gain,
        early,
        scores[known],
        baseline[known],
        seed=seed,
        resamples=resamples,
        units=_known(units, known),
    )


def _known(units: Sequence[str] | None, known: np.ndarray) -> list[str] | None:
    return None if units is None else [unit for unit, k in zip(units, known, strict=True) if k]


def pooled(found: Sequence[Interval], *, least: float) -> Interval:
    """Return the mean over models with its t interval; a single model keeps its own.

    Args:
        found: One interval per model.
        least: Smallest value that the statistic can have (the greatest is 1); ends are cut to it.
    """
    if len(found) == 1:
        return found[0]
    over = mean_interval([one.value for one in found])
    low, high = np.clip([over.low, over.high], least, 1.0).tolist()
    return Interval(over.value, low, high, over.n, over.level)


def mean_count(counts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean ForgotNum over attacks, (n,).

    An example that one of them could not count (nan) is unknown in the mean as well: its mean over
    the others would be on another scale than its neighbours'.
    """
    return np.asarray(np.mean(np.stack(counts), axis=0))


def ceilings(
    counts: Sequence[np.ndarray], *, units: Sequence[str] | None = None
) -> list[Agreement]:
    """Return how well the mean of all other attacks foresees each attack.

    That is what one attack's label is worth: no score can be asked to agree better with it. With
    the mean over attacks, which is less noisy than each of them, a score may agree better.

    Args:
        counts: At least two arrays (n,) over the same examples.
        units: As in `agreement`.
    """
    return [
        agreement(mean_count([c for j, c in enumerate(counts) if j != i]), mine, units=units)
        for i, mine in enumerate(counts)
    ]
