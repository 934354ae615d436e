"""Where rows came from: counted, and chosen by it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from holdfast.errors import UsageError
from holdfast.examples import PROVENANCE, Examples

_SELECTION = re.compile(r"(?P<spec>.+),category(?P<sign>!?=)(?P<names>[^,]+)")


def selected(spec: str) -> tuple[str, Callable[[Examples], Examples]]:
    """Part "SPEC,category=a|b" into what is read and the selection from it.

    With "!=" the rows that are not of these categories are taken; a row of no category is of none.

    Returns:
        The spec without the selection, and a function that raises UsageError when it leaves none.
    """
    match = _SELECTION.fullmatch(spec)
    if match is None:
        return spec, lambda rows: rows
    names, wanted = set(match["names"].split("|")), match["sign"] == "="

    def chosen(rows: Examples) -> Examples:
        kept = [row for row in rows if (row.provenance.get("category") in names) == wanted]
        if not kept:
            have = ", ".join(provenance_table(rows)["category"])
            raise UsageError(f"{spec}: no such rows; there are the categories {have}")
        return Examples(kept, name=spec)

    return match["spec"], chosen


def provenance_table(examples: Examples) -> dict[str, dict[str, int]]:
    """Count the rows by provenance.

    Returns:
        Column -> value -> number of rows, most frequent first; rows without it are "unknown".
        The columns of `examples.PROVENANCE`, then any others that a row has.
    """
    others = sorted({key for row in examples for key in row.provenance} - set(PROVENANCE))
    table = {}
    for column in (*PROVENANCE, *others):
        counts = Counter(row.provenance.get(column) or "unknown" for row in examples)
        table[column] = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return table
