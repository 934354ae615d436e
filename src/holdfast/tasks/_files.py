"""Reads the files of tasks and splits their rows under common rules."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from holdfast.contracts import Split
from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples


def read_text(path: str) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give the path of a file") from error


def read_cells(path: str, *, tabs: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield "file:line" and the cells of each row; quotes mean nothing in tab-separated files."""
    # newline="" keeps line breaks inside quoted cells, which csv counts in line_num.
    reader = csv.reader(
        io.StringIO(read_text(path), newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
    )
    try:
        for cells in reader:
            if cells:
                yield f"{path}:{reader.line_num}", cells
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not readable as a table ({error})") from error


def read_objects(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object and its place: "file:line" in JSON lines, "file: row N" in an array."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
        rows = [(f"{path}: row {number}", value) for number, value in enumerate(values, 1)]
    else:
        rows = [
            (f"{path}:{number}", _object(f"{path}:{number}", line))
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
    for where, value in rows:
        if not isinstance(value, dict):
            raise DataError(f"{where}: {type(value).__name__}, expected an object")
        yield where, value


def _object(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}); write one object per line") from error


def text_of(where: str, row: dict[str, Any], key: str) -> str:
    """Return a column of a row, which must be text that is not empty."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {value!r}, expected text that is not empty")
    return value.strip()


def split_rows(
    split: Split, train: Iterable[Example], test: Iterable[Example], limit: int, name: str
) -> Examples:
    """Return the rows of a split under the rules that all tasks share.

    Of several rows with the same prompt, ignoring case, the first is kept. Training rows whose
    prompt occurs in the test rows are dropped. With `limit` > 0, the rows with the `limit` smallest
    content ids are kept: a fixed sample that does not depend on the order of the file.

    Args:
        split: "train" or "test".
        train: All training rows.
        test: All test rows.
        limit: Largest number of rows; 0 keeps all.
        name: Name of the task, for messages and for the result.

    Raises:
        UsageError: `split` is neither "train" nor "test".
        DataError: No row is left.
    """
    if split not in ("train", "test"):
        raise UsageError(f"{name}: split {split!r} must be 'train' or 'test'")
    rows = _by_prompt(test)
    if split == "train":
        rows = {prompt: row for prompt, row in _by_prompt(train).items() if prompt not in rows}
    if not rows:
        raise DataError(f"{name}: no {split} row is left; are train and test the same file?")
    examples = list(rows.values())
    if limit:
        first_ids = set(sorted(row.id for row in examples)[:limit])
        examples = [row for row in examples if row.id in first_ids]
    return Examples(examples, name=f"{name}-{split}")


def _by_prompt(rows: Iterable[Example]) -> dict[str, Example]:
    """Return the first row of each prompt, by the prompt in lower case."""
    first: dict[str, Example] = {}
    for row in rows:
        first.setdefault(row.prompt.strip().lower(), row)
    return first
