"""Types of options in words, derived from the annotations of their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

WORDS = {
    str: ("text", "texts"),
    int: ("whole number", "whole numbers"),
    float: ("number", "numbers"),
    bool: ("true or false", "true or false"),
    Path: ("path", "paths"),
}
"""Type -> its name in singular and plural."""

LISTS = (list, tuple, set, frozenset, Sequence)
MAPPINGS = (dict, Mapping)


@dataclass(frozen=True)
class SpecOf:
    """Marks a text as the spec of a plug-in: `Annotated[str, SpecOf("judges")]`.

    Attributes:
        kind: The kind of plug-in.
    """

    kind: str


@dataclass(frozen=True)
class OptionType:
    """The type of an option.

    Attributes:
        name: For example "number" or "list of texts".
        plural: The name in the plural.
        article: Whether a sentence puts "a" before `name`.
        range: The allowed values in words, e.g. "from 0 to 1"; "" if every value is allowed.
        choices: The allowed values; empty if they cannot be listed.
        nullable: Whether None is allowed.
        is_list: Whether the option takes a list.
        kind: The kind of plug-in that a spec names; "" if the option is not a spec.
        python: The Python type if it is one of `WORDS`, else object.
    """

    name: str
    plural: str
    article: bool = True
    range: str = ""
    choices: tuple[str, ...] = ()
    nullable: bool = False
    is_list: bool = False
    kind: str = ""
    python: type[Any] = object

    @property
    def rule(self) -> str:
        """The type and its range, to complete "must be ..."."""
        name = f"a {self.name}" if self.article else self.name
        null = " or null" if self.nullable else ""
        if not self.range:
            return name + null
        separator = " " if self.range.startswith("from") else ", "
        return f"{name}{separator}{self.range}{null}"

    def allows(self, value: Any, truths: Sequence[str]) -> bool:
        """Return False for values that pydantic would convert but an option must reject.

        Pydantic converts 1 to True and True to 1; an option accepts neither.

        Args:
            value: The value.
            truths: Words for true and false.
        """
        if self.python is not bool:
            return not (self.python in (int, float) and isinstance(value, bool))
        if isinstance(value, str):
            return value.lower() in truths
        return isinstance(value, bool) or (value is None and self.nullable)


def type_of(annotation: Any, metadata: Sequence[Any] = ()) -> OptionType:
    """Return the option type of an annotation.

    Args:
        annotation: The annotation of a field.
        metadata: Marks from `Annotated` and constraints from `Field`.
    """
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        return type_of(inner, (*marks, *metadata))
    marks = [part for mark in metadata for part in _parts(mark)]
    option_type = _bare_type(annotation)
    kinds = [mark.kind for mark in marks if isinstance(mark, SpecOf)]
    if kinds:
        option_type = replace(option_type, name="spec", plural="specs", article=True, kind=kinds[0])
    bounds = _bounds(marks)
    if option_type.is_list:
        return _with_length(option_type, bounds)
    return replace(option_type, range=_range(bounds) or option_type.range)


def _parts(mark: Any) -> Sequence[Any]:
    """Return the constraints of a mark; a `Field` inside an annotation holds several."""
    return mark.metadata if isinstance(mark, FieldInfo) else (mark,)


def _bare_type(annotation: Any) -> OptionType:
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin in (Union, UnionType):
        return _union(arguments)
    if origin is Literal:
        return _literal(arguments)
    if origin in LISTS or annotation in LISTS:
        return _list(arguments)
    if origin in MAPPINGS or annotation in MAPPINGS:
        return OptionType("mapping of names to values", "mappings of names to values")
    if annotation in WORDS:
        name, plural = WORDS[annotation]
        article = annotation not in (str, bool)
        return OptionType(name, plural, article, python=annotation)
    name = getattr(annotation, "__name__", str(annotation))
    return OptionType(name, name)


def _union(arguments: Sequence[Any]) -> OptionType:
    options = [type_of(argument) for argument in arguments if argument is not NoneType]
    nullable = NoneType in arguments
    if len(options) == 1:
        return replace(options[0], nullable=nullable)
    return OptionType(
        name=" or ".join(option.rule for option in options),
        plural=" or ".join(option.plural for option in options),
        article=False,
        choices=tuple(choice for option in options for choice in option.choices),
        nullable=nullable,
        is_list=any(option.is_list for option in options),
    )


def _literal(values: Sequence[Any]) -> OptionType:
    choices = tuple(str(value) for value in values)
    name = f"one of {', '.join(repr(value) for value in values)}"
    if len(values) == 1:
        name = repr(values[0])
    return OptionType(name, name, article=False, choices=choices)


def _list(arguments: Sequence[Any]) -> OptionType:
    items = [argument for argument in arguments if argument is not Ellipsis]
    if not items:
        return OptionType("list", "lists", is_list=True)
    item = type_of(items[0])
    name = f"list of {item.plural}"
    if item.choices and not item.kind:
        name = f"list of values from {', '.join(repr(choice) for choice in item.choices)}"
    each = f"each {item.range}" if item.range else ""
    plural = name.replace("list", "lists", 1)
    return OptionType(name, plural, range=each, choices=item.choices, is_list=True, kind=item.kind)


def _bounds(marks: Sequence[Any]) -> dict[str, float]:
    """Return the bounds of values and lengths among the marks, by pydantic's names."""
    return {
        name: getattr(mark, name)
        for mark in marks
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length")
        if getattr(mark, name, None) is not None
    }


def _range(bounds: Mapping[str, float]) -> str:
    """Return the bounds of a value in words."""
    if "ge" in bounds and "le" in bounds:
        return f"from {_number(bounds['ge'])} to {_number(bounds['le'])}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(
        f"{words[name]} {_number(bounds[name])}" for name in words if name in bounds
    )


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _with_length(list_type: OptionType, bounds: Mapping[str, float]) -> OptionType:
    """Put the bounds of a list's length into its name, e.g. "list of 2 numbers"."""
    length = _length(bounds.get("min_length", 0), bounds.get("max_length"))
    if not length:
        return list_type
    return replace(
        list_type,
        name=list_type.name.replace("list of", f"list of {length}", 1),
        plural=list_type.plural.replace("lists of", f"lists of {length}", 1),
    )


def _length(least: float, most: float | None) -> str:
    if most is not None:
        return f"{least:g}" if least == most else f"{least:g} to {most:g}"
    return {0: "", 1: "one or more"}.get(int(least), f"{least:g} or more")
