"""Rows already in memory: Examples, a data set, a data frame or a list of dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from holdfast.errors import DataError
from holdfast.examples import Examples
from holdfast.rows.readers import ReadOptions, usable_rows
from holdfast.rows.tables import Raw, Table
from holdfast.rows.trl import from_dataset

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    Rows: TypeAlias = Examples | datasets.Dataset | pd.DataFrame | Iterable[Mapping[str, Any]]
    """The types that in-memory functions accept as rows."""


def examples_of(rows: Rows, *, name: str = "rows", needs_response: bool = True) -> Examples:
    """Return rows as `Examples`; columns are detected as in files, or follow TRL.

    Args:
        rows: Examples, a `datasets.Dataset`, a pandas data frame, or dicts.
        name: Name of the rows in messages.
        needs_response: False if only the prompts are used: the response may be missing or empty.

    Raises:
        DataError: There are no rows, or more than 5 % of them have no prompt or no response.
    """
    if isinstance(rows, Examples):
        examples = rows
    else:
        examples = _converted(_records(name, rows), name, needs_response=needs_response)
    if not examples:
        raise DataError(f"{name}: there are no rows; give at least one")
    return examples


def _records(name: str, rows: Any) -> list[Mapping[str, Any]]:
    if isinstance(rows, str):
        raise DataError(f"{name}: {rows!r} is text; read a file with holdfast.read({rows!r})")
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return cast("list[Mapping[str, Any]]", rows.to_dict("records"))
    records = list(rows) if isinstance(rows, Iterable) else [rows]
    for number, record in enumerate(records, 1):
        if not isinstance(record, Mapping):
            raise DataError(
                f"{name}: row {number} is {record!r:.60}; give dicts such as "
                "{'prompt': ..., 'response': ...}"
            )
    return records


def _converted(records: list[Mapping[str, Any]], name: str, *, needs_response: bool) -> Examples:
    if records and {"completion", "chosen"} & records[0].keys():
        return from_dataset(records, name=name)
    if not records:
        return Examples([], name=name)
    columns = list(dict.fromkeys(key for record in records for key in record))
    raw = (Raw(f"{name}: row {number}", record) for number, record in enumerate(records, 1))
    return usable_rows(name, Table(columns, raw), ReadOptions(needs_response=needs_response))
