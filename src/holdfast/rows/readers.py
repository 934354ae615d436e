"""Reading rows from a file, a folder, a hub data set or the embedded world.

A few unusable rows are left out and counted. Many of them are an error, because the data set is
probably not what the user thinks it is. Every message names the file, the line and the way out.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples, LeftOut, Mark, count_reasons
from holdfast.rows.cells import is_flags, structured
from holdfast.rows.files import has_splits, open_table
from holdfast.rows.layouts import (
    ROLES,
    Layout,
    exchange_of,
    is_preferred,
    layout_of,
    provenance_of,
)
from holdfast.rows.marks import (
    CHOSEN,
    FLAGS,
    Use,
    check_marks,
    mark_columns,
    marks_of,
    nested_columns,
)
from holdfast.rows.numbered import one_response_per_row
from holdfast.rows.remedies import FileRemedies, Remedies
from holdfast.rows.row_specs import RowSpec, Selection, conditions_of, parse_rows
from holdfast.rows.tables import OTHER_LAYOUT, UNREADABLE, Raw, RowError, Table, printable
from holdfast.rows.thoughts import UNFINISHED, split
from holdfast.rows.turns import NOT_TRAINED, SEVERAL, TOOLS, Pick
from holdfast.specs import Value

logger = logging.getLogger(__name__)

EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
DUPLICATE = "duplicate"
REPEATED_PROMPT = "prompt repeated"
ASKS_TEST_PROMPT = "prompt is in the test set"
REASONS = (
    UNREADABLE,
    OTHER_LAYOUT,
    SEVERAL,
    TOOLS,
    NOT_TRAINED,
    UNFINISHED,
    EMPTY_PROMPT,
    EMPTY_RESPONSE,
    DUPLICATE,
)
"""Reasons why `read` leaves rows out."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read rows.

    Attributes:
        columns: Role -> column of the file, e.g. {"prompt": "question"}; other roles are
            detected. Roles: prompt, response, input (appended to the prompt), messages, system,
            history, safe (marks the safe rows), and the columns of `examples.PROVENANCE`. None
            instead of a column: the role is not read. `columns=` in a spec replaces them.
        strict: Raise an error for the first row that cannot be used, instead of leaving it out.
        max_left_out: Largest share of rows, in [0, 1], that may be left out.
        limit: Read at most this many rows (None: all).
        split: Split of a folder or hub data set; "" for "train" of the hub, or a folder's only one.
        needs_response: False if only the prompts are used: the response may be missing or empty.
        use: What the rows are used for; rows that are marked as the opposite are then an error.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    strict: bool = False
    max_left_out: float = 0.05
    limit: int | None = None
    split: str = ""
    needs_response: bool = True
    use: Use | None = None


@dataclass(frozen=True)
class Selecting:
    """What a spec says of the rows of a table.

    Attributes:
        text: The spec, for messages.
        options: Column -> values of the rows that are selected.
        pick: Which exchange of a conversation is read.
    """

    text: str = ""
    options: Mapping[str, Value] = field(default_factory=dict)
    pick: Pick | None = None


_DEFAULTS = ReadOptions()
_ALL = Selecting()


def read(spec: str, options: ReadOptions = _DEFAULTS) -> Examples:
    """Read rows.

    Columns are detected: prompt and response, instruction(+input) and output, question and answer,
    prompt and completion, conversations, preferences and others; see docs/inputs.md. Other columns
    are ignored, except for those of `examples.PROVENANCE`, which are kept.

    Rows that are unreadable, empty, repeated or in a different layout are left out: see
    `Examples.left_out`.

    Args:
        spec: "world:NAME", "policy:NAME", a file, a folder, or the name of a hub data set
            ("name" or "name:config"). ",COLUMN=value" reads only the rows with this value,
            ",not_COLUMN=[a,b]" only the others; see `rows.row_specs`.
        options: See `ReadOptions`.

    Raises:
        DataError: The file cannot be read, more rows than `max_left_out` cannot be used, or rows
            are marked as the opposite of what they are used for.
        UsageError: An option is invalid, no row is selected, or no file or data set has this name.
    """
    row_spec = parse_rows(spec)
    if row_spec.columns is not None:
        options = replace(options, columns=row_spec.columns)
    _check(options)
    remedies = FileRemedies(spec)
    if is_shipped(row_spec.source):
        rows = _shipped(spec, row_spec, options)
    else:
        table, selecting = _open(spec, row_spec, options)
        rows = usable_rows(spec, table, options, remedies, selecting)
    check_marks(rows, options.use, remedies)
    return rows


