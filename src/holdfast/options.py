"""The base of everything that has options: plug-ins, stages, configuration files.

An option is an annotated field of an `Options` model. Its type, choices (`Literal`), range
(`Field(ge=..., le=...)`), default and help (the string under the field) are written once, there;
checks, messages, `--help`, `holdfast plugins` and the documentation read them from there.
"""

from __future__ import annotations

import difflib
import functools
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from holdfast.errors import UsageError
from holdfast.option_types import OptionType, type_of
from holdfast.specs import NULL, Bare, Spec, value_text

TRUTHS = ("true", "false", "yes", "no", "on", "off")

LONGEST_VALUE = 80
"""Characters of a value that a message shows."""

T = TypeVar("T")


class _SuppliedMarker:
    """Marks a field that a stage fills in; its value is taken as it is."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        del source, handler
        return core_schema.any_schema()


Supplied = Annotated[T, _SuppliedMarker()]
"""A field that a stage fills in (rows, a judge, a model) and that nobody can type."""


@dataclass(frozen=True)
class Flag:
    """Marks a field whose option on the command line has another name.

    A list is given once for each of its values and is called by one of them: `models` is --model.

    Attributes:
        name: Name of the option, without dashes in front.
        short: Another name that works as well; empty for none.
    """

    name: str
    short: str = ""


@dataclass(frozen=True)
class Description:
    """What a person reads of an option.

    Attributes:
        name: Name of the option.
        type: For example "number", "list of texts", "one of a, b".
        range: For example "from 0 to 1"; "" if any value of the type is allowed.
        choices: The values there are; empty if they cannot be listed.
        required: Whether the option has no default.
        default: The default; None if `required`.
        help: What the option does.
        kind: The kind of plug-in that a spec names; "" if the option is no spec.
    """

    name: str
    type: str
    range: str
    choices: tuple[str, ...]
    required: bool
    default: Any
    help: str
    kind: str = ""

    @property
    def default_text(self) -> str:
        """The default as it would be typed."""
        if self.required:
            return "required"
        return value_text(self.default)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one option.

    Attributes:
        option: Its name; "" if the rule concerns several options.
        value: The value that breaks the rule, as text; "" if there is none.
        rule: The rule and the way out, as the end of a sentence about the option.
    """

    option: str
    value: str
    rule: str

    def text(self, name: str = "") -> str:
        """Return the problem as a sentence.

        Args:
            name: What the option is called where it was given, such as a flag.
        """
        name = name or self.option
        subject = f"{name}={self.value}" if name and self.value else name
        return f"{subject} {self.rule}".strip()


