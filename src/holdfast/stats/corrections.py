"""Corrections of p values for many tests at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def benjamini_hochberg(p: ArrayLike) -> np.ndarray:
    """Correct p values so that alpha bounds the expected share of false findings.

    Args:
        p: (k,); nan = not tested: stays nan and is not counted.

    Returns:
        (k,), Benjamini and Hochberg 1995. It holds for independent and for positively dependent
        tests; levels of one factor exclude each other, for which it is known to hold in practice.
    """
    from scipy import stats

    corrected = np.array(p, dtype=np.float64)
    tested = np.isfinite(corrected)
    if tested.any():
        corrected[tested] = stats.false_discovery_control(corrected[tested])
    return corrected


def holm(p: ArrayLike) -> np.ndarray:
    """Correct p values so that alpha bounds the probability of any false finding (Holm 1979).

    Args:
        p: (k,); nan = not tested: stays nan and is not counted.

    Returns:
        (k,); it holds however the tests depend on one another.
    """
    corrected = np.array(p, dtype=np.float64)
    tested = int(np.isfinite(corrected).sum())
    order = np.argsort(corrected)[:tested]  # nan are sorted to the end
    scaled = corrected[order] * np.arange(tested, 0, -1)
    # No p value may be corrected to less than a smaller one.
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return corrected
