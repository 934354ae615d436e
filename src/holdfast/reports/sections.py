"""Save and load the chapters that analyses write, so that the report can be built later or apart.

A file holds the findings, the tables as columns and rows, and the figures as SVG text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdfast.contracts import Section
from holdfast.errors import MismatchError
from holdfast.results.files import Artifact

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SavedTable:
    """A table of a section.

    Attributes:
        columns: Names.
        rows: Cells, one list a row; None = unknown.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | bool | int | float | None, ...], ...]


@dataclass(frozen=True)
class SavedSection(Artifact):
    """The file of a section, see `contracts.Section`."""

    kind: ClassVar[str] = "section"
    remedy: ClassVar[str] = "run `holdfast analyze` to make it"

    title: str
    findings: tuple[str, ...]
    tables: Mapping[str, SavedTable]
    figures: Mapping[str, str]
    note: str


def save_section(path: Path, section: Section) -> None:
    """Write a section atomically.

    Tables lose their index (a section's tables are read by people: put what matters into a
    column) and unknown cells become null.
    """
    tables = {
        caption: SavedTable(tuple(map(str, frame.columns)), tuple(map(tuple, table(frame)["rows"])))
        for caption, frame in section.tables.items()
    }
    figures = dict(section.figures)
    SavedSection(section.title, tuple(section.findings), tables, figures, section.note).save(path)


def load_section(path: Path) -> Section:
    """Read a file written by `save_section`.

    Raises:
        UsageError: Missing or broken file.
        MismatchError: Another kind of artifact, another schema, or a field of the wrong shape.
    """
    import pandas as pd

    saved = SavedSection.load(path)
    tables = {}
    for caption, content in saved.tables.items():
        if any(len(row) != len(content.columns) for row in content.rows):
            raise MismatchError(
                f"{path}: tables.{caption}: rows and columns do not match; {saved.remedy}"
            )
        tables[caption] = pd.DataFrame(list(content.rows), columns=list(content.columns))
    return Section(saved.title, saved.findings, tables, saved.figures, saved.note)


def table(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a frame as {"columns": names, "rows": lists}; unknown cells are None."""
    return {
        "columns": [str(column) for column in frame.columns],
        "rows": [
            [_cell(value) for value in row]
            for row in frame.astype(object).itertuples(index=False, name=None)
        ],
    }


def _cell(value: Any) -> str | int | float | bool | None:
    import pandas as pd

    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if pd.api.types.is_bool(value):
        return bool(value)
    if pd.api.types.is_integer(value):
        return int(value)
    return float(value) if isinstance(value, (float, np.floating)) else str(value)
