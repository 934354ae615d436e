"""Rows with several numbered responses, as in PKU-SafeRLHF: one row for each response."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from holdfast.rows.tables import Raw, RowError, Table

_RESPONSE = re.compile(r"response_(\d+)")


def one_response_per_row(table: Table, named: Collection[str]) -> Table:
    """Return a table with one row per response.

    The column `response_0` becomes `response`, `is_response_0_safe` becomes `is_safe`, and
    `response_0_harm_category` becomes `harm_category`. `safer_response_id` and `better_response_id`
    become `safer` and `better`, true or false.

    Args:
        table: The table; returned as it is unless it has a prompt and two numbered responses.
        named: Columns that the user named; if one belongs to a numbered response, the table is
            returned as it is.
    """
    matches = [_RESPONSE.fullmatch(column) for column in table.columns]
    numbers = [match[1] for match in matches if match]
    if len(numbers) < 2 or "prompt" not in table.columns or "response" in table.columns:
        return table
    parts = {number: _parts(table.columns, number) for number in numbers}
    if any(column in named for part in parts.values() for column in part.values()):
        return table
    shared = [c for c in table.columns if not any(c in part.values() for part in parts.values())]
    shared = [
        column for column in shared if column not in ("safer_response_id", "better_response_id")
    ]
    choices = [choice for choice in ("safer", "better") if f"{choice}_response_id" in table.columns]
    columns = dict.fromkeys(
        [*shared, *(name for part in parts.values() for name in part), *choices]
    )
    rows = _rows(table.rows, parts, shared, choices)
    return Table(list(columns), rows, uniform=table.uniform)


def _parts(columns: Sequence[str], number: str) -> dict[str, str]:
    """Return name in the new table -> column of one response."""
    parts = {}
    for column in columns:
        if re.search(rf"(?:^|_)response_{number}(?:_|$)", column):
            shorter = re.sub(rf"response_{number}_", "", column)
            parts[re.sub(rf"response_{number}$", "response", shorter)] = column
    return parts


def _rows(
    rows: Iterable[Raw | RowError],
    parts: Mapping[str, Mapping[str, str]],
    shared: Sequence[str],
    choices: Sequence[str],
) -> Iterator[Raw | RowError]:
    for raw in rows:
        if isinstance(raw, RowError):
            yield raw
            continue
        for number, part in parts.items():
            row = {column: raw.row[column] for column in shared if column in raw.row}
            row |= {name: raw.row[column] for name, column in part.items() if column in raw.row}
            for choice in choices:
                chosen = raw.row.get(f"{choice}_response_id")
                row[choice] = None if chosen is None else str(chosen) == number
            yield Raw(raw.place, row)
