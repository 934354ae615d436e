"""Figures: what is in the specification and in the drawing; unknown values never drawn as 0."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import altair as alt
import pytest

from holdfast.charts import embedding
from holdfast.charts.drawing import render, specification
from holdfast.charts.figures import (
    Axis,
    Bar,
    BarChart,
    Dot,
    DotPlot,
    Figure,
    HeatMap,
    Line,
    LineChart,
    Scatter,
)
from holdfast.charts.themes import DARK, LIGHT
from holdfast.texts import Language, Text

NS = "{http://www.w3.org/2000/svg}"
X, Y = Axis(title="steps", ends=(0.0, 100.0)), Axis(title="share", ends=(0.0, 1.0), percent=True)


def lines(*items: Line, y: Axis = Y) -> LineChart:
    return LineChart(title="T", x=X, y=y, lines=items)


def bars(*items: Bar, x: Axis = X) -> BarChart:
    return BarChart(title="T", x=x, bars=items)


FIGURES: dict[str, Figure] = {
    "lines": lines(Line("a", (0, 50), (0.0, 1.0), (0.0, 0.9), (0.1, 1.0)), Line("b", (0,), (0.2,))),
    "bars": bars(Bar("a", 50, 40, 60), Bar("b", math.nan)),
    "dots": DotPlot(
        title="T", x=X, rows=(("r", (Bar("a", 1), Bar("b", 2))), ("s", (Bar("a", math.nan),)))
    ),
    "heat": HeatMap(title="T", rows=("r",), columns=("c", "d"), values=((0.5, math.nan),)),
    "scatter": Scatter(title="T", x=X, y=Y, dots=(Dot(1, 0.5, "a"), Dot(2, 0.7))),
}


def marks(figure: Figure, kind: str) -> list[dict[str, Any]]:
    """The values that the layers of one mark draw."""
    drawn = specification(figure, width=300)
    found = []
    for layer in drawn["layer"]:
        if layer["mark"]["type"] == kind:
            data = layer.get("data", drawn.get("data"))
            found += data["values"] if "values" in data else drawn["datasets"][data["name"]]
    return found


def texts(figure: Figure, language: Language | None = None) -> list[str]:
    svg = render(figure, language or Language()).decode()
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter(f"{NS}text")]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_a_figure_is_a_file_that_stands_by_itself(form: Any) -> None:
    head = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}[form]
    assert render(FIGURES["bars"], form=form).startswith(head)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_drawn_and_read_aloud(name: str) -> None:
    root = ET.fromstring(render(FIGURES[name]))
    assert root.tag == f"{NS}svg"
    assert specification(FIGURES[name])["description"] == "T"


@pytest.mark.parametrize("width", [None, 300])
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_follows_the_schema_of_vega_lite(name: str, width: int | None) -> None:
    drawn = specification(FIGURES[name], width=width)
    alt.LayerChart.from_dict(drawn, validate=True)  # raises if it does not


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_loaded_from_a_network(name: str) -> None:
    drawn = specification(FIGURES[name])
    drawn.pop("$schema")  # names the grammar, is never fetched
    assert not any("//" in text for text in strings(drawn))
    assert not any("url" in layer.get("data", {}) for layer in drawn["layer"])


def test_unknown_values_break_the_line() -> None:
    points = marks(lines(Line("a", (0, 50, 100), (0.0, math.nan, 1.0))), "line")
    assert [(p["x"], p["y"]) for p in points] == [(0, 0.0), (50, None), (100, 1.0)]
    svg = render(lines(Line("a", (0, 50, 100), (0.0, math.nan, 1.0)))).decode()
    (line,) = [
        path.attrib["d"]
        for path in ET.fromstring(svg).iter(f"{NS}path")
        if path.attrib.get("aria-roledescription") == "line mark"
    ]
    assert line.count("M") == 2  # the pen is lifted


def test_a_band_runs_along_low_and_high() -> None:
    low, high = (0.25, 0.0), (0.75, 1.0)
    band = marks(lines(Line("a", (0, 100), (0.5, 0.5), low, high), Line("b", (0,), (0.1,))), "area")
    assert [(b["low"], b["high"]) for b in band] == [(0.25, 0.75), (0.0, 1.0)]


def test_lines_are_named_in_a_legend_and_not_inside_the_plot() -> None:
    drawn = texts(lines(*(Line(name, (0, 100), (0, 1)) for name in ("one", "two", "six"))))
    for name in ("one", "two", "six"):
        assert drawn.count(name) == 1


def test_a_reference_line_is_at_its_value() -> None:
    y = Axis(title="share", ends=(0.0, 1.0), mark=0.5)
    assert marks(lines(Line("a", (0,), (0.1,)), y=y), "rule") == [{"y": 0.5}]


@pytest.mark.parametrize(
    "figure",
    [
        lines(),
        lines(Line("a", (), ())),
        Scatter(title="T", x=X, y=Y, dots=()),
        Scatter(title="T", x=X, y=Y, dots=(Dot(math.nan, 1),)),
        bars(Bar("a", math.nan)),
        DotPlot(title="T", x=X, rows=(("r", (Bar("a", math.nan),)),)),
    ],
)
def test_nothing_known_is_said_in_words(figure: Figure) -> None:
    assert any("unknown" in words for words in texts(figure))


def test_unknown_bars_have_no_length_and_are_named() -> None:
    figure = bars(Bar("a", 50, low=40, high=60), Bar("b", math.nan), Bar("c", 0))
    assert [row["value"] for row in marks(figure, "bar")] == [50, None, 0]
    assert [(row["low"], row["high"]) for row in marks(figure, "rule")] == [(40, 60)]
    assert "b: unknown" in [" ".join(words.split()) for words in texts(figure)]


def test_lower_bounds_end_in_an_arrow() -> None:
    figure = bars(Bar("a", 50), Bar("b", 70, bound=True))
    assert [row["name"] for row in marks(figure, "point")] == ["b"]


def test_bars_begin_at_zero() -> None:
    figure = bars(Bar("a", 50), Bar("b", 60), x=Axis(title="x"))
    assert {row["zero"] for row in marks(figure, "bar")} == {0.0}
    (scale,) = {
        layer["encoding"]["x"]["scale"]["zero"]
        for layer in specification(figure, width=300)["layer"]
        if layer["mark"]["type"] == "bar"
    }
    assert scale is True


def test_a_dot_plot_names_unknown_members() -> None:
    figure = DotPlot(
        title="T", x=X, rows=(("task", (Bar("sft", 50, 40, 60), Bar("vaa", math.nan))),)
    )
    assert [row["name"] for row in marks(figure, "text")] == ["vaa"]
    assert "unknown" in texts(figure)


def test_heat_map_cells_carry_their_numbers_and_unknown_stays_empty() -> None:
    figure = HeatMap(title="T", rows=("a",), columns=("x", "y", "z"), values=((0, 1, math.nan),))
    assert [row["shown"] for row in marks(figure, "text")] == ["0", "1", "?"]
    assert [row["value"] for row in marks(figure, "rect")] == [0, 1, None]
    assert [row["dark"] for row in marks(figure, "text")] == [False, True, False]


def test_scatter_points_without_a_coordinate_are_left_out() -> None:
    dots = (Dot(50, 0.5, "here", low=0.25, high=0.75), Dot(50, math.nan, "there"))
    figure = Scatter(title="T", x=X, y=Y, dots=dots)
    assert [(row["x"], row["y"]) for row in marks(figure, "point")] == [(50, 0.5)]
    assert [(row["low"], row["high"]) for row in marks(figure, "rule")] == [(0.25, 0.75)]
    assert "here" in texts(figure)
    assert "there" not in texts(figure)


def test_colours_go_by_meaning_and_never_give_a_method_the_neutral_one() -> None:
    figure = lines(Line("sft", (0,), (0.1,), colour=0), Line("vaa", (0,), (0.2,)))
    drawn = specification(figure, width=300)
    (scale,) = [
        layer["encoding"]["color"]["scale"]
        for layer in drawn["layer"]
        if layer["mark"]["type"] == "line"
    ]
    assert scale["domain"] == ["sft", "vaa"]
    assert scale["range"] == [LIGHT.colours[0], LIGHT.colours[2]]


@pytest.mark.parametrize("name", FIGURES)
def test_every_light_colour_has_a_dark_one(name: str) -> None:
    light, dark = (json.dumps(specification(FIGURES[name], theme=t)) for t in (LIGHT, DARK))
    for colour, other in embedding._darkened().items():
        light = light.replace(colour, other)
    # Views are named by a hash of what they show.
    light, dark = (re.sub(r"view_[0-9a-f]+_", "view_", text) for text in (light, dark))
    assert json.loads(light) == json.loads(dark)


def test_labels_are_said_in_the_language_of_the_report() -> None:
    figure = bars(
        Bar(Text("seed {n:d}", n=3), math.nan), x=Axis(title=Text("attack steps"), ends=(0, 1))
    )
    language = Language("xx", {"seed {n:d}": "graine {n:d}", "attack steps": "pas", "unknown": "?"})
    drawn = [" ".join(words.split()) for words in texts(figure, language)]
    assert "graine 3: ?" in drawn
    assert "pas" in drawn


def test_text_cannot_become_markup() -> None:
    evil = "<b onclick='x'>&</script>"
    figure = bars(Bar(evil, 1))
    assert b"<b" not in render(figure)
    assert "<" not in embedding.data_of({"figure-1": figure})
    assert json.loads(embedding.data_of({"figure-1": figure}))["figures"]["figure-1"]


def test_a_reader_can_zoom_and_pick_a_line_only_where_it_is_live() -> None:
    live, still = specification(FIGURES["lines"]), specification(FIGURES["lines"], width=300)
    assert {p["name"] for p in live["params"]} == {"chosen", "view"}
    assert "params" not in still
    assert live["width"] == "container"


def test_the_script_is_allowed_by_its_hash() -> None:
    # SHA-256 of the empty string, as every tool gives it.
    assert embedding.hash_of("") == "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    assert "</script" not in embedding.script()
