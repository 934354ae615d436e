"""Cells: the same value from every file format and from every container in memory."""

from __future__ import annotations

import ast
import json
import math
import numbers
from collections.abc import Mapping
from datetime import date, time
from typing import Any, TypeGuard

from holdfast.rows.tables import OTHER_LAYOUT, UNREADABLE, Raw, RowError

NONE_OF_THEM = "none"
"""Label of an object of flags that are all false."""


def plain(value: object) -> Any:
    """Return a cell as JSON would hold it: None for NaN, lists for arrays, text for dates."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if type(value).__name__ in ("NAType", "NaTType") or _is_nan(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return _decoded(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value


def _is_nan(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isnan(value)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def json_of(text: str) -> Any:
    """Parse JSON in which no object has a key twice.

    Raises:
        ValueError: It is not such JSON.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice in one object")
    return value


def structured(value: object) -> Any:
    """Return the list or object that a cell holds as text, as in CSV; otherwise the cell.

    JSON is read, and lists and objects as Python writes them (`Dataset.to_csv`).
    """
    value = plain(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return value
    try:
        return plain(json_of(text))
    except (ValueError, RecursionError):
        return _python_literal(text, value)


def _python_literal(text: str, otherwise: str) -> Any:
    try:
        literal = ast.literal_eval(text)
        # Numpy writes ['a' 'b'], which Python reads as ['ab'].
        return plain(literal) if repr(literal) == text else otherwise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return otherwise


def text_cell(raw: Raw, column: str) -> str:
    """Return a cell that must be text; "" if it is missing.

    Raises:
        RowError: It is not text, or the row has no such column.
    """
    return text_value(raw.place, column, cell(raw, column))


def cell(raw: Raw, column: str) -> Any:
    """Return a cell as `plain` does.

    Raises:
        RowError: The row has no such column.
    """
    if column not in raw.row:
        problem = (
            f"no {column!r}, though other rows have it (this one has "
            f"{', '.join(raw.row) or 'nothing'}); add it or remove the row"
        )
        raise RowError(raw.place, OTHER_LAYOUT, problem)
    return plain(raw.row[column])


def text_value(place: str, column: str, value: object) -> str:
    """Return a value that must be text; "" if it is None.

    Raises:
        RowError: It is not text, or has half a character.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        problem = (
            f"{column} is not text but {type(value).__name__} {value!r:.60}; write it as text, or "
            "name the column that holds the text"
        )
        raise RowError(place, OTHER_LAYOUT, problem)
    # JSON can spell half of a surrogate pair ("\ud83d"), which no file or hash can contain.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = (
            f"{column} has half a character ({value[error.start]!r}) at position "
            f"{error.start + 1}; the text was cut inside a surrogate pair, write it again"
        )
        raise RowError(place, UNREADABLE, problem) from error
    return value


def label_cell(place: str, column: str, value: object) -> str:
    """Return a provenance value as text; "" if it is unknown.

    Raises:
        RowError: It is neither text, a number, a list of texts nor an object of flags.
    """
    value = structured(value)
    if value is None:
        return ""
    if isinstance(value, str):
        text = text_value(place, column, value.strip())
        return text.lower() if text in ("True", "False", "TRUE", "FALSE") else text
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if is_flags(value):
        # All False is a value ("none of these"); a missing flag, or no flags at all, is unknown.
        names = "|".join(sorted(name for name, flag in value.items() if flag))
        unknown = None in value.values() or not value
        return text_value(place, column, names or ("" if unknown else NONE_OF_THEM))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return text_value(place, column, "|".join(sorted(value)))
    problem = (
        f"{column} is {value!r:.60}; write text, a list of texts or {{name: true/false}}, or "
        f"leave the column out"
    )
    raise RowError(place, OTHER_LAYOUT, problem)


def is_flags(value: object) -> TypeGuard[dict[str, bool | None]]:
    """Return whether a value is an object of true, false and null."""
    return isinstance(value, dict) and all(
        flag is None or isinstance(flag, bool) for flag in value.values()
    )
