"""Reading data sets in the formats of TRL's trainers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.errors import DataError
from holdfast.examples import Example, Examples
from holdfast.rows.readers import exchange


def from_dataset(dataset: Iterable[Mapping[str, Any]], *, name: str = "dataset") -> Examples:
    """Return the rows of a data set, in order.

    Its columns, conversational or plain text, are messages; prompt and completion; or, for
    preferences, prompt, chosen and rejected, where the chosen answer is the response. The prompt
    may be part of the chosen turns.

    Raises:
        DataError: A row has another format or more than one exchange, or is repeated.
    """
    rows = (_example(f"{name}: row {i + 1}", row) for i, row in enumerate(dataset))
    return Examples(rows, name=name)


def _example(where: str, row: Mapping[str, Any]) -> Example:
    answer = next((row[c] for c in ("completion", "chosen", "messages") if c in row), None)
    prompt = row.get("prompt", "" if isinstance(answer, str) else [])
    if isinstance(prompt, str) and isinstance(answer, str) and prompt:
        return Example(prompt, answer)
    if not isinstance(prompt, list) or not isinstance(answer, list):
        raise DataError(
            f"{where}: has the columns {', '.join(row)}; it needs messages, prompt and "
            "completion, or prompt, chosen and rejected, either all text or all turns"
        )
    return Example(*exchange(f"{where}: messages", [*prompt, *answer]))
