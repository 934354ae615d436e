"""Intervals and ratios as texts: the same wording everywhere, unknown said as unknown."""

from __future__ import annotations

import math

from holdfast.stats.intervals import Interval
from holdfast.stats.ratios import Ratio
from holdfast.texts import UNKNOWN, Text, number


def measured(interval: Interval, form: str = ".2f") -> Text:
    """Return "value [low, high], n=N"."""
    if math.isnan(interval.value):
        return Text("unknown, n={n:d}", n=interval.n)
    return Text("{interval}, n={n:d}", interval=between(interval, form), n=interval.n)


def between(interval: Interval, form: str = ".2f") -> Text:
    """Return "value [low, high]"; ends that are not known are said as one word."""
    value = number(interval.value, form)
    if math.isnan(interval.low) or math.isnan(interval.high):
        return Text("{value} [unknown]", value=value)
    low, high = number(interval.low, form), number(interval.high, form)
    return Text("{value} [{low}, {high}]", value=value, low=low, high=high)


def ratio_of(ratio: Ratio | None) -> Text:
    """Return a ratio for a table, without n; a bound says which."""
    if ratio is None or ratio.bound == "unknown":
        return Text(UNKNOWN)
    shown = between(ratio.interval)
    if ratio.bound == "lower":
        return Text("at least {ratio}", ratio=shown)
    if ratio.bound == "upper":
        return Text("at most {ratio}", ratio=shown)
    return shown
