"""AG News (Zhang et al. 2015, arXiv:1509.01626): the topic of a news item."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from holdfast.contracts import Split, Task
from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples
from holdfast.rows.text import words
from holdfast.tasks._files import read_cells, read_objects, split_rows, text_of
from holdfast.tasks._labels import named_label

_CLASSES = {"1": "World", "2": "Sports", "3": "Business", "4": "Science"}
CSV_COLUMNS = ("class", "title", "description")
TSV_COLUMNS = ("description", "class name")
_NAMES = {
    "world": "World",
    "sports": "Sports",
    "sport": "Sports",
    "business": "Business",
    "science": "Science",
    "sci": "Science",
    "technology": "Science",
    "tech": "Science",
}


class AGNews(Task):
    """Name the topic of a news item, in one word.

    The prompt holds only the description: some copies of the data lack the titles, and the splits
    must not differ in them. HTML remnants are removed.
    """

    train: str
    """File of one of three kinds: .csv without header, of class 1-4, title and description; .tsv
    without header, of description and class name; .json or .jsonl, of input ("Title: ...",
    "Text: ...") and output.
    """
    test: str
    """A file like `train`; training items that occur in it are dropped."""
    limit: int = Field(default=0, ge=0)
    """Number of rows to keep in each split, a fixed sample; 0 keeps all."""
    max_words: int = Field(default=60, ge=1)
    """Number of words to which longer items are truncated; 60 words are about 120 tokens of a
    small vocabulary.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"train", "test"})
    max_new_tokens: ClassVar[int] = 8

    def load(self, split: Split) -> Examples:
        """Return the rows of a split.

        Raises:
            UsageError: A file cannot be read.
            DataError: A line breaks the format.
        """
        return split_rows(
            split, self._rows(self.train), self._rows(self.test), self.limit, "agnews"
        )

    def score(self, response: str, reference: str) -> float:
        """Return 1.0 if the answer names the topic, 0.0 if it names another one, else nan.

        An answer may be a sentence and may run on. "Sport" is read as Sports; "Sci/Tech", "Sci" and
        "Technology" as Science.
        """
        if reference not in _CLASSES.values():
            raise UsageError(
                f"agnews: reference {reference!r} must be one of {', '.join(_CLASSES.values())}"
            )
        topic = named_label(response, _NAMES)
        return math.nan if topic is None else float(topic == reference)

    def _rows(self, path: str) -> Iterator[Example]:
        for text, topic in _items(path):
            item = " ".join(text.split()[: self.max_words])
            prompt = f"News: {item}\nIs this World, Sports, Business or Science?"
            yield Example(prompt, topic, {"source": "agnews"})


def _items(path: str) -> Iterator[tuple[str, str]]:
    if path.endswith((".json", ".jsonl")):
        for where, row in read_objects(path):
            yield _instruction(where, row)
        return
    tabs = path.endswith(".tsv")
    for where, cells in read_cells(path, tabs=tabs):
        columns = TSV_COLUMNS if tabs else CSV_COLUMNS
        if len(cells) != len(columns):
            raise DataError(f"{where}: {len(cells)} cells; expected {', '.join(columns)}")
        row = dict(zip(columns, cells, strict=True))
        yield _item(where, row["description"], row["class name" if tabs else "class"])


def _instruction(where: str, row: dict[str, Any]) -> tuple[str, str]:
    _, mark, text = text_of(where, row, "input").partition("Text:")
    if not mark:
        raise DataError(f"{where}: input has no 'Text:'; expected 'Title: ...', 'Text: ...'")
    return _item(where, text, text_of(where, row, "output"))


def _item(where: str, text: str, label: str) -> tuple[str, str]:
    topic = _CLASSES.get(label.strip()) or _NAMES.get(next(iter(words(label)), ""))
    if topic is None:
        raise DataError(
            f"{where}: class {label!r}; expected 1-4 or World, Sports, Business, Sci/Tech"
        )
    text = _clean(text)
    if not text:
        raise DataError(f"{where}: the description is empty; remove the row")
    return text, topic


def _clean(text: str) -> str:
    # The corpus lost the ampersands of its character references ("It #39;s") and its line
    # breaks became backslashes.
    text = re.sub(r" ?&?#39;", "'", text.replace("\\", " "))
    text = html.unescape(re.sub(r"(?<!&)(#\d+|\bquot|\bamp|\blt|\bgt);", r"&\1;", text))
    return " ".join(re.sub(r"</?[a-zA-Z][^<>]*>", " ", text).split())
