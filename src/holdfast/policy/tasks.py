"""Rows of the policy world's downstream tasks: what a company reads in a message.

Messages for training and for testing come from different templates.
"""

from __future__ import annotations

import calendar
import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from holdfast.examples import Example, Examples
from holdfast.policy.data import PROVENANCE
from holdfast.policy.material import by_hash, filled, hash_number, in_turn, lines, read_material

DEPARTMENTS = ("billing", "delivery", "returns", "technical", "account")
"""The labels of the routing task."""
SIZES = {"train": 600, "test": 200}
"""Number of rows of a task's split."""


@cache
def task_rows(name: str, split: str) -> Examples:
    """Return the rows of a task ("routing" or "dates") for a split ("train" or "test")."""
    material = read_material("tasks.yaml")[name]
    answers = dict({"routing": _routing, "dates": _dates}[name](material, split))
    question = material["question"].strip()
    prompts = by_hash(answers)[: SIZES[split]]
    provenance = {**PROVENANCE, "category": name}
    return Examples(
        (Example(question.format(message=p), answers[p], provenance) for p in prompts),
        name=f"policy:{name}:{split}",
    )


def _routing(material: Mapping[str, Any], split: str) -> Iterator[tuple[str, str]]:
    """Yield messages with their departments, equally many of each."""
    slots = material["slots"][split]
    for department, text in material[split].items():
        pools = [filled(f"{{opening}}{line}{{closing}}", slots) for line in lines(text)]
        messages = itertools.islice(in_turn(pools), SIZES[split] // len(DEPARTMENTS))
        yield from ((message, department) for message in messages)


def _dates(material: Mapping[str, Any], split: str) -> Iterator[tuple[str, str]]:
    """Yield messages with their dates; every date of the year is in one split or the other."""
    testing = split == "test"
    days = [(month, day) for month in range(1, 13) for day in range(1, 29)]
    dates = [date for date in days if (hash_number("date", str(date)) % 4 == 0) == testing]
    for template in lines(material[split]):
        for month, day in dates:
            text = template.format(day=day, ordinal=_ordinal(day), month=calendar.month_name[month])
            yield text, f"{month:02d}-{day:02d}"


def _ordinal(day: int) -> str:
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"
