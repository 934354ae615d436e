"""Ways out that messages name: options of a spec for files, Python for rows in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from holdfast.rows.row_specs import NOT, parse_rows
from holdfast.specs import Bare


class Remedies(Protocol):
    """Words for the way out of a problem with rows."""

    def columns(self, names: Mapping[str, str]) -> str:
        """Return how to name the columns of roles.

        Args:
            names: Role -> column that may be meant.
        """

    def response(self, column: str) -> str:
        """Return how to read the response from another column."""

    def selecting(self, options: Mapping[str, Sequence[str]]) -> str:
        """Return how to select rows by their marks.

        Args:
            options: Column, or "not_COLUMN" -> values as they are typed in a spec.
        """

    def ignoring(self, columns: Sequence[str]) -> str:
        """Return how to use the rows whatever these columns say."""

    def one_exchange(self) -> str:
        """Return how to read one exchange of each conversation."""

    def leaving_out(self) -> str:
        """Return how to go on without the rows that cannot be used."""

    def not_strict(self) -> str:
        """Return how to go on without a single row that cannot be used."""


class FileRemedies:
    """Ways out for rows that have a spec.

    Args:
        spec: The spec.
    """

    def __init__(self, spec: str) -> None:
        self._spec = parse_rows(spec)

    def columns(self, names: Mapping[str, str]) -> str:
        """Return the spec that names columns."""
        if not names:
            return "Write the rows with a prompt and a response column"
        return f"Name them with '{self._spec.adding({'columns': dict(names)})}'"

    def response(self, column: str) -> str:
        """Return the spec that reads the response from another column."""
        return f"Read the others with '{self._spec.adding({'columns': {'response': column}})}'"

    def selecting(self, options: Mapping[str, Sequence[str]]) -> str:
        """Return the spec that selects rows."""
        values: dict[str, Any] = {}
        for option, listed in options.items():
            bare = tuple(Bare(value) for value in listed)
            values[option] = bare if len(bare) > 1 else bare[0]
        return f"Select the others with '{self._spec.adding(values)}'"

    def ignoring(self, columns: Sequence[str]) -> str:
        """Return the spec that looks at no marks."""
        del columns
        return f"use all of them with '{self._spec.adding({'columns': {'safe': None}})}'"

    def one_exchange(self) -> str:
        """Return the spec that reads one exchange of each conversation."""
        return f"Read the last exchange of each with '{self._spec.adding({'exchange': 'last'})}'"

    def leaving_out(self) -> str:
        """Return the options that allow more rows to be left out."""
        return "fix the file, or allow more with --max-left-out or --drop-invalid"

    def not_strict(self) -> str:
        """Return the option that stops at the first row."""
        return "remove the row, or leave out --strict"


class MemoryRemedies:
    """Ways out for rows in memory, as Python expressions of a variable `rows`.

    Args:
        kind: "list", "dataset" or "frame".
    """

    def __init__(self, kind: str = "list") -> None:
        self._kind = kind

    def columns(self, names: Mapping[str, str]) -> str:
        """Return an expression that renames columns."""
        renamed = {column: role for role, column in names.items()}
        if not renamed:
            return "Give dicts such as {'prompt': ..., 'response': ...}"
        if self._kind == "dataset":
            return f"Rename them: rows.rename_columns({renamed})"
        if self._kind == "frame":
            return f"Rename them: rows.rename(columns={renamed})"
        return f"Rename them: {_comprehension(names)}"

    def response(self, column: str) -> str:
        """Return an expression that makes another column the response."""
        if self._kind == "dataset":
            return f"Give the others: rows.rename_column({column!r}, 'response')"
        if self._kind == "frame":
            return f"Give the others: rows.rename(columns={{{column!r}: 'response'}})"
        return f"Give the others: [{{**row, 'response': row[{column!r}]}} for row in rows]"

    def selecting(self, options: Mapping[str, Sequence[str]]) -> str:
        """Return an expression that selects rows."""
        tests = [self._test(option, values) for option, values in options.items()]
        if self._kind == "dataset":
            return f"Select the others: rows.filter(lambda row: {' and '.join(tests)})"
        if self._kind == "frame":
            return f"Select the others: rows[rows.apply(lambda row: {' and '.join(tests)}, axis=1)]"
        return f"Select the others: [row for row in rows if {' and '.join(tests)}]"

    @staticmethod
    def _test(option: str, values: Sequence[str]) -> str:
        column = option.removeprefix(NOT)
        if list(values) == ["none"]:
            word = "" if column != option else "not "
            return f"{word}any(row[{column!r}].values())"
        texts = [value.strip("\"'").lower() for value in values]
        keys = "".join(f"[{key!r}]" for key in column.split("."))
        return f"str(row{keys}).lower() in {texts}"

    def ignoring(self, columns: Sequence[str]) -> str:
        """Return an expression without the columns that mark rows."""
        names = list(columns)
        if self._kind == "dataset":
            return f"use all of them: rows.remove_columns({names})"
        if self._kind == "frame":
            return f"use all of them: rows.drop(columns={names})"
        unmarked = f"{{k: v for k, v in row.items() if k not in {names}}}"
        return f"use all of them: [{unmarked} for row in rows]"

    def one_exchange(self) -> str:
        """Return an expression that keeps the last exchange of each conversation."""
        if self._kind == "dataset":
            shortened = "{'messages': row['messages'][-2:]}"
            return f"Keep the last exchange of each: rows.map(lambda row: {shortened})"
        if self._kind == "frame":
            return "Keep the last exchange of each: rows.assign(messages=rows['messages'].str[-2:])"
        shortened = "{**row, 'messages': row['messages'][-2:]}"
        return f"Keep the last exchange of each: [{shortened} for row in rows]"

    def leaving_out(self) -> str:
        """Return the way out for rows that cannot be used."""
        return "give the rows without them"

    def not_strict(self) -> str:
        """Return the way out for a single row that cannot be used."""
        return "give the rows without it"


def _comprehension(names: Mapping[str, str]) -> str:
    pairs = ", ".join(f"{role!r}: row[{column!r}]" for role, column in names.items())
    return f"[{{{pairs}}} for row in rows]"
