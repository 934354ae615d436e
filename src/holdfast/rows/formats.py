"""The contents of data files as tables: jsonl, json, csv, tsv, parquet and arrow."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from holdfast.errors import DataError
from holdfast.rows.cells import json_of
from holdfast.rows.tables import UNREADABLE, Raw, RowError, Table, printable, table_of
from holdfast.rows.turns import is_turns

_field_limit = threading.Lock()


def decoded(name: str, content: bytes) -> str:
    """Return the text of a UTF-8 file without its byte order mark.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8"
        ) from error


# ---------------------------------------------------------------------------------- JSON


def _parse(name: str, line: int, text: str) -> Any:
    try:
        return json_of(text)
    except json.JSONDecodeError as error:
        place = f"{name}:{line + error.lineno - 1}"
        problem = (
            f"invalid JSON at column {error.colno} ({error.msg}); fix it (is the file cut off?). "
            "One object per line is .jsonl, one list of objects is .json"
        )
        raise RowError(place, UNREADABLE, problem) from error
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, very deep nesting
        problem = f"cannot be read as JSON ({error}); fix it"
        raise RowError(f"{name}:{line}", UNREADABLE, problem) from error


def _row(name: str, line: int, value: object) -> Raw | RowError:
    place = f"{name}:{line}"
    if isinstance(value, dict):
        return Raw(place, value)
    problem = f"{value!r:.60} is not an object; write {{column: value}}"
    return RowError(place, UNREADABLE, problem)


def _jsonl(name: str, content: bytes) -> Table:
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.lstrip()[:1] == b"[":
        array = _whole(name, content)
        if array is not None:
            return array
    # Not splitlines(): a JSON string may contain unescaped U+2028 and other separators.
    lines = enumerate(content.split(b"\n"), start=1)
    return table_of([_jsonl_row(name, n, line, content) for n, line in lines if line.strip()])


def _whole(name: str, content: bytes) -> Table | None:
    """Return the rows of a file that is one array of objects, or None."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    objects = isinstance(values, list) and all(isinstance(value, dict) for value in values)
    return _json(name, content) if objects else None


def _jsonl_row(name: str, number: int, line: bytes, content: bytes) -> Raw | RowError:
    try:
        return _row(name, number, _parse(name, number, line.decode()))
    except RowError as error:
        return error
    except UnicodeDecodeError as error:
        start = content.index(line) + error.start
        problem = f"byte {start} (0x{line[error.start]:02x}) is not UTF-8; save the file as UTF-8"
        return RowError(f"{name}:{number}", UNREADABLE, problem)


def _json(name: str, content: bytes) -> Table:
    text = decoded(name, content)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if _is_lines(text):
            return _jsonl(name, content)
        value = _parse(name, 1, text)  # raises with the place
    if isinstance(value, dict):
        return _of_object(name, text)
    if not isinstance(value, list):
        raise DataError(f"{name}:1: not a list of objects; write [{{...}}, {{...}}]")
    return table_of(list(_elements(name, text)))


def _is_lines(text: str) -> bool:
    """Return whether the first line is an object by itself, as in .jsonl, and others follow."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _elements(name: str, text: str) -> Iterator[Raw | RowError]:
    """Yield the elements of a valid JSON array one at a time, to know the line of each."""
    decoder = json.JSONDecoder()
    position = text.index("[") + 1
    line = 1
    counted = 0
    while text[(position := _skip(text, position))] != "]":
        line += text.count("\n", counted, position)
        counted = position
        _, end = decoder.raw_decode(text, position)
        try:
            yield _row(name, line, _parse(name, line, text[position:end]))
        except RowError as error:
            yield error
        position = end


def _skip(text: str, position: int) -> int:
    separator = re.compile(r"[\s,]*").match(text, position)
    return separator.end() if separator else position


def _of_object(name: str, text: str) -> Table:
    """Return the rows of one JSON object: wrapped rows, columns of cells, or a single row."""
    value: dict[str, Any] = _parse(name, 1, text)
    wrapped = [key for key, rows in value.items() if _are_rows(rows)]
    if len(wrapped) == 1 and (len(value) == 1 or wrapped == ["data"]):
        return table_of([Raw(f"{name}: row {n}", r) for n, r in enumerate(value[wrapped[0]], 1)])
    if len(wrapped) > 1 and len(wrapped) == len(value):
        raise DataError(
            f"{name}:1: holds several lists of rows ({', '.join(map(printable, wrapped))}); write "
            "each to a file of its own"
        )
    columns = list(value.values())
    if columns and all(isinstance(c, list) and not is_turns(c) for c in columns):
        return _of_columns(name, value)
    if columns and all(isinstance(c, dict) and c.keys() == columns[0].keys() for c in columns):
        # The default of pandas' to_json: {column: {index: cell}}.
        return _of_columns(name, {key: list(cells.values()) for key, cells in value.items()})
    return table_of([Raw(f"{name}:1", value)])


