"""Sections survive the way to disk and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from holdfast.contracts import Section
from holdfast.errors import MismatchError, UsageError
from holdfast.reports.sections import load_section, save_section, table

SECTION = Section(
    title="Title",
    findings=("One.", "Two <b>."),
    tables={
        "T": pd.DataFrame({"name": ["a", "b"], "n": [1, 2], "share": [0.5, math.nan]}),
        "empty": pd.DataFrame({"a": []}),
    },
    figures={"F": "<svg/>"},
    note="Note.",
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    save_section(path, SECTION)
    loaded = load_section(path)
    assert (loaded.title, loaded.findings) == (SECTION.title, SECTION.findings)
    assert (loaded.figures, loaded.note) == (SECTION.figures, SECTION.note)
    pd.testing.assert_frame_equal(loaded.tables["T"], SECTION.tables["T"], check_dtype=False)
    assert list(loaded.tables["empty"].columns) == ["a"]
    assert len(loaded.tables["empty"]) == 0


def test_cells_are_plain_and_unknown_is_null() -> None:
    frame = pd.DataFrame(
        {
            0: [np.int64(3), None],
            "flag": [np.bool_(True), pd.NA],
            "when": [pd.Timestamp("2026-01-02"), pd.NaT],
            "many": [["a"], (1, 2)],
        }
    )
    assert table(frame) == {
        "columns": ["0", "flag", "when", "many"],
        "rows": [[3, True, "2026-01-02 00:00:00", "['a']"], [None, None, None, "(1, 2)"]],
    }


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with pytest.raises(UsageError, match="no such file"):
        load_section(path)
    path.write_text('{"kind": "scores", "schema": 1}', encoding="utf-8")
    with pytest.raises(MismatchError, match="expected 'section', got 'scores'"):
        load_section(path)
    save_section(path, SECTION)
    raw = json.loads(path.read_text(encoding="utf-8"))
    for broken in ({"tables": []}, {"figures": None}, {"findings": 3}):
        path.write_text(json.dumps(raw | broken), encoding="utf-8")
        with pytest.raises(MismatchError, match="holdfast analyze"):
            load_section(path)
