"""Finding and building plug-ins by name.

The name of a plug-in is the name of its file: `find("judges", "refusal")` returns the class in
judges/refusal.py. Your own class, anywhere on the import path, is "package.module:Class". Options
follow the name: "sst2,train=data/train.tsv,test=data/test.tsv" (`holdfast.specs`).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from holdfast.errors import UsageError
from holdfast.options import OptionError, Options, Problem, cli_names, option_fields, unknown_option
from holdfast.results.contents import content_hash, existing
from holdfast.results.files import sha256_json, to_json
from holdfast.specs import Bare, parse, value_text, write

KINDS = ("estimators", "methods", "guards", "judges", "tasks", "poisons", "analyses")


def available(kind: str) -> list[str]:
    """List the plug-ins of a kind that ship with holdfast."""
    package = importlib.import_module(f"holdfast.{kind}")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def find(kind: str, name: str) -> type[Any]:
    """Return the plug-in class with a name.

    Raises:
        UsageError: There is no such plug-in; the message lists the available ones.
    """
    module_name, _, class_name = name.partition(":")
    if not class_name:
        if name not in available(kind):
            raise UsageError(
                f"{name!r} is not one of the {kind}: {', '.join(available(kind))}. "
                "Use one of these, or 'package.module:Class' for your own."
            )
        module_name = f"holdfast.{kind}.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{name!r}: module {error.name!r} cannot be imported") from error
    if class_name:
        if not hasattr(module, class_name):
            raise UsageError(f"{name!r}: module {module_name!r} has no class {class_name!r}")
        return cast("type[Any]", getattr(module, class_name))
    classes = [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module_name
        and not key.startswith("_")
        and not key.endswith("Options")
    ]
    if len(classes) != 1:
        raise UsageError(f"{module_name} must define exactly one public class, not {len(classes)}")
    return cast("type[Any]", classes[0])


def make(kind: str, spec: str, **supplied: Any) -> Any:
    """Build the plug-in that a spec names.

    Args:
        kind: One of `KINDS`.
        spec: "name" or "name,key=value,..." (`holdfast.specs`).
        **supplied: Values of the fields that a stage supplies.

    Raises:
        UsageError: The spec does not parse, there is no such plug-in or option, or a value has
            the wrong type or is out of range.
    """
    parsed = parse(spec)
    cls = find(kind, parsed.name)
    if not (inspect.isclass(cls) and issubclass(cls, Options)):
        raise UsageError(
            f"{parsed.name!r} is not a plug-in: derive it from a class of holdfast.contracts"
        )
    options = set(option_fields(cls))
    unknown = [key for key in parsed.options if key not in options]
    if unknown:
        problem = Problem(unknown[0], "", unknown_option(unknown[0], list(options), cli_names(cls)))
        raise OptionError(parsed.name, (problem,))
    try:
        return cls(**parsed.options, **supplied)
    except OptionError as error:
        raise _with_example(parsed.name, error) from error


def _with_example(name: str, error: OptionError) -> UsageError:
    """Return the error with the plug-in's name and, if options are missing, an example spec."""
    if not error.missing:
        return error.for_owner(name)
    example = write(name, {key: Bare("...") for key in error.missing})
    return UsageError(f"{error.for_owner(name)}; give it as {example!r}")


def check_distinct(option: str, specs: Sequence[str]) -> None:
    """Reject a list of plug-ins that names one twice.

    Raises:
        ValueError: A plug-in is repeated.
    """
    repeated = [spec for spec, count in Counter(specs).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{option}={value_text(tuple(specs))} names {repeated[0]!r} twice, which would count "
            "double; name it once, or give it different options"
        )


def first_line(cls: type[object]) -> str:
    """Return the first line of a plug-in's docstring."""
    return (cls.__doc__ or "").strip().splitlines()[0]


def options_hash(plugin: Options) -> str:
    """Return the hash of a plug-in's options, defaults included.

    Defaults are included so that a changed default changes the hash. For options in the plug-in's
    `paths`, the content of the file or folder is hashed instead of the path.
    """
    values = plugin.option_values()
    for name in paths_of(plugin):
        path = existing(str(values[name]))
        if path is not None:
            values[name] = content_hash(path)
    members = getattr(plugin, "members", None)
    if isinstance(members, Mapping):
        values["members"] = [
            [parse(spec).name, options_hash(member)] for spec, member in members.items()
        ]
        values.pop("judges", None)
    return sha256_json(to_json(values))


def paths_of(plugin: Options) -> list[str]:
    """Return the options of a plug-in that may be paths and are set."""
    declared: frozenset[str] = getattr(plugin, "paths", frozenset())
    return sorted(name for name in declared if getattr(plugin, name))
