"""YAML text in which no mapping has a key twice, and errors of one line."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value != "<<" and str(key.value) in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark
                )
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


def mapping_of(text: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds; empty if it holds nothing.

    Raises:
        ValueError: It is none, or a key occurs twice.
    """
    try:
        value = yaml.load(text, _Loader)  # noqa: S506  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}; write 'option: value' lines")
    return value