def _are_rows(value: object) -> bool:
    objects = isinstance(value, list) and all(isinstance(row, dict) for row in value)
    return objects and bool(value) and not is_turns(value)


def _of_columns(name: str, columns: dict[str, list[Any]]) -> Table:
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        raise DataError(
            f"{name}:1: an object of columns of different lengths "
            f"({', '.join(map(str, sorted(lengths)))}); write a list of objects, one per row"
        )
    cells = zip(*columns.values(), strict=True)
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    table = table_of([Raw(f"{name}: row {n}", row) for n, row in enumerate(rows, 1)])
    return table._replace(columns=list(columns))


# ---------------------------------------------------------------------------- delimited


def _delimited(name: str, content: bytes, *, delimiter: str) -> Table:
    records = list(_records(name, decoded(name, content), delimiter))
    line, header = records[0]
    repeated = [column for column, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(f"{name}:{line}: two columns are named {repeated[0]!r}; rename one")
    rows = [_record(name, line, header, fields, delimiter) for line, fields in records[1:]]
    return Table(header, rows)


def _record(
    name: str, line: int, header: Sequence[str], fields: Sequence[str], delimiter: str
) -> Raw | RowError:
    place = f"{name}:{line}"
    if len(fields) == len(header):
        return Raw(place, dict(zip(header, fields, strict=True)))
    problem = (
        f"{len(fields)} fields, but the header has {len(header)}; put "
        f'"..." around a field that contains {delimiter!r} or a line break'
    )
    return RowError(place, UNREADABLE, problem)


def _records(name: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with its first line number."""
    start = 1
    with _field_limit:
        # The limit is the module's own; fields of megabytes are read.
        earlier = csv.field_size_limit(sys.maxsize)
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            for record in reader:
                if record:
                    yield start, record
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{name}:{start}: {error}; close every quote, write a quote inside quotes twice"
            ) from error
        finally:
            csv.field_size_limit(earlier)


# -------------------------------------------------------------------------------- Arrow


def _parquet(name: str, content: bytes) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
        return arrow_table(name, file.schema_arrow, file.iter_batches())
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a parquet file ({error}); write it again") from error


def _arrow(name: str, content: bytes) -> Table:
    import pyarrow
    from pyarrow import ipc

    source = pyarrow.BufferReader(content)
    try:
        if content.startswith(b"ARROW1"):
            whole = ipc.open_file(source).read_all()
        else:
            whole = ipc.open_stream(source).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not an arrow file ({error}); write it again") from error
    return arrow_table(name, whole.schema, whole.to_batches())


def arrow_table(name: str, schema: Any, batches: Any) -> Table:
    """Return record batches as a table; cells of Arrow's JSON type are decoded.

    Args:
        name: Name of the table in messages.
        schema: The schema.
        batches: Iterable of record batches.

    Raises:
        DataError: Two columns have the same name.
    """
    names = list(schema.names)
    repeated = [column for column, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{name}: two columns are named {repeated[0]!r}; rename one")
    decoders = {field.name: _decoder(field.type) for field in schema}
    # Objects that are stored as JSON have the keys that they were written with.
    uniform = not any(decoders.values())
    return Table(names, _arrow_rows(name, batches, decoders), uniform)


def _arrow_rows(
    name: str, batches: Any, decoders: dict[str, Callable[[Any], Any] | None]
) -> Iterator[Raw | RowError]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            place = f"{name}: row {number}"
            try:
                for column, decode in decoders.items():
                    row[column] = row[column] if decode is None else decode(row[column])
            except (ValueError, RecursionError) as error:
                yield RowError(place, UNREADABLE, f"invalid JSON in a cell ({error}); fix it")
                continue
            yield Raw(place, row)


def _decoder(kind: Any) -> Callable[[Any], Any] | None:
    """Return the function that decodes JSON in cells of an Arrow type; None if there is none."""
    from pyarrow import types

    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: json_of(value) if isinstance(value, str) else value
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _decoder(kind.value_type)
        return None if item is None else partial(_decode_items, item)
    if types.is_struct(kind):
        fields = {field.name: _decoder(field.type) for field in kind}
        return partial(_decode_fields, fields) if any(fields.values()) else None
    return None


def _decode_items(item: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else [item(element) for element in value]


def _decode_fields(fields: dict[str, Callable[[Any], Any] | None], value: Any) -> Any:
    if value is None:
        return None
    decoded = dict(value)
    for key, decode in fields.items():
        decoded[key] = value[key] if decode is None else decode(value[key])
    return decoded


READERS: dict[str, Callable[[str, bytes], Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".parquet": _parquet,
    ".ndjson": _jsonl,
    ".arrow": _arrow,
}
"""Suffix of a file name -> reader of its content."""
