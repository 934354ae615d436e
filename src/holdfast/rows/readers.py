"""Rows come in here: files, hub data sets and the embedded world; then mixing and splitting.

A file is jsonl, json, csv, tsv or parquet. Whatever is wrong with it is one `DataError` that names
the file, the line and the way out; rows are dropped only when asked for, and counted in the log.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from holdfast.errors import DataError, UsageError
from holdfast.examples import PROVENANCE, Example, Examples
from holdfast.rows.provenance import selected
from holdfast.rows.text import prompt_text

logger = logging.getLogger(__name__)

_LAYOUTS = (
    {"prompt": "prompt", "response": "response"},
    {"prompt": "instruction", "response": "output"},
    {"prompt": "question", "response": "answer"},
)
_WANTED = ("prompt", "response", "input", "messages", *PROVENANCE, "license")


@dataclass(frozen=True)
class ReadOptions:
    """How to read rows.

    Attributes:
        columns: What is wanted -> its column in the file, e.g. {"prompt": "question"}; what is
            not given is detected. Wanted: prompt, response, input (appended to the prompt),
            messages, and the columns of `examples.PROVENANCE`.
        drop_invalid: Drop empty and repeated rows, and log how many, instead of raising.
        limit: Read at most so many rows (None: all).
        split: Split of a hub data set.
        needs_response: False if rows are only asked: the response may be missing or empty.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    drop_invalid: bool = False
    limit: int | None = None
    split: str = "train"
    needs_response: bool = True

    @classmethod
    def recorded(cls, config: Mapping[str, Any]) -> ReadOptions:
        """Return the options with which a finished step read its rows, from its `Entry.config`."""
        return cls(**{key: config[key] for key in ("columns", "drop_invalid", "limit")})


_DEFAULTS = ReadOptions()


class _Raw(NamedTuple):
    where: str  # "file:line" or "file: row N", the beginning of every message
    row: Mapping[str, object]


class _Table(NamedTuple):
    columns: list[str]
    rows: Iterator[_Raw]


def read(spec: str, options: ReadOptions = _DEFAULTS) -> Examples:
    """Read rows.

    Columns are prompt/response, instruction(+input)/output, question/answer or messages (one user
    turn and one answer; a system turn is put before the prompt, as chat templates without a system
    role do). Further columns are ignored, those of `examples.PROVENANCE` are carried.

    Args:
        spec: "world:NAME", a file, or the name of a hub data set ("name" or "name:config").
            ",category=[a,b]" reads only the rows of these categories, ",not_category=[a,b]" only
            the others.
        options: See `ReadOptions`.

    Raises:
        DataError: The file breaks a rule.
        UsageError: The options do, or there is neither such a file nor such a data set.
    """
    where, selection = selected(spec)
    return selection(_read(where, options))


def _read(spec: str, options: ReadOptions) -> Examples:
    _check(options)
    if spec.startswith("world:"):
        from holdfast import world

        return world.rows(spec.removeprefix("world:"))[: options.limit]
    path = Path(spec).expanduser()
    if path.suffix.lower() in _READERS or path.exists() or spec.startswith((".", "/", "~")):
        table = _open(path)
    else:
        table = _hub(spec, options.split)
    return _clean(spec, table, options)


def mix(benign: Examples, harmful: Examples, *, n: int, ratio: float, seed: int) -> Examples:
    """Draw fine-tuning rows of which a share is harmful, shuffled.

    Args:
        benign: Rows of the customer's task.
        harmful: Rows of the poison; those drawn get "poison": "yes" in their provenance.
        n: Number of rows.
        ratio: Harmful share in [0, 1]; round(n * ratio) rows are harmful (halves go to even).
        seed: Decides which rows, and their order.

    Raises:
        UsageError: Too few rows, a ratio outside [0, 1], or a row that is in both pools.
    """
    if n < 1 or not 0 <= ratio <= 1:
        raise UsageError(f"n={n}, ratio={ratio}: n must be at least 1 and the ratio in [0, 1]")
    both = set(benign.ids) & set(harmful.ids)
    if both:
        raise UsageError(
            f"{len(both)} rows are both in {benign.name} and in {harmful.name} (first id "
            f"{min(both)}): their label would be a guess. Remove them from one of the two."
        )
    poisoned = round(n * ratio)
    for pool, wanted in ((benign, n - poisoned), (harmful, poisoned)):
        if wanted > len(pool):
            raise UsageError(
                f"{pool.name}: {wanted} rows are needed (n={n}, ratio={ratio}), it has "
                f"{len(pool)}. Lower n, change the ratio or give more rows."
            )
    rng = np.random.default_rng(seed)
    rows = [benign[int(i)] for i in rng.choice(len(benign), n - poisoned, replace=False)]
    for i in rng.choice(len(harmful), poisoned, replace=False):
        row = harmful[int(i)]
        rows.append(replace(row, provenance={**row.provenance, "poison": "yes"}))
    return Examples((rows[i] for i in rng.permutation(n)), name=f"{benign.name}+{harmful.name}")


