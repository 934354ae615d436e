"""Builds a command's options from its stage's configuration.

Every field becomes an option with the field's name, type, default, bounds and help, so nothing is
written twice and a new field needs no line here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from holdfast.cli import show
from holdfast.errors import UsageError
from holdfast.options import Description, Flag, OptionError, Options, describe, option_types
from holdfast.results.refused import nothing_left
from holdfast.specs import parse_value, untyped
from holdfast.stages.table import Stage

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from holdfast.stages.planned_jobs import PlannedJob

REPEATABLE = "Repeat an option of type list or NAME=VALUE to give several values."


# ---------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Option:
    """A configuration field as a command-line option.

    Attributes:
        name: Name of the field.
        flag: Flag on the command line, e.g. "--poison-ratio".
        help: Help text.
        parsed: Type that typer parses.
        default: Default value; `...` for a required option, None to leave it to the configuration.
        form: Metavar of a mapping; None for other types.
        bounds: Keyword arguments of `typer.Option` for the smallest and largest value.
        read: Converts typer's value, given the flag, to the field's; None if no conversion is
            needed.
        short: Another flag for the same option; empty if there is none.
    """

    name: str
    flag: str
    help: str
    parsed: Any
    default: Any
    form: str | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    read: Callable[[str, Any], Any] | None = None
    short: str = ""

    def parameter(self) -> Parameter:
        """Return the parameter that typer turns into the option."""
        # A flag that is not off by default needs a --no- form.
        switch = self.parsed is bool and self.default is not False
        info = typer.Option(
            self.default,
            f"{self.flag}/--no-{self.flag.removeprefix('--')}" if switch else self.flag,
            *([self.short] if self.short else []),
            help=self.help,
            metavar=self.form,
            **cast("dict[str, Any]", self.bounds),
        )
        return Parameter(self.name, Parameter.KEYWORD_ONLY, default=info, annotation=self.parsed)

    def value(self, parsed: Any) -> Any:
        """Return the field's value from the one that typer parsed."""
        return parsed if self.read is None else self.read(self.flag, parsed)


def options_of(config: type[Options], without: Collection[str] = ()) -> list[Option]:
    """Return the options of a configuration, required ones first, inherited ones last.

    Args:
        config: A stage's configuration.
        without: Names of fields that are not options.
    """
    own = inspect.get_annotations(config)
    descriptions = [option for option in describe(config) if option.name not in without]
    descriptions.sort(key=lambda option: (not option.required, option.name not in own))
    return [_option(config.model_fields[option.name], option) for option in descriptions]


def _option(field: FieldInfo, description: Description) -> Option:
    annotation = _plain(field.annotation)
    default = ... if description.required else description.default
    option = Option(
        description.name,
        flag_of(description.name, field),
        _help(description),
        annotation,
        default,
        bounds=_bounds(field),
        short=_short_of(field),
    )
    if get_origin(annotation) is dict:
        empty = ... if description.required else None
        if get_args(annotation)[1] is str:
            return replace(option, parsed=str, default=empty, form="NAME=VALUE,...", read=_mapping)
        return replace(option, parsed=list[str], default=empty, form="NAME=VALUE", read=_values)
    if get_origin(annotation) is list and get_origin(get_args(annotation)[0]) is Literal:
        # typer has no lists of choices; the configuration checks the values.
        return replace(option, parsed=list[str])
    return option


def flag_of(name: str, field: FieldInfo) -> str:
    """Return the flag of a field: its own name unless a `Flag` mark says otherwise."""
    marks = [mark.name for mark in field.metadata if isinstance(mark, Flag)]
    return f"--{(marks or [name])[0].replace('_', '-')}"


def _short_of(field: FieldInfo) -> str:
    names = [mark.short for mark in field.metadata if isinstance(mark, Flag) and mark.short]
    return f"--{names[0]}" if names else ""


def _help(description: Description) -> str:
    if not description.kind:
        return description.help
    return f"{description.help} List: `holdfast plugins {description.kind}`."


def _plain(annotation: Any) -> Any:
    """Strip an annotation of its marks and of None, which typer cannot read."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return _plain(arguments[0])
    if origin in (Union, UnionType):
        kinds = [_plain(kind) for kind in arguments if kind is not NoneType]
        return kinds[0] | None if len(kinds) < len(arguments) else kinds[0]
    if origin is list:
        return list[_plain(arguments[0])]  # type: ignore[misc]
    return annotation


def _bounds(field: FieldInfo) -> dict[str, float]:
    # typer has no open bounds (gt, lt); the configuration checks those.
    bounds = {}
    for rule in field.metadata:
        for key, name in (("ge", "min"), ("le", "max")):
            if hasattr(rule, key):
                bounds[name] = getattr(rule, key)
    return bounds


# ----------------------------------------------------------------------------------------- values


def _mapping(flag: str, text: str) -> dict[str, str]:
    if not text:
        return {}
    return dict(pair(flag, part) for part in text.split(","))


def _values(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    texts = dict(pair(flag, text) for text in pairs)
    return {key: _value(flag, text) for key, text in texts.items()}


def pair(flag: str, text: str) -> tuple[str, str]:
    """Split NAME=VALUE into name and value.

    Raises:
        UsageError: The text has no "=" or no name.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"{flag} {text!r} must be NAME=VALUE")
    return key, value


