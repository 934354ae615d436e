"""Step size: how far to move the weights until a given share of refusals has flipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.errors import UsageError
from holdfast.stats.ranks import order_statistic

FIRST_STEP = 0.1
"""Start of the search for the step; the result hardly depends on it."""
FLIP_TOLERANCE = 1 / 16
"""By how much the flipped share may exceed the target; a closer search gains nothing."""
LAST_STEP = 1e4
"""Largest step; a direction that needs a larger one is taken to flip nothing."""
MAX_PROBES = 12
"""Limit of the search, for margins with many equal values, where no step meets the tolerance."""

Margins = Callable[[float, Sequence[int]], "np.ndarray"]
"""Maps a step size and row positions to the margins of these rows after the step."""


def flip_step(margins: Margins, n: int, *, flip: float, sample: int, seed: int, what: str) -> float:
    """Return a step at which a share `flip` of a sample has flipped, within `FLIP_TOLERANCE`.

    The share refers to the examples that are held (margin at least 0) at step 0. The matching
    quantile of the sample's margins is positive before the step and negative after it. Its zero is
    bracketed by doubling the step and found by false position (Illinois).

    Args:
        margins: Maps a step size and positions to margins; several margins per position are
            allowed, if each position has equally many.
        n: Number of examples.
        flip: Share in (0, 1] of the held examples that must have flipped.
        sample: Number of examples to measure. If half of them are not held at step 0, all examples
            are measured, because an unlucky sample must not cause an error.
        seed: Random seed of the sample.
        what: The direction and a way out, for the error if no step flips enough.

    Returns:
        The step size.

    Raises:
        UsageError: The model does not refuse half of the examples at step 0, no step flips enough,
            or margins are nan.
    """
    rng = np.random.default_rng(seed)
    sampled = rng.choice(n, min(sample, n), replace=False).tolist()
    start = margins(0.0, sampled)
    if (start < 0).mean() >= 0.5 and len(sampled) < n:
        sampled = list(range(n))
        start = margins(0.0, sampled)
    _check_finite(start, 0.0)
    lost = float((start < 0).mean())
    if lost >= 0.5:
        raise UsageError(
            f"the model does not refuse {lost:.0%} of all {n} examples, so there is nothing to "
            "forget. Score the aligned model, not its base."
        )
    share = lost + flip * (1 - lost)

    def summarize(step: float, values: np.ndarray) -> _Probe:
        _check_finite(values, step)
        quantile = order_statistic(values, share)
        return _Probe(step, quantile, float((values < 0).mean()))

    def probe(step: float) -> _Probe:
        return summarize(step, margins(step, sampled))

    low = summarize(0.0, start)
    high = probe(FIRST_STEP)
    while high.quantile >= 0:
        if 2 * high.step > LAST_STEP:
            raise UsageError(
                f"no step up to {high.step:g} flips {flip:.0%} of the examples along {what}"
            )
        low = high
        high = probe(2 * high.step)
    return _false_position(probe, low, high, share)


def _check_finite(margins: np.ndarray, step: float) -> None:
    if np.isnan(margins).any():
        raise UsageError(
            f"{int(np.isnan(margins).sum())} of {margins.size} margins are nan after a step of "
            f"{step:g}; are the model's weights finite? They may overflow in float16: use bfloat16 "
            "or float32"
        )


@dataclass(frozen=True, slots=True)
class _Probe:
    """Margins of the sample after a step: their quantile, and the share below zero."""

    step: float
    quantile: float
    flipped: float


def _false_position(
    probe: Callable[[float], _Probe], low: _Probe, high: _Probe, share: float
) -> float:
    """Shrink a bracket until its upper end is within the tolerance of the target share."""
    above = low.quantile
    below = high.quantile
    side = 0
    for _ in range(MAX_PROBES):
        if high.flipped <= share + FLIP_TOLERANCE:
            break
        # Stay off the ends: a margin of exactly 0 is held, and the search would stop moving there.
        fraction = min(max(above / (above - below), 0.05), 0.95)
        middle = probe(low.step + fraction * (high.step - low.step))
        if middle.quantile < 0:
            high = middle
            below = middle.quantile
            above = above / 2 if side < 0 else above
            side = -1
        else:
            low = middle
            above = middle.quantile
            below = below / 2 if side > 0 else below
            side = 1
    return high.step
