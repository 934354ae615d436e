"""The one grammar of specs: a name and its options as one text.

    spec   = name {"," key "=" value}
    key    = bare | quoted
    value  = bare | quoted | list | nested
    list   = "[" [value {"," value}] "]"
    nested = "(" spec ")"

A bare text needs no quotes: it ends at the next comma that stands in no brackets or parentheses.
It stays the text that was typed; the type of the option decides what it means (`options.Options`).
Quotes are single or double; inside them a backslash stands before a quote or another backslash.

    sst2,train=data/train.tsv,test=data/test.tsv
    ensemble,members=[loss,(attack_direction,source=base)]
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from holdfast.errors import UsageError

CLOSING = {"(": ")", "[": "]"}
NULL = "null"

_KEY = re.compile(r"[A-Za-z_][\w.-]*")
_NEEDS_QUOTES = re.compile(r"[,()\[\]]|^\s|\s$|^['\"]")
_QUOTED = re.compile(r"""(?P<quote>["'])(?P<inside>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)""", re.S)


class Bare(str):
    """A text that stood without quotes: "null" may mean None, and one text a list of one."""

    __slots__ = ()


class QuotedKey(str):
    """A key that stood in quotes: where keys are reserved words, it is none of them."""

    __slots__ = ()


@dataclass(frozen=True)
class Spec:
    """A parsed spec.

    Attributes:
        name: What is named: a plug-in, a file, a data set.
        options: Option -> value as it was written.
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """The name without the module of a class named "package.module:Class"."""
        return self.name.rpartition(":")[2]

    def __str__(self) -> str:
        pairs = [f"{_key_text(key)}={value_text(value)}" for key, value in self.options.items()]
        return ",".join([_name_text(self.name), *pairs])


Value: TypeAlias = "str | tuple[Value, ...] | Spec"


def parse(text: str) -> Spec:
    """Parse a spec.

    Raises:
        UsageError: It does not follow the grammar; the message shows the spec and the position.
    """
    return _Parser(text).whole()


def write(name: str, options: Mapping[str, Any]) -> str:
    """Return the spec of a name with options, the inverse of `parse`.

    Numbers, truths and None are written as bare texts; lists and tuples as lists.
    """
    return str(Spec(name, options))


def parse_value(text: str) -> Value:
    """Parse a value that stands by itself.

    Raises:
        UsageError: It does not follow the grammar.
    """
    return _Parser(text).whole_value()


def untyped(value: Value) -> Any:
    """Return a value as plain data where no option says its type.

    A bare text is a number, true, false or None if it reads as one; specs are texts again.
    """
    if isinstance(value, Spec):
        return str(value)
    if isinstance(value, tuple):
        return [untyped(item) for item in value]
    if not isinstance(value, Bare):
        return value
    words = {NULL: None, "true": True, "false": False}
    if value in words:
        return words[value]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(value)
    return str(value)


def _key_text(key: str) -> str:
    bare = _KEY.fullmatch(key) and not isinstance(key, QuotedKey)
    return key if bare else _quoted(key)


def _name_text(name: str) -> str:
    return _quoted(name) if not name or _NEEDS_QUOTES.search(name) else name


def value_text(value: Any) -> str:
    """Return a value as it is typed in a spec."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Spec):
        return f"({value})"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(value_text(item) for item in value)}]"
    text = str(value)
    if isinstance(value, Bare):
        return text
    bare = text and text != NULL and not _NEEDS_QUOTES.search(text)
    return text if bare else _quoted(text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Parser:
    """Reads one spec from left to right; `place` is the index of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def whole(self) -> Spec:
        spec = self.spec(end="")
        if self.place < len(self.text):
            self.fail("a comma is missing")
        return spec

    def whole_value(self) -> Value:
        value = self.value(end="") if self.text[:1] in ("[", "(", "'", '"') else Bare(self.text)
        if self.place < len(self.text) and not isinstance(value, Bare):
            self.fail("nothing may follow the value")
        return value

    def spec(self, end: str) -> Spec:
        name = self.text_until(end)
        if not name:
            self.fail("a name is missing")
        options: dict[str, Value] = {}
        while self.at(","):
            self.place += 1
            key = self.key()
            if key in options:
                self.fail(f"option {key!r} is given twice")
            self.take("=", f"{key!r} is not key=value")
            options[key] = self.value(end)
        return Spec(str(name), options)

    def key(self) -> str:
        self.skip_spaces()
        if self.at("'") or self.at('"'):
            return QuotedKey(self.quoted())
        match = _KEY.match(self.text, self.place)
        if match is None:
            rest = re.split(r"[,)\]]", self.text[self.place :])[0]
            self.fail(f"{rest!r} is not key=value")
        self.place = match.end()
        self.skip_spaces()
        return match.group()

    def value(self, end: str) -> Value:
        self.skip_spaces()
        if self.at("["):
            return self.items()
        if self.at("("):
            self.place += 1
            nested = self.spec(end=")")
            self.take(")", "')' is missing")
            self.skip_spaces()
            return nested
        return self.text_until(end)

    def items(self) -> tuple[Value, ...]:
        self.place += 1
        self.skip_spaces()
        if self.at("]"):
            self.place += 1
            self.skip_spaces()
            return ()
        values = [self.value(end="]")]
        while self.at(","):
            self.place += 1
            values.append(self.value(end="]"))
        self.take("]", "']' is missing")
        self.skip_spaces()
        return tuple(values)

    def text_until(self, end: str) -> str:
        """Read a quoted text, or a bare one up to a comma or `end` that no bracket encloses."""
        self.skip_spaces()
        if self.at("'") or self.at('"'):
            return self.quoted()
        start = self.place
        open_brackets: list[tuple[str, int]] = []
        while self.place < len(self.text):
            character = self.text[self.place]
            if not open_brackets and character in {",", end}:
                break
            if character in CLOSING:
                open_brackets.append((CLOSING[character], self.place))
            elif open_brackets and character == open_brackets[-1][0]:
                open_brackets.pop()
            elif character in CLOSING.values():
                self.fail(f"{character!r} closes nothing; put a text that contains it in quotes")
            self.place += 1
        if open_brackets:
            closing, self.place = open_brackets[-1]
            self.fail(f"{closing!r} is missing; put a text that contains brackets in quotes")
        return Bare(self.text[start : self.place].strip())

    def quoted(self) -> str:
        match = _QUOTED.match(self.text, self.place)
        if match is None:
            self.fail("the quote is never closed")
        self.place = match.end()
        self.skip_spaces()
        return re.sub(r"\\([\"'\\])", r"\1", match["inside"])

    def at(self, character: str) -> bool:
        return self.text.startswith(character, self.place)

    def take(self, character: str, problem: str) -> None:
        if not self.at(character):
            self.fail(problem)
        self.place += 1

    def skip_spaces(self) -> None:
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1

    def fail(self, problem: str) -> NoReturn:
        raise UsageError(
            f"{self.text!r}: {problem} (character {self.place + 1}); "
            "a spec is name,key=value,key=value"
        )
