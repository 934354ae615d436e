"""Word problems in the embedded world, in place of GSM8K."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import world
from holdfast.contracts import Split, Task
from holdfast.examples import Examples


class WorldMath(Task):
    """Solve a sum told as a story; as in GSM8K, only the final answer is graded."""

    max_new_tokens: ClassVar[int] = 14

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return world.task_rows("math", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 if the text after "answer :" is correct, 0 if not, nan without that mark."""
        _, marker, answer = response.partition("answer : ")
        if not marker:
            return math.nan
        return float(answer == reference.partition("answer : ")[2])
