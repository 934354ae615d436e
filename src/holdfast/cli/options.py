"""From a stage's configuration to the options of its command.

A field is an option: its name, type, default and bounds are those of the field, its help is what
the docstring says of it. So nothing is written twice, and a new field needs no line here.
"""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from holdfast.cli import show
from holdfast.cli.stages import Stage
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from typer.core import TyperCommand

    from holdfast.stages.calls import Call

NAMES = {
    **{"analyses": "analysis", "learning_rate": "lr", "learning_rates": "lr"},
    **{"steps": "steps", "epochs": "epochs"},
}
"""Fields whose option is called otherwise. Any other has its field's name, a list in the singular,
since it is given once for each value: `models` is --model.
"""

REPEATABLE = "An option of type list or NAME=VALUE may be given several times."


# ------------------------------------------------------------------------------------- docstrings


def attributes(doc: str) -> dict[str, str]:
    """Return attribute -> words from the `Attributes:` section of a Google-style docstring.

    An entry is "name: words" or "name (type): words"; lines that are indented further go on with
    it. Line breaks become spaces.
    """
    found: dict[str, str] = {}
    name = ""
    for line in _section(doc, "Attributes:"):
        if line[0].isspace():
            found[name] = f"{found[name]} {line.strip()}".strip()
        else:
            head, _, words = line.partition(":")
            name = head.partition(" (")[0].strip()
            found[name] = words.strip()
    return found


def _section(doc: str, heading: str) -> list[str]:
    """Return the lines under a heading that are not blank, the section's own indent removed."""
    lines: list[str] = []
    inside = False
    for line in inspect.cleandoc(doc).splitlines():
        if line and not line[0].isspace():
            inside = line.strip() == heading
        elif inside and line.strip():
            lines.append(line)
    return textwrap.dedent("\n".join(lines)).splitlines()


def described(cls: type[object]) -> dict[str, str]:
    """Return what the docstrings of a class and of its bases say of their attributes."""
    words: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        words |= attributes(base.__doc__ or "")
    return words


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
    """

    name: str
    flag: str
    words: str
    parsed: Any
    default: Any
    form: str | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    read: Callable[[str, Any], Any] | None = None

    def parameter(self) -> Parameter:
        """Return the parameter from which typer makes the option."""
        # A flag that can be on without being given must have a way to be off.
        switch = self.parsed is bool and self.default is not False
        info = typer.Option(
            self.default,
            f"{self.flag}/--no-{self.flag.removeprefix('--')}" if switch else self.flag,
            help=self.words,
            metavar=self.form,
            **cast("dict[str, Any]", self.bounds),
        )
        return Parameter(self.name, Parameter.KEYWORD_ONLY, default=info, annotation=self.parsed)

    def value(self, given: Any) -> Any:
        """Return the field's value."""
        return given if self.read is None else self.read(self.flag, given)


def options_of(config: type[BaseModel], without: Collection[str] = ()) -> list[Option]:
    """Return the options of a configuration: required ones first, inherited ones last.

    Args:
        config: A stage's configuration.
        without: Fields that are no option.
    """
    words, own = described(config), inspect.get_annotations(config)
    fields = {name: info for name, info in config.model_fields.items() if name not in without}
    order = sorted(fields, key=lambda name: (not fields[name].is_required(), name not in own))
    return [_option(name, fields[name], words.get(name, "")) for name in order]


def _option(name: str, info: FieldInfo, words: str) -> Option:
    annotation = _without_none(info.annotation)
    default = ... if info.is_required() else info.get_default(call_default_factory=True)
    if get_origin(annotation) is dict:
        default = ... if info.is_required() else None
        if get_args(annotation)[1] is str:
            return Option(name, _flag(name), words, str, default, "NAME=VALUE,...", read=_mapping)
        flag = _flag(_one_of(name))
        return Option(name, flag, words, list[str], default, "NAME=VALUE", read=_values)
    once_each = get_origin(annotation) is list
    flag = _flag(_one_of(name) if once_each else name)
    # typer knows no lists of choices; what is no choice is refused by the configuration.
    choices = once_each and get_origin(get_args(annotation)[0]) is Literal
    parsed = list[str] if choices else info.annotation
    return Option(name, flag, words, parsed, default, bounds=_bounds(info))


