"""Rows already in memory: Examples, a data set, a data frame or a list of dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.errors import DataError
from holdfast.examples import Examples
from holdfast.rows.marks import Use, check_marks
from holdfast.rows.readers import ReadOptions, usable_rows
from holdfast.rows.remedies import FileRemedies, MemoryRemedies, Remedies
from holdfast.rows.tables import Raw, table_of

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    Rows: TypeAlias = Examples | datasets.Dataset | pd.DataFrame | Iterable[Mapping[str, Any]]
    """The types that in-memory functions accept as rows."""


def examples_of(
    rows: Rows, *, name: str = "rows", needs_response: bool = True, use: Use | None = None
) -> Examples:
    """Return rows as `Examples`; columns are detected as in files.

    Args:
        rows: Examples, a `datasets.Dataset`, a pandas data frame, or dicts.
        name: Name of the rows in messages.
        needs_response: False if only the prompts are used: the response may be missing or empty.
        use: What the rows are used for; rows that are marked as the opposite are then an error.

    Raises:
        DataError: There are no rows, more than 5 % of them have no prompt or no response, or rows
            are marked as the opposite of what they are used for.
    """
    remedies = remedies_for(rows)
    examples = rows
    if not isinstance(examples, Examples):
        raw = [Raw(f"{name}: row {n}", row) for n, row in enumerate(records_of(name, rows), 1)]
        if not raw:
            raise _no_rows(name)
        options = ReadOptions(needs_response=needs_response)
        examples = usable_rows(name, table_of(raw), options, remedies)
    if not examples:
        raise _no_rows(name)
    check_marks(examples, use, remedies)
    return examples


def _no_rows(name: str) -> DataError:
    return DataError(f"{name}: there are no rows; give at least one")


def remedies_for(rows: object) -> Remedies:
    """Return the words for the way out of a problem with rows in memory."""
    if isinstance(rows, Examples):
        return FileRemedies(rows.name)
    if hasattr(rows, "column_names"):
        return MemoryRemedies("dataset")
    return MemoryRemedies("frame" if _is_frame(rows) else "list")


def _is_frame(rows: object) -> bool:
    return hasattr(rows, "to_dict") and hasattr(rows, "columns")


def records_of(name: str, rows: Any) -> list[Mapping[str, Any]]:
    """Return rows in memory as mappings of column to cell.

    Args:
        name: Name of the rows in messages.
        rows: A data set, a data frame, columns of equal length, or mappings.

    Raises:
        DataError: It is none of these.
    """
    if isinstance(rows, str):
        raise DataError(f"{name}: {rows!r} is text; read a file with holdfast.read({rows!r})")
    if isinstance(rows, Mapping):
        return _of_mapping(name, rows)
    if hasattr(rows, "to_pylist"):  # a pyarrow table
        rows = rows.to_pylist()
    elif _is_frame(rows):
        rows = rows.to_dict("records") if hasattr(rows, "iloc") else rows.to_dicts()
    elif hasattr(rows, "with_format"):  # a data set that yields tensors
        rows = rows.with_format(None)
    records = list(rows) if isinstance(rows, Iterable) else [rows]
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping):
            raise DataError(
                f"{name}: row {number} is {record!r:.60}; give dicts such as "
                "{'prompt': ..., 'response': ...}"
            )
    return records


def _of_mapping(name: str, columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of {column: cells}."""
    if columns and all(hasattr(part, "column_names") for part in columns.values()):
        splits = ", ".join(map(str, columns))
        first = next(iter(columns))
        raise DataError(f"{name}: a data set with the splits {splits}; give one: rows[{first!r}]")
    lists = {key: value for key, value in columns.items() if isinstance(value, (list, tuple))}
    if not columns or len(lists) < len(columns) or len({len(c) for c in lists.values()}) > 1:
        raise DataError(
            f"{name}: a dict is one row, or columns of equal length; give a list of dicts such as "
            "[{'prompt': ..., 'response': ...}]"
        )
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
