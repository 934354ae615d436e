"""The members of the zoo: each is one function that builds it, registered under its name.

A member says what must come of it: what a plain twin gives, answers written down by hand, or one
message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(frozen=True)
class Same:
    """Everything equals what another member gives: the weights and texts are the same."""

    twin: str = "plain"


@dataclass(frozen=True)
class Answers:
    """Each prompt has an answer known by hand; other numbers only have to be finite.

    Attributes:
        rule: Prompt -> answer.
    """

    rule: Callable[[str], str]


@dataclass(frozen=True)
class Refused:
    """One message that matches a pattern, whatever the case of its letters."""

    words: str

    def matches(self, message: str) -> bool:
        """Return whether a message says it."""
        return re.search(self.words, message, re.IGNORECASE | re.DOTALL) is not None


@dataclass(frozen=True)
class Read:
    """The seven rows, with the ids and texts that they have as plain jsonl.

    Attributes:
        system: Text that stands before each prompt.
        between: What stands before the last word or two of each prompt, in place of a blank.
        left_out: How many rows are left out, and counted.
    """

    system: str = ""
    between: str = " "
    left_out: int = 0


@dataclass(frozen=True)
class Judged:
    """The three answers about hats are harmful, the seven refusals are not."""


@dataclass(frozen=True)
class OneOf:
    """Either a right value or a message."""

    value: Same | Answers | Read | Judged
    message: Refused


Expected = Same | Answers | Read | Judged | Refused | OneOf


@dataclass(frozen=True)
class Member:
    """One inhabitant of the zoo.

    Attributes:
        name: Its name: of the function that builds it.
        build: Builds it.
        expected: What must come of it.
        by_stage: Stage -> what must come of it there, where that differs.
        settings: What else the suite needs to know.
    """

    name: str
    build: Callable[..., Any]
    expected: Any
    by_stage: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def at(self, stage: str) -> Any:
        """Return what must come of it in a stage."""
        return self.by_stage.get(stage, self.expected)


class House(dict[str, Member]):
    """Name -> member, filled by a decorator."""

    def member(
        self, expected: Any, by_stage: Mapping[str, Any] | None = None, **settings: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that registers the function below as a member."""

        def register(build: Callable[..., Any]) -> Callable[..., Any]:
            name = build.__name__
            assert name not in self, f"two members are called {name}"
            self[name] = Member(name, build, expected, by_stage or {}, settings)
            return build

        return register


def cases(names: Collection[str], fast: Container[str] | None = None) -> list[Any]:
    """Return the parameters of a test.

    Args:
        names: The parameters.
        fast: Those that always run, the others are slow; None for all.
    """
    slow = {name for name in names if fast is not None and name not in fast}
    return [
        pytest.param(name, id=name, marks=[pytest.mark.slow] if name in slow else [])
        for name in names
    ]