def _flag(name: str) -> str:
    return f"--{NAMES.get(name, name).replace('_', '-')}"


def _one_of(name: str) -> str:
    """Name one of several: what is given once for each value is called by one of them."""
    if name in NAMES:
        return name
    return f"{name[:-3]}y" if name.endswith("ies") else name.removesuffix("s")


def _without_none(annotation: Any) -> Any:
    given = [a for a in get_args(annotation) if a is not NoneType]
    union = get_origin(annotation) in (Union, UnionType)
    return given[0] if union and len(given) == 1 else annotation


def _bounds(info: FieldInfo) -> dict[str, float]:
    # typer has no open bounds: those (gt, lt) are left to the configuration.
    found = {}
    for rule in info.metadata:
        for key, name in (("ge", "min"), ("le", "max")):
            if hasattr(rule, key):
                found[name] = getattr(rule, key)
    return found


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
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{flag}: the value {text!r} is not YAML; put it in quotes") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            return float(value)
    return value


# ---------------------------------------------------------------------------------------- command


def command(stage: Stage) -> TyperCommand:
    """Make the command of a stage."""
    config, function = stage.load()
    options = options_of(config, stage.without)

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
                told = stage.told(function(chosen))
        show.tell(as_json, told)

    parameters = [
        *(option.parameter() for option in options),
        *_estimate(stage),
        _json(),
        _context(),
    ]
    cast("Any", call).__signature__ = Signature(parameters)
    epilog = f"Example: holdfast {stage.example}"
    if any(get_origin(_without_none(option.parsed)) is list for option in options):
        epilog += f"\n\n{REPEATABLE}"
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(help=stage.what, epilog=epilog)(call)
    return cast("TyperCommand", typer.main.get_command(alone))


def _estimate(stage: Stage) -> list[Parameter]:
    if not stage.long:
        return []
    info = typer.Option(False, "--estimate", help="Say what it would cost, and stop.")
    return [Parameter("estimate", Parameter.KEYWORD_ONLY, default=info, annotation=bool)]


def _estimated(stage: Stage, config: Any) -> show.Told:
    from holdfast.stages.forecast import estimate

    return estimate([_call(stage, config)], jobs=config.jobs).told()


def _begin(stage: Stage, config: Any) -> None:
    """Say of a long stage what is to be done."""
    if stage.long:
        from holdfast.stages.forecast import begin

        begin([_call(stage, config)], jobs=config.jobs)


def _call(stage: Stage, config: Any) -> Call:
    from holdfast.stages.calls import Call

    name: Any = stage.home[2]
    return Call(name, "all", config)


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
    config: type[BaseModel], options: Sequence[Option], given: Mapping[str, Any]
) -> BaseModel:
    """Build the configuration; what was not given is left to its defaults.

    Raises:
        UsageError: A value breaks a rule of the configuration; the message names its option.
    """
    values = {o.name: o.value(given[o.name]) for o in options if given.get(o.name) is not None}
    try:
        return config(**values)
    except ValidationError as error:
        flags = {option.name: option.flag for option in options}
        raise UsageError("; ".join(_problems(error, flags))) from error


def _problems(error: ValidationError, flags: Mapping[str, str]) -> list[str]:
    """Say of each problem which option is wrong, and how."""
    lines = []
    for problem in error.errors():
        name = str(next(iter(problem["loc"]), ""))
        value = problem["input"]
        shown = "" if isinstance(value, dict) else f" (found {value!r})"
        place = flags.get(name, name)
        lines.append(f"{place}: {problem['msg']}{shown}" if place else problem["msg"])
    return lines
