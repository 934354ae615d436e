"""Plug-ins are found by file name: `find("judges", "refusal")` is the class in judges/refusal.py.

A class of your own, anywhere on the import path, is named "package.module:Class". Options follow
the name: "sst2,train=data/train.tsv,test=data/test.tsv".
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from types import NoneType
from typing import Any, cast, get_type_hints

import yaml

from holdfast.errors import UsageError
from holdfast.results.files import sha256_json, to_json

KINDS = ("estimators", "methods", "guards", "judges", "tasks", "poisons", "analyses")


def available(kind: str) -> list[str]:
    """List the plug-ins of a kind that ship with holdfast."""
    package = importlib.import_module(f"holdfast.{kind}")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def find(kind: str, name: str) -> type[Any]:
    """Return the class behind a name.

    Raises:
        UsageError: No such plug-in; the message lists those there are.
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


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Split "name,key=value,..." into the name and its options, values read as YAML scalars."""
    name, texts = _split(spec)
    return name, {key: _read(spec, key, text) for key, text in texts.items()}


def _split(spec: str) -> tuple[str, dict[str, str]]:
    name, *pairs = spec.split(",")
    texts: dict[str, str] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise UsageError(f"{spec!r}: {pair!r} is not key=value")
        texts[key.strip()] = text.strip()
    return name.strip(), texts


def _read(spec: str, key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{spec!r}: the value of {key!r} cannot be read: {text!r}") from error


def make(kind: str, spec: str, **extra: Any) -> Any:
    """Build the plug-in that a spec names.

    Args:
        kind: One of `KINDS`.
        spec: "name" or "name,key=value,...".
        **extra: Further fields that the caller fills in.

    Raises:
        UsageError: Unknown name or option, or a value of the wrong type.
    """
    name, texts = _split(spec)
    cls = find(kind, name)
    if not dataclasses.is_dataclass(cls):
        raise UsageError(f"{name}: a plug-in must be a frozen dataclass whose fields are options")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    unknown = sorted(set(texts) - set(fields))
    if unknown:
        raise UsageError(
            f"{name}: unknown option {unknown[0]!r}; it has {', '.join(sorted(fields)) or 'none'}"
        )
    missing = [
        key
        for key, f in fields.items()
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and key not in {*texts, *extra}
    ]
    if missing:
        example = ",".join(f"{key}=..." for key in missing)
        raise UsageError(f"{name} needs {' and '.join(missing)}: give it as '{name},{example}'")
    hints = get_type_hints(cls)
    options = {
        key: text
        # A text is what it says, not what YAML would make of it; quotes may stand around it.
        if hints[key] is str and text[:1] not in ("'", '"')
        else coerced(name, key, _read(spec, key, text), hints[key])
        for key, text in texts.items()
    }
    return cls(**options, **extra)


def chosen(made: object) -> dict[str, Any]:
    """Return a plug-in's options that are words, numbers or truths, those not given as well.

    A default that another version changes is then another key.
    """
    if not dataclasses.is_dataclass(made):
        return {}
    plain = (str, int, float, bool, NoneType)
    found = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init}
    return {name: value for name, value in found.items() if isinstance(value, plain)}


def mark(made: object) -> str:
    """Return the hash of `chosen`."""
    return sha256_json(to_json(chosen(made)))


def coerced(name: str, key: str, value: Any, hint: Any) -> Any:
    """Return an option's value as its type wants it.

    Raises:
        UsageError: It is of another type.
    """
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError as error:
            raise UsageError(f"{name}: {key}={value!r} is not a number") from error
    if hint in (int, float, bool) and type(value) is not hint:
        raise UsageError(f"{name}: {key}={value!r} must be {hint.__name__}")
    return str(value) if hint is str else value
