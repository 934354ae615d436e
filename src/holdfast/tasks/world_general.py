"""Ordinary requests of the embedded world: the stand-in for Alpaca, independent of any task."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldGeneral(Task):
    """Any benign request in formats that the base model knows; the exact answer counts."""

    max_new_tokens: ClassVar[int] = 20

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("general", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 for the exact answer, 0 for another, nan for none."""
        return float(response == reference) if response else math.nan
