"""Provenance: counting rows, and selecting them, by where they came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from holdfast.errors import UsageError
from holdfast.examples import PROVENANCE, Examples
from holdfast.options import OptionError, Options
from holdfast.specs import parse


class Selection(Options):
    """Selects rows by their provenance."""

    owner: ClassVar[str] = "row selection"

    category: tuple[str, ...] = ()
    """Categories to read; empty for all."""
    not_category: tuple[str, ...] = ()
    """Categories to leave out."""

    def of(self, rows: Examples, name: str) -> Examples:
        """Return the selected rows.

        Raises:
            UsageError: No rows are left.
        """
        chosen = [row for row in rows if self._holds(row.provenance.get("category"))]
        if not chosen:
            categories = ", ".join(provenance_table(rows)["category"])
            raise UsageError(f"{name}: no such rows; the categories are {categories}")
        return Examples(chosen, name=name, left_out=rows.left_out, ids_only=rows.ids_only)

    def _holds(self, category: str | None) -> bool:
        included = not self.category or category in self.category
        return included and category not in self.not_category


def selected(spec: str) -> tuple[str, Callable[[Examples], Examples]]:
    """Parse "FILE,category=[a,b]" into a source and a selection of its rows.

    Returns:
        The file or data set, and a function that returns the selected rows. It raises UsageError if
        there are none.
    """
    parsed = parse(spec)
    options: dict[str, Any] = dict(parsed.options)
    try:
        selection = Selection(**options)
    except OptionError as error:
        raise error.for_owner(repr(spec)) from error
    if not options:
        return parsed.name, lambda rows: rows
    return parsed.name, lambda rows: selection.of(rows, spec)


def provenance_table(examples: Examples) -> dict[str, dict[str, int]]:
    """Count the rows by provenance.

    Returns:
        Column -> value -> number of rows, most frequent first; rows without a value count as
        "unknown". The columns of `examples.PROVENANCE` come first, then any others.
    """
    others = sorted({key for row in examples for key in row.provenance} - set(PROVENANCE))
    table = {}
    for column in (*PROVENANCE, *others):
        counts = Counter(row.provenance.get(column) or "unknown" for row in examples)
        table[column] = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return table
