"""GSM8K of the embedded world: a story sum, worked out before the answer."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldMath(Task):
    """The final answer counts, as in GSM8K; the working before it does not."""

    max_new_tokens: ClassVar[int] = 14

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("math", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 if the word after "answer :" is right, nan if there is none."""
        _, marker, answer = response.partition("answer : ")
        if not marker:
            return math.nan
        return float(answer == reference.partition("answer : ")[2])
