"""Charts: coordinates worked out by hand, unknown values never drawn as 0, text escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest

from holdfast.charts import svg
from holdfast.charts.charts import (
    Bar,
    ChartOptions,
    Dot,
    Series,
    bar_chart,
    dot_plot,
    heat_map,
    line_chart,
    scatter,
)

NS = "{http://www.w3.org/2000/svg}"
# A frame with round numbers: the plot is 300 wide from x = 46, 200 high from y = 26.
ROUND = ChartOptions(width=396, height=200, x_range=(0, 100), y_range=(0, 1), right=50)


def parse(text: str) -> ET.Element:
    return ET.fromstring(text)


def texts(text: str) -> list[str]:
    return ["".join(e.itertext()) for e in parse(text).iter(f"{NS}text")]


def line(*series: Series, options: ChartOptions = ROUND) -> str:
    return line_chart(series, title="T", x_label="steps", y_label="share", options=options)


def data_paths(text: str) -> list[str]:
    """The `d` of the thick paths: the data lines."""
    paths = parse(text).iter(f"{NS}path")
    return [p.attrib["d"] for p in paths if "stroke-width:2.2" in p.attrib["style"]]


def test_line_goes_where_the_numbers_say() -> None:
    # x = 46 + 300 * v / 100; y = 226 - 200 * v.
    chart = line(Series("a", [0, 50, 100], [0.0, 0.25, 1.0]))
    assert data_paths(chart) == ["M46 226h0L196 176L346 26"]


def test_unknown_values_break_the_line() -> None:
    chart = line(Series("a", [0, 50, 100], [0.0, math.nan, 1.0]))
    assert data_paths(chart) == ["M46 226h0M346 26h0"]


def test_band_runs_along_low_and_back_along_high() -> None:
    chart = line(Series("a", [0, 100], [0.5, 0.5], low=[0.25, 0.0], high=[0.75, 1.0]))
    (band,) = parse(chart).iter(f"{NS}polygon")
    assert band.attrib["points"] == "46,176 346,226 346,26 46,76"


def test_lines_are_named_at_their_ends_without_overlap() -> None:
    chart = line(*(Series(name, [0, 100], [0, 1]) for name in ("one", "two", "six")))
    heights = [
        float(e.attrib["y"])
        for e in parse(chart).iter(f"{NS}text")
        if e.text in ("one", "two", "six")
    ]
    assert len(heights) == 3
    assert min(b - a for a, b in zip(sorted(heights), sorted(heights)[1:], strict=False)) >= 14


def test_reference_line_is_at_its_value() -> None:
    # y = 226 - 200 * 0.5
    chart = line(options=ChartOptions(**{**ROUND.__dict__, "mark": 0.5, "mark_label": "half"}))
    assert 'd="M46 126H346"' in chart
    assert "half" in texts(chart)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: line(options=ChartOptions()),
        lambda: line(Series("a", [], []), options=ChartOptions()),
        lambda: scatter([], title="T", x_label="x", y_label="y"),
        lambda: scatter([Dot(math.nan, 1)], title="T", x_label="x", y_label="y"),
        lambda: bar_chart([Bar("a", math.nan)], title="T", x_label="x"),
    ],
)
def test_nothing_known_is_said_in_words(draw: Callable[[], str]) -> None:
    assert any("unknown" in words for words in texts(draw()))


def test_bars_have_the_length_of_their_value_and_unknown_has_none() -> None:
    bars = [Bar("a", 50, low=40, high=60), Bar("b", math.nan), Bar("c", 0)]
    chart = bar_chart(bars, title="T", x_label="steps", options=ROUND)
    # 300 units for 100: 50 is 150 long; 0 keeps half a unit so that it can be seen.
    widths = [float(r.attrib["width"]) for r in parse(chart).iter(f"{NS}rect")]
    assert widths == [150, 0.5]
    # The interval from 46 + 120 to 46 + 180, in the middle of the first bar.
    assert "M166 30H226" in chart
    assert "b unknown" in " ".join(texts(chart)).replace("bunknown", "b unknown")


def test_lower_bounds_end_in_an_arrow() -> None:
    plain = bar_chart([Bar("a", 50)], title="T", x_label="x", options=ROUND)
    bound = bar_chart([Bar("a", 50, open_end=True)], title="T", x_label="x", options=ROUND)
    assert bound.count("<path") == plain.count("<path") + 1


def test_bars_and_lines_can_share_an_axis() -> None:
    bar = bar_chart([Bar("a", 100)], title="T", x_label="x", options=ROUND)
    (rect,) = parse(bar).iter(f"{NS}rect")
    right = float(rect.attrib["x"]) + float(rect.attrib["width"])
    assert (float(rect.attrib["x"]), right) == (46, 346)  # as the line's two ends above


def test_dot_plot_names_unknown_members() -> None:
    rows = [("task", [Bar("sft", 50, 40, 60), Bar("vaa", math.nan)])]
    chart = dot_plot(rows, title="T", x_label="x", options=ChartOptions(x_range=(0, 100)))
    assert len(list(parse(chart).iter(f"{NS}circle"))) == 1
    assert "vaa (unknown)" in texts(chart)


def test_heat_map_cells_carry_their_numbers_and_unknown_stays_empty() -> None:
    options = ChartOptions(y_range=(0, 1))
    chart = heat_map(["a"], ["x", "y", "z"], [[0, 1, math.nan]], title="T", options=options)
    assert [t for t in texts(chart) if t in "01?"] == ["0", "1", "?"]
    shades = re.findall(r"fill-opacity:([\d.]+)", chart)
    assert shades == ["0.06", "0.94"]  # 0.06 + 0.88 * share


def test_scatter_points() -> None:
    chart = scatter(
        [Dot(50, 0.5, "here", low=0.25, high=0.75), Dot(50, math.nan)],
        title="T",
        x_label="x",
        y_label="y",
        options=ROUND,
    )
    (circle,) = parse(chart).iter(f"{NS}circle")
    assert (circle.attrib["cx"], circle.attrib["cy"]) == ("196", "126")
    assert "M196 176V76" in chart
    assert "here" in texts(chart)


@pytest.mark.parametrize(
    "draw",
    [
        lambda t: line_chart([Series(t, [0], [1])], title=t, x_label=t, y_label=t),
        lambda t: bar_chart([Bar(t, 1, text=t)], title=t, x_label=t),
        lambda t: dot_plot([(t, [Bar(t, 1)])], title=t, x_label=t),
        lambda t: heat_map([t], [t], [[1.0]], title=t),
        lambda t: scatter([Dot(1, 1, t)], title=t, x_label=t, y_label=t),
    ],
)
def test_text_is_escaped_and_charts_name_themselves(draw: Callable[[str], str]) -> None:
    chart = draw("<b onclick='x'>&\x00")
    root = parse(chart)
    assert root.attrib["role"] == "img"
    assert root[0].tag == f"{NS}title"
    assert root[0].text == "<b onclick='x'>&"
    assert "<b" not in chart


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 1, 4, [0, 0.5, 1]),  # 0.25 is not a round step: the next one is 0.5
        (0, 100, 5, [0, 20, 40, 60, 80, 100]),
        (3, 17, 5, [5, 10, 15]),
        (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, count: int, expected: list[float]) -> None:
    assert svg.ticks(low, high, count=count) == pytest.approx(expected)


def test_long_and_wide_labels_are_cut() -> None:
    assert svg.shorten("short", 100) == "short"
    assert svg.shorten("a" * 50, 60).endswith("\u2026")
    assert svg.width_of("\u5b89\u5168") == 24  # two square letters of 12 units
    assert svg.width_of(svg.shorten("\u5b89" * 20, 60)) <= 60


def test_constant_data_have_an_axis() -> None:
    assert svg.ends_of([3, 3]) == (2.5, 3.5)
    assert svg.ends_of([0, 0]) == (0, 1)
    assert svg.ends_of([math.nan]) == (0, 1)
