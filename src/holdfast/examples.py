"""Alignment, fine-tuning and test rows: one immutable value, identified by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from holdfast.errors import DataError

PROVENANCE = ("source", "licence", "owner", "consent", "category")
"""Columns that say where a row came from; they travel through every stage to the report."""


def example_id(prompt: str, response: str) -> str:
    """Return the content id of a row: 16 hexadecimal digits of a sha256.

    A row keeps its id when the file is sorted, filtered or split; another answer to the same
    prompt is another row.
    """
    content = json.dumps([prompt.strip(), response.strip()], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and the response that is wanted (empty for rows that are only asked)."""

    prompt: str
    response: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The content id, see `example_id`."""
        return example_id(self.prompt, self.response)


class Examples(Sequence[Example]):
    """An ordered set of rows with unique ids.

    Raises:
        DataError: Two rows have the same prompt and response.
    """

    def __init__(self, rows: Iterable[Example], *, name: str = "data") -> None:
        self.rows = tuple(rows)
        self.name = name
        self.ids = tuple(row.id for row in self.rows)
        seen: dict[str, int] = {}
        for position, identity in enumerate(self.ids):
            if identity in seen:
                raise DataError(
                    f"{name}: row {position + 1} repeats row {seen[identity] + 1} "
                    f"(prompt {self.rows[position].prompt[:60]!r}); rows must be unique. "
                    "Remove one of them."
                )
            seen[identity] = position

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.rows[index], name=self.name)
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
        """Sha256 over the sorted ids: equal for equal sets of rows in whatever order."""
        return hashlib.sha256("\n".join(sorted(self.ids)).encode()).hexdigest()

    @classmethod
    def answered(cls, prompts: Sequence[str], answers: Sequence[str], *, name: str) -> Examples:
        """Pair prompts with answers; empty answers, and prompts that repeat, are left out."""
        rows = {p: Example(p, a) for p, a in zip(prompts, answers, strict=True) if a}
        return cls(rows.values(), name=name)

    def select(self, positions: Iterable[int]) -> Examples:
        """Return the rows at `positions`, in that order."""
        return Examples((self.rows[i] for i in positions), name=self.name)
