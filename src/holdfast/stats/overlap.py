"""How much sets have in common."""

from __future__ import annotations

import math
from collections.abc import Collection
from collections.abc import Set as AbstractSet

import numpy as np

from holdfast.errors import UsageError


def jaccard(a: AbstractSet[object], b: AbstractSet[object]) -> float:
    """Share of the union that both sets hold; nan for two empty sets."""
    union = len(a | b)
    return len(a & b) / union if union else math.nan


def jaccard_by_chance(n: int, size_a: int, size_b: int) -> float:
    """Expected Jaccard index of two independent random subsets of n items with these sizes.

    Exact: the overlap k is hypergeometric, so it is the mean of k / (size_a + size_b - k).

    Raises:
        UsageError: A size outside [0, n].
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