def _value(flag: str, text: str) -> Any:
    try:
        return untyped(parse_value(text))
    except UsageError as error:
        raise UsageError(f"{flag} {error}") from error


# ---------------------------------------------------------------------------------------- command


def command(stage: Stage) -> TyperCommand:
    """Build the command of a stage."""
    config, function = stage.load()
    options = options_of(config, stage.excluded)

    def call(
        *, context: typer.Context, as_json: bool, estimate: bool = False, **parsed: Any
    ) -> None:
        with show.running(as_json):
            typed = {name: value for name, value in parsed.items() if _is_typed(context, name)}
            settings = configured(config, options, typed)
            if estimate:
                output = _forecast(stage, settings)
            else:
                with nothing_left(cast("Any", settings).out):
                    output = stage.present(function(settings))
        show.print_output(as_json, output)

    parameters = [
        *(option.parameter() for option in options),
        *_estimate_parameters(stage),
        _json_parameter(),
        _context_parameter(),
    ]
    cast("Any", call).__signature__ = Signature(parameters)
    epilog = f"Example: holdfast {stage.example}"
    if any(get_origin(option.parsed) is list for option in options):
        epilog += f"\n\n{REPEATABLE}"
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(help=stage.summary, epilog=epilog)(call)
    return cast("TyperCommand", typer.main.get_command(alone))


def likely_flags(stage: Stage, typed: str) -> list[str]:
    """Return the flags of a stage whose field has the name that was typed, singular or plural.

    A field's flag may have another name: `learning_rate` is --lr, `models` is --model.
    """
    config, _ = stage.load()
    name = typed.removeprefix("--").replace("-", "_")
    names = (name, f"{name}s", name.removesuffix("s"))
    return [
        flag_of(field_name, field)
        for field_name, field in config.model_fields.items()
        if field_name in names and field_name not in stage.excluded
    ]


def broken_rule(stage: Stage, error: typer.BadParameter) -> str:
    """Return a value and the rule that it breaks, in the words of the configuration.

    typer checks types and bounds with pydantic, whose messages do not name the value. The result is
    "" if the error is about something else, such as a missing option.
    """
    name = error.param.name if error.param else None
    option_type = option_types(stage.load()[0]).get(name or "")
    cause = error.__cause__
    if option_type is None or not isinstance(cause, ValidationError):
        return ""
    return f"{cause.errors()[0]['input']!r} must be {option_type.rule}"


def _estimate_parameters(stage: Stage) -> list[Parameter]:
    if not stage.estimable:
        return []
    info = typer.Option(False, "--estimate", help="Estimate time and memory, then stop.")
    return [Parameter("estimate", Parameter.KEYWORD_ONLY, default=info, annotation=bool)]


def _forecast(stage: Stage, config: Any) -> show.Output:
    from holdfast.stages.forecast import estimate

    return estimate([_planned(stage, config)], jobs=config.jobs).as_dict()


def _planned(stage: Stage, config: Any) -> PlannedJob:
    from holdfast.stages.planned_jobs import PlannedJob

    return PlannedJob(stage.name, "all", config)


def _json_parameter() -> Parameter:
    info = typer.Option(False, "--json", help="Print only the result, as JSON.")
    return Parameter("as_json", Parameter.KEYWORD_ONLY, default=info, annotation=bool)


def _context_parameter() -> Parameter:
    return Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _is_typed(context: typer.Context, name: str) -> bool:
    """Whether the user typed the option, which a configuration may treat unlike a default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def configured(
    config: type[Options], options: Sequence[Option], parsed: Mapping[str, Any]
) -> Options:
    """Build the configuration; options without a value keep their defaults.

    Raises:
        UsageError: A value breaks a rule of the configuration; the message names the option.
    """
    values = {}
    for option in options:
        value = parsed.get(option.name)
        if value is not None:
            values[option.name] = option.value(value)
    try:
        return config(**values)
    except OptionError as error:
        flags = {option.name: option.flag for option in options}
        problems = [problem.text(flags.get(problem.option, "")) for problem in error.problems]
        raise UsageError("; ".join(problems)) from error
