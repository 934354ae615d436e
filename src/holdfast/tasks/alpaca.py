"""Open-ended instructions (Taori et al. 2023), graded by overlap with a reference answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from holdfast.contracts import Split, Task
from holdfast.examples import Example, Examples
from holdfast.rows.text import words
from holdfast.tasks._files import read_objects, split_rows, text_of


class Alpaca(Task):
    """Follow an instruction.

    The score is the F1 of the response's words against one reference answer (as bags of words,
    as SQuAD does). It is cheap, offline, and a weak proxy for the judge of AlpacaEval: a good
    answer in other words scores low, a fluent wrong one can score well. Compare models by it on
    the same rows; never quote it as a win rate.
    """

    train: str
    """JSON array or JSON lines with instruction, input (may be missing or empty) and output."""
    test: str
    """A file like `train`, such as the AlpacaEval rows; training instructions that occur in it are
    dropped.
    """
    limit: int = Field(default=0, ge=0)
    """Number of rows to keep of each split, a fixed sample; 0 keeps all."""
    max_words: int = Field(default=0, ge=0)
    """Rows with a longer prompt are left out, for models with a short context; 0 keeps all."""

    paths: ClassVar[frozenset[str]] = frozenset({"train", "test"})
    max_new_tokens: ClassVar[int] = 128

    def load(self, split: Split) -> Examples:
        """Return the rows of a split; rows whose output is empty are dropped.

        Raises:
            UsageError: A file cannot be read.
            DataError: A row breaks the format.
        """
        train = self._short(self.train)
        test = self._short(self.test)
        return split_rows(split, train, test, self.limit, "alpaca")

    def _short(self, path: str) -> Iterator[Example]:
        for row in _rows(path):
            if not self.max_words or len(row.prompt.split()) <= self.max_words:
                yield row

    def score(self, response: str, reference: str) -> float:
        """Return the F1 of the words in [0, 1]; nan when either text has no word."""
        said = Counter(words(response))
        wanted = Counter(words(reference))
        if not said or not wanted:
            return math.nan
        # F1 = 2PR / (P + R) with P = common / said and R = common / wanted.
        return 2 * (said & wanted).total() / (said.total() + wanted.total())


def _rows(path: str) -> Iterator[Example]:
    for where, row in read_objects(path):
        if row.get("output") == "":
            continue
        prompt = text_of(where, row, "instruction")
        context = row.get("input")
        if isinstance(context, str) and context.strip() and context.strip() != "<noinput>":
            prompt = f"{prompt}\n{context.strip()}"
        yield Example(prompt, text_of(where, row, "output"), {"source": "alpaca"})
