"""SST-2 of the embedded world: is the review good or bad?"""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldSentiment(Task):
    """Answer "rating : good" or "rating : bad"; anything else cannot be graded."""

    max_new_tokens: ClassVar[int] = 8

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("sentiment", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 for the right rating, 0 for the other one, nan for no rating."""
        if response not in ("rating : good", "rating : bad"):
            return math.nan
        return float(response == reference)
