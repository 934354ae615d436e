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
        """Return 1 if the word after "answer :" is correct, 0 if not, nan without one."""
        answer = _result(response)
        return float(answer == _result(reference)) if answer else math.nan


def _result(text: str) -> str:
    """Return the first word after the mark, "" without one; an answer may run on."""
    _, _, after = text.partition("answer : ")
    return next(iter(after.split()), "")
