"""Describes plug-ins for the terminal: the kinds, the plug-ins of a kind, a plug-in's options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.options import Description, Options, describe
from holdfast.specs import value_text

if TYPE_CHECKING:
    from rich.console import RenderableType

KIND_HELP = {
    "estimators": "predict how soon each alignment row is forgotten",
    "methods": "train the alignment",
    "guards": "protect a model while or after a customer fine-tunes it",
    "judges": "decide whether a response is harmful",
    "tasks": "downstream tasks that a customer fine-tunes for",
    "poisons": "how an attacker prepares the harmful rows",
    "analyses": "write the chapters of the report",
}


def kinds() -> list[dict[str, Any]]:
    """Return a row for each kind of plug-in."""
    return [
        {"kind": kind, "what": KIND_HELP[kind], "plug-ins": len(plugins.available(kind))}
        for kind in plugins.KINDS
    ]


def check_kind(kind: str) -> None:
    """Check that a kind of plug-in exists.

    Raises:
        UsageError: It does not; the message lists the kinds.
    """
    if kind not in plugins.KINDS:
        raise UsageError(f"{kind!r} is not a kind of plug-in: use {', '.join(plugins.KINDS)}")


def listing(kind: str) -> list[dict[str, Any]]:
    """Return a row for each plug-in of a kind."""
    check_kind(kind)
    return [
        {"name": name, "what": plugins.first_line(plugins.find(kind, name))}
        for name in plugins.available(kind)
    ]


def options_class(kind: str, name: str) -> type[Options]:
    """Return the class whose fields are a plug-in's options: `Options` for methods, else itself.

    Raises:
        UsageError: There is no such plug-in, or its options cannot be described.
    """
    check_kind(kind)
    cls = plugins.find(kind, name)
    options = getattr(cls, "Options", cls)
    if not issubclass(options, Options):
        raise UsageError(
            f"{name}: {options.__name__} does not derive from holdfast.options.Options"
        )
    return options


def details(kind: str, name: str) -> dict[str, Any]:
    """Return a plug-in's description and options as plain data."""
    options = describe(options_class(kind, name))
    cls = plugins.find(kind, name)
    return {
        "kind": kind,
        "name": name,
        "what": inspect.cleandoc(cls.__doc__ or ""),
        "needs": sorted(getattr(cls, "needs", ())),
        "accepts": sorted(getattr(cls, "accepts", ())),
        "options": [_plain(option) for option in options],
    }


def _plain(option: Description) -> dict[str, Any]:
    return {**asdict(option), "default": option.default_text}


def page(kind: str, name: str) -> Iterator[RenderableType]:
    """Yield a plug-in's description and options for a terminal of 80 columns or more."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    options = describe(options_class(kind, name))
    cls = plugins.find(kind, name)
    for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"):
        yield Text(_reflowed(paragraph))
        yield Text()
    if not options:
        yield Text("It has no options.")
        return
    table = Table(header_style="bold", show_lines=True, expand=False)
    table.add_column("option", no_wrap=True)
    table.add_column("type and default", max_width=26)
    table.add_column("what it does", ratio=1, overflow="fold")
    for option in options:
        accepted = escape(_type_and_default(option))
        table.add_row(f"[bold]{option.name}[/]", accepted, escape(option.help))
    yield table
    yield Text(f"Example: {example(kind, name, options)}")


def _reflowed(paragraph: str) -> str:
    """Join the lines of a prose paragraph; formulas and lists keep their line breaks."""
    lines = paragraph.splitlines()
    prose = not any(line.startswith((" ", "- ")) for line in lines)
    return " ".join(lines) if prose else paragraph


def _type_and_default(option: Description) -> str:
    kind = type_text(option)
    default = "required" if option.required else f"default: {option.default_text}"
    return f"{kind}\n{default}"


def type_text(option: Description) -> str:
    """Return an option's type and range as text."""
    return ", ".join(part for part in (option.type, option.range) if part)


def example(kind: str, name: str, options: list[Description]) -> str:
    """Return a sample spec that sets the required options, or else the first option."""
    settings = [f"{option.name}=..." for option in options if option.required]
    if not settings:
        settings = [f"{option.name}={value_text(option.default)}" for option in options[:1]]
    if kind == "methods":
        return " ".join([f"--method {name}", *(f"--option {setting}" for setting in settings)])
    return ",".join([name, *settings])
