"""The spec of rows: where they are, how they are read, and which of them are selected.

    data.jsonl,is_safe=true,category=[fraud,drugs]
    data.jsonl,columns=[prompt=question,response=reply],exchange=last

The options `columns`, `split` and `exchange` say how to read; any other option selects rows by the
column of that name, and `not_COLUMN` leaves rows out. A name in quotes is always a column.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from holdfast.errors import UsageError
from holdfast.options import unknown_option
from holdfast.rows.cells import NONE_OF_THEM, is_flags, structured
from holdfast.rows.tables import printable
from holdfast.rows.turns import Pick
from holdfast.specs import NULL, Bare, QuotedKey, Spec, Value, parse, value_text, write

NOT = "not_"
"""Beginning of an option that leaves rows out."""
MOST_VALUES = 12
"""Values that a message lists."""
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class RowSpec:
    """A parsed spec of rows.

    Attributes:
        source: File, folder, hub data set, "world:NAME" or "policy:NAME".
        columns: Role -> column, or None where the role is not to be read; None if not given.
        split: Split of a folder or a hub data set, or value of the column "split"; "" if not given.
        exchange: Which exchange of a conversation is read; None refuses conversations of several.
        conditions: Option -> value, as written.
    """

    source: str
    columns: Mapping[str, str | None] | None
    split: str
    exchange: Pick | None
    conditions: Mapping[str, Value]
    spec: Spec

    def adding(self, options: Mapping[str, Any]) -> str:
        """Return the spec with more options, as it is typed."""
        merged = {**self.spec.options, **options}
        if "columns" in options and self.columns:
            merged["columns"] = columns_text({**self.columns, **options["columns"]})
        elif "columns" in options:
            merged["columns"] = columns_text(options["columns"])
        return write(self.spec.name, merged)


def columns_text(columns: Mapping[str, str | None]) -> Value:
    """Return the value of the option `columns`."""
    texts = {role: NULL if column is None else column for role, column in columns.items()}
    quoted = {role: f'"{NULL}"' for role, column in columns.items() if column == NULL}
    pairs = tuple(f"{role}={column}" for role, column in {**texts, **quoted}.items())
    return pairs if len(pairs) != 1 else pairs[0]


def parse_rows(text: str) -> RowSpec:
    """Parse the spec of rows.

    Raises:
        UsageError: It does not follow the grammar, or an option has a wrong value.
    """
    spec = _parsed(text)
    options = dict(spec.options)

    def taken(name: str) -> Value | None:
        # A quoted name is the name of a column.
        quoted = any(isinstance(key, QuotedKey) and key == name for key in options)
        return None if quoted else options.pop(name, None)

    columns = taken("columns")
    split = taken("split")
    return RowSpec(
        source=spec.name,
        columns=None if columns is None else _columns(text, columns),
        split="" if split is None else _one_text(text, "split", split),
        exchange=_exchange(text, taken("exchange")),
        conditions=options,
        spec=spec,
    )


def _parsed(text: str) -> Spec:
    problem: UsageError | None = None
    spec = Spec(text)
    try:
        spec = parse(text)
    except UsageError as error:
        problem = error
    if (problem or spec.options) and _exists(text):
        raise UsageError(
            f"{text!r}: a comma in the name of a file is read as the beginning of an option; put "
            f"the name in quotes: '{write(text, {})}'"
        )
    if problem is not None:
        raise problem
    return spec


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, or of no user
        return False


def _one_text(text: str, name: str, value: Value) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{text!r}: {name}={value_text(value)} must be one text")
    return str(value)


def _exchange(text: str, value: Value | None) -> Pick | None:
    if value is None:
        return None
    if value not in get_args(Pick):
        raise UsageError(f"{text!r}: exchange={value_text(value)} must be first or last")
    return cast("Pick", str(value))


def _columns(text: str, value: Value) -> dict[str, str | None]:
    pairs = value if isinstance(value, tuple) else (value,)
    columns: dict[str, str | None] = {}
    for pair in pairs:
        role, equals, column = str(pair).partition("=")
        if not equals or not column or isinstance(pair, Spec):
            raise UsageError(
                f"{text!r}: columns={value_text(value)} must be ROLE=COLUMN or "
                "[ROLE=COLUMN,ROLE=COLUMN]"
            )
        columns[role.strip()] = _column(column.strip())
    return columns


def _column(text: str) -> str | None:
    if text == NULL:
        return None
    if text[:1] in "\"'" and text[-1:] == text[:1] and len(text) > 1:
        return re.sub(r"\\([\"'\\])", r"\1", text[1:-1])
    return text


# ------------------------------------------------------------------------------ selections


@dataclass(frozen=True)
class Condition:
    """A selection of rows by one column.

    Attributes:
        option: The option as written, e.g. "not_category".
        path: The column, and the keys inside its objects.
        values: Values of which a row must have one.
        excluded: Whether the rows that have one of the values are left out instead.
    """

    option: str
    path: tuple[str, ...]
    values: tuple[Value, ...]
    excluded: bool

    @property
    def column(self) -> str:
        """The column."""
        return self.path[0]

    def holds(self, row: Mapping[str, object]) -> bool:
        """Return whether a row is selected."""
        members = self.members(row)
        included = any(_equal(value, member) for value in self.values for member in members)
        return included != self.excluded

    def members(self, row: Mapping[str, object]) -> list[object]:
        """Return what a row has in the column; several values for lists and objects of flags."""
        value = structured(row.get(self.path[0]))
        for key in self.path[1:]:
            value = structured(value.get(key)) if isinstance(value, dict) else None
        if is_flags(value) and value:
            names = sorted(name for name, flag in value.items() if flag)
            if not names:
                return [None if None in value.values() else NONE_OF_THEM]
            return _with_label(names)
        if isinstance(value, list) and value:
            return _with_label(value)
        return [value]


def _with_label(names: list[Any]) -> list[object]:
    """Return several values and their label, as it is in the provenance of a row."""
    texts = all(isinstance(name, str) for name in names)
    return [*names, "|".join(sorted(names))] if texts and len(names) > 1 else names


def _equal(value: Value, member: object) -> bool:
    """Return whether a cell is the value that was typed; the file's format makes no difference."""
    if not isinstance(value, str):
        return False
    text = shown_value(member)
    if not isinstance(value, Bare):
        return text == value
    if value == NULL:
        return not text.strip()
    if value.lower() in ("true", "false"):
        return text.strip().lower() == value.lower()
    if _NUMBER.fullmatch(value) and _NUMBER.fullmatch(text.strip()):
        return float(value) == float(text)
    return text.strip() == value