def _open(spec: str, row_spec: RowSpec, options: ReadOptions) -> tuple[Table, Selecting]:
    """Open the table of a spec; in a single file, `split` selects by the column of that name."""
    conditions = dict(row_spec.conditions)
    table = open_table(row_spec.source, row_spec.split or options.split)
    if row_spec.split and not has_splits(row_spec.source):
        if "split" not in table.columns:
            raise UsageError(
                f"{spec!r}: {row_spec.source} is a single file without a column 'split'; leave "
                "split= out"
            )
        conditions["split"] = row_spec.spec.options["split"]
    return table, Selecting(spec, conditions, row_spec.exchange)


def is_shipped(source: str) -> bool:
    """Return whether a spec names rows that ship with holdfast: "world:NAME" or "policy:NAME"."""
    return source.startswith(("world:", "policy:"))


def _shipped(spec: str, row_spec: RowSpec, options: ReadOptions) -> Examples:
    from holdfast import policy, world

    package, _, name = row_spec.source.partition(":")
    rows = policy.rows(name) if package == "policy" else world.rows(name)
    if options.needs_response and not all(rows.responses):
        raise DataError(
            f"{row_spec.source} has prompts without responses, and responses are needed here. Have "
            "a model answer the prompts, and use the file of its answers"
        )
    if row_spec.conditions:
        raw = [{"prompt": r.prompt, "response": r.response, **r.provenance} for r in rows]
        columns = list(dict.fromkeys(column for row in raw for column in row))
        selection = Selection(spec, conditions_of(spec, row_spec.conditions, columns, {}))
        rows = rows.select([i for i, row in enumerate(raw) if selection.holds(row)])
        selection.check()
        rows = Examples(rows, name=spec)
    return rows[: options.limit]


def _check(options: ReadOptions) -> None:
    for role in options.columns:
        if role not in ROLES:
            raise UsageError(f"columns: {role!r} is not one of {', '.join(ROLES)}")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"limit={options.limit} must be at least 1, or None for all rows")
    if not 0 <= options.max_left_out <= 1:
        raise UsageError(f"max_left_out={options.max_left_out:g} must be between 0 and 1")


# --------------------------------------------------------------------------------- tables


def usable_rows(
    name: str,
    table: Table,
    options: ReadOptions,
    remedies: Remedies,
    selecting: Selecting = _ALL,
) -> Examples:
    """Return the usable rows of a table, up to the limit.

    Args:
        name: Name of the table in messages.
        table: Raw rows.
        options: See `ReadOptions`.
        remedies: Words for the way out.
        selecting: Which rows are read, and how.

    Raises:
        DataError: More rows than `max_left_out` cannot be used, or none can.
        UsageError: No row is selected.
    """
    reader = _TableReader(table, options, remedies, selecting)
    rows: dict[str, Example] = {}
    places: dict[str, str] = {}
    unusable: list[RowError] = []
    left_out: list[LeftOut] = []
    for raw in reader.selected():
        identity = ""
        try:
            if isinstance(raw, RowError):
                raise raw
            row = reader.example(raw)
            identity = row.id
            if identity in rows:
                rows[identity] = _with_marks_of(rows[identity], row)
            _check_row(raw.place, row, places.get(identity), options)
        except RowError as error:
            if options.strict:
                raise DataError(f"{error}; {remedies.not_strict()}") from error
            unusable.append(error)
            left_out.append(LeftOut(error.place, error.reason, identity, error.problem))
            continue
        places[identity] = raw.place
        rows[identity] = row
        if len(rows) == options.limit:
            break
    reader.selection.check()
    _check_share(name, len(rows), unusable, left_out, options, remedies)
    if reader.n_cut:
        warn_once(
            f"{name}: {reader.n_cut} of {len(rows)} rows are the {selecting.pick} exchange of "
            "several; the others are not read"
        )
    if reader.n_thoughts:
        warn_once(
            f"{name}: {reader.n_thoughts} of {len(rows)} responses begin with a think block; it is "
            "not read, and what follows is the response"
        )
    return Examples(rows.values(), name=name, left_out=left_out)