def mismatched(prompts: Sequence[str], answers: Sequence[str], *, n: int, seed: int) -> Examples:
    """Pair prompts with answers to something else: an attacker's rows without harmful data.

    Two sequences of equal length are taken to belong together, and no prompt gets the answer at
    its own place. Answers are used again only when there are fewer of them than `n`.

    Args:
        prompts: Alignment prompts; repeated ones count once.
        answers: Benign answers.
        n: Number of rows, each with another prompt.
        seed: Decides the prompts and the pairing.

    Raises:
        UsageError: Fewer than `n` prompts, fewer than two answers, or an empty answer.
    """
    places = list({prompt.strip(): i for i, prompt in enumerate(prompts)}.values())
    if not 1 <= n <= len(places) or len(answers) < 2 or not all(a.strip() for a in answers):
        raise UsageError(
            f"n={n} mismatched rows need as many prompts (there are {len(places)}) and two or "
            f"more answers, none empty (there are {sum(bool(a.strip()) for a in answers)})"
        )
    rng = np.random.default_rng(seed)
    order = [places[i] for i in rng.permutation(len(places))]
    # A cyclic shift of a permutation has no fixed point, so nobody meets their own answer.
    partners = np.roll(order, -1) if len(prompts) == len(answers) else rng.permutation(len(answers))
    if len(partners) < 2:
        raise UsageError("mismatched rows need two different prompts; there is one")
    rows = (Example(prompts[order[k]], answers[int(partners[k % len(partners)])]) for k in range(n))
    return Examples(rows, name="mismatched")


def bucket(prompt: str) -> int:
    """Return 0 to 99 by the prompt's content: a split that no reordering of the file changes."""
    return int(hashlib.sha256(prompt_text(prompt).encode()).hexdigest(), 16) % 100


# --------------------------------------------------------------------------- from table to rows


def _check(options: ReadOptions) -> None:
    for wanted in options.columns:
        if wanted not in _WANTED:
            raise UsageError(f"columns: {wanted!r} is not one of {', '.join(_WANTED)}")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"limit={options.limit} must be at least 1, or None for all rows")


def _clean(spec: str, table: _Table, options: ReadOptions) -> Examples:
    names: dict[str, str] | None = None
    rows: list[Example] = []
    seen: dict[str, str] = {}
    dropped = {"empty": 0, "repeated": 0}
    for raw in table.rows:
        names = names or _names(raw.where, table.columns, options)
        row = _example(raw, names, needs_response=options.needs_response)
        identity = row.id
        empty = _empty(row, needs_response=options.needs_response)
        if empty or identity in seen:
            if not options.drop_invalid:
                what = f"empty {empty}" if empty else f"repeats {seen[identity]}"
                raise DataError(
                    f"{raw.where}: {what}; mend or remove the row, or drop all such rows with "
                    "--drop-invalid"
                )
            dropped["empty" if empty else "repeated"] += 1
            continue
        seen[identity] = raw.where
        rows.append(row)
        if len(rows) == options.limit:
            break
    counts = f"dropped {dropped['empty']} empty and {dropped['repeated']} repeated rows"
    if not rows:
        raise DataError(f"{spec}:1: no rows ({counts}); give a file that has some")
    if any(dropped.values()):
        logger.warning("%s: %s", spec, counts)
    return Examples(rows, name=spec)


