"""Groups as a table for people: written as csv, edited in a spreadsheet, read back with a record.

Spreadsheets run cells that begin with = + - @ as formulas and rewrite what looks like a number, as
content ids of digits only do. Text cells of either kind get a leading apostrophe, which is taken
off again on reading; a spreadsheet that drops it does no harm.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from holdfast.errors import DataError, MismatchError, UsageError
from holdfast.examples import Examples
from holdfast.groups.make import close_calls
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.files import write_text

COLUMNS = ("id", "prompt", "category", "score", "error", "doubt", "group")
EDITED = "; edited by hand: "
_RISKY = re.compile(r"'*([=+\-@\t\r]|[0-9.]+(e[0-9]+)?$)", re.IGNORECASE)


def groups_to_csv(groups: Groups, scores: Scores, examples: Examples, path: Path) -> None:
    """Write one line per example, for people to read and to edit the last column.

    Unknown numbers are empty cells. The file begins with a byte order mark, without which
    spreadsheets misread what is not ASCII.

    Args:
        groups: The groups.
        scores: The scores behind them.
        examples: The rows.
        path: The file; its directory is made.

    Raises:
        MismatchError: Scores or rows are not those of the groups.
        UsageError: The file is there and says something else: it may hold somebody's edits.
    """
    if groups.scores_hash != scores.hash or groups.data_hash != examples.hash:
        raise MismatchError(
            f"{path}: the groups were made from other scores or other rows than these; make the "
            "groups again with `holdfast group`"
        )
    text = "\ufeff" + _text(groups, scores, examples)
    if path.exists() and path.read_bytes() != text.encode():
        raise UsageError(
            f"{path} is there already and says something else; it may hold edits. Read them with "
            "--edited, or name another file, or delete this one."
        )
    write_text(path, text)


def _text(groups: Groups, scores: Scores, examples: Examples) -> str:
    labels = groups.aligned_to(examples.ids)
    numbers = (scores.ids, scores.values), (scores.ids, scores.errors), (groups.ids, groups.doubt)
    columns = [_column(ids, values, examples.ids) for ids, values in numbers]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i, (row, label) in enumerate(zip(examples, labels.tolist(), strict=True)):
        category = row.provenance.get("category", "")
        cells = [escape_cell(cell) for cell in (row.id, row.prompt, category)]
        row_cells = [column[i] for column in columns]
        writer.writerow([*cells, *row_cells, escape_cell(groups.names[label])])
    return file.getvalue()


def groups_from_csv(path: Path, groups: Groups) -> Groups:
    """Read back the groups that somebody edited.

    Only the columns "id" and "group" are read; rows may be in any order, and the separator may be
    a semicolon or a tab. The result keeps a record: `edits` names each example that is not where
    the rule put it, the rule says how many, and their doubt is unknown: a person settled them.

    Args:
        path: A file from `groups_to_csv`.
        groups: The groups it was written from.

    Raises:
        DataError: An unknown or repeated id, an unknown group, or a broken line; the message
            begins with `file:line` and names the column.
        UsageError: No such file, lacking columns or rows, or a group left empty.
    """
    index = {name: k for k, name in enumerate(groups.names)}
    group_of: dict[str, int] = {}
    grouped_ids = set(groups.ids)
    for line, identity, name in _rows(path):
        if identity not in grouped_ids:
            raise DataError(
                f"{path}:{line}: column 'id': {identity!r} is not in the groups, which were made "
                "from other rows or rewritten by the spreadsheet; write the table again"
            )
        if identity in group_of:
            raise DataError(f"{path}:{line}: column 'id': {identity!r} is there twice; remove one")
        if name not in index:
            raise DataError(
                f"{path}:{line}: column 'group': {name!r} is none of "
                f"{', '.join(repr(n) for n in groups.names)}"
            )
        group_of[identity] = index[name]
    missing = [identity for identity in groups.ids if identity not in group_of]
    if missing:
        raise UsageError(
            f"{path}: column 'id' lacks {len(missing)} of {len(groups.ids)} examples (first: "
            f"{missing[0]}); keep every row and change only the column 'group'"
        )
    labels = np.array([group_of[identity] for identity in groups.ids], dtype=np.int64)
    sizes = np.bincount(labels, minlength=len(groups.names))
    if not sizes.all():
        raise UsageError(
            f"{path}: column 'group': nothing is left in {groups.names[int(np.argmin(sizes))]!r}; "
            "a group must not be empty"
        )
    return _edited(groups, labels)


def _edited(groups: Groups, labels: np.ndarray) -> Groups:
    """Return the groups with other labels and the record of what differs from the rule's."""
    if (labels == groups.labels).all():
        return groups
    before = {edit["id"]: edit["from"] for edit in groups.edits}
    edits: list[Mapping[str, str]] = []
    for identity, old, new in zip(groups.ids, groups.labels, labels, strict=True):
        source = before.get(identity, groups.names[old])
        if source != groups.names[new]:
            edits.append({"id": identity, "from": source, "to": groups.names[new]})
    unsure = groups.doubt
    if unsure is not None:
        unsure = np.where(labels != groups.labels, math.nan, unsure)
    facts = {k: v for k, v in groups.facts.items() if k not in ("too_close_to_call", "doubt_known")}
    rule = groups.rule.partition(EDITED)[0]
    return replace(
        groups,
        labels=labels,
        rule=f"{rule}{EDITED}{len(edits)} of {len(labels)} moved",
        facts={**facts, **close_calls(unsure)},
        doubt=unsure,
        edits=tuple(edits),
    )


# ------------------------------------------------------------------------------------- cells


def escape_cell(text: str) -> str:
    """Return a text cell that no spreadsheet runs or rewrites."""
    return f"'{text}" if _RISKY.match(text) else text


def unescape_cell(cell: str) -> str:
    """Undo `escape_cell`."""
    return cell[1:] if cell.startswith("'") and _RISKY.match(cell) else cell


def _column(ids: Sequence[str], values: np.ndarray | None, wanted: Sequence[str]) -> list[str]:
    if values is None:
        return [""] * len(wanted)
    value_of = dict(zip(ids, values.tolist(), strict=True))
    return ["" if math.isnan(value_of[i]) else f"{value_of[i]:.6g}" for i in wanted]


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, id and group of each row."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; `holdfast group --csv {path}` makes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 ({error}); save it as such") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    header = None
    try:
        for record in reader:
            if header is None:
                header = _header(path, [cell.strip() for cell in record])
            elif any(record):
                if len(record) != len(header):
                    raise DataError(
                        f"{path}:{line}: {len(record)} cells, the header has {len(header)}"
                    )
                cells = dict(zip(header, map(unescape_cell, record), strict=True))
                yield line, cells["id"].strip(), cells["group"].strip()
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: {error}; close every quote") from error
    if header is None:
        raise UsageError(f"{path}: empty; write the table again with `holdfast group --csv`")


def _header(path: Path, header: list[str]) -> list[str]:
    counts = Counter(header)
    for column in ("id", "group"):
        if counts[column] != 1:
            occurrences = "no" if not counts[column] else f"{counts[column]} times the"
            raise UsageError(
                f"{path}:1: {occurrences} column {column!r}; the table of `holdfast group --csv` "
                f"has {', '.join(COLUMNS)}"
            )
    return header
