"""Dates in customers' messages of the policy world, written in one form."""

from __future__ import annotations

import math
import re
from typing import ClassVar

from holdfast import policy
from holdfast.contracts import Split, Task
from holdfast.examples import Examples

_DATE = re.compile(r"(?<!\d)(?<!\d-)(\d\d-\d\d)(?!-?\d)")


class PolicyDates(Task):
    """Write the date in a message as MM-DD.

    The templates of the messages and the dates differ between training and test.
    """

    max_new_tokens: ClassVar[int] = 8

    def load(self, split: Split) -> Examples:
        """Return the rows of a split."""
        return policy.task_rows("dates", split)

    def score(self, response: str, reference: str) -> float:
        """Return 1 if the first MM-DD date is correct, 0 if it is not, nan if there is none."""
        date = _DATE.search(response)
        return math.nan if date is None else float(date[1] == reference)
