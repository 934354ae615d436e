"""Groups as a CSV table that can be edited in a spreadsheet and read back.

Spreadsheets execute cells that begin with = + - @ as formulas, and reformat text that looks like a
number, such as a content id of digits only. Such cells get a leading apostrophe, which is removed
on reading; a spreadsheet that drops it does no harm.
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
    """Write one line per example, with the group in the last column for editing.

    Unknown numbers are empty cells. The file begins with a byte order mark, without which
    spreadsheets misread non-ASCII text.

    Args:
        groups: The groups.
        scores: The scores behind them.
        examples: The rows.
        path: The file; its directory is created if needed.

    Raises:
        MismatchError: The groups were made from other scores or rows.
        UsageError: The file exists with other content, which may be edits.
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
    """Read groups that were edited by hand.

    Only the columns "id" and "group" are read. Rows may be in any order, and the separator may be
    a comma, a semicolon or a tab. Edits are recorded: `edits` lists each example that is not in
    the rule's group, `rule` says how many there are, and their doubt becomes unknown.

    Args:
        path: A file from `groups_to_csv`.
        groups: The groups that were written to it.

    Raises:
        DataError: An id is unknown or repeated, a group is unknown, or a line is not valid; the
            message begins with `file:line` and names the column.
        UsageError: The file does not exist, lacks columns or rows, or leaves a group empty.
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
    return _with_labels(groups, labels)


def _with_labels(groups: Groups, labels: np.ndarray) -> Groups:
    """Return the groups with other labels and a record of the differences from the rule."""
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
    """Return a text cell that spreadsheets neither execute nor reformat."""
    return f"'{text}" if _RISKY.match(text) else text


def unescape_cell(cell: str) -> str:
    """Undo `escape_cell`."""
    return cell[1:] if cell.startswith("'") and _RISKY.match(cell) else cell


def _column(ids: Sequence[str], values: np.ndarray | None, order: Sequence[str]) -> list[str]:
    if values is None:
        return [""] * len(order)
    value_of = dict(zip(ids, values.tolist(), strict=True))
    return ["" if math.isnan(value_of[i]) else f"{value_of[i]:.6g}" for i in order]


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, id and group of each row."""
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