class OptionError(UsageError):
    """Options are unknown, missing, ill-typed or out of range."""

    def __init__(self, owner: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(f"{owner}: {'; '.join(problem.text() for problem in problems)}")
        self.owner = owner
        self.problems = problems

    def of(self, owner: str) -> OptionError:
        """Return the same problems as those of an owner that is called otherwise."""
        return OptionError(owner, self.problems)

    @property
    def missing(self) -> list[str]:
        """Required options that were not given."""
        return [problem.option for problem in self.problems if problem.rule == REQUIRED]


REQUIRED = "is required"


class Options(BaseModel):
    """Base of everything that has options.

    Values may be Python objects, the texts of a parsed spec or the content of a YAML file. A list
    of one value may be given as the value.

    Raises:
        OptionError: An option is unknown, missing, ill-typed or out of range.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    owner: ClassVar[str] = ""
    """What messages call these options; "" takes the name of the class."""

    @classmethod
    def owner_name(cls) -> str:
        """Return what messages call these options."""
        return cls.owner or cls.__name__

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(cls.owner_name(), _problems(cls, error, values)) from error

    def changed(self, **changes: Any) -> Self:
        """Return a copy with other values, checked as any."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**values, **changes})

    def option_values(self) -> dict[str, Any]:
        """Return the value of every option, defaults included, as plain data."""
        return self.model_dump(mode="json", include=set(option_fields(type(self))))

    @field_validator("*", mode="before")
    @classmethod
    def _typed_option(cls, value: Any, info: ValidationInfo) -> Any:
        option_type = option_types(cls).get(info.field_name or "")
        return value if option_type is None else _as_typed(value, option_type)


def option_fields(cls: type[Options]) -> dict[str, FieldInfo]:
    """Return the fields of a class that are options, without those that a stage supplies."""
    return {
        name: field
        for name, field in cls.model_fields.items()
        if not any(isinstance(mark, _SuppliedMarker) for mark in field.metadata)
    }


@functools.cache
def option_types(cls: type[Options]) -> Mapping[str, OptionType]:
    """Return option -> its type, for the options of a class."""
    return {
        name: type_of(field.annotation, field.metadata)
        for name, field in option_fields(cls).items()
    }


def describe(cls: type[Options]) -> list[Description]:
    """Describe the options of a class: required ones first, otherwise in the class's order."""
    descriptions = [_description(name, cls) for name in option_fields(cls)]
    return sorted(descriptions, key=lambda description: not description.required)


def _description(name: str, cls: type[Options]) -> Description:
    field = cls.model_fields[name]
    option_type = option_types(cls)[name]
    required = field.is_required()
    return Description(
        name=name,
        type=option_type.name,
        range=option_type.range,
        choices=option_type.choices,
        required=required,
        default=None if required else field.get_default(call_default_factory=True),
        help=" ".join((field.description or "").split()),
        kind=option_type.kind,
    )


# ----------------------------------------------------------------------------------------- values


def _as_typed(value: Any, option_type: OptionType) -> Any:
    """Prepare a value for pydantic where its rules are not those of an option."""
    if isinstance(value, Bare) and value == NULL and option_type.nullable:
        return None
    if option_type.is_list:
        items = value if isinstance(value, (list, tuple, set, frozenset, NoneType)) else (value,)
        return _texts(items) if isinstance(items, tuple) else items
    if isinstance(value, Spec):
        return str(value)
    if not option_type.allows(value, TRUTHS):
        raise PydanticCustomError("ill_typed", "must be {rule}", {"rule": option_type.rule})
    return value


def _texts(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(str(item) if isinstance(item, Spec) else item for item in items)


# --------------------------------------------------------------------------------------- problems


def _problems(
    cls: type[Options], error: ValidationError, values: Mapping[str, Any]
) -> tuple[Problem, ...]:
    """Return one problem for each option that is wrong."""
    problems: dict[str, Problem] = {}
    for details in error.errors(include_url=False):
        problem = _problem(cls, details, values)
        problems.setdefault(problem.option, problem)
    return tuple(problems.values())


def _problem(cls: type[Options], details: ErrorDetails, values: Mapping[str, Any]) -> Problem:
    name = str(details["loc"][0]) if details["loc"] else ""
    if details["type"] == "missing":
        return Problem(name, "", REQUIRED)
    value = shown(values.get(name, details["input"])) if name else ""
    if details["type"] in ("value_error", "assertion_error"):
        return Problem(name, value, str(details["ctx"]["error"]))
    types = option_types(cls)
    if name not in types:
        return Problem(name, "", unknown_option(name, list(types)))
    return Problem(name, value, f"must be {types[name].rule}")


def unknown_option(name: str, names: list[str]) -> str:
    """Return the rule that an unknown option breaks, with the options there are."""
    if not names:
        return "is not an option; there are no options"
    close = difflib.get_close_matches(name, names, n=1)
    suggestion = f" Did you mean {close[0]}?" if close else ""
    return f"is not an option.{suggestion} The options are {', '.join(sorted(names))}"


def shown(value: Any) -> str:
    """Return a value as messages show it: as it was typed, shortened if it is long."""
    typed = isinstance(value, (Bare, Spec)) or (isinstance(value, tuple) and value)
    text = value_text(value) if typed else ""
    if 0 < len(text) <= LONGEST_VALUE:
        return text
    short = reprlib.Repr()
    short.maxstring = short.maxother = LONGEST_VALUE
    return short.repr(str(value) if isinstance(value, (str, Path, Spec)) else value)
