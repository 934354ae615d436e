"""The type of an option as a person reads it, derived from the annotation of its field."""

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
"""Type -> its name, and the name of several."""

LISTS = (list, tuple, set, frozenset, Sequence)
MAPPINGS = (dict, Mapping)


@dataclass(frozen=True)
class SpecOf:
    """Marks a text that is the spec of a plug-in: `Annotated[str, SpecOf("judges")]`.

    Attributes:
        kind: The kind of plug-in.
    """

    kind: str


@dataclass(frozen=True)
class OptionType:
    """The type of an option.

    Attributes:
        name: For example "number" or "list of texts".
        plural: The name of several of them.
        article: Whether a sentence puts "a" before `name`.
        range: The allowed values in words, e.g. "from 0 to 1"; "" if all are.
        choices: The values there are; empty if they cannot be listed.
        nullable: Whether None is a value.
        is_list: Whether it is a list.
        kind: The kind of plug-in that a spec names; "" if it is no spec.
        python: The Python type, object where it is no simple one.
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
        """The type as the end of "must be ..."."""
        name = f"a {self.name}" if self.article else self.name
        separator = ", " if self.range and not self.range.startswith("from") else " "
        null = " or null" if self.nullable else ""
        return f"{name}{separator}{self.range}".strip() + null

    def allows(self, value: Any, truths: Sequence[str]) -> bool:
        """Whether a value may be of this type, where pydantic would take more.

        Pydantic takes 1 for True and True for 1; here neither is the other.
        """
        if self.python is bool:
            word = value.lower() in truths if isinstance(value, str) else False
            return isinstance(value, bool) or word or (value is None and self.nullable)
        return not (self.python in (int, float) and isinstance(value, bool))


def type_of(annotation: Any, metadata: Sequence[Any] = ()) -> OptionType:
    """Return the type that an annotation stands for.

    Args:
        annotation: The annotation of a field.
        metadata: What stands beside it in `Annotated` or comes from `Field`.
    """
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        return type_of(inner, (*marks, *metadata))
    marks = [part for mark in metadata for part in _parts(mark)]
    option_type = _bare_type(annotation)
    kinds = [mark.kind for mark in marks if isinstance(mark, SpecOf)]
    if kinds:
        option_type = replace(option_type, name="spec", plural="specs", article=True, kind=kinds[0])
    ranges = [words for words in (option_type.range, _range(marks)) if words]
    return replace(option_type, range=", ".join(ranges))


def _parts(mark: Any) -> Sequence[Any]:
    """Return what a mark consists of: `Field(ge=0)` inside an annotation holds its bounds."""
    return mark.metadata if isinstance(mark, FieldInfo) else (mark,)


def _bare_type(annotation: Any) -> OptionType:
    origin, arguments = get_origin(annotation), get_args(annotation)
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
        name = f"list of any of {', '.join(repr(choice) for choice in item.choices)}"
    each = f"each {item.range}" if item.range else ""
    plural = name.replace("list", "lists", 1)
    return OptionType(name, plural, range=each, choices=item.choices, is_list=True, kind=item.kind)


def _range(marks: Sequence[Any]) -> str:
    """Say the bounds among the marks in words."""
    bounds = {
        key: getattr(mark, key)
        for mark in marks
        for key in ("ge", "gt", "le", "lt", "min_length", "max_length")
        if getattr(mark, key, None) is not None
    }
    if "ge" in bounds and "le" in bounds:
        return f"from {bounds['ge']:g} to {bounds['le']:g}"
    words = {
        "ge": "at least {:g}",
        "gt": "above {:g}",
        "le": "at most {:g}",
        "lt": "below {:g}",
        "min_length": "at least {:g} of them",
        "max_length": "at most {:g} of them",
    }
    return " and ".join(words[key].format(bounds[key]) for key in words if key in bounds)
