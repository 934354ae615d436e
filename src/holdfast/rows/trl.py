"""Reading data sets in the formats of TRL's trainers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.errors import DataError
from holdfast.examples import Example, Examples
from holdfast.rows.layouts import Layout, exchange_of
from holdfast.rows.marks import mark_columns, marks_of, nested_columns
from holdfast.rows.tables import Raw

_RESPONSES = ("completion", "chosen")
_CONVERSATIONS = ("messages", "conversations")


def from_dataset(dataset: Iterable[Mapping[str, Any]], *, name: str = "dataset") -> Examples:
    """Return the rows of a data set, in order.

    Its columns, conversational or plain text, are messages; prompt and completion; or, for
    preferences, prompt, chosen and rejected, where the chosen answer is the response. The prompt
    may be part of the chosen turns.

    Raises:
        DataError: A row has another format or more than one exchange, or is repeated.
    """
    rows = (_example(Raw(f"{name}: row {i + 1}", row)) for i, row in enumerate(dataset))
    return Examples(rows, name=name)


def _example(raw: Raw) -> Example:
    layout = _layout(raw)
    exchange = exchange_of(raw, layout)
    response = layout.response or layout.messages
    inside = nested_columns(raw.row, response, ())
    marking = {**mark_columns(raw.row, response, None), **inside}
    marks = marks_of(raw.row, marking, has_response=True)
    return Example(exchange.prompt, exchange.response, marks=marks)


def _layout(raw: Raw) -> Layout:
    response = next((column for column in _RESPONSES if column in raw.row), "")
    if response and "prompt" in raw.row:
        return Layout("prompt", response)
    messages = response or next((column for column in _CONVERSATIONS if column in raw.row), "")
    if messages:
        return Layout(messages=messages)
    raise DataError(
        f"{raw.place}: has the columns {', '.join(raw.row)}; it needs messages, prompt and "
        "completion, or prompt, chosen and rejected, either all text or all turns"
    )