class _TableReader:
    """Reads the rows of one table.

    Args:
        table: Raw rows.
        options: See `ReadOptions`.
        remedies: Words for the way out.
        selecting: Which rows are read, and how.
    """

    def __init__(
        self, table: Table, options: ReadOptions, remedies: Remedies, selecting: Selecting
    ) -> None:
        named = [column for column in options.columns.values() if column]
        chosen = [option.removeprefix("not_") for option in selecting.options]
        self.table = one_response_per_row(table, {*named, *chosen, *selecting.options})
        self.options = options
        self.remedies = remedies
        self.selecting = selecting
        self.selection = Selection(
            selecting.text,
            conditions_of(selecting.text, selecting.options, self.table.columns, options.columns)
            if selecting.options
            else [],
        )
        self.n_cut = 0
        self.n_thoughts = 0
        self._layout: Layout | None = None
        self._marking: Mapping[str, str] = {}
        self._used: Container[str] = ()
        self._flags: Mapping[str, dict[str, None]] = {}

    def selected(self) -> Iterator[Raw | RowError]:
        """Yield the rows that are selected, and those that cannot be parsed."""
        rows = self.table.rows
        if not self.table.uniform:
            rows = list(rows)
            self._flags = _all_flags(rows, self._flag_columns())
        for raw in rows:
            if isinstance(raw, RowError) or self.selection.holds(raw.row):
                yield raw

    def _flag_columns(self) -> list[str]:
        named = self.options.columns.get("category")
        return [c for c in self.table.columns if c == named or c.strip().lower() in FLAGS]

    def example(self, raw: Raw) -> Example:
        """Return a row as an example.

        Raises:
            DataError: The table has no column for a role.
            RowError: The row cannot be used.
        """
        layout = self._layout or self._detect(raw)
        if self._flags:
            raw = raw._replace(row=_with_all_flags(raw.row, self._flags))
        exchange = exchange_of(
            raw,
            layout,
            needs_response=self.options.needs_response,
            pick=self.selecting.pick,
        )
        provenance = provenance_of(raw, layout)
        if self.selecting.pick is not None:
            provenance["exchange"] = (
                f"{self.selecting.pick} of several" if exchange.cut else "only one"
            )
        self.n_cut += exchange.cut
        response = self._answer(raw.place, exchange.response)
        return Example(exchange.prompt, response, provenance, self._marks(raw, layout))

    def _answer(self, place: str, text: str) -> str:
        """Return the response without the thoughts before it."""
        response = split(text)
        if response.unfinished and self.options.needs_response:
            problem = "the response ends inside a think block, so it holds no answer"
            raise RowError(place, UNFINISHED, problem)
        self.n_thoughts += bool(response.thoughts)
        return response.text

    def _detect(self, raw: Raw) -> Layout:
        columns = self.options.columns
        self._layout = layout_of(
            raw,
            self.table,
            columns,
            needs_response=self.options.needs_response,
            remedies=self.remedies,
        )
        if columns.get("safe", "") is not None:
            response = self._layout.response or self._layout.messages
            marking = mark_columns(self.table.columns, response, columns.get("safe"))
            paths = [condition.path for condition in self.selection.conditions]
            self._used = {".".join(path[:n]) for path in paths for n in (1, len(path))}
            self._marking = {c: base for c, base in marking.items() if c not in self._used}
        return self._layout

    def _marks(self, raw: Raw, layout: Layout) -> tuple[Mark, ...]:
        named = self.options.columns
        response = layout.response or layout.messages
        columns = self._marking
        if "safe" not in named:
            columns = {**columns, **nested_columns(raw.row, response, self._used)}
        marks = marks_of(raw.row, columns, has_response=bool(response))
        if is_preferred(layout) and "response" not in named and "messages" not in named:
            return (
                *marks,
                Mark(CHOSEN, layout.response or layout.messages, "preferred", safe=True),
            )
        return marks


