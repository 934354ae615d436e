"""Differences between two models, or two methods over seeds, on the same prompts.

Every seed's model answers every prompt, so answers are dependent both ways: neither the number of
prompts nor the number of answers is the number of independent observations. An interval here is
the widest of three,

    over prompts     t(P - 1) sqrt(V_P + 1 / (P + 2)^2)
    over seeds       t(S - 1) sqrt(V_S)
    over both        z sqrt(V_P + V_S - V_PS)

with V_P, V_S and V_PS the variance of the mean clustered by prompt, by seed and by answer (Cameron,
Gelbach and Miller 2011). The first two are ordinary t intervals over clusters, and each misses the
other's uncertainty; the third has both, but its quantile assumes many clusters. With three seeds
the second is the right one, with thirty the third. 1 / (P + 2)^2 is what half an observation in
each cell of the paired table adds (Agresti and Min 2005): models that never differ on P prompts
are not known to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import compress
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from holdfast.errors import UsageError
from holdfast.stats.intervals import Interval, check_level, cluster_ids


@dataclass(frozen=True, slots=True)
class Difference:
    """The first minus the second.

    Attributes:
        interval: Difference of the means; n is the number of prompts.
        p: Two-sided, uncorrected, by the same rule as the interval; nan if unknown.
        seeds: Number of seeds. With one the interval says nothing about other seeds.
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
        """Whether answers to the same prompt were compared with each other."""
        return not math.isnan(self.agreement)


class _ErrorTerm(NamedTuple):
    """A variance of the mean and the degrees of freedom of its quantile (infinite: normal)."""

    freedom: float
    variance: float


def paired_difference(
    values: ArrayLike,
    prompts: Sequence[Hashable],
    seeds: Sequence[Hashable],
    level: float = 0.95,
) -> Difference:
    """Return the mean of paired differences, dependent by prompt and by seed.

    Args:
        values: (n,) first minus second for one prompt and seed, in [-1, 1]; nan are left out.
        prompts: (n,) prompt of each difference.
        seeds: (n,) seed of each difference; several attacks on one seed's model share it.
        level: Confidence level.

    Raises:
        UsageError: Different lengths, or a value outside [-1, 1].
    """
    every = np.asarray(values, dtype=np.float64)
    if not (every.shape == (len(prompts),) == (len(seeds),)):
        raise UsageError(
            f"{every.shape} differences, {len(prompts)} prompts and {len(seeds)} seeds: give one "
            "prompt and one seed for each difference"
        )
    measured = np.isfinite(every)
    d = every[measured]
    if (np.abs(d) > 1).any():
        raise UsageError(f"difference {d[np.abs(d) > 1][0]:g}: shares differ by 1 at most")
    if not d.size:
        return _unknown(level)
    prompt_ids = cluster_ids(list(compress(prompts, measured)))
    seed_ids = cluster_ids(list(compress(seeds, measured)))
    n_prompts = int(prompt_ids.max()) + 1
    n_seeds = int(seed_ids.max()) + 1
    mean = float(d.mean())
    terms = _error_terms(d - mean, prompt_ids, seed_ids)
    seed_means = np.bincount(seed_ids, d) / np.bincount(seed_ids)
    return Difference(
        interval=_interval(mean, terms, n_prompts, level),
        p=_p_value(mean, terms),
        seeds=n_seeds,
        spread=float(seed_means.std(ddof=1)) if n_seeds > 1 else math.nan,
        agreement=float((d == 0).mean()),
    )


def _error_terms(
    residuals: np.ndarray, prompt_ids: np.ndarray, seed_ids: np.ndarray
) -> list[_ErrorTerm]:
    """Return the three terms of the module's docstring, as far as there are clusters for them."""
    prompts = int(prompt_ids.max()) + 1
    seeds = int(seed_ids.max()) + 1
    by_prompt = _clustered_variance(residuals, prompt_ids)
    by_seed = _clustered_variance(residuals, seed_ids)
    by_answer = _clustered_variance(residuals, np.arange(residuals.size))
    # One prompt has no spread to estimate; half an observation is all that is known of it.
    freedom = max(1, prompts - 1)
    terms = [_ErrorTerm(freedom, by_prompt + 1 / (prompts + 2) ** 2)]
    if seeds > 1:
        terms.append(_ErrorTerm(seeds - 1, by_seed))
        if prompts > 1:
            terms.append(_ErrorTerm(math.inf, max(0.0, by_prompt + by_seed - by_answer)))
    return terms


def difference_of_shares(
    a: Sequence[tuple[float, int]], b: Sequence[tuple[float, int]], level: float = 0.95
) -> Difference:
    """Return the mean difference of shares of which only the counts are known.

    Without the verdict on each prompt, the prompts' uncertainty is that of two independent samples
    of one seed's size: too wide if the prompts are the same, never too narrow.

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
    size = min((n for _, n in (*a, *b)), default=0)
    if not size:
        return _unknown(level)
    first = np.array([share for share, _ in a])
    second = np.array([share for share, _ in b])
    p = float(first.mean())
    q = float(second.mean())
    by_prompt = (p * (1 - p) + q * (1 - q)) / size + 1 / (size + 2) ** 2
    terms = [_ErrorTerm(math.inf, by_prompt)]
    gaps = first - second
    spread = math.nan
    if len(gaps) > 1:
        spread = float(gaps.std(ddof=1))
        terms.append(_ErrorTerm(len(gaps) - 1, spread**2 / len(gaps)))
    mean = p - q
    return Difference(_interval(mean, terms, size, level), _p_value(mean, terms), len(a), spread)


def _unknown(level: float) -> Difference:
    return Difference(Interval(math.nan, math.nan, math.nan, 0, level), math.nan, 0, math.nan)


def _clustered_variance(residuals: np.ndarray, clusters: np.ndarray) -> float:
    """Return the variance of a mean, clustered; with equal clusters, of the mean of their means."""
    sums = np.bincount(clusters, residuals)
    if sums.size < 2:
        return 0.0
    return float((sums**2).sum() / residuals.size**2 * sums.size / (sums.size - 1))


def _interval(mean: float, terms: Sequence[_ErrorTerm], n: int, level: float) -> Interval:
    """Return the widest interval that a term gives, cut to [-1, 1]."""
    check_level(level)
    half = max(_quantile(term.freedom, level) * math.sqrt(term.variance) for term in terms)
    return Interval(mean, max(-1.0, mean - half), min(1.0, mean + half), n, level)


def _quantile(freedom: float, level: float) -> float:
    if math.isinf(freedom):
        return NormalDist().inv_cdf(0.5 + level / 2)
    from scipy import stats

    return float(stats.t.ppf(0.5 + level / 2, freedom))


def _p_value(mean: float, terms: Sequence[_ErrorTerm]) -> float:
    """Return the largest p value: it is below alpha where the widest interval leaves 0 out."""
    from scipy import stats

    p_values = []
    for freedom, variance in terms:
        if variance > 0:
            distribution = stats.norm if math.isinf(freedom) else stats.t(freedom)
            p_values.append(2 * float(distribution.sf(abs(mean) / math.sqrt(variance))))
    return max(p_values)
