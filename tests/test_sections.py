"""Sections survive the way to disk and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from holdfast.charts.figures import Axis, Bar, BarChart, HeatMap, Line, LineChart
from holdfast.contracts import Section, SectionTable
from holdfast.errors import MismatchError, UsageError
from holdfast.reports.sections import load_section, save_section
from holdfast.texts import Text

X = Axis(title=Text("steps"), ends=(0.0, 1.0), mark=0.5)
SECTION = Section(
    title=Text("Title"),
    findings=(Text("{n:d} of {names:and}.", n=1, names=("a", Text("b"))), "Two <b>."),
    tables={
        Text("T {n:d}", n=2): SectionTable.of(
            [
                {Text("name"): "a", "n": 1, Text("share"): 0.5, "flag": True},
                {Text("name"): Text("b"), "n": 2, Text("share"): math.nan},
            ]
        ),
        "empty": SectionTable(("a",), ()),
    },
    figures={
        "F": BarChart(title="t", x=X, bars=(Bar(Text("a"), math.nan, high=math.inf, text="b"),)),
        "G": LineChart(title="t", x=X, y=X, lines=(Line("a", (0.0, 1.0), (0.5, math.nan)),)),
        "H": HeatMap(title="t", rows=("a",), columns=("b",), values=((1.0,),)),
    },
    note=Text("Note."),
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    save_section(path, SECTION)
    loaded = load_section(path)
    assert (loaded.title, loaded.findings) == (SECTION.title, SECTION.findings)
    assert repr(loaded.figures) == repr(SECTION.figures)  # nan is not equal to itself
    assert loaded.note == SECTION.note
    first = loaded.findings[0]
    assert isinstance(first, Text)
    assert (first.template, first.values["n"]) == ("{n:d} of {names:and}.", 1)
    assert isinstance(first.values["names"][1], Text)  # type: ignore[index]
    assert not isinstance(loaded.findings[1], Text)
    assert repr(loaded.tables) == repr(SECTION.tables)
    assert isinstance(next(iter(loaded.tables)), Text)
    pd.testing.assert_frame_equal(loaded.tables["T 2"].frame, SECTION.tables["T 2"].frame)
    assert list(loaded.tables["empty"].columns) == ["a"]
    assert len(loaded.tables["empty"]) == 0


def test_cells_are_plain_and_unknown_is_nan() -> None:
    table = SectionTable.of(
        [
            {"n": np.int64(3), "flag": np.bool_(True), "many": ["a"]},
            {"n": None, "flag": False, "many": (1, 2)},
            {"n": np.float32(0.5)},
        ]
    )
    assert table.columns == ("n", "flag", "many")
    assert table.rows[0] == (3, "yes", "['a']")
    assert type(table.rows[0][0]) is int
    assert math.isnan(float(table.rows[1][0]))
    assert table.rows[1][1:] == ("no", "(1, 2)")
    assert table.rows[2][0] == 0.5
    assert all(math.isnan(float(cell)) for cell in table.rows[2][1:])


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with pytest.raises(UsageError, match="no such file"):
        load_section(path)
    path.write_text('{"kind": "scores", "schema": 1}', encoding="utf-8")
    with pytest.raises(MismatchError, match="expected 'section', got 'scores'"):
        load_section(path)
    save_section(path, SECTION)
    raw = json.loads(path.read_text(encoding="utf-8"))
    axis = {"is": "Axis", "title": "x"}
    for broken in (
        {"tables": [1]},
        {"figures": None},
        {"findings": 3},
        {"title": 1},
        {"figures": [["F", axis]]},
        {"figures": [["F", {"is": "os.system"}]]},
        {"findings": [{"text": "{a"}]},
    ):
        path.write_text(json.dumps(raw | broken), encoding="utf-8")
        with pytest.raises(MismatchError, match="holdfast analyze"):
            load_section(path)
