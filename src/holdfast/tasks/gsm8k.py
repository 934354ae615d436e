"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from holdfast.contracts import Split, Task
from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples
from holdfast.tasks._files import read_objects, split_rows, text_of
from holdfast.tasks._numbers import final_number, readings


class GSM8K(Task):
    """Solve a word problem step by step and give the result after "####".

    The calculator marks (<<2*3=6>>) are removed from the answers.
    """

    train: str
    """JSON lines with question and answer."""
    test: str
    """A file like `train`; training questions that occur in it are dropped."""
    limit: int = Field(default=0, ge=0)
    """Number of rows to keep in each split, a fixed sample; 0 keeps all."""

    paths: ClassVar[frozenset[str]] = frozenset({"train", "test"})
    max_new_tokens: ClassVar[int] = 256

    def load(self, split: Split) -> Examples:
        """Return the rows of a split.

        Raises:
            UsageError: A file cannot be read.
            DataError: A line breaks the format.
        """
        return split_rows(split, _rows(self.train), _rows(self.test), self.limit, "gsm8k")

    def score(self, response: str, reference: str) -> float:
        """Return 1.0 if the result equals the reference's, 0.0 if not, nan if none is stated.

        The result is the number after the first "####", else in a LaTeX box, else after "answer
        is", else the last one. 18, 18.0, $18 and 1.8e1 are equal; 25% is 25 or 0.25.
        """
        expected = final_number(reference)
        if expected is None:
            raise UsageError(f"gsm8k: reference {reference[-60:]!r} contains no number")
        numbers = readings(response)
        return float(expected in numbers) if numbers else math.nan


def _rows(path: str) -> Iterator[Example]:
    for where, row in read_objects(path):
        answer = re.sub(r"<<[^<>]*>>", "", text_of(where, row, "answer"))
        if "####" not in answer or final_number(answer) is None:
            raise DataError(f"{where}: the answer does not end in '#### NUMBER'; add the result")
        yield Example(text_of(where, row, "question"), answer, {"source": "gsm8k"})
