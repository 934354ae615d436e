"""Reading rows from a file, a hub data set or the embedded world.

A few unusable rows are left out and counted. Many of them are an error, because the data set is
probably not what the user thinks it is. Every message names the file, the line and the way out.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from holdfast.errors import DataError, UsageError
from holdfast.examples import PROVENANCE, Example, Examples, LeftOut, count_reasons
from holdfast.rows.provenance import selected
from holdfast.rows.tables import UNREADABLE, Raw, RowError, Table, open_table

logger = logging.getLogger(__name__)

EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
DUPLICATE = "duplicate"
OTHER_LAYOUT = "other layout"
REPEATED_PROMPT = "prompt repeated"
ASKS_TEST_PROMPT = "prompt is in the test set"
REASONS = (UNREADABLE, OTHER_LAYOUT, EMPTY_PROMPT, EMPTY_RESPONSE, DUPLICATE)
"""Reasons why `read` leaves rows out."""

_LAYOUTS = (
    {"prompt": "prompt", "response": "response"},
    {"prompt": "instruction", "response": "output"},
    {"prompt": "question", "response": "answer"},
)
_COLUMNS = ("prompt", "response", "input", "messages", *PROVENANCE, "license")


@dataclass(frozen=True)
class ReadOptions:
    """How to read rows.

    Attributes:
        columns: Role -> column of the file, e.g. {"prompt": "question"}; other roles are
            detected. Roles: prompt, response, input (appended to the prompt), messages, and the
            columns of `examples.PROVENANCE`.
        strict: Raise an error for the first row that cannot be used, instead of leaving it out.
        max_left_out: Largest share of rows, in [0, 1], that may be left out.
        limit: Read at most this many rows (None: all).
        split: Split of a hub data set.
        needs_response: False if only the prompts are used: the response may be missing or empty.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    max_left_out: float = 0.05
    limit: int | None = None
    split: str = "train"
    needs_response: bool = True


_DEFAULTS = ReadOptions()


def read(spec: str, options: ReadOptions = _DEFAULTS) -> Examples:
    """Read rows.

    Columns are prompt/response, instruction(+input)/output, question/answer or messages (one user
    turn and one answer; a system turn is put before the prompt, as chat templates without a system
    role do). Other columns are ignored, except for those of `examples.PROVENANCE`, which are kept.

    Rows that are unreadable, empty, repeated or in a different layout are left out: see
    `Examples.left_out`.

    Args:
        spec: "world:NAME", a file, or the name of a hub data set ("name" or "name:config").
            ",category=[a,b]" reads only the rows of these categories, ",not_category=[a,b]" only
            the others.
        options: See `ReadOptions`.

    Raises:
        DataError: The file cannot be read, or more rows than `max_left_out` cannot be used.
        UsageError: An option is invalid, or no file or data set has this name.
    """
    source, selection = selected(spec)
    return selection(_read(source, options))


def _read(spec: str, options: ReadOptions) -> Examples:
    _check(options)
    if spec.startswith("world:"):
        from holdfast import world

        return world.rows(spec.removeprefix("world:"))[: options.limit]
    return usable_rows(spec, open_table(spec, options.split), options)


def _check(options: ReadOptions) -> None:
    for role in options.columns:
        if role not in _COLUMNS:
            raise UsageError(f"columns: {role!r} is not one of {', '.join(_COLUMNS)}")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"limit={options.limit} must be at least 1, or None for all rows")
    if not 0 <= options.max_left_out <= 1:
        raise UsageError(f"max_left_out={options.max_left_out:g} must be between 0 and 1")


