"""Sentences that can be said in another language: an English template and the values in it.

A `Text` is its own English, so that it reads like any string, and remembers what it was made from,
so that a report in another language can say it anew. Templates are those of `str.format`; the part
after the colon is a `FORMS` name or a format of Python:

    Text("{method} lasted {ratio:times} times as long (n={n})", method="vaa", ratio=2.0, n=6)

A value is a name (a plain string, said as it is), a number, another `Text`, or a tuple of these.
An unknown number (nan) is said as "unknown" in every form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Self, TypeAlias

Value: TypeAlias = "str | int | float | tuple[Value, ...]"

UNKNOWN = "unknown"
"""The word for a number that is not known."""
JOINS: Mapping[str, str] = {"list": ", ", "semicolon": "; ", "and": " and ", "sentences": " "}
"""Form of a tuple -> what stands between its items."""


class Text(str):
    """A message in English that can be said in another language.

    Attributes:
        template: The English template, the key of its translations.
        values: Placeholder -> value.
    """

    template: str
    values: Mapping[str, Value]

    def __new__(cls, template: str, /, **values: Value) -> Self:
        """Fill the template."""
        text = super().__new__(cls, ENGLISH.fill(template, values))
        text.template = template
        text.values = values
        return text

    def __reduce__(self) -> tuple[Callable[..., Text], tuple[str, Mapping[str, Value]]]:
        return _text, (self.template, self.values)


def _text(template: str, values: Mapping[str, Value]) -> Text:
    return Text(template, **values)


@dataclass(frozen=True)
class Language:
    """How messages, numbers and lists are said.

    Attributes:
        code: Language tag, e.g. "ja".
        messages: English template -> template of the language with the same placeholders.
        joins: Overrides of `JOINS`.
    """

    code: str = "en"
    messages: Mapping[str, str] = field(default_factory=dict)
    joins: Mapping[str, str] = field(default_factory=dict)

    def say(self, text: str) -> str:
        """Return a `Text` in this language; any other string is a name and stays as it is.

        A message without a translation, such as one of a plug-in from elsewhere, stays English.
        """
        if not isinstance(text, Text):
            return text
        return self.fill(self.messages.get(text.template, text.template), text.values)

    def fill(self, template: str, values: Mapping[str, Value]) -> str:
        """Fill a template of this language."""
        return _Filler(self).vformat(template, (), values)

    def number(self, value: float, form: str = "") -> str:
        """Return a number in one of `FORMS` or a format of Python."""
        if math.isnan(value):
            return self.messages.get(UNKNOWN, UNKNOWN)
        if form in FORMS:
            return FORMS[form](value)
        return format(value, form) if math.isfinite(value) else _infinite(value)


class _Filler(Formatter):
    def __init__(self, language: Language) -> None:
        self.language = language

    def format_field(self, value: Any, format_spec: str) -> str:
        language = self.language
        if isinstance(value, tuple):
            join = language.joins.get(format_spec, JOINS[format_spec])
            return join.join(self.format_field(item, "") for item in value)
        if isinstance(value, str):
            return language.say(value)
        return language.number(value, format_spec)


def percent(share: float) -> str:
    """Write a share; one decimal where rounding would hide that it is not 0 or 1."""
    fine = 0 < abs(share) < 0.095 or 0.995 <= abs(share) < 1
    return f"{100 * share:.1f}%" if fine else f"{100 * share:.0f}%"


def _steps(steps: float) -> str:
    if math.isinf(steps):
        return _infinite(steps)
    return f"{steps:.1f}" if 0 < abs(steps) < 9.95 else f"{steps:,.0f}"


def _times(ratio: float) -> str:
    if math.isinf(ratio):
        return _infinite(ratio)
    return f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _infinite(value: float) -> str:
    return "\u221e" if value > 0 else "\u2212\u221e"


FORMS: Mapping[str, Callable[[float], str]] = {
    "percent": percent,
    "steps": _steps,
    "times": _times,
    "p": _p,
    "count": lambda n: f"{n:,.0f}",
}
"""How numbers are written: shares, attack steps, ratios, p values with their sign, counts."""

ENGLISH = Language()


def number(value: float, form: str = ".2f") -> Text:
    """Return a number as a text of its own, in one of `FORMS` or a format of Python."""
    return Text(f"{{value:{form}}}", value=value)


def joined(texts: Sequence[str], join: str = "list") -> Text:
    """Return texts as one, with one of `JOINS` between them."""
    return Text(f"{{texts:{join}}}", texts=tuple(texts))


def placeholders(template: str) -> set[tuple[str, str]]:
    """Return (name, form) of every placeholder of a template."""
    parts = Formatter().parse(template)
    return {(name, form or "") for _, name, form, _ in parts if name is not None}
