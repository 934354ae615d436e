"""Tables of raw rows, each with its location for messages.

A problem with a whole file raises `DataError`; a problem with one row puts a `RowError` in place of
that row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from holdfast.errors import DataError

UNREADABLE = "unreadable"
"""Reason for a row that cannot be parsed: broken JSON, invalid UTF-8, a wrong field count."""
OTHER_LAYOUT = "other layout"
"""Reason for a row that can be parsed, but is not laid out as rows have to be."""


class RowError(DataError):
    """An unusable row in a data set whose other rows may be fine.

    Attributes:
        reason: The kind of problem, in a few words; the same for all rows with this problem.
        place: "file:line" or "file: row N".
        problem: What is wrong with this row.
    """

    def __init__(self, place: str, reason: str, problem: str) -> None:
        problem = printable(problem)
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.reason = reason
        self.problem = problem


class Raw(NamedTuple):
    """A row as it is in the file; `place` is "file:line" or "file: row N"."""

    place: str
    row: Mapping[str, object]


class Table(NamedTuple):
    """A data set.

    Attributes:
        columns: Names of the columns of any row.
        rows: The rows in order.
        uniform: Whether all objects of a column have the same keys, as in Arrow.
    """

    columns: list[str]
    rows: Iterable[Raw | RowError]
    uniform: bool = False


def table_of(rows: Sequence[Raw | RowError]) -> Table:
    """Return rows as a table whose columns are those of any row."""
    columns = (column for row in rows if isinstance(row, Raw) for column in row.row)
    return Table(list(dict.fromkeys(columns)), rows)


def printable(text: str) -> str:
    """Return a text that any terminal and file can hold: half characters are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
