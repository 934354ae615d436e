"""Save and load the chapters that analyses write, so that the report can be built later or apart.

A file holds the findings, the tables as columns and rows, and the figures as SVG text.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.contracts import Section
from holdfast.errors import MismatchError
from holdfast.results.artifacts import SCHEMA, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd


def save_section(path: Path, section: Section) -> None:
    """Write a section atomically.

    Tables lose their index (a section's tables are read by people: put what matters into a
    column) and unknown cells become null.
    """
    write_json(
        path,
        {
            "kind": "section",
            "schema": SCHEMA,
            "title": section.title,
            "findings": section.findings,
            "tables": {caption: table(frame) for caption, frame in section.tables.items()},
            "figures": section.figures,
            "note": section.note,
        },
    )


def load_section(path: Path) -> Section:
    """Read a file written by `save_section`.

    Raises:
        UsageError: Missing or broken file.
        MismatchError: Another kind of artifact, another schema, or a field of the wrong shape.
    """
    import pandas as pd

    raw = read_json(path, "section")
    try:
        return Section(
            title=str(raw["title"]),
            findings=tuple(str(finding) for finding in raw["findings"]),
            tables={
                caption: pd.DataFrame(content["rows"], columns=content["columns"])
                for caption, content in raw["tables"].items()
            },
            figures={str(caption): str(svg) for caption, svg in raw["figures"].items()},
            note=str(raw["note"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MismatchError(
            f"{path}: not a section as this version writes it ({error}); "
            "run `holdfast analyze` again"
        ) from error


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
