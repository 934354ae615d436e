"""Times to an event, some of them censored: the attack ended before the event happened."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from holdfast.errors import UsageError
from holdfast.stats.intervals import Interval


@dataclass(frozen=True, slots=True)
class Time:
    """Optimizer steps of an attack until something happens.

    Attributes:
        value: Steps; nan if not measured. If censored, steps after which it had not happened yet.
        censored: Whether the attack ended before it happened: the time is longer than `value`.
    """

    value: float
    censored: bool = False


def time_to(steps: Sequence[int], shares: Sequence[float], level: float = 0.5) -> Time:
    """Return when a share first reaches a level; with harmful answers and 0.5, the half-life.

    Args:
        steps: (n,) optimizer steps of the checkpoints, increasing.
        shares: (n,) share at each; nan = not measured, and skipped.
        level: The share to reach.

    Returns:
        The first crossing, linear between the checkpoints around it; 0 if the first measured
        share is there already. Censored only if something was measured: an attack without any
        measurement lasted neither long nor short.

    Raises:
        UsageError: Different lengths, or steps that do not increase.
    """
    if len(steps) != len(shares) or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
        raise UsageError(
            f"{len(shares)} shares at steps {list(steps)}: give one share per step, with steps "
            "increasing"
        )
    before: tuple[int, float] | None = None
    for step, share in zip(steps, shares, strict=True):
        if math.isnan(share):
            continue
        if share >= level:
            if before is None:
                return Time(0.0)
            start, low = before
            return Time(start + (level - low) / (share - low) * (step - start))
        before = (step, share)
    return Time(math.nan) if before is None else Time(float(before[0]), censored=True)


@dataclass(frozen=True)
class Median:
    """The time by which half of the attacks succeeded.

    Attributes:
        interval: Median and interval in steps; infinite where the attacks ended first. nan if
            nothing is known.
        censored: Attacks that ended first, out of the interval's n.
    """

    interval: Interval
    censored: int


def median_time(times: Sequence[Time], level: float = 0.95) -> Median:
    """Return the median time to an event (Kaplan and Meier 1958).

    A censored time counts among those at risk until its attack ended. The interval is every time at
    which the band of the survival curve (log-log, Greenwood) holds one half (Brookmeyer and
    Crowley 1982).

    Args:
        times: (n,); those that are nan are left out.
        level: Confidence level.

    Raises:
        UsageError: A negative time.
    """
    if any(time.value < 0 for time in times):
        raise UsageError(
            f"times {[time.value for time in times]}: a time to an event is not negative"
        )
    events = [t.value for t in times if not t.censored and not math.isnan(t.value)]
    ends = [t.value for t in times if t.censored and not math.isnan(t.value)]
    n = len(events) + len(ends)
    if not n:
        return Median(Interval(math.nan, math.nan, math.nan, 0, level), 0)
    # All n lie on one side of the median with probability 2^-n each way: from six on that is ruled
    # out at 95 %, with fewer nothing keeps the median above 0.
    few = 0.5**n > (1 - level) / 2
    if not events:  # no event and no curve; after the first attack's end fewer are at risk
        shortest = 0.0 if few else min(ends)
        return Median(Interval(math.inf, shortest, math.inf, n, level), n)
    from scipy import stats

    sample: Any = stats.CensoredData(uncensored=events, right=ends)
    curve = stats.ecdf(sample).sf
    value = _product_limit_median(events, ends)
    with warnings.catch_warnings():
        # Where all or none survive the band's formula has no value, which `_halving` skips.
        warnings.simplefilter("ignore", RuntimeWarning)
        band: Any = curve.confidence_interval(level, method="log-log")
    low = _halving(band.low.quantiles, band.low.probabilities)
    high = _halving(band.high.quantiles, band.high.probabilities)
    lowest = 0.0 if few else min(low, value)
    return Median(Interval(value, lowest, max(high, value), n, level), len(ends))


def _product_limit_median(events: Sequence[float], ends: Sequence[float]) -> float:
    """Return the first time at which half or fewer survive, inf if more do until the end.

    The curve may rest at exactly one half, which its product misses by rounding (12 events among
    24: 0.5000000000000001), so the product is one of fractions.
    """
    ordered = np.sort([*events, *ends])
    times, counts = np.unique(events, return_counts=True)
    surviving = Fraction(1)
    for time, count in zip(times.tolist(), counts.tolist(), strict=True):
        at_risk = len(ordered) - int(np.searchsorted(ordered, time))
        surviving *= Fraction(at_risk - count, at_risk)
        if surviving <= Fraction(1, 2):
            return float(time)
    return math.inf


def _halving(times: np.ndarray, surviving: np.ndarray) -> float:
    """Return the first time at which half or fewer survive; a nan in a band is no bound."""
    reached = np.flatnonzero(surviving <= 0.5)
    return float(times[reached[0]]) if reached.size else math.inf