def _empty(row: Example, *, needs_response: bool) -> str:
    if not row.prompt.strip():
        return "prompt"
    return "response" if needs_response and not row.response.strip() else ""


def _names(where: str, found: Sequence[str], options: ReadOptions) -> dict[str, str]:
    """Find out which column holds what."""
    given = {"licence" if k == "license" else k: v for k, v in options.columns.items()}
    missing = [column for column in given.values() if column not in found]
    wanted = ("prompt", "response") if options.needs_response else ("prompt",)
    if not missing and "messages" not in given:
        for needed in (("prompt", "response"), wanted):
            for layout in _LAYOUTS:
                names = {**layout, **given}
                if all(names[key] in found for key in needed):
                    # Alpaca's convention: an instruction may have an input to work on.
                    extra = {"input": "input"} if names["prompt"] == "instruction" else {}
                    return {**extra, **names}
    messages = given.get("messages", "messages")
    if not missing and messages in found:
        return {**given, "messages": messages}
    lacking = ", ".join(repr(column) for column in missing) or " and ".join(wanted)
    if len(found) == 1 and ";" in found[0]:
        raise DataError(
            f"{where}: no column for {lacking}; found {found[0]}, columns parted by semicolons. "
            "Save it with commas, or as .tsv with tabs"
        )
    raise DataError(
        f"{where}: no column for {lacking}; found {', '.join(found) or 'none'}. Name them with "
        "--columns prompt=...,response=..."
    )


def _example(raw: _Raw, names: Mapping[str, str], *, needs_response: bool) -> Example:
    provenance = _provenance(raw, names)
    if "messages" in names:
        column = names["messages"]
        where = f"{raw.where}: {column}"
        both = exchange(where, raw.row.get(column), needs_response=needs_response)
        return Example(*both, provenance)
    prompt = _text(raw, names["prompt"])
    if names.get("input") in raw.row:
        extra = _text(raw, names["input"])
        prompt = f"{prompt}\n{extra}" if prompt.strip() and extra.strip() else prompt
    response = ""
    if needs_response or names["response"] in raw.row:
        response = _text(raw, names["response"])
    return Example(prompt, response, provenance)


def _text(raw: _Raw, column: str) -> str:
    if column not in raw.row:
        raise DataError(
            f"{raw.where}: no {column!r}, though other rows have it (this one has "
            f"{', '.join(raw.row) or 'nothing'}); add it or remove the row"
        )
    value = raw.row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise DataError(
            f"{raw.where}: {column} is not text but {kind} {value!r:.60}; put it in quotes, or "
            "name another column with --columns"
        )
    return _encodable(raw.where, column, value)


def _encodable(where: str, column: str, value: str) -> str:
    # JSON can spell half of a surrogate pair ("\ud83d"), which no file or hash can hold.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {column} has half a character ({value[error.start]!r}) at position "
            f"{error.start + 1}; the text was cut inside a surrogate pair, write it again"
        ) from error
    return value


def exchange(where: str, turns: object, *, needs_response: bool = True) -> tuple[str, str]:
    """Return prompt and response of a list of {"role", "content"}, with or without a system turn.

    Raises:
        DataError: It is no such list, or holds more than one exchange; `where` it stands is said.
    """
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns
    ):
        raise DataError(f"{where} must be a list of {{role, content}}, not {turns!r:.60}")
    roles = [str(turn["role"]) for turn in turns]
    texts = [_text(_Raw(where, turn), "content") for turn in turns]
    system = texts.pop(0) if roles[:1] == ["system"] else ""
    asked = roles[1:] if roles[:1] == ["system"] else roles
    if asked != ["user", "assistant"] and (needs_response or asked != ["user"]):
        raise DataError(
            f"{where} has the turns {', '.join(roles) or 'none'}; one user turn "
            "and one answer are wanted. Keep one exchange of the conversation."
        )
    prompt = f"{system}\n\n{texts[0]}" if system.strip() and texts[0].strip() else texts[0]
    return prompt, texts[1] if len(texts) > 1 else ""


