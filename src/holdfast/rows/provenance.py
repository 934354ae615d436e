"""Provenance: counting rows by where they came from."""

from __future__ import annotations

from collections import Counter

from holdfast.examples import PROVENANCE, Examples


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