def usable_rows(spec: str, table: Table, options: ReadOptions) -> Examples:
    """Return the usable rows of a table, up to the limit.

    Args:
        spec: Name of the table in messages.
        table: Raw rows.
        options: See `ReadOptions`.

    Raises:
        DataError: More rows than `max_left_out` cannot be used, or none can.
    """
    columns: dict[str, str] | None = None
    rows: dict[str, Example] = {}
    places: dict[str, str] = {}
    unusable: list[RowError] = []
    left_out: list[LeftOut] = []
    for raw in table.rows:
        identity = ""
        try:
            if isinstance(raw, RowError):
                raise raw
            columns = columns or _columns(raw.place, table.columns, options)
            row = _example(raw, columns, needs_response=options.needs_response)
            identity = row.id
            _check_row(raw.place, row, places.get(identity), options)
        except RowError as error:
            if options.strict:
                raise DataError(f"{error}; remove the row, or leave out --strict") from error
            unusable.append(error)
            left_out.append(LeftOut(error.place, error.reason, identity, error.problem))
            continue
        places[identity] = raw.place
        rows[identity] = row
        if len(rows) == options.limit:
            break
    _check_share(spec, len(rows), unusable, left_out, options)
    return Examples(rows.values(), name=spec, left_out=left_out)


def _check_row(place: str, row: Example, earlier: str | None, options: ReadOptions) -> None:
    if not row.prompt.strip():
        raise RowError(place, EMPTY_PROMPT, EMPTY_PROMPT)
    if options.needs_response and not row.response.strip():
        raise RowError(place, EMPTY_RESPONSE, EMPTY_RESPONSE)
    if earlier is not None:
        raise RowError(place, DUPLICATE, f"repeats {earlier}")


def _check_share(
    spec: str,
    used: int,
    unusable: Sequence[RowError],
    left_out: Sequence[LeftOut],
    options: ReadOptions,
) -> None:
    """Reject a data set with too many unusable rows; otherwise report the counts."""
    if not used and not unusable:
        raise DataError(f"{spec}:1: no rows; give a file that has some")
    if not unusable:
        return
    total = used + len(unusable)
    counts = in_words(count_reasons(left_out))
    if not used:
        raise DataError(f"{unusable[0]}; no rows: all {total} cannot be used ({counts})")
    if len(unusable) > options.max_left_out * total:
        raise DataError(
            f"{unusable[0]}; {len(unusable)} of {total} rows cannot be used ({counts}), more than "
            f"the {options.max_left_out:.0%} that may be left out: fix the file, or allow more "
            "with --max-left-out or --drop-invalid"
        )
    warn_once(f"{spec}: {len(unusable)} of {total} rows left out ({counts})")


def in_words(counts: Mapping[str, int]) -> str:
    """Return counts as "3 duplicate, 1 empty response"."""
    return ", ".join(f"{number} {reason}" for reason, number in counts.items())


@cache
def warn_once(message: str) -> None:
    """Log a warning, once per process."""
    logger.warning(message)


def _columns(place: str, present: Sequence[str], options: ReadOptions) -> dict[str, str]:
    """Return the column of each role."""
    named = {"licence" if k == "license" else k: v for k, v in options.columns.items()}
    missing = [column for column in named.values() if column not in present]
    required = ("prompt", "response") if options.needs_response else ("prompt",)
    if not missing and "messages" not in named:
        for roles in (("prompt", "response"), required):
            for layout in _LAYOUTS:
                columns = {**layout, **named}
                if all(columns[role] in present for role in roles):
                    # Alpaca's convention: an instruction may have an input to work on.
                    extra = {"input": "input"} if columns["prompt"] == "instruction" else {}
                    return {**extra, **columns}
    messages = named.get("messages", "messages")
    if not missing and messages in present:
        return {**named, "messages": messages}
    lacking = ", ".join(repr(column) for column in missing) or " and ".join(required)
    if len(present) == 1 and ";" in present[0]:
        raise DataError(
            f"{place}: no column for {lacking}; found {present[0]}, columns separated by "
            "semicolons. Save it with commas, or as .tsv with tabs"
        )
    raise DataError(
        f"{place}: no column for {lacking}; found {', '.join(present) or 'none'}. Name them with "
        "--columns prompt=...,response=..."
    )


