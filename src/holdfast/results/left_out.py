"""How many rows of each file were left out of a run, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from holdfast.results.run_dir import Entry


def left_out_counts(entries: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Count the rows that jobs left out.

    A row that several jobs left out for one reason counts once: the largest count of any job is
    taken.

    Returns:
        File or data set -> reason -> number of rows.
    """
    counts: dict[str, dict[str, int]] = {}
    for entry in entries:
        for record in _records(entry):
            of_source = counts.setdefault(record["source"], {})
            for reason, number in record["reasons"].items():
                of_source[reason] = max(number, of_source.get(reason, 0))
    return counts


def _records(entry: Entry) -> Iterator[Mapping[str, Any]]:
    """Yield what was left out on reading and, for example because of its length, in the job."""
    for rows in entry.rows.values():
        if "left_out" in rows:
            yield rows["left_out"]
    yield from entry.facts.get("left_out", {}).values()
