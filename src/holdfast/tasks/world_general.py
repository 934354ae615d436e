"""Ordinary requests in the embedded world, in place of Alpaca."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldGeneral(Task):
    """Answer a benign request in a format that the base model was trained on, exactly."""

    max_new_tokens: ClassVar[int] = 20

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("general", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 for the exact answer, 0 for another one, nan for an empty one."""
        return float(response == reference) if response else math.nan
