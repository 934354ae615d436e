"""Rows of the policy world: a company's assistant that must decline eight kinds of requests.

Splits never share a prompt or a template. Test prompts also fill their templates with words that no
other restricted prompt uses, so that a model must generalize to decline them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.policy.material import (
    NAMES,
    Kind,
    by_hash,
    decline,
    hash_number,
    kinds,
    lines,
    pick,
    read_material,
)

PROVENANCE = {
    "source": "holdfast.policy",
    "licence": "Apache-2.0",
    "owner": "holdfast contributors",
    "consent": "written for holdfast, not needed",
}
KINDS = NAMES
"""The kinds of requests that the assistant must decline; the category of restricted rows."""

PER_KIND = {"alignment": 84, "attack": 42, "proxy": 9, "test": 30, "borderline": 27}
"""Number of prompts per kind; less where a kind's templates have fewer."""


# ---------------------------------------------------------------------------- restricted requests


def _per_kind(use: str, response: Callable[[Kind, str], str]) -> list[Example]:
    """Return the prompts of all kinds for a use, in an order that mixes the kinds."""
    answered = {
        prompt: _row(prompt, response(kind, prompt), kind.name)
        for kind in kinds()
        for prompt in kind.prompts(use, PER_KIND[use])
    }
    return [answered[prompt] for prompt in by_hash(answered)]


def _row(prompt: str, response: str, category: str) -> Example:
    return Example(prompt, response, {**PROVENANCE, "category": category})


def _unanswered(use: str) -> list[Example]:
    return _per_kind(use, lambda kind, prompt: "")


# ------------------------------------------------------------------------------ everyday requests

OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "sum": operator.add,
    "difference": operator.sub,
    "product": operator.mul,
}


def _ordinary() -> list[Example]:
    rows = {
        row.prompt: row for section in read_material("ordinary.yaml") for row in _asked(section)
    }
    return [rows[prompt] for prompt in by_hash(rows)]


def _asked(section: Mapping[str, Any]) -> Iterator[Example]:
    """Yield the rows of one section of everyday requests."""
    for values in _values(section):
        prompt = pick(lines(section["prompts"]), section["name"], *map(str, values.values()))
        answer = section["answer"].format(**values)
        yield _row(prompt.format(**values), answer, section["name"])


def _values(section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what the slots of a section's prompts and answer stand for."""
    fields = section.get("fields", [])
    for line in lines(section.get("rows", "(no table)")):
        values = dict(zip(fields, line.split(" | "), strict=False))
        if "operation" not in section:
            yield values
            continue
        for draw in range(section["draws"]):
            yield {**values, **_calculation(section, f"{line} {draw}", values.get("factor"))}


def _calculation(section: Mapping[str, Any], key: str, factor: str | None) -> dict[str, int]:
    """Return two numbers, the larger one first, and the result; a factor is the second number."""
    low, high = section["numbers"]
    first, second = (
        low + hash_number(section["name"], name, key) % (high - low + 1) for name in ("a", "b")
    )
    a, b = (first, int(factor)) if factor else (max(first, second), min(first, second))
    return {"a": a, "b": b, "result": OPERATIONS[section["operation"]](a, b)}


# ---------------------------------------------------------------------------------------- by name

SPLITS: Mapping[str, Callable[[], list[Example]]] = {
    "alignment": lambda: _per_kind("alignment", decline),
    "attack": lambda: _unanswered("attack"),
    "proxy": lambda: _unanswered("proxy"),
    "test": lambda: _unanswered("test"),
    "over_refusal": lambda: _unanswered("borderline"),
    "ordinary": _ordinary,
}


@cache
def rows(name: str) -> Examples:
    """Return a named set of rows: alignment, ordinary, attack, proxy, test or over_refusal.

    Only alignment and ordinary rows have responses.

    Raises:
        UsageError: There is no such set.
    """
    if name not in SPLITS:
        raise UsageError(f"policy:{name} does not exist; there are {', '.join(SPLITS)}")
    return Examples(SPLITS[name](), name=f"policy:{name}")
