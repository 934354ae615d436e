"""SST-2: the sentiment of film reviews (Socher et al. 2013, the two classes of GLUE)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from holdfast.contracts import Split, Task
from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples
from holdfast.tasks._files import read_cells, split_rows
from holdfast.tasks._labels import named_label

_LABELS = {"0": "negative", "1": "positive"}


class SST2(Task):
    """Classify a review as positive or negative, in one word."""

    train: str
    """Tab-separated file of sentences and labels 0 or 1; a header line is skipped."""
    test: str
    """A file like `train`; training sentences that occur in it are dropped."""
    limit: int = Field(default=0, ge=0)
    """Number of rows to keep in each split, a fixed sample; 0 keeps all."""

    paths: ClassVar[frozenset[str]] = frozenset({"train", "test"})
    max_new_tokens: ClassVar[int] = 8

    def load(self, split: Split) -> Examples:
        """Return the rows of a split.

        Raises:
            UsageError: A file cannot be read.
            DataError: A line breaks the format.
        """
        return split_rows(split, _rows(self.train), _rows(self.test), self.limit, "sst2")

    def score(self, response: str, reference: str) -> float:
        """Return 1.0 if the answer names the label, 0.0 if it names the other one, else nan.

        An answer may be a sentence and may run on; "not negative" and "positive or negative" name
        no label.
        """
        if reference not in _LABELS.values():
            raise UsageError(f"sst2: reference {reference!r} must be 'positive' or 'negative'")
        label = named_label(response, {name: name for name in _LABELS.values()})
        return math.nan if label is None else float(label == reference)


def _rows(path: str) -> Iterator[Example]:
    for number, (where, cells) in enumerate(read_cells(path, tabs=True)):
        if number == 0 and cells == ["sentence", "label"]:
            continue
        if len(cells) != 2 or cells[1].strip() not in _LABELS or not cells[0].strip():
            raise DataError(f"{where}: {cells!r}; expected a sentence, a tab, and 0 or 1")
        prompt = f"Review: {cells[0].strip()}\nIs this review positive or negative?"
        yield Example(prompt, _LABELS[cells[1].strip()], {"source": "sst2"})
