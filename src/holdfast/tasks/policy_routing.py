"""Routing of customers' messages in the policy world: which department answers."""

from __future__ import annotations

import math
from typing import ClassVar

from holdfast import policy
from holdfast.contracts import Split, Task
from holdfast.examples import Examples
from holdfast.tasks._labels import named_label
from holdfast.tasks._turns import before_next_turn

_NAMES = {department: department for department in policy.DEPARTMENTS}


class PolicyRouting(Task):
    """Name the department: billing, delivery, returns, technical or account.

    The templates of the messages and the goods they name differ between training and test.
    """

    max_new_tokens: ClassVar[int] = 8

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return policy.task_rows("routing", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 for the correct department, 0 for another one, nan if none is named."""
        label = named_label(before_next_turn(response), _NAMES)
        return math.nan if label is None else float(label == reference)
