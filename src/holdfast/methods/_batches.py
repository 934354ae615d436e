"""Batches of alignment rows: what they hold, how they are parted, and endless shuffles of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from holdfast.errors import UsageError
from holdfast.models.encoding import IGNORE

Batch = dict[str, Tensor]
"""A model's inputs, with marks of (B,) beside them."""
Items = Tensor | float | None
"""What the losses of a step are divided by: its answer tokens, or rows; None for a batch's own."""
MARKS = frozenset({"is_safety", "group"})
"""What the model does not take: whether a row is a safety row, and its group, -1 for none."""


def answer_tokens(batch: Batch) -> int:
    """Count the tokens of a batch that its loss is a mean of; the first is never predicted."""
    return int((batch["labels"][:, 1:] != IGNORE).sum())


def size(batch: Batch) -> int:
    """Count what a batch's loss is a mean of: answer tokens, or rows where there are no labels."""
    return answer_tokens(batch) if "labels" in batch else rows_of(batch)


def by_safety(batch: Batch) -> tuple[Batch, Batch]:
    """Part a batch into its safety and its benign rows; either may have none.

    A preference batch holds the chosen answers of all rows, then the rejected ones.
    """
    safe = batch["is_safety"]
    return chosen(batch, safe), chosen(batch, ~safe)


def by_group(batch: Batch) -> Iterator[tuple[int, Batch]]:
    """Part a batch into the rows of each group that has any, in the groups' order."""
    for group in batch["group"].unique().tolist():
        yield group, chosen(batch, batch["group"] == group)


def chosen(batch: Batch, mask: Tensor) -> Batch:
    """Return the rows at which the mask (B,) is set, without the padding that only others need."""
    found = {k: v[mask.repeat(len(v) // len(mask))] for k, v in batch.items()}
    attended = found.get("attention_mask")
    if attended is None or not len(attended):
        return found
    columns = attended.any(0).nonzero()
    width = int(columns.max()) + 1 if len(columns) else 0
    return {
        k: v[:, :width] if v.ndim > 1 and v.shape[1] == attended.shape[1] else v
        for k, v in found.items()
    }


def weighted(items: Items, batch: Batch, weight: float) -> Items:
    """Return what to divide by for a batch's loss to count `weight` times, which is above 0."""
    return (size(batch) if items is None else items) / weight


def rows_of(batch: Batch) -> int:
    """Return how many rows a batch has."""
    return len(batch["is_safety"])


class Stream:
    """An endless shuffle of positions: each round visits all of them once, in a new order.

    With `weights` it is no shuffle: each position is drawn in proportion to its weight, again and
    again, so that in the long run it is visited that often.

    Args:
        positions: What is shuffled.
        seed: Of the orders.
        lengths: Of the row at each position, by position: rows of a like length are then visited
            one after the other, within windows of the shuffle.
        weights: Of the row at each position, by position, above 0.
    """

    WINDOW = 256

    def __init__(
        self,
        positions: Sequence[int],
        seed: int,
        lengths: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.positions, self.lengths, self.weights = list(positions), lengths, weights
        self.rng = np.random.default_rng(seed)
        self.order: list[int] = []

    def take(self, n: int) -> list[int]:
        """Return the next n positions.

        Raises:
            UsageError: There are none.
        """
        if n and not self.positions:
            raise UsageError("rows are to be drawn, and there are none: give some")
        taken: list[int] = []
        while len(taken) < n:
            if not self.order:
                self.order = self._round()
            wanted = n - len(taken)
            taken += self.order[:wanted]
            self.order = self.order[wanted:]
        return taken

    def _round(self) -> list[int]:
        if self.weights is None:
            chosen = self.rng.permutation(len(self.positions))
        else:
            weights = np.array([self.weights[p] for p in self.positions])
            n = len(self.positions)
            chosen = self.rng.choice(n, n, p=weights / weights.sum())
        order = [self.positions[i] for i in chosen]
        if self.lengths is None:
            return order
        windows = [order[i : i + self.WINDOW] for i in range(0, len(order), self.WINDOW)]
        return [p for window in windows for p in sorted(window, key=self.lengths.__getitem__)]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"rng": self.rng.bit_generator.state, "order": self.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rng.bit_generator.state = state["rng"]
        self.order = list(state["order"])
