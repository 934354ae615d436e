"""Draws figures with Vega-Lite: as a specification for a page, or as SVG, PNG or PDF.

This is the only module that decides how a figure looks. Labels never stand inside the plot beside
a mark, where they could meet one another: lines and dots are named in a legend, bars in a line of
text of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from holdfast.charts.figures import (
    NEUTRAL,
    Axis,
    Bar,
    BarChart,
    Dot,
    DotPlot,
    Figure,
    HeatMap,
    LineChart,
    Scatter,
)
from holdfast.charts.themes import LIGHT, Theme
from holdfast.texts import ENGLISH, UNKNOWN, Language, Text

if TYPE_CHECKING:
    import altair as alt

Format = Literal["svg", "png", "pdf"]
Rows = list[dict[str, Any]]

WIDTH, HEIGHT, PITCH = 420, 200, 40
"""Width and height of a plot, and the height of a bar with its name, in pixels."""
_DASHES = ([6, 3], [1, 0], [2, 2], [9, 2], [5, 2, 1, 2], [1, 3], [10, 3, 2, 3])
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")


def specification(
    figure: Figure,
    language: Language = ENGLISH,
    theme: Theme = LIGHT,
    *,
    width: int | None = None,
) -> dict[str, Any]:
    """Return the Vega-Lite specification of a figure.

    Args:
        figure: What to draw.
        language: Says labels, titles and numbers.
        theme: The colours.
        width: Width of the plot in pixels; None makes it as wide as its container, and
            interactive: dragging pans, the wheel with shift zooms, the legend toggles.
    """
    from altair.utils import schemapi

    drawing = _Drawing(language, theme, interactive=width is None)
    # Checking every part against Vega-Lite's schema takes twice the time of drawing; a test does
    # it once for each kind of figure.
    with schemapi.debug_mode(False):
        chart = drawing.chart(figure).properties(
            width="container" if width is None else width,
            autosize={"type": "fit-x", "contains": "padding"},
            padding={"left": 12, "right": 16, "top": 4, "bottom": 4},
            description=language.say(figure.title),
        )
        drawn: dict[str, Any] = chart.configure(**theme.config()).to_dict(validate=False)
    return drawn


def render(
    figure: Figure,
    language: Language = ENGLISH,
    *,
    form: Format = "svg",
    width: int = WIDTH,
) -> bytes:
    """Draw a figure as a file that stands by itself: SVG, PNG (twice the size) or PDF."""
    return draw(specification(figure, language, width=width), form)


def draw(drawn: dict[str, Any], form: Format = "svg") -> bytes:
    """Draw what `specification` returned for a given width; the GIL is released meanwhile."""
    import vl_convert

    if form == "png":
        return bytes(vl_convert.vegalite_to_png(drawn, scale=2))
    if form == "pdf":
        return bytes(vl_convert.vegalite_to_pdf(drawn))
    return str(vl_convert.vegalite_to_svg(drawn)).encode("utf-8")


class _Drawing:
    """One way to draw: a language, a theme, and whether a reader can act on it."""

    def __init__(self, language: Language, theme: Theme, *, interactive: bool) -> None:
        self.language = language
        self.theme = theme
        self.interactive = interactive

    def chart(self, figure: Figure) -> alt.LayerChart:
        draw: dict[type, Callable[[Any], alt.LayerChart]] = {
            LineChart: self._lines,
            BarChart: self._bars,
            DotPlot: self._dots,
            HeatMap: self._heat,
            Scatter: self._scatter,
        }
        return draw[type(figure)](figure)

    def say(self, text: str) -> str:
        return self.language.say(text)

    def number(self, value: float, axis: Axis | None = None) -> str:
        """Write a value in three digits, or the word for unknown."""
        form = "percent" if axis is not None and axis.percent else ".3g"
        return self.language.number(value, form)

    # ------------------------------------------------------------------------- figures

    def _lines(self, figure: LineChart) -> alt.LayerChart:
        import altair as alt

        rows: Rows = []
        for line in figure.lines:
            for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                low = line.low[i] if line.low else math.nan
                high = line.high[i] if line.high else math.nan
                words = {"shown": self.number(y, figure.y), "range": self._ends(low, high)}
                row = {"name": self.say(line.label), "x": x, "y": y, "low": low, "high": high}
                rows.append({**row, **words})
        names = [self.say(line.label) for line in figure.lines]
        colours = [line.colour for line in figure.lines]
        base = alt.Chart(_data(rows)).encode(
            x=alt.X("x:Q", **self._axis(figure.x)),
            color=self._colour(names, colours, symbol="stroke"),
            opacity=self._faded(),
        )
        height = alt.Y("y:Q", **self._axis(figure.y))
        tips = self._tips(figure, "range") if any(line.low for line in figure.lines) else None
        tooltip = tips or self._tips(figure)
        dash = alt.StrokeDash(
            "name:N",
            legend=_legend(names, "stroke"),
            scale=alt.Scale(domain=names, range=[_DASHES[i % 7] for i in _indices(colours)]),
        )
        layers: list[alt.Chart] = [
            base.mark_area(fillOpacity=0.15, clip=True)
            .encode(y=alt.Y("low:Q", **self._axis(figure.y)), y2="high:Q")
            .properties(data=_data(_ranged(rows))),
            base.mark_line(strokeWidth=2.2, clip=True).encode(y=height, strokeDash=dash),
            base.mark_point(filled=True, size=26, clip=True).encode(y=height, tooltip=tooltip),
        ]
        marks = self._marks(figure.x, figure.y)
        return self._finished(layers, rows, marks, zoom="xy").properties(height=HEIGHT)

    def _bars(self, figure: BarChart) -> alt.LayerChart:
        import altair as alt

        rows = [self._bar_row(i, bar, figure.x) for i, bar in enumerate(figure.bars)]
        colours = [1 if bar.colour is None else bar.colour for bar in figure.bars]
        for row, colour in zip(rows, colours, strict=True):
            row["hue"] = str(colour)
        places = alt.Y("place:O", axis=None, sort=None, scale=alt.Scale(paddingInner=0.7))
        base = alt.Chart(_data(rows)).encode(y=places)
        ink = alt.Color("hue:N", scale=self._hues(colours), legend=None)
        x_axis = self._axis(figure.x, zero=True)
        tooltip = self._tips(figure, "range")
        layers: list[alt.Chart] = [
            base.mark_bar(clip=True).encode(
                x=alt.X("value:Q", **x_axis), x2="zero:Q", color=ink, tooltip=tooltip
            ),
            base.mark_rule(strokeWidth=1.4, color=self.theme.ink, clip=True)
            .encode(x=alt.X("low:Q", **x_axis), x2="high:Q", tooltip=tooltip)
            .properties(data=_data(_ranged(rows))),
            base.mark_point(shape="triangle-right", filled=True, size=70, xOffset=4)
            .encode(x=alt.X("value:Q", **x_axis), color=ink)
            .properties(data=_data([row for row in rows if row["bound"]])),
            base.mark_text(align="left", baseline="bottom", dy=-7, dx=1, limit=10_000).encode(
                x=alt.value(0), text="words:N"
            ),
        ]
        marks = self._marks(figure.x, None, zero=True)
        height = PITCH * max(len(rows), 1)
        return self._finished(layers, rows, marks).properties(height=height)

    def _bar_row(self, place: int, bar: Bar, axis: Axis) -> dict[str, Any]:
        shown = self.say(bar.text) or self.number(bar.value, axis)
        name = self.say(bar.label)
        return {
            "place": place,
            "name": name,
            "words": f"{name}: {shown}",
            "value": bar.value,
            "zero": 0.0,
            "low": bar.low,
            "high": bar.high,
            "bound": bar.bound,
            "shown": shown,
            "range": self._ends(bar.low, bar.high, axis),
        }

    def _dots(self, figure: DotPlot) -> alt.LayerChart:
        import altair as alt

        rows: Rows = []
        for label, members in figure.rows:
            row_name = self.say(label)
            for bar in members:
                row = self._bar_row(0, bar, figure.x)
                rows.append({**row, "row": row_name, "name": self.say(bar.label)})
        names = list(dict.fromkeys(row["name"] for row in rows))
        by_name = {self.say(b.label): b.colour for _, members in figure.rows for b in members}
        colours = [by_name[name] for name in names]
        several = max((len(members) for _, members in figure.rows), default=0) > 1
        x_axis = self._axis(figure.x)
        places = alt.Y("row:N", title=None, sort=None, axis=alt.Axis(labelLimit=150, grid=True))
        base = alt.Chart(_data(rows)).encode(
            y=places,
            color=self._colour(names, colours, legend=several),
            opacity=self._faded(),
            tooltip=self._tips(figure, "row", "range"),
        )
        if several:
            base = base.encode(yOffset=alt.YOffset("name:N", sort=None))
        points = base.mark_point(filled=True, size=55, clip=True)
        points = points.encode(x=alt.X("value:Q", **x_axis))
        if several:
            points = points.encode(shape=self._shape(names))
        layers: list[alt.Chart] = [
            base.mark_rule(strokeWidth=1.6, clip=True)
            .encode(x=alt.X("low:Q", **x_axis), x2="high:Q")
            .properties(data=_data(_ranged(rows))),
            points,
            base.mark_text(align="left", dx=4)
            .encode(x=alt.value(0), text=alt.value(self.say(Text(UNKNOWN))))
            .properties(data=_data([row for row in rows if not _known(row)])),
        ]
        height = sum(14 + 14 * len(members) for _, members in figure.rows) or PITCH
        marks = self._marks(figure.x, None)
        return self._finished(layers, rows, marks).properties(height=height)

    def _heat(self, figure: HeatMap) -> alt.LayerChart:
        import altair as alt

        low, high = figure.ends
        rows: Rows = []
        for label, values in zip(figure.rows, figure.values, strict=True):
            for column, value in zip(figure.columns, values, strict=True):
                shown = self.number(value) if math.isfinite(value) else "?"
                place = {"row": self.say(label), "column": self.say(column)}
                dark = math.isfinite(value) and (value - low) / (high - low) > 0.5
                rows.append({**place, "value": value, "shown": shown, "dark": dark})
        head = alt.Axis(orient="top", labelAngle=-40, labelLimit=120, title=None, domain=False)
        side = alt.Axis(labelLimit=150, title=None, domain=False, ticks=False)
        base = alt.Chart(_data(rows)).encode(
            x=alt.X("column:N", sort=None, axis=head),
            y=alt.Y("row:N", sort=None, axis=side),
            tooltip=[alt.Tooltip(f"{key}:N", title=" ") for key in ("row", "column", "shown")],
        )
        scale = alt.Scale(domain=[low, high], range=list(self.theme.ramp))
        shade = alt.Color("value:Q", scale=scale, legend=None)
        ink = alt.condition("datum.dark", alt.value(self.theme.ramp_ink), alt.value(self.theme.ink))
        layers: list[alt.Chart] = [
            base.mark_rect(stroke=self.theme.paper, strokeWidth=2).encode(color=shade),
            base.mark_text().encode(text="shown:N", color=ink),
        ]
        return self._finished(layers, rows, []).properties(height=30 * max(len(figure.rows), 1))

    def _scatter(self, figure: Scatter) -> alt.LayerChart:
        import altair as alt

        dots = [d for d in figure.dots if math.isfinite(d.x) and math.isfinite(d.y)]
        rows = [self._dot_row(dot, figure) for dot in dots]
        named = [row for row in rows if row["name"]]
        names = list(dict.fromkeys(row["name"] for row in named))
        by_name = {self.say(d.label): d.colour for d in dots if d.label}
        colours = [by_name[name] for name in names]
        x_axis, y_axis = self._axis(figure.x), self._axis(figure.y)
        tooltip = self._tips(figure, "range")
        base = alt.Chart(_data(rows)).encode(x=alt.X("x:Q", **x_axis), tooltip=tooltip)
        colour = self._colour(names, colours)
        of_named = base.properties(data=_data(named)).encode(color=colour, opacity=self._faded())
        others = [row for row in rows if not row["name"]]
        of_others = base.properties(data=_data(others))
        height = alt.Y("y:Q", **y_axis)
        whisker = alt.Y("low:Q", **y_axis)
        layers: list[alt.Chart] = [
            of_others.mark_circle(size=24, opacity=0.5, color=self.theme.colours[NEUTRAL]).encode(
                y=height
            ),
            of_named.mark_rule(strokeWidth=1.5, clip=True)
            .encode(y=whisker, y2="high:Q")
            .properties(data=_data(_ranged(named))),
            of_named.mark_point(filled=True, size=80, clip=True).encode(
                y=height, shape=self._shape(names)
            ),
        ]
        marks = self._marks(figure.x, figure.y)
        return self._finished(layers, rows, marks, zoom="xy").properties(height=HEIGHT + 40)

    def _dot_row(self, dot: Dot, figure: Scatter) -> dict[str, Any]:
        return {
            "name": self.say(dot.label),
            "x": dot.x,
            "y": dot.y,
            "low": dot.low,
            "high": dot.high,
            "across": self.number(dot.x, figure.x),
            "shown": self.number(dot.y, figure.y),
            "range": self._ends(dot.low, dot.high, figure.y),
        }

    # ------------------------------------------------------------------------- channels

    def _axis(self, axis: Axis, *, zero: bool = False) -> dict[str, Any]:
        import altair as alt

        kind: Any = "log" if axis.logarithmic else "linear"
        scale = alt.Scale(type=kind, nice=axis.ends is None)
        if axis.ends is not None:
            scale = alt.Scale(type=kind, domain=list(axis.ends), nice=False)
        elif zero:
            scale = alt.Scale(type=kind, zero=True)
        else:
            scale = alt.Scale(type=kind, zero=False, padding=10)
        look = alt.Axis(format="%") if axis.percent else alt.Axis()
        if axis.logarithmic:
            look = alt.Axis(format=",~g", tickCount=4)
        return {"title": self.say(axis.title), "scale": scale, "axis": look}

    def _colour(
        self,
        names: Sequence[str],
        colours: Sequence[int | None],
        *,
        legend: bool = True,
        symbol: str = "",
    ) -> alt.Color:
        import altair as alt

        palette = [self.theme.colours[i % len(self.theme.colours)] for i in _indices(colours)]
        scale = alt.Scale(domain=list(names), range=palette)
        look = _legend(names, symbol)
        return alt.Color("name:N", scale=scale, legend=look if legend else None)

    def _hues(self, colours: Sequence[int]) -> alt.Scale:
        import altair as alt

        hues = sorted(set(colours))
        palette = [self.theme.colours[i % len(self.theme.colours)] for i in hues]
        return alt.Scale(domain=[str(i) for i in hues], range=palette)

    def _shape(self, names: Sequence[str]) -> alt.Shape:
        import altair as alt

        shapes = [_SHAPES[i % len(_SHAPES)] for i in range(len(names))]
        scale = alt.Scale(domain=list(names), range=shapes)
        return alt.Shape("name:N", scale=scale, legend=_legend(names))

    def _faded(self) -> Any:
        """Return the opacity that the legend toggles; always full where nobody can click."""
        import altair as alt

        if not self.interactive:
            return alt.value(1)
        chosen = alt.param("chosen", select=alt.PointSelectionConfig(type="point"))
        return alt.condition(chosen, alt.value(1), alt.value(0.12))

    def _tips(self, figure: Figure, *more: str) -> list[alt.Tooltip]:
        import altair as alt

        tips = [alt.Tooltip("name:N", title=" ")]
        if isinstance(figure, LineChart):
            tips.append(alt.Tooltip("x:Q", title=self.say(figure.x.title)))
        if isinstance(figure, Scatter):
            tips.append(alt.Tooltip("across:N", title=self.say(figure.x.title)))
        value = figure.y if isinstance(figure, (LineChart, Scatter)) else None
        title = value.title if value else getattr(figure, "x", Axis(title="")).title
        tips.append(alt.Tooltip("shown:N", title=self.say(title)))
        words = {"range": Text("range"), "row": ""}
        tips += [alt.Tooltip(f"{key}:N", title=self.say(words[key]) or " ") for key in more]
        return tips

    def _ends(self, low: float, high: float, axis: Axis | None = None) -> str:
        if math.isnan(low) or math.isnan(high):
            return "\u2013"
        return f"{self.number(low, axis)}\u2013{self.number(high, axis)}"

    # --------------------------------------------------------------------------- layers

    def _marks(self, x: Axis, y: Axis | None, *, zero: bool = False) -> list[alt.Chart]:
        import altair as alt

        marks = []
        look: dict[str, Any] = {"strokeDash": [3, 3], "color": self.theme.ink, "opacity": 0.65}
        if x.mark is not None:
            across = alt.Chart(_data([{"x": x.mark}])).mark_rule(**look)
            marks.append(across.encode(x=alt.X("x:Q", **self._axis(x, zero=zero))))
        if y is not None and y.mark is not None:
            up = alt.Chart(_data([{"y": y.mark}])).mark_rule(**look)
            marks.append(up.encode(y=alt.Y("y:Q", **self._axis(y))))
        return marks

    def _finished(
        self, layers: list[alt.Chart], rows: Rows, marks: list[alt.Chart], zoom: str = ""
    ) -> alt.LayerChart:
        """Return the layers with what a reader can do, and a word where nothing is known."""
        import altair as alt

        known = [row for row in rows if _known(row)]
        # A layer without data would only make Vega warn of an axis without ends.
        layers = [layer for layer in layers if layer.data.values] or layers[-1:]
        if not known:
            words = alt.Chart(_data([{}])).mark_text(color=self.theme.soft)
            layers = [*layers, words.encode(text=alt.value(self.say(Text(UNKNOWN))))]
        if self.interactive and layers[-1].encoding.opacity is not alt.Undefined:
            chosen = alt.selection_point(name="chosen", fields=["name"], bind="legend")
            layers = [*layers[:-1], layers[-1].add_params(chosen)]
        if self.interactive and zoom and known:
            layers = [*layers[:-1], layers[-1].add_params(_zooming())]
        return alt.LayerChart(layer=[*marks, *layers])


def _zooming() -> Any:
    """Return the selection that pans and zooms; the bare wheel and a finger scroll the page."""
    import altair as alt

    drag = "[pointerdown[event.pointerType === 'mouse'], window:pointerup] > window:pointermove!"
    return alt.selection_interval(
        name="view", bind="scales", zoom="wheel![event.shiftKey]", translate=drag
    )


def _legend(names: Sequence[str], symbol: str = "") -> alt.Legend | None:
    """Return the legend of names, above the plot; None without any."""
    import altair as alt

    if not names:
        return None
    return alt.Legend(
        title=None,
        orient="top",
        direction="horizontal",
        columns=2 if max(map(_width, names)) > 14 else 3,
        labelLimit=150,
        symbolType=symbol or alt.Undefined,
    )


def _ranged(rows: Rows) -> Rows:
    """Return the rows with a known interval."""
    return [r for r in rows if math.isfinite(r["low"]) and math.isfinite(r["high"])]


def _data(rows: Rows) -> alt.InlineData:
    import altair as alt

    return alt.InlineData(values=[{k: _plain(v) for k, v in row.items()} for row in rows])


def _plain(value: Any) -> Any:
    """Return what JSON can hold: an unknown or infinite number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _known(row: dict[str, Any]) -> bool:
    value = row.get("value", row.get("y"))
    return value is not None and math.isfinite(value)


def _indices(colours: Sequence[int | None]) -> list[int]:
    """Return which colour each has: its own choice, or its position (never the neutral 0)."""
    return [1 + i % 6 if colour is None else colour for i, colour in enumerate(colours)]


def _width(name: str) -> int:
    """Return the width of a name in letters; Asian wide ones count twice."""
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name)
