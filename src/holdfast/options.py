"""Base class of everything that has options: plug-ins, stages, configuration files.

An option is an annotated field of an `Options` model. The field is the only place that states its
type, choices (`Literal`), range (`Field(ge=..., le=...)`), default and help (the string under the
field). Validation, messages, `--help`, `holdfast plugins` and the documentation are derived from
it.
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
"""Longest value shown in a message, in characters."""

T = TypeVar("T")


class _SuppliedMarker:
    """Marks a field that a stage fills in; its value is not validated."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        del source, handler
        return core_schema.any_schema()


Supplied = Annotated[T, _SuppliedMarker()]
"""A field that a stage fills in (rows, a judge, a model), so it is not an option."""


@dataclass(frozen=True)
class Flag:
    """Marks a field whose command-line option has a different name.

    On the command line a list is an option that is repeated for each value, so its name is
    singular: `models` is --model.

    Attributes:
        name: Name of the command-line option, without the leading dashes.
        short: An alternative, shorter name; empty for none.
    """

    name: str
    short: str = ""


@dataclass(frozen=True)
class Description:
    """An option as help and documentation present it.

    Attributes:
        name: Name of the option.
        type: For example "number", "list of texts", "one of a, b".
        range: For example "from 0 to 1"; "" if any value of the type is allowed.
        choices: The allowed values; empty if they cannot be listed.
        required: Whether the option has no default.
        default: The default; None if `required`.
        help: What the option does.
        kind: The kind of plug-in that the option names; "" if it does not name a plug-in.
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
        """The default as the user would type it."""
        if self.required:
            return "required"
        return value_text(self.default)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one option.

    Attributes:
        option: Name of the option; "" if the rule concerns several options.
        value: The value that breaks the rule, as text; "" if there is no value.
        rule: The rule and the way out, as the end of a sentence about the option.
    """

    option: str
    value: str
    rule: str

    def text(self, name: str = "") -> str:
        """Return the problem as a sentence.

        Args:
            name: Name of the option as the user typed it, such as a flag; `option` if empty.
        """
        name = name or self.option
        subject = f"{name}={self.value}" if name and self.value else name
        return f"{subject} {self.rule}".strip()


class OptionError(UsageError):
    """Options are unknown, missing, out of range or of the wrong type."""

    def __init__(self, owner: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(f"{owner}: {'; '.join(problem.text() for problem in problems)}")
        self.owner = owner
        self.problems = problems

    def for_owner(self, owner: str) -> OptionError:
        """Return the same problems under another owner's name."""
        return OptionError(owner, self.problems)

    @property
    def missing(self) -> list[str]:
        """Names of the required options that were not given."""
        return [problem.option for problem in self.problems if problem.rule == REQUIRED]


REQUIRED = "is required"


class Options(BaseModel):
    """Base class of everything that has options.

    Values may be Python objects, the texts of a parsed spec or the content of a YAML file. A single
    value is accepted in place of a list of one.

    Raises:
        OptionError: An option is unknown, missing, out of range or of the wrong type.
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
    """Name of the owner of these options in messages; "" stands for the class name."""

    @classmethod
    def owner_name(cls) -> str:
        """Return the name of the owner of these options in messages."""
        return cls.owner or cls.__name__

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(cls.owner_name(), _problems(cls, error, values)) from error

    def changed(self, **changes: Any) -> Self:
        """Return a validated copy with some values replaced."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**values, **changes})

    def option_values(self) -> dict[str, Any]:
        """Return the value of every option, including defaults, as plain data."""
        return self.model_dump(mode="json", include=set(option_fields(type(self))))

    @field_validator("*", mode="before")
    @classmethod
    def _typed_option(cls, value: Any, info: ValidationInfo) -> Any:
        option_type = option_types(cls).get(info.field_name or "")
        return value if option_type is None else _as_typed(value, option_type)


def option_fields(cls: type[Options]) -> dict[str, FieldInfo]:
    """Return the fields of a class that are options: all but those that a stage fills in."""
    return {
        name: field
        for name, field in cls.model_fields.items()
        if not any(isinstance(mark, _SuppliedMarker) for mark in field.metadata)
    }


@functools.cache
def option_types(cls: type[Options]) -> Mapping[str, OptionType]:
    """Return the type of each option of a class, by name."""
    return {
        name: type_of(field.annotation, field.metadata)
        for name, field in option_fields(cls).items()
    }


def describe(cls: type[Options]) -> list[Description]:
    """Describe the options of a class: required ones first, otherwise in order of definition."""
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
    """Prepare a value for pydantic where the rules of options differ from pydantic's."""
    if isinstance(value, Bare) and value == NULL and option_type.nullable:
        return None
    if option_type.is_list:
        whole = isinstance(value, (list, tuple, set, frozenset, NoneType))
        items = value if whole else (value,)
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
    """Return the first problem of each option that is wrong."""
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
        return Problem(name, "", unknown_option(name, list(types), cli_names(cls)))
    typed = details["input"]
    return Problem(name, value, f"must be {types[name].rule}{_percent(typed, types[name])}")


def _percent(value: Any, option_type: OptionType) -> str:
    """Return a hint for a share that was given in percent; "" for any other value."""
    text = str(value).strip().removesuffix("%").strip()
    try:
        percent = float(text)
    except ValueError:
        return ""
    is_share = option_type.range.endswith(("to 1", "at most 1", "below 1"))
    is_percent = 2 <= percent <= 100 or "%" in str(value)
    return f": {percent:g} % is {percent / 100:g}" if is_share and is_percent else ""


def cli_names(cls: type[Options]) -> dict[str, str]:
    """Return the other names of options: as on the command line -> as in a file or in Python."""
    names = {}
    for name, field in option_fields(cls).items():
        flags = [mark for mark in field.metadata if isinstance(mark, Flag)]
        for other in (part for flag in flags for part in (flag.name, flag.short) if part):
            names[other.replace("-", "_")] = name
    return names


def unknown_option(name: str, names: list[str], cli: Mapping[str, str] | None = None) -> str:
    """Return the rule that an unknown option breaks, listing the valid options.

    Args:
        name: The unknown name.
        names: The valid names.
        cli: Names on the command line -> valid name.
    """
    if not names:
        return "is not an option; there are no options"
    spelling = name.strip().lstrip("-").replace("-", "_").lower()
    right = spelling if spelling in names else (cli or {}).get(spelling)
    if right is not None:
        return f"is not an option; here it is called {right}"
    close = difflib.get_close_matches(name, names, n=1)
    suggestion = f" Did you mean {close[0]}?" if close else ""
    return f"is not an option.{suggestion} The options are {', '.join(sorted(names))}"


def shown(value: Any) -> str:
    """Return a value for a message: as the user typed it, shortened if it is long."""
    from_spec = isinstance(value, (Bare, Spec)) or (isinstance(value, tuple) and value)
    text = value_text(value) if from_spec else ""
    if 0 < len(text) <= LONGEST_VALUE:
        return text
    short = reprlib.Repr()
    short.maxstring = short.maxother = LONGEST_VALUE
    return short.repr(str(value) if isinstance(value, (str, Path, Spec)) else value)
