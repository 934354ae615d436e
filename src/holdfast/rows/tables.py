"""Data files and hub data sets as tables of raw rows, each with its location for messages.

A file is jsonl, json, csv, tsv or parquet. A problem with the whole file raises `DataError`; a
problem with a single row puts a `RowError` in place of that row.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from holdfast.errors import DataError, UsageError

UNREADABLE = "unreadable"
"""Reason for a row that cannot be parsed: broken JSON, invalid UTF-8, a wrong field count."""


class RowError(DataError):
    """An unusable row in a data set whose other rows may be fine.

    Attributes:
        reason: The kind of problem, in a few words; the same for all rows with this problem.
        place: "file:line" or "file: row N".
        problem: What is wrong with this row, and the way out.
    """

    def __init__(self, place: str, reason: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.reason = reason
        self.problem = problem


class Raw(NamedTuple):
    """A row as it is in the file; `place` is "file:line" or "file: row N"."""

    place: str
    row: Mapping[str, object]


class Table(NamedTuple):
    """The columns of a data set, and its rows in order."""

    columns: list[str]
    rows: Iterator[Raw | RowError]


def is_file(spec: str) -> bool:
    """Return whether a spec names a file rather than a hub data set."""
    path = Path(spec).expanduser()
    return path.suffix.lower() in _READERS or path.exists() or spec.startswith((".", "/", "~"))


def open_table(spec: str, split: str) -> Table:
    """Open a file, or a hub data set ("name" or "name:config").

    Args:
        spec: The file or data set.
        split: Split of a hub data set.

    Raises:
        DataError: The file does not exist or cannot be read at all.
        UsageError: It is neither a file nor a data set on the hub.
    """
    return _open(Path(spec).expanduser()) if is_file(spec) else _hub(spec, split)


def _open(path: Path) -> Table:
    if path.is_dir():
        raise DataError(f"{path}: is a directory; give one of the files in it")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: {path.suffix or 'no suffix'} is not one of {', '.join(_READERS)}; "
            "convert or rename the file"
        )
    if not content.strip():
        raise DataError(f"{path}:1: the file is empty; give one that has rows")
    return reader(path, content)


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8"
        ) from error


def _parse(path: Path, line: int, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        problem = (
            f"invalid JSON at column {error.colno} ({error.msg}); fix it (is the file cut off?). "
            "One object per line is .jsonl, one list of objects is .json."
        )
        raise RowError(place, UNREADABLE, problem) from error
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, very deep nesting
        problem = f"cannot be read as JSON ({error}); fix it"
        raise RowError(f"{path}:{line}", UNREADABLE, problem) from error


def _row(path: Path, line: int, value: object) -> Raw | RowError:
    if isinstance(value, dict):
        return Raw(f"{path}:{line}", value)
    problem = f"{value!r:.60} is not an object; write {{column: value}}"
    return RowError(f"{path}:{line}", UNREADABLE, problem)


def _jsonl(path: Path, content: bytes) -> Table:
    # Not splitlines(): a JSON string may contain unescaped U+2028 and other separators.
    lines = enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1)
    rows = [_jsonl_row(path, number, line, content) for number, line in lines if line.strip()]
    return _table(rows)


def _jsonl_row(path: Path, number: int, line: bytes, content: bytes) -> Raw | RowError:
    try:
        return _row(path, number, _parse(path, number, line.decode()))
    except RowError as error:
        return error
    except UnicodeDecodeError as error:
        start = content.index(line) + error.start
        problem = f"byte {start} (0x{line[error.start]:02x}) is not UTF-8; save the file as UTF-8"
        return RowError(f"{path}:{number}", UNREADABLE, problem)


def _json(path: Path, content: bytes) -> Table:
    text = _decode(path, content)
    if not isinstance(_parse(path, 1, text), list):
        raise DataError(f"{path}:1: not a list of objects; write [{{...}}, {{...}}]")
    # The text is valid JSON; parse it again one element at a time to find the line of each.
    decoder = json.JSONDecoder()
    rows: list[Raw | RowError] = []
    position = text.index("[") + 1
    line = 1
    counted = 0
    while text[(position := _skip(text, position))] != "]":
        line += text.count("\n", counted, position)
        counted = position
        value, position = decoder.raw_decode(text, position)
        rows.append(_row(path, line, value))
    return _table(rows)


def _table(rows: Sequence[Raw | RowError]) -> Table:
    """Return rows as a table whose columns are those of any row."""
    columns = (column for row in rows if isinstance(row, Raw) for column in row.row)
    return Table(list(dict.fromkeys(columns)), iter(rows))


def _skip(text: str, position: int) -> int:
    separator = re.compile(r"[\s,]*").match(text, position)
    return separator.end() if separator else position


def _delimited(path: Path, content: bytes, *, delimiter: str) -> Table:
    records = _records(path, _decode(path, content), delimiter)
    line, header = next(records)
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(f"{path}:{line}: two columns are named {repeated[0]!r}; rename one")

    def rows() -> Iterator[Raw | RowError]:
        for line, record in records:
            if len(record) == len(header):
                yield Raw(f"{path}:{line}", dict(zip(header, record, strict=True)))
                continue
            problem = (
                f"{len(record)} fields, but the header has {len(header)}; put "
                f'"..." around a field that contains {delimiter!r} or a line break'
            )
            yield RowError(f"{path}:{line}", UNREADABLE, problem)

    return Table(header, rows())


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with its first line number."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for record in reader:
            if record:
                yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{start}: {error}; close every quote, write a quote inside quotes twice"
        ) from error


def _parquet(path: Path, content: bytes) -> Table:
    import pyarrow
    from pyarrow import parquet

    def rows() -> Iterator[Raw]:
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield Raw(f"{path}: row {number}", row)

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error}); write it again") from error
    return Table(list(file.schema_arrow.names), rows())


def _hub(spec: str, split: str) -> Table:
    import datasets

    name, _, config = spec.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"{spec!r}: no such file, and the hub could not be read: {error}. Give the path of a "
            "file, or check the data set's name and split and the network."
        ) from error
    rows = (Raw(f"{spec}: row {n}", row) for n, row in enumerate(dataset, start=1))
    return Table(list(dataset.column_names), rows)


_READERS: dict[str, Callable[[Path, bytes], Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".parquet": _parquet,
}
