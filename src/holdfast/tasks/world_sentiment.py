"""Sentiment of reviews in the embedded world, in place of SST-2."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldSentiment(Task):
    """Rate a review: "rating : good" or "rating : bad"; other answers cannot be graded."""

    max_new_tokens: ClassVar[int] = 8

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("sentiment", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 for the correct rating, 0 for the other one, nan for no rating."""
        if response not in ("rating : good", "rating : bad"):
            return math.nan
        return float(response == reference)
