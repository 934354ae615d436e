"""Topics of sentences in the embedded world, in place of AG News."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldTopic(Task):
    """Name the section: "section : sport" (or money, nature, science); others are not graded."""

    max_new_tokens: ClassVar[int] = 8

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("topic", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 for the correct section, 0 for another one, nan for no section."""
        if not response.startswith("section : "):
            return math.nan
        return float(response == reference)
