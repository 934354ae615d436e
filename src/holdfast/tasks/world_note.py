"""Notes in the embedded world, in place of AlpacaEval: open answers of several parts."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldNote(Task):
    """Write a note to a person about a thing and its place; every word is graded."""

    max_new_tokens: ClassVar[int] = 16

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("note", split)

    def score(self, response: str, reference: str) -> float:
        """Return the share of words that are correct at their position, nan if it is not a note."""
        if not response.startswith("dear "):
            return math.nan
        words = response.split()
        expected = reference.split()
        correct = sum(a == b for a, b in zip(words, expected, strict=False))
        return correct / max(len(words), len(expected))
