"""From a stage's configuration to the options of its command.

A field is an option: its name, type, default, bounds and help are those of the field. So nothing is
written twice, and a new field needs no line here.
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
from holdfast.specs import parse_value, untyped
from holdfast.stages.table import Stage

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from holdfast.stages.planned_jobs import PlannedJob

REPEATABLE = "An option of type list or NAME=VALUE may be given several times."


# ---------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Option:
    """A field as an option.

    Attributes:
        name: The field's.
        flag: What is typed, e.g. "--poison-ratio".
        words: The help.
        parsed: The type that typer reads it as.
        default: The field's; `...` if it must be given, None to leave it to the configuration.
        form: What a mapping looks like, instead of its type; None for all else.
        bounds: Keyword arguments of `typer.Option`: least and greatest value.
        read: From the flag and what typer hands over to what the field takes; None if that is it.
        short: Another flag that works as well; empty for none.
    """

    name: str
    flag: str
    words: str
    parsed: Any
    default: Any
    form: str | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    read: Callable[[str, Any], Any] | None = None
    short: str = ""

    def parameter(self) -> Parameter:
        """Return the parameter from which typer makes the option."""
        # A flag that can be on without being given must have a way to be off.
        switch = self.parsed is bool and self.default is not False
        info = typer.Option(
            self.default,
            f"{self.flag}/--no-{self.flag.removeprefix('--')}" if switch else self.flag,
            *([self.short] if self.short else []),
            help=self.words,
            metavar=self.form,
            **cast("dict[str, Any]", self.bounds),
        )
        return Parameter(self.name, Parameter.KEYWORD_ONLY, default=info, annotation=self.parsed)

    def value(self, given: Any) -> Any:
        """Return the field's value."""
        return given if self.read is None else self.read(self.flag, given)


def options_of(config: type[Options], without: Collection[str] = ()) -> list[Option]:
    """Return the options of a configuration: required ones first, inherited ones last.

    Args:
        config: A stage's configuration.
        without: Fields that are no option.
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
        # typer knows no lists of choices; what is no choice is refused by the configuration.
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
    """Return an annotation without its marks and without None, which typer does not read."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(arguments[0])
    if origin in (Union, UnionType):
        kinds = [_plain(kind) for kind in arguments if kind is not NoneType]
        return kinds[0] | None if len(kinds) < len(arguments) else kinds[0]
    if origin is list:
        return list[_plain(arguments[0])]  # type: ignore[misc]
    return annotation


def _bounds(field: FieldInfo) -> dict[str, float]:
    # typer has no open bounds: those (gt, lt) are left to the configuration.
    bounds = {}
    for rule in field.metadata:
        for key, name in (("ge", "min"), ("le", "max")):
            if hasattr(rule, key):
                bounds[name] = getattr(rule, key)
    return bounds


# ----------------------------------------------------------------------------------------- values


def _mapping(flag: str, text: str) -> dict[str, str]:
    return dict(pair(flag, part) for part in text.split(",")) if text else {}


def _values(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    return {key: _value(flag, text) for key, text in (pair(flag, p) for p in pairs)}


def pair(flag: str, text: str) -> tuple[str, str]:
    """Split NAME=VALUE.

    Raises:
        UsageError: There is no "=" or no name.
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
    """Make the command of a stage."""
    config, function = stage.load()
    options = options_of(config, stage.excluded)

    def call(
        *, context: typer.Context, as_json: bool, estimate: bool = False, **given: Any
    ) -> None:
        with show.running(as_json):
            typed = {name: value for name, value in given.items() if _typed(context, name)}
            chosen = configured(config, options, typed)
            if estimate:
                told = _estimated(stage, chosen)
            else:
                _begin(stage, chosen)
                told = stage.present(function(chosen))
        show.tell(as_json, told)

    parameters = [
        *(option.parameter() for option in options),
        *_estimate(stage),
        _json(),
        _context(),
    ]
    cast("Any", call).__signature__ = Signature(parameters)
    epilog = f"Example: holdfast {stage.example}"
    if any(get_origin(option.parsed) is list for option in options):
        epilog += f"\n\n{REPEATABLE}"
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(help=stage.summary, epilog=epilog)(call)
    return cast("TyperCommand", typer.main.get_command(alone))


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


def _estimate(stage: Stage) -> list[Parameter]:
    if not stage.estimable:
        return []
    info = typer.Option(False, "--estimate", help="Say what it would cost, and stop.")
    return [Parameter("estimate", Parameter.KEYWORD_ONLY, default=info, annotation=bool)]


def _estimated(stage: Stage, config: Any) -> show.Told:
    from holdfast.stages.forecast import estimate

    return estimate([_call(stage, config)], jobs=config.jobs).as_dict()


def _begin(stage: Stage, config: Any) -> None:
    """Say of a long stage what is to be done."""
    if stage.estimable:
        from holdfast.stages.forecast import announce

        announce([_call(stage, config)], jobs=config.jobs)


def _call(stage: Stage, config: Any) -> PlannedJob:
    from holdfast.stages.planned_jobs import PlannedJob

    return PlannedJob(stage.name, "all", config)


def _json() -> Parameter:
    info = typer.Option(False, "--json", help="Print the result as JSON and nothing else.")
    return Parameter("as_json", Parameter.KEYWORD_ONLY, default=info, annotation=bool)


def _context() -> Parameter:
    return Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was typed: a configuration may treat what was given unlike a default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def configured(
    config: type[Options], options: Sequence[Option], given: Mapping[str, Any]
) -> Options:
    """Build the configuration; what was not given is left to its defaults.

    Raises:
        UsageError: A value breaks a rule of the configuration; the message names its option.
    """
    values = {o.name: o.value(given[o.name]) for o in options if given.get(o.name) is not None}
    try:
        return config(**values)
    except OptionError as error:
        flags = {option.name: option.flag for option in options}
        problems = [problem.text(flags.get(problem.option, "")) for problem in error.problems]
        raise UsageError("; ".join(problems)) from error
