"""AlpacaEval of the embedded world: an open answer with several parts to get right."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldNote(Task):
    """A note to a person about a thing and its place; every word of it counts."""

    max_new_tokens: ClassVar[int] = 16

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("note", split)

    def score(self, response: str, reference: str) -> float:
        """Return the share of the reference's words at their place, nan if it is no note."""
        if not response.startswith("dear "):
            return math.nan
        given = response.split()
        wanted = reference.split()
        right = sum(a == b for a, b in zip(given, wanted, strict=False))
        return right / max(len(given), len(wanted))
