"""Charts as small, accessible SVG text: lines with bands, bars, dots, heat maps, scatter plots.

Written by hand rather than by a plotting library, because the report must be one file that opens
anywhere: text stays text, colours are CSS variables with fallbacks (so a page can restyle them for
dark mode and print), and each chart has a <title> and role="img". Every function is pure.

Unknown values (nan) are never drawn as 0: lines break, bars and cells say so in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.charts import svg
from holdfast.charts.svg import ChartOptions

__all__ = [
    "Bar",
    "ChartOptions",
    "Dot",
    "Series",
    "bar_chart",
    "dot_plot",
    "heat_map",
    "line_chart",
    "scatter",
]


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: Written at the line's end.
        x: Positions, increasing.
        y: Values; nan leaves a gap.
        low: Lower edge of the band, as long as `x`, or empty.
        high: Upper edge of the band.
        colour: Index into the colours, 0 being neutral; the position from 1 if None.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int | None = None


@dataclass(frozen=True)
class Bar:
    """One value with its interval.

    Attributes:
        label: Name, written above the bar (beside the dot in dot plots).
        value: nan is written as unknown, with no bar.
        low: Lower end of the interval; nan draws none.
        high: Upper end.
        text: Words beside the label, the value if empty.
        open_end: The value is a lower bound: the bar ends in an arrow.
        colour: Index into the colours; if None 1 in bar charts, the position in dot plots.
    """

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    text: str = ""
    open_end: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Dot:
    """One point of a scatter plot; `low` and `high` are the ends of its vertical interval."""

    x: float
    y: float
    label: str = ""
    low: float = math.nan
    high: float = math.nan
    colour: int = 1


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    options: ChartOptions | None = None,
) -> str:
    """Draw lines with bands, each named at its end.

    Args:
        series: The lines; an empty list gives an empty frame that says "unknown".
        title: What a screen reader says.
        x_label: Quantity and unit under the axis.
        y_label: Quantity and unit above the axis.
        options: See `ChartOptions`; `mark` is a height.

    Returns:
        An <svg> element as text.
    """
    o = options or ChartOptions()
    x_ends = o.x_range or svg.ends_of([v for s in series for v in s.x])
    values = [v for s in series for part in (s.y, s.low, s.high) for v in part]
    y_ends = o.y_range or svg.ends_of([*values, *([] if o.mark is None else [o.mark])])
    right = max([30.0, *(svg.width_of(s.label) + 12 for s in series)])
    frame = svg.Frame(o, x_ends, y_ends, right=min(right, o.width * 0.35))
    parts = [*frame.axes(x_label, y_label)]
    ends: list[tuple[float, str, str]] = []
    for position, line in enumerate(series):
        colour = svg.colour_of(line.colour, position)
        parts += _band(frame, line, colour)
        parts += _line(frame, line, colour, svg.DASHES[svg.index_of(line.colour, position)])
        known = [v for v in line.y if math.isfinite(v)]
        if known:
            ends.append((frame.y(known[-1]), line.label, colour))
    for height, label, colour in svg.spread(ends, frame.top, frame.bottom):
        text = svg.shorten(label, frame.right - 10)
        parts.append(
            svg.label(frame.x1 + 7, height + 4, text, style=f"fill:{colour};font-weight:600")
        )
    if not ends:
        parts.append(
            svg.label((frame.x0 + frame.x1) / 2, frame.top + o.height / 2, o.unknown, "middle")
        )
    return svg.document(o.width, frame.bottom + 42, title, parts)


def bar_chart(
    bars: Sequence[Bar], *, title: str, x_label: str, options: ChartOptions | None = None
) -> str:
    """Draw horizontal bars with intervals; the label and the value stand above each bar.

    The left margin equals that of `line_chart`, so that the two can share an axis.

    Args:
        bars: From top to bottom.
        title: What a screen reader says.
        x_label: Quantity and unit under the axis.
        options: See `ChartOptions`; `mark` is a position on the value axis.

    Returns:
        An <svg> element as text.
    """
    o = options or ChartOptions()
    ends = o.x_range or svg.ends_of([0.0, *(v for b in bars for v in (b.value, b.high))])
    frame = svg.Frame(o, ends, (0, 1), rows=len(bars), pitch=36, right=30)
    parts = frame.axes(x_label, "", grid="x")
    for position, bar in enumerate(bars):
        colour, top = svg.colour_of(bar.colour, 0), frame.top + position * 36
        words = bar.text or svg.written(bar.value, o)
        parts.append(
            f'<text x="{frame.x0}" y="{top + 12}"><tspan style="fill:{colour};font-weight:600">'
            f'{svg.escape(bar.label)}</tspan><tspan dx="8" style="{svg.INK}">{svg.escape(words)}'
            "</tspan></text>"
        )
        if not math.isfinite(bar.value):
            continue
        end = frame.x(bar.value)
        parts.append(svg.rect(frame.x0, top + 18, end - frame.x0, 8, f"fill:{colour}"))
        parts += _whisker(frame, bar, top + 22)
        if bar.open_end:
            arrow = (
                f"M{svg.num(end + 2)} {top + 17}l5 5l-5 5M{svg.num(end + 8)} {top + 17}l5 5l-5 5"
            )
            parts.append(f'<path d="{arrow}" style="fill:none;stroke:{colour};stroke-width:2"/>')
    return svg.document(o.width, frame.bottom + 42, title, parts)


def dot_plot(
    rows: Sequence[tuple[str, Sequence[Bar]]],
    *,
    title: str,
    x_label: str,
    options: ChartOptions | None = None,
) -> str:
    """Draw a grouped dot plot: under each row's label one dot with its interval per member.

    Args:
        rows: (row label, members), from top to bottom; unknown members are named, not drawn.
        title: What a screen reader says.
        x_label: Quantity and unit under the axis.
        options: See `ChartOptions`.

    Returns:
        An <svg> element as text.
    """
    o = options or ChartOptions()
    members = [bar for _, bars in rows for bar in bars]
    ends = o.x_range or svg.ends_of([v for b in members for v in (b.value, b.low, b.high)])
    names = [b.label + ("" if math.isfinite(b.value) else f" ({o.unknown})") for b in members]
    longest = max([30.0, *(svg.width_of(name) + 14 for name in names)])
    frame = svg.Frame(o, ends, (0, 1), rows=1, right=min(longest, o.width * 0.35))
    frame.bottom = frame.top + sum(24 + 17 * len(bars) for _, bars in rows)
    parts, top = frame.axes(x_label, "", grid="x"), frame.top
    for label, bars in rows:
        parts.append(svg.label(frame.x0, top + 13, label, style=f"{svg.INK};font-weight:600"))
        for position, bar in enumerate(bars):
            y, colour = top + 26 + 17 * position, svg.colour_of(bar.colour, position)
            unknown = not math.isfinite(bar.value)
            name = bar.label + (f" ({o.unknown})" if unknown else "")
            name = svg.shorten(name, frame.right - 10)
            parts.append(svg.label(frame.x1 + 8, y + 4, name, style=f"fill:{colour}"))
            if not unknown:
                parts += _whisker(frame, bar, y, colour)
                parts.append(svg.circle(frame.x(bar.value), y, 4.5, colour, bar.label))
        top += 24 + 17 * len(bars)
    return svg.document(o.width, frame.bottom + 42, title, parts)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    title: str,
    options: ChartOptions | None = None,
) -> str:
    """Draw a matrix of coloured cells with the number in each; nan cells are outlined and empty.

    Args:
        rows: Row labels.
        columns: Column labels.
        values: One list per row, one number per column.
        title: What a screen reader says.
        options: `y_range` fixes the values of the palest and the darkest colour.

    Returns:
        An <svg> element as text.
    """
    o = options or ChartOptions()
    low, high = o.y_range or svg.ends_of([v for row in values for v in row])
    left = min(max([20.0, *(svg.width_of(r) for r in rows)]) + 10, o.width * 0.4)
    cell = max((o.width - left - 8) / max(len(columns), 1), 34.0)
    widest = max([0.0, *(svg.width_of(c) for c in columns)])
    tilted = widest > cell - 6
    top = min(widest, 120) * 0.75 + 18 if tilted else 22
    parts = []
    for j, column in enumerate(columns):
        x = left + (j + 0.5) * cell
        turn = f' transform="rotate(-48 {svg.num(x)} {svg.num(top - 6)})"' if tilted else ""
        anchor = "start" if tilted else "middle"
        parts.append(
            svg.label(x, top - 6, svg.shorten(column, 120), anchor, style=svg.SOFT, extra=turn)
        )
    for i, (row, numbers) in enumerate(zip(rows, values, strict=True)):
        y = top + i * 30
        parts.append(svg.label(left - 8, y + 19, svg.shorten(row, left - 8), "end", style=svg.INK))
        for j, value in enumerate(numbers):
            share = (value - low) / (high - low)
            parts += _cell((left + j * cell, y, cell), share, svg.written(value, o))
    return svg.document(
        max(o.width, left + cell * len(columns) + 8), top + 30 * len(rows) + 6, title, parts
    )


def scatter(
    dots: Sequence[Dot],
    *,
    title: str,
    x_label: str,
    y_label: str,
    options: ChartOptions | None = None,
) -> str:
    """Draw points, named where they carry a label; those with an unknown coordinate are left out.

    Args:
        dots: The points; many unlabelled ones are drawn small and see-through.
        title: What a screen reader says.
        x_label: Quantity and unit under the axis.
        y_label: Quantity and unit above the axis.
        options: `percent` concerns the horizontal axis; `mark` is a height.

    Returns:
        An <svg> element as text.
    """
    o = options or ChartOptions()
    known = [d for d in dots if math.isfinite(d.x) and math.isfinite(d.y)]
    y_values = [v for d in known for v in (d.y, d.low, d.high)]
    y_ends = o.y_range or svg.ends_of([*y_values, *([] if o.mark is None else [o.mark])])
    longest = max([20.0, *(svg.width_of(d.label) + 14 for d in known)])
    frame = svg.Frame(
        o, o.x_range or svg.ends_of([d.x for d in known]), y_ends, right=min(longest, 130)
    )
    frame.percent = (o.percent, False)
    parts = frame.axes(x_label, y_label)
    radius = 5.0 if len(known) <= 40 else 2.5
    for dot in known:
        x, colour = frame.x(dot.x), svg.colour_of(dot.colour, 0)
        if math.isfinite(dot.low) and math.isfinite(dot.high):
            path = f"M{svg.num(x)} {svg.num(frame.y(dot.low))}V{svg.num(frame.y(dot.high))}"
            parts.append(f'<path d="{path}" style="stroke:{colour};stroke-width:1.5;fill:none"/>')
        parts.append(svg.circle(x, frame.y(dot.y), radius, colour, dot.label))
    places = [
        (frame.y(d.y), d.label, svg.colour_of(d.colour, 0), frame.x(d.x)) for d in known if d.label
    ]
    for height, label, colour, x in places:
        parts.append(svg.label(x + 9, height + 4, label, style=f"fill:{colour};font-weight:600"))
    if not known:
        parts.append(
            svg.label((frame.x0 + frame.x1) / 2, frame.top + o.height / 2, o.unknown, "middle")
        )
    return svg.document(o.width, frame.bottom + 42, title, parts)


def _line(frame: svg.Frame, line: Series, colour: str, dash: str) -> list[str]:
    path, pen_down = [], False
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            place = f"{svg.num(frame.x(x))} {svg.num(frame.y(y))}"
            # h0 with round caps shows a value that has no neighbour.
            path.append(f"L{place}" if pen_down else f"M{place}h0")
        pen_down = math.isfinite(y)
    look = f"fill:none;stroke:{colour};stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round"
    look += f";stroke-dasharray:{dash}" if dash else ""
    return [f'<path d="{"".join(path)}" style="{look}"/>'] if path else []


def _band(frame: svg.Frame, line: Series, colour: str) -> list[str]:
    if not line.low:
        return []
    edge = [
        (frame.x(x), frame.y(low), frame.y(high))
        for x, low, high in zip(line.x, line.low, line.high, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    around = [(x, low) for x, low, _ in edge] + [(x, high) for x, _, high in reversed(edge)]
    points = " ".join(f"{svg.num(x)},{svg.num(y)}" for x, y in around)
    return [f'<polygon points="{points}" style="fill:{colour};opacity:.15"/>'] if points else []


def _whisker(frame: svg.Frame, bar: Bar, y: float, colour: str = "var(--ink,#1d2329)") -> list[str]:
    if not (math.isfinite(bar.low) and math.isfinite(bar.high)):
        return []
    low = max(frame.x(bar.low), frame.x0)
    high = min(frame.x(bar.high), frame.options.width - 4.0)
    left, right, top = svg.num(low), svg.num(high), svg.num(y - 4)
    path = f"M{left} {svg.num(y)}H{right}M{left} {top}v8M{right} {top}v8"
    return [svg.path(path, f"fill:none;stroke:{colour};stroke-width:1.3")]


def _cell(box: tuple[float, float, float], share: float, text: str) -> list[str]:
    x, y, width = box
    if not math.isfinite(share):
        look = "fill:none;stroke:var(--rule,#d8dde2);stroke-dasharray:3 3"
        return [
            svg.rect(x + 1.5, y + 1.5, width - 3, 27, look),
            svg.label(x + width / 2, y + 19, "?", "middle", style=svg.SOFT),
        ]
    depth = 0.06 + 0.88 * min(max(share, 0.0), 1.0)
    ink = "fill:var(--paper,#fff)" if depth > 0.55 else svg.INK
    shade = f"fill:var(--c1,{svg.COLOURS[1]});fill-opacity:{depth:.2f}"
    return [
        svg.rect(x + 1, y + 1, width - 2, 28, shade),
        svg.label(x + width / 2, y + 19, text, "middle", style=ink),
    ]