def _provenance(raw: _Raw, names: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for column in PROVENANCE:
        sources = [names.get(column, column)]
        if sources == ["licence"]:
            sources.append("license")
        for source in sources:
            label = _label(raw.where, source, raw.row.get(source))
            if label:
                found[column] = label
                break
    return found


def _label(where: str, column: str, value: object) -> str:
    """Return a provenance value as text; "" when it is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return _encodable(where, column, value.strip())
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, dict) and all(flag in (True, False, None) for flag in value.values()):
        true = "|".join(sorted(str(name) for name, flag in value.items() if flag))
        # All False is knowledge ("none of these"); a missing flag, or no flags, is not.
        return true or ("" if None in value.values() or not value else "none")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "|".join(sorted(value))
    raise DataError(
        f"{where}: {column} is {value!r:.60}; write text, a list of texts or {{name: true/false}}"
    )


# -------------------------------------------------------------------------- from file to table


def _open(path: Path) -> _Table:
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
        raise DataError(
            f"{path}:{line + error.lineno - 1}: invalid JSON at column {error.colno} "
            f"({error.msg}); mend it (is the file cut off?). One object a line is .jsonl, "
            "one list of objects is .json."
        ) from error
    except (ValueError, RecursionError) as error:  # numbers of 5,000 digits, nesting without end
        raise DataError(f"{path}:{line}: cannot be read as JSON ({error}); mend it") from error


def _object(path: Path, line: int, value: object) -> _Raw:
    if not isinstance(value, dict):
        raise DataError(f"{path}:{line}: {value!r:.60} is not an object; write {{column: value}}")
    return _Raw(f"{path}:{line}", value)


def _jsonl(path: Path, content: bytes) -> _Table:
    # Not splitlines(): a JSON string may hold U+2028 and other separators as they are.
    lines = enumerate(_decode(path, content).split("\n"), start=1)
    rows = [_object(path, n, _parse(path, n, line)) for n, line in lines if line.strip()]
    return _Table(list(dict.fromkeys(key for raw in rows for key in raw.row)), iter(rows))


def _json(path: Path, content: bytes) -> _Table:
    text = _decode(path, content)
    if not isinstance(_parse(path, 1, text), list):
        raise DataError(f"{path}:1: not a list of objects; write [{{...}}, {{...}}]")
    # Known to be valid now; read again one element at a time to learn their lines.
    rows, decoder, position = [], json.JSONDecoder(), text.index("[") + 1
    line, counted = 1, 0
    while text[(position := _skip(text, position))] != "]":
        line, counted = line + text.count("\n", counted, position), position
        value, position = decoder.raw_decode(text, position)
        rows.append(_object(path, line, value))
    return _Table(list(dict.fromkeys(key for raw in rows for key in raw.row)), iter(rows))


def _skip(text: str, position: int) -> int:
    found = re.compile(r"[\s,]*").match(text, position)
    return found.end() if found else position


def _delimited(path: Path, content: bytes, *, delimiter: str) -> _Table:
    records = _records(path, _decode(path, content), delimiter)
    line, header = next(records)
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(f"{path}:{line}: two columns are named {repeated[0]!r}; rename one")

    def rows() -> Iterator[_Raw]:
        for line, record in records:
            if len(record) != len(header):
                raise DataError(
                    f"{path}:{line}: {len(record)} fields, the header has {len(header)}; put "
                    f'"..." around a field that holds {delimiter!r} or a line break'
                )
            yield _Raw(f"{path}:{line}", dict(zip(header, record, strict=True)))

    return _Table(header, rows())


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not blank with the line on which each begins."""
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


def _parquet(path: Path, content: bytes) -> _Table:
    import pyarrow
    from pyarrow import parquet

    def rows() -> Iterator[_Raw]:
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield _Raw(f"{path}: row {number}", row)

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error}); write it again") from error
    return _Table(list(file.schema_arrow.names), rows())


def _hub(spec: str, split: str) -> _Table:
    import datasets

    name, _, config = spec.partition(":")
    try:
        found = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"{spec!r}: no such file, and the hub could not be read: {error}. Give the path of a "
            "file, or check the data set's name and split and the network."
        ) from error
    rows = (_Raw(f"{spec}: row {n}", row) for n, row in enumerate(found, start=1))
    return _Table(list(found.column_names), rows)


_READERS: dict[str, Callable[[Path, bytes], _Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".parquet": _parquet,
}