def _example(raw: Raw, columns: Mapping[str, str], *, needs_response: bool) -> Example:
    provenance = _provenance(raw, columns)
    if "messages" in columns:
        column = columns["messages"]
        place = f"{raw.place}: {column}"
        try:
            prompt, response = exchange(place, raw.row.get(column), needs_response=needs_response)
        except RowError as error:
            problem = str(error).removeprefix(f"{raw.place}: ")
            raise RowError(raw.place, error.reason, problem) from error
        return Example(prompt, response, provenance)
    prompt = _text(raw, columns["prompt"])
    if columns.get("input") in raw.row:
        extra = _text(raw, columns["input"])
        prompt = f"{prompt}\n{extra}" if prompt.strip() and extra.strip() else prompt
    response = ""
    if needs_response or columns["response"] in raw.row:
        response = _text(raw, columns["response"])
    return Example(prompt, response, provenance)


def _text(raw: Raw, column: str) -> str:
    if column not in raw.row:
        problem = (
            f"no {column!r}, though other rows have it (this one has "
            f"{', '.join(raw.row) or 'nothing'}); add it or remove the row"
        )
        raise RowError(raw.place, OTHER_LAYOUT, problem)
    value = raw.row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        problem = (
            f"{column} is not text but {type(value).__name__} {value!r:.60}; put it in quotes, or "
            "name another column with --columns"
        )
        raise RowError(raw.place, OTHER_LAYOUT, problem)
    return _encodable(raw.place, column, value)


def _encodable(place: str, column: str, value: str) -> str:
    # JSON can spell half of a surrogate pair ("\ud83d"), which no file or hash can contain.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = (
            f"{column} has half a character ({value[error.start]!r}) at position "
            f"{error.start + 1}; the text was cut inside a surrogate pair, write it again"
        )
        raise RowError(place, UNREADABLE, problem) from error
    return value


def exchange(place: str, turns: object, *, needs_response: bool = True) -> tuple[str, str]:
    """Return the prompt and response in a list of {"role", "content"} turns.

    A system turn may come first; it is put before the prompt.

    Args:
        place: Location of the list, for messages.
        turns: The list of turns.
        needs_response: Whether the answer may be missing.

    Raises:
        DataError: It is not such a list, or contains more than one exchange.
    """
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns
    ):
        problem = f"must be a list of {{role, content}}, not {turns!r:.60}"
        raise RowError(place, OTHER_LAYOUT, problem)
    roles = [str(turn["role"]) for turn in turns]
    texts = [_text(Raw(place, turn), "content") for turn in turns]
    system = ""
    if roles[:1] == ["system"]:
        system = texts.pop(0)
    speakers = roles[1:] if roles[:1] == ["system"] else roles
    if speakers != ["user", "assistant"] and (needs_response or speakers != ["user"]):
        problem = (
            f"has the turns {', '.join(roles) or 'none'}; one user turn "
            "and one answer are required. Keep one exchange of the conversation."
        )
        raise RowError(place, OTHER_LAYOUT, problem)
    prompt = f"{system}\n\n{texts[0]}" if system.strip() and texts[0].strip() else texts[0]
    return prompt, texts[1] if len(texts) > 1 else ""


def _provenance(raw: Raw, columns: Mapping[str, str]) -> dict[str, str]:
    labels = {}
    for role in PROVENANCE:
        sources = [columns.get(role, role)]
        if sources == ["licence"]:
            sources.append("license")
        for source in sources:
            label = _label(raw.place, source, raw.row.get(source))
            if label:
                labels[role] = label
                break
    return labels


def _label(place: str, column: str, value: object) -> str:
    """Return a provenance value as text; "" if it is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return _encodable(place, column, value.strip())
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, dict) and all(flag in (True, False, None) for flag in value.values()):
        true = "|".join(sorted(str(name) for name, flag in value.items() if flag))
        # All False is a value ("none of these"); a missing flag, or no flags at all, is unknown.
        return true or ("" if None in value.values() or not value else "none")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "|".join(sorted(value))
    problem = f"{column} is {value!r:.60}; write text, a list of texts or {{name: true/false}}"
    raise RowError(place, OTHER_LAYOUT, problem)
