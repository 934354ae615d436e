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
from holdfast.tasks._turns import before_next_turn


class Alpaca(Task):
    """Follow an instruction.

    The score is the F1 of the words of the response against those of one reference answer, as bags
    of words, as in SQuAD. It is cheap and needs no network, but is a weak proxy for the judge of
    AlpacaEval: a good answer in other words scores low, and a fluent wrong one can score high. Use
    it to compare models on the same rows, never as a win rate.
    """

    train: str
    """JSON array or JSON lines with instruction, output and optionally input."""
    test: str
    """A file like `train`, such as AlpacaEval; training instructions in it are dropped."""
    limit: int = Field(default=0, ge=0)
    """Number of rows to keep in each split, a fixed sample; 0 keeps all."""
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
        """Return the F1 of the words, in [0, 1]; nan if either text has no words.

        What follows a mark of the next turn ("### Instruction:") is not part of the answer.
        """
        response_words = Counter(words(before_next_turn(response)))
        reference_words = Counter(words(reference))
        if not response_words or not reference_words:
            return math.nan
        # F1 = 2PR / (P + R) with P = common / |response| and R = common / |reference|.
        common = (response_words & reference_words).total()
        return 2 * common / (response_words.total() + reference_words.total())


def _rows(path: str) -> Iterator[Example]:
    for where, row in read_objects(path):
        if row.get("output") == "":
            continue
        prompt = text_of(where, row, "instruction")
        context = row.get("input")
        if isinstance(context, str) and context.strip() and context.strip() != "<noinput>":
            prompt = f"{prompt}\n{context.strip()}"
        yield Example(prompt, text_of(where, row, "output"), {"source": "alpaca"})
