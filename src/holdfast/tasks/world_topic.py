"""AG News of the embedded world: which section is the sentence from?"""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldTopic(Task):
    """Answer "section : sport" (or money, nature, science); anything else cannot be graded."""

    max_new_tokens: ClassVar[int] = 8

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("topic", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 for the right section, 0 for another one, nan for no section."""
        if not response.startswith("section : "):
            return math.nan
        return float(response == reference)
