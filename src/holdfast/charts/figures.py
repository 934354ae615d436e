"""Figures as data: what is drawn, never how. `holdfast.charts.drawing` draws them.

Labels and titles are `holdfast.texts.Text`, so that a report in another language says them anew;
plain strings are names. Unknown values (nan) are never drawn as 0: lines break, and bars, dots and
cells that are unknown say so in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

NEUTRAL = 0
"""The colour index of what the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A value axis.

    Attributes:
        title: Quantity and unit.
        ends: Its ends; from the data if None.
        percent: Values are shares, written as percentages.
        logarithmic: A logarithmic axis.
        mark: Reference value, drawn as a dashed line; None for none.
    """

    title: str
    ends: tuple[float, float] | None = None
    percent: bool = False
    logarithmic: bool = False
    mark: float | None = None


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        label: Its name.
        x: Positions, increasing.
        y: Values; nan leaves a gap.
        low: Lower edge of the band, as long as `x`, or empty.
        high: Upper edge of the band.
        colour: Index into the colours, 0 being neutral; the position from 1 if None.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    colour: int | None = None


@dataclass(frozen=True)
class Bar:
    """One value with its interval.

    Attributes:
        label: Its name.
        value: nan is written as unknown, with no mark.
        low: Lower end of the interval; nan draws none.
        high: Upper end.
        text: Words beside the label; the value if empty.
        bound: The value is a lower bound.
        colour: Index into the colours; 1 in bar charts, the position from 1 in dot plots if None.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    text: str = ""
    bound: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Dot:
    """One point of a scatter plot; `low` and `high` are the ends of its vertical interval."""

    x: float
    y: float
    label: str = ""
    low: float = math.nan
    high: float = math.nan
    colour: int | None = None


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Lines with bands over a common axis."""

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    kind: Literal["lines"] = "lines"


@dataclass(frozen=True, kw_only=True)
class BarChart:
    """Horizontal bars with intervals, from top to bottom."""

    title: str
    x: Axis
    bars: tuple[Bar, ...]
    kind: Literal["bars"] = "bars"


@dataclass(frozen=True, kw_only=True)
class DotPlot:
    """Rows of dots with intervals; members of one label have one colour in all rows.

    Attributes:
        title: Title.
        x: The value axis.
        rows: (row label, members), from top to bottom.
        kind: Which figure it is.
    """

    title: str
    x: Axis
    rows: tuple[tuple[str, tuple[Bar, ...]], ...]
    kind: Literal["dots"] = "dots"


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A matrix of coloured cells with the number in each.

    Attributes:
        title: Title.
        rows: Row labels.
        columns: Column labels.
        values: One tuple per row, one number per column; nan = unknown.
        ends: Values of the palest and the darkest colour.
        kind: Which figure it is.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    ends: tuple[float, float] = (0.0, 1.0)
    kind: Literal["heat"] = "heat"


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Points with vertical intervals; those with a label are named in the legend."""

    title: str
    x: Axis
    y: Axis
    dots: tuple[Dot, ...]
    kind: Literal["scatter"] = "scatter"


Figure: TypeAlias = LineChart | BarChart | DotPlot | HeatMap | Scatter


def numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """Return plain numbers, of an array for instance."""
    return tuple(float(value) for value in values)
