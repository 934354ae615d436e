"""Generates the documentation pages that list commands and plug-ins with their options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator

from holdfast import plugins
from holdfast.cli.options import options_of
from holdfast.cli.reference import KIND_HELP, example, options_class, type_text
from holdfast.options import Description, describe
from holdfast.stages.table import STAGES, Stage


def pages() -> dict[str, str]:
    """Return the pages as a mapping from file name to Markdown."""
    return {"commands.md": commands_page(), "plugins.md": plugins_page()}


def commands_page() -> str:
    """Return the page that lists the options of every stage's command."""
    lines = [
        "# Commands and their options",
        "",
        "Generated from the code; `holdfast COMMAND --help` shows the same in a terminal. To give",
        "several values, repeat an option whose type is a list.",
    ]
    for name, stage in STAGES.items():
        lines += ["", f"## {name}", "", stage.summary, "", *_command_table(stage)]
        lines += ["", f"    holdfast {stage.example}"]
    return _text(lines)


def _command_table(stage: Stage) -> Iterator[str]:
    config = stage.load_config()
    flags = {option.name: option.flag for option in options_of(config, stage.excluded)}
    options = {option.name: option for option in describe(config)}
    yield from _table((flag, options[name]) for name, flag in flags.items())


def plugins_page() -> str:
    """Return the page that lists the options of every plug-in shipped with holdfast."""
    lines = [
        "# Plug-ins and their options",
        "",
        "Generated from the code; `holdfast plugins KIND NAME` shows the same in a terminal.",
        "Options follow the name, `name,option=value,...`; a method's are given with `--option`.",
    ]
    for kind in plugins.KINDS:
        purpose = KIND_HELP[kind]
        lines += ["", f"## {kind.capitalize()}", "", f"{purpose[0].upper()}{purpose[1:]}."]
        for name in plugins.available(kind):
            lines += _plugin(kind, name)
    return _text(lines)


def _plugin(kind: str, name: str) -> list[str]:
    options = describe(options_class(kind, name))
    doc = inspect.cleandoc(plugins.find(kind, name).__doc__ or "")
    lines = ["", f"### {name}", ""]
    for paragraph in doc.split("\n\n"):
        lines += [_paragraph(paragraph), ""]
    if not options:
        return [*lines, "It has no options."]
    named = ((option.name, option) for option in options)
    return [*lines, *_table(named), "", f"    {example(kind, name, options)}"]


def _paragraph(text: str) -> str:
    """Escape prose for Markdown; indented formulas are Markdown already."""
    if text.startswith("    "):
        return text
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_<>\[\]|])", r"\\\1", text)


def _table(options: Iterable[tuple[str, Description]]) -> Iterator[str]:
    yield "| option | type | default | what it does |"
    yield "|---|---|---|---|"
    for name, option in options:
        default = "required" if option.required else f"`{option.default_text or ' '}`"
        cells = (f"`{name}`", type_text(option), default, _paragraph(option.help))
        yield f"| {' | '.join(cells)} |"


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