def shown_value(value: object) -> str:
    """Return a cell as the text that selects it; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def typed_value(value: object) -> Value:
    """Return a cell as a value of a spec."""
    text = shown_value(value)
    return text if isinstance(value, str) and text else Bare(text or NULL)


def conditions_of(
    text: str,
    options: Mapping[str, Value],
    columns: Sequence[str],
    roles: Mapping[str, str | None],
) -> list[Condition]:
    """Return the selections of a spec for a table.

    Args:
        text: The spec, for messages.
        options: Option -> value.
        columns: The table's columns.
        roles: Role -> column, as the user named them; a role selects by its column.

    Raises:
        UsageError: The table has no such column.
    """
    paths = {column: column for column in columns}
    paths |= {role: column for role, column in roles.items() if column and role not in paths}
    return [_condition(text, name, value, paths) for name, value in options.items()]


def _condition(text: str, name: str, value: Value, columns: Mapping[str, str]) -> Condition:
    values = value if isinstance(value, tuple) else (value,)
    path = _path(name, columns)
    if path:
        return Condition(name, path, values, excluded=False)
    path = _path(name.removeprefix(NOT), columns) if name.startswith(NOT) else ()
    if path:
        return Condition(name, path, values, excluded=True)
    rule = unknown_option(name, [*columns]).replace("is not an option", "is not a column")
    rule = rule.replace("The options are", "The columns are")
    raise UsageError(
        printable(
            f"{text!r}: {name} {rule}; columns=..., split=... and exchange=... say how to read"
        )
    )


def _path(name: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Return the column of an option, and the keys inside it; empty if there is none."""
    if name in columns:
        return (columns[name],)
    other = {"licence": "license", "license": "licence"}.get(name)
    if other is not None and other in columns:
        return (columns[other],)
    column, dot, key = name.partition(".")
    return (columns[column], *key.split(".")) if dot and column in columns else ()


class Selection:
    """Selects rows, and counts the values that it meets to report them if it selects none.

    Args:
        text: The spec, for messages.
        conditions: The selections; a row must satisfy all.
    """

    def __init__(self, text: str, conditions: Sequence[Condition]) -> None:
        self.text = text
        self.conditions = conditions
        self.selected = 0
        self._values: list[Counter[str]] = [Counter() for _ in conditions]

    def holds(self, row: Mapping[str, object]) -> bool:
        """Return whether a row is selected."""
        for condition, values in zip(self.conditions, self._values, strict=True):
            values.update(value_text(typed_value(m)) for m in condition.members(row))
            if not condition.holds(row):
                return False
        self.selected += 1
        return True

    def check(self) -> None:
        """Check that a row was selected.

        Raises:
            UsageError: None was; the message lists the values that there are.
        """
        if self.selected or not any(self._values):
            return
        # The last condition that met rows is the one that none of them satisfied.
        position = max(i for i, values in enumerate(self._values) if values)
        condition, values = self.conditions[position], self._values[position]
        counts = [f"{value:.60} ({count})" for value, count in values.most_common(MOST_VALUES)]
        more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
        column = ".".join(condition.path)
        before = " among the rows selected so far" if position else ""
        raise UsageError(
            printable(
                f"{self.text!r}: no such rows; the values of {column}{before} are "
                f"{', '.join(counts)}{more}"
            )
        )
