"""Alignment, fine-tuning and test rows: immutable values identified by their content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, overload

from holdfast.errors import DataError

PROVENANCE = ("source", "licence", "owner", "consent", "category")
"""Columns with the origin of a row; they are kept through every stage up to the report."""


def example_id(prompt: str, response: str) -> str:
    """Return the content id of a row: 16 hexadecimal digits of a SHA-256.

    A row keeps its id when its file is sorted, filtered or split. A different response to the same
    prompt is a different row.
    """
    content = json.dumps([prompt.strip(), response.strip()], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def prompt_text(prompt: str) -> str:
    """Return a prompt normalized for comparison: lower case, without surrounding space."""
    return prompt.strip().lower()


def prompt_id(prompt: str) -> str:
    """Return the id of a prompt: 16 hexadecimal digits of a SHA-256 of its `prompt_text`."""
    return hashlib.sha256(prompt_text(prompt).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Mark:
    """What a data set says of the safety of a row.

    Attributes:
        column: The column that says it, or "chosen" for the better one of two responses.
        option: The option of a spec that selects such rows: the column, or "not_COLUMN".
        value: Its value, as it is typed.
        safe: Whether it marks the row as safe; None if only a person can know.
        of_prompt: Whether the prompt is meant, not the response.
    """

    column: str
    option: str
    value: str
    safe: bool | None
    of_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its response (empty if only the prompt is used).

    Attributes:
        prompt: The prompt.
        response: The response.
        provenance: Where the row came from.
        marks: What its data set says of its safety, except for what was selected by.
    """

    prompt: str
    response: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[Mark, ...] = field(default=(), compare=False, repr=False)

    @property
    def id(self) -> str:
        """The content id, see `example_id`."""
        return example_id(self.prompt, self.response)

    @property
    def prompt_id(self) -> str:
        """The prompt's id, see `prompt_id`."""
        return prompt_id(self.prompt)


class Withheld(Example):
    """A row whose ids are known but whose text was not stored.

    Args:
        identity: The content id.
        prompt_identity: The prompt's id.
        provenance: Where the row came from.
        way_out: End of the error message when the text is needed.

    Raises:
        DataError: `prompt` or `response` is read.
    """

    __slots__ = ("_identity", "_prompt_identity", "_way_out")
    _identity: str
    _prompt_identity: str
    _way_out: str

    def __init__(
        self, identity: str, prompt_identity: str, provenance: Mapping[str, str], way_out: str
    ) -> None:
        for name, value in (
            ("provenance", provenance),
            ("marks", ()),
            ("_identity", identity),
            ("_prompt_identity", prompt_identity),
            ("_way_out", way_out),
        ):
            object.__setattr__(self, name, value)

    @property
    def id(self) -> str:
        """The content id."""
        return self._identity

    @property
    def prompt_id(self) -> str:
        """The prompt's id."""
        return self._prompt_identity

    @property
    def prompt(self) -> str:
        """Raise DataError: the text is not there."""
        self._refuse()

    @property
    def response(self) -> str:
        """Raise DataError: the text is not there."""
        self._refuse()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Example) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"Withheld({self._identity!r})"

    def _refuse(self) -> NoReturn:
        raise DataError(f"the text of row {self._identity} was not kept: {self._way_out}")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row of a data set that is not used.

    Attributes:
        place: Location of the row: "file:line", "file: row N", or its content id.
        reason: Why it is not used, in words shared by all rows with this problem.
        id: The content id; empty if the row could not be read.
        detail: Details of this row's problem.
    """

    place: str
    reason: str
    id: str = ""
    detail: str = ""


def count_reasons(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """Count left-out rows by reason, most frequent first."""
    return dict(Counter(row.reason for row in left_out).most_common())


class Examples(Sequence[Example]):
    """An ordered set of rows with unique ids.

    Args:
        rows: The rows.
        name: Where they came from, for messages.
        left_out: Rows of the same data set that are not used.
        ids_only: Whether a run stores only the ids of these rows, not their text.

    Raises:
        DataError: Two rows have the same prompt and response.
    """

    def __init__(
        self,
        rows: Iterable[Example],
        *,
        name: str = "data",
        left_out: Iterable[LeftOut] = (),
        ids_only: bool = False,
    ) -> None:
        self.rows = tuple(rows)
        self.name = name
        self.left_out = tuple(left_out)
        self.ids_only = ids_only or any(isinstance(row, Withheld) for row in self.rows)
        self.ids = tuple(row.id for row in self.rows)
        position_of: dict[str, int] = {}
        for position, identity in enumerate(self.ids):
            if identity in position_of:
                raise DataError(
                    f"{name}: row {position + 1} repeats row {position_of[identity] + 1} "
                    f"(prompt {self.rows[position].prompt[:60]!r}); rows must be unique. "
                    "Remove one of them."
                )
            position_of[identity] = position

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.rows[index], name=self.name, ids_only=self.ids_only)
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Examples({self.name!r}, n={len(self)}, hash={self.hash[:12]})"

    @property
    def prompts(self) -> list[str]:
        """The prompts, in order."""
        return [row.prompt for row in self.rows]

    @property
    def responses(self) -> list[str]:
        """The responses, in order."""
        return [row.response for row in self.rows]

    @property
    def hash(self) -> str:
        """SHA-256 over the sorted ids, so it does not depend on the order of the rows."""
        return hashlib.sha256("\n".join(sorted(self.ids)).encode()).hexdigest()

    @classmethod
    def from_answers(cls, prompts: Sequence[str], answers: Sequence[str], *, name: str) -> Examples:
        """Pair prompts with answers, without empty answers and repeated prompts."""
        rows = {p: Example(p, a) for p, a in zip(prompts, answers, strict=True) if a}
        return cls(rows.values(), name=name)

    def select(self, positions: Iterable[int]) -> Examples:
        """Return the rows at `positions`, in that order."""
        rows = (self.rows[i] for i in positions)
        return Examples(rows, name=self.name, ids_only=self.ids_only)

    def without(self, reasons: Mapping[int, str]) -> Examples:
        """Return the rows without some, which are recorded in `left_out`.

        Args:
            reasons: Position of each row to leave out -> reason.
        """
        return Examples(
            (row for i, row in enumerate(self.rows) if i not in reasons),
            name=self.name,
            left_out=[
                *self.left_out,
                *(LeftOut(self.ids[i], reason, self.ids[i]) for i, reason in reasons.items()),
            ],
            ids_only=self.ids_only,
        )