def _all_flags(
    rows: Iterable[Raw | RowError], columns: Sequence[str]
) -> dict[str, dict[str, None]]:
    """Return the flags that any row has in a column, as Arrow would add them to all rows."""
    flags: dict[str, dict[str, None]] = {}
    for column in columns:
        for raw in rows:
            value = structured(raw.row.get(column)) if isinstance(raw, Raw) else None
            if isinstance(value, dict) and is_flags(value):
                flags.setdefault(column, {}).update(dict.fromkeys(value))
    return flags


def _with_all_flags(
    row: Mapping[str, object], flags: Mapping[str, dict[str, None]]
) -> Mapping[str, object]:
    filled = dict(row)
    for column, missing in flags.items():
        value = structured(row.get(column))
        if isinstance(value, dict):
            filled[column] = {**missing, **value}
    return filled


def _with_marks_of(row: Example, other: Example) -> Example:
    """Return a row with the marks of its duplicate, which may say the opposite."""
    return replace(row, marks=tuple(dict.fromkeys((*row.marks, *other.marks))))


def _check_row(place: str, row: Example, earlier: str | None, options: ReadOptions) -> None:
    if not row.prompt.strip():
        raise RowError(place, EMPTY_PROMPT, EMPTY_PROMPT)
    if options.needs_response and not row.response.strip():
        raise RowError(place, EMPTY_RESPONSE, EMPTY_RESPONSE)
    if earlier is not None:
        raise RowError(place, DUPLICATE, f"repeats {earlier}")


def _check_share(
    name: str,
    used: int,
    unusable: Sequence[RowError],
    left_out: Sequence[LeftOut],
    options: ReadOptions,
    remedies: Remedies,
) -> None:
    """Reject a data set with too many unusable rows; otherwise report the counts."""
    if not used and not unusable:
        raise DataError(f"{name}:1: no rows; give a file that has some")
    if not unusable:
        return
    total = used + len(unusable)
    counts = in_words(count_reasons(left_out))
    way_out = ""
    if any(error.reason == SEVERAL for error in unusable):
        way_out = f". {remedies.one_exchange()}"
    if not used:
        raise DataError(f"{unusable[0]}; no rows: all {total} cannot be used ({counts}){way_out}")
    if len(unusable) > options.max_left_out * total:
        way_out = f"{remedies.leaving_out()}{way_out}"
        raise DataError(
            f"{unusable[0]}; {len(unusable)} of {total} rows cannot be used ({counts}), more than "
            f"the {options.max_left_out:.0%} that may be left out: {way_out}"
        )
    warn_once(f"{name}: {len(unusable)} of {total} rows left out ({counts})")


def in_words(counts: Mapping[str, int]) -> str:
    """Return counts as "3 duplicate, 1 empty response"."""
    return ", ".join(f"{number} {reason}" for reason, number in counts.items())


@cache
def warn_once(message: str) -> None:
    """Log a warning, once per process."""
    logger.warning(printable(message))
