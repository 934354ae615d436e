"""Differences between two models, or two methods over seeds, that were asked the same prompts.

A prompt is answered by every seed's model and a seed's model answers every prompt, so answers are
dependent both ways: neither n prompts nor n answers is the number of independent observations. An
interval here is the widest of three,

    over prompts     t(P - 1) sqrt(V_P + 1 / (P + 2)^2)
    over seeds       t(S - 1) sqrt(V_S)
    over both        z sqrt(V_P + V_S - V_PS)

with V_P, V_S and V_PS the variance of the mean clustered by prompt, by seed and by answer (Cameron,
Gelbach and Miller 2011). The first two are ordinary t intervals over clusters and each misses the
other's doubt; the third has both, but its quantile is that of many clusters. With three seeds it
is the second that is honest, with thirty the third. 1 / (P + 2)^2 is what half an observation in
each cell of the paired table adds (Agresti and Min 2005): models that never differ on P prompts
are not known to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import compress
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from holdfast.errors import UsageError
from holdfast.stats.intervals import Interval, numbered


@dataclass(frozen=True, slots=True)
class Difference:
    """The first less the second.

    Attributes:
        interval: Difference of the means; n is the number of prompts.
        p: Two-sided, uncorrected, of the same rule as the interval; nan if unknown.
        seeds: Seeds behind it. With one the interval says nothing about other seeds.
        spread: Standard deviation of the difference over seeds; nan with one.
        agreement: Share of answers in which both are alike; nan where they are not paired.
    """

    interval: Interval
    p: float
    seeds: int
    spread: float
    agreement: float = math.nan

    @property
    def paired(self) -> bool:
        """Whether answers to the same prompt were compared one with the other."""
        return not math.isnan(self.agreement)


def paired(
    values: ArrayLike,
    prompts: Sequence[Hashable],
    seeds: Sequence[Hashable],
    level: float = 0.95,
) -> Difference:
    """Return the mean of paired differences, dependent by prompt and by seed.

    Args:
        values: (n,) first less second for one prompt and seed, in [-1, 1]; nan are left out.
        prompts: (n,) which prompt.
        seeds: (n,) which seed; several attacks on one seed's model share it.
        level: Confidence level.

    Raises:
        UsageError: Different lengths, or a value outside [-1, 1].
    """
    given = np.asarray(values, dtype=np.float64)
    if not (given.shape == (len(prompts),) == (len(seeds),)):
        raise UsageError(
            f"{given.shape} differences, {len(prompts)} prompts and {len(seeds)} seeds: give one "
            "prompt and one seed for each difference"
        )
    known = np.isfinite(given)
    d = given[known]
    if (np.abs(d) > 1).any():
        raise UsageError(f"difference {d[np.abs(d) > 1][0]:g}: shares differ by 1 at most")
    if not d.size:
        return Difference(Interval(math.nan, math.nan, math.nan, 0, level), math.nan, 0, math.nan)
    of_prompt, of_seed = (numbered(list(compress(names, known))) for names in (prompts, seeds))
    n_prompts, n_seeds = int(of_prompt.max()) + 1, int(of_seed.max()) + 1
    mean = float(d.mean())
    by_prompt, by_seed = (_variance(d - mean, groups) for groups in (of_prompt, of_seed))
    by_answer = _variance(d - mean, np.arange(d.size))
    parts = [_part(n_prompts - 1, by_prompt + 1 / (n_prompts + 2) ** 2)]
    if n_seeds > 1:
        parts.append(_part(n_seeds - 1, by_seed))
        if n_prompts > 1:
            parts.append((math.inf, max(0.0, by_prompt + by_seed - by_answer)))
    means = np.bincount(of_seed, d) / np.bincount(of_seed)
    return Difference(
        interval=_interval(mean, parts, n_prompts, level),
        p=_p(mean, parts),
        seeds=n_seeds,
        spread=float(means.std(ddof=1)) if n_seeds > 1 else math.nan,
        agreement=float((d == 0).mean()),
    )


def of_shares(
    a: Sequence[tuple[float, int]], b: Sequence[tuple[float, int]], level: float = 0.95
) -> Difference:
    """Return the mean difference of shares of which only the counts are known.

    Which prompts were answered how is not known, so the prompts' doubt is that of two independent
    samples of one seed's size: too wide if the prompts are the same, never too narrow.

    Args:
        a: (share, answers) of each seed; a mean of grades in [0, 1] varies less than a share.
        b: The same seeds of the other.
        level: Confidence level.

    Raises:
        UsageError: Different numbers of seeds, or a share outside [0, 1].
    """
    if len(a) != len(b) or any(not 0 <= share <= 1 for share, _ in (*a, *b)):
        raise UsageError(
            f"shares {list(a)} and {list(b)}: give one in [0, 1] for each seed of both"
        )
    if not a:
        return Difference(Interval(math.nan, math.nan, math.nan, 0, level), math.nan, 0, math.nan)
    size = min(n for _, n in (*a, *b))
    first, second = (np.array([share for share, _ in side]) for side in (a, b))
    p, q = float(first.mean()), float(second.mean())
    by_prompt = (p * (1 - p) + q * (1 - q)) / size + 1 / (size + 2) ** 2
    gaps = first - second
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else math.nan
    parts = [(math.inf, by_prompt)]
    if len(gaps) > 1:
        parts.append((float(len(gaps) - 1), spread**2 / len(gaps)))
    mean = p - q
    return Difference(_interval(mean, parts, size, level), _p(mean, parts), len(a), spread)


def _variance(residuals: np.ndarray, clusters: np.ndarray) -> float:
    """Return the variance of a mean, clustered; with equal clusters, of the mean of their means."""
    sums = np.bincount(clusters, residuals)
    if sums.size < 2:
        return 0.0
    return float((sums**2).sum() / residuals.size**2 * sums.size / (sums.size - 1))


def _part(freedom: int, variance: float) -> tuple[float, float]:
    # One prompt has no spread to estimate; half an observation is all that is known of it.
    return (float(freedom) if freedom else 1.0, variance)


def _interval(mean: float, parts: Sequence[tuple[float, float]], n: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise UsageError(f"level={level} must lie between 0 and 1, e.g. 0.95")
    half = max(_quantile(freedom, level) * math.sqrt(v) for freedom, v in parts)
    return Interval(mean, max(-1.0, mean - half), min(1.0, mean + half), n, level)


def _quantile(freedom: float, level: float) -> float:
    if math.isinf(freedom):
        return NormalDist().inv_cdf(0.5 + level / 2)
    from scipy import stats

    return float(stats.t.ppf(0.5 + level / 2, freedom))


def _p(mean: float, parts: Sequence[tuple[float, float]]) -> float:
    """Return the largest p value: it is below alpha where the widest interval leaves 0 out."""
    from scipy import stats

    found = []
    for freedom, variance in parts:
        if variance > 0:
            distribution = stats.norm if math.isinf(freedom) else stats.t(freedom)
            found.append(2 * float(distribution.sf(abs(mean) / math.sqrt(variance))))
    return max(found)
