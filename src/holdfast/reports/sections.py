"""Save and load the chapters that analyses write, so that the report can be built later or apart.

A file holds messages with their values, tables as columns and rows, and figures as data. What JSON
has no type for is an object with one telling key: a message has `text`, a number that is not finite
has `number`, a figure or one of its parts has `is`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from holdfast.charts import figures
from holdfast.contracts import Section, SectionTable
from holdfast.errors import MismatchError
from holdfast.results.files import SCHEMA, read_json, write_json
from holdfast.texts import Text

_CLASSES = (
    figures.Axis,
    figures.Line,
    figures.Bar,
    figures.Dot,
    figures.LineChart,
    figures.BarChart,
    figures.DotPlot,
    figures.HeatMap,
    figures.Scatter,
    SectionTable,
)
_BY_NAME: Mapping[str, type[Any]] = {cls.__name__: cls for cls in _CLASSES}


def save_section(path: Path, section: Section) -> None:
    """Write a section atomically."""
    write_json(
        path,
        {
            "kind": "section",
            "schema": SCHEMA,
            "title": _encoded(section.title),
            "findings": _encoded(section.findings),
            "tables": _captioned(section.tables),
            "figures": _captioned(section.figures),
            "note": _encoded(section.note),
        },
    )


def load_section(path: Path) -> Section:
    """Read a file written by `save_section`.

    Raises:
        UsageError: Missing or broken file.
        MismatchError: Another kind of artifact, another schema, or a field of the wrong shape.
    """
    raw = read_json(path, "section")
    try:
        return Section(
            title=_string(raw["title"]),
            findings=tuple(_string(finding) for finding in raw["findings"]),
            tables={_string(caption): _part(part, SectionTable) for caption, part in raw["tables"]},
            figures={
                _string(caption): _part(part, *_CLASSES[4:9]) for caption, part in raw["figures"]
            },
            note=_string(raw["note"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MismatchError(
            f"{path}: not a section as this version writes it ({error}); "
            "run `holdfast analyze` again"
        ) from error


def _captioned(parts: Mapping[str, Any]) -> list[list[Any]]:
    return [[_encoded(caption), _encoded(part)] for caption, part in parts.items()]


def _encoded(value: Any) -> Any:
    if isinstance(value, Text):
        return {
            "text": value.template,
            "values": {key: _encoded(item) for key, item in value.values.items()},
        }
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    if is_dataclass(value):
        parts = {f.name: _encoded(getattr(value, f.name)) for f in fields(value)}
        return {"is": type(value).__name__, **parts}
    return value


def _decoded(raw: Any) -> Any:
    if isinstance(raw, list):
        return tuple(_decoded(item) for item in raw)
    if not isinstance(raw, dict):
        return raw
    if "is" in raw:
        parts = {key: _decoded(item) for key, item in raw.items() if key != "is"}
        return _BY_NAME[raw["is"]](**parts)
    if "number" in raw:
        return float(raw["number"])
    return Text(raw["text"], **{key: _decoded(item) for key, item in raw["values"].items()})


def _string(raw: Any) -> str:
    value = _decoded(raw)
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _part(raw: Any, *classes: type[Any]) -> Any:
    value = _decoded(raw)
    if not isinstance(value, classes):
        raise TypeError(f"{value!r} is not a {' or '.join(cls.__name__ for cls in classes)}")
    return value
