"""Batches of alignment rows: their contents, splitting them, and endless shuffles of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import UsageError
from holdfast.models.encoding import IGNORE, parts_by_length

Batch = dict[str, Tensor]
"""A model's inputs and the marks (B,) of its rows."""
Items = Tensor | float | None
"""Divisor of a step's losses: its answer tokens or rows; None for those of the batch itself."""
MARKS = frozenset({"is_safety", "group"})
"""Keys that are not model inputs: whether a row is a safety row, and its group, -1 for none."""


def answer_tokens(batch: Batch) -> int:
    """Count the answer tokens of a batch; the first token of a row is never predicted."""
    return int((batch["labels"][:, 1:] != IGNORE).sum())


def size(batch: Batch) -> int:
    """Count the answer tokens of a batch, or its rows if it has no labels."""
    return answer_tokens(batch) if "labels" in batch else rows_of(batch)


def by_safety(batch: Batch) -> tuple[Batch, Batch]:
    """Split a batch into its safety and its benign rows; either part may be empty.

    A preference batch holds the chosen answers of all rows, then the rejected ones.
    """
    safe = batch["is_safety"]
    return select(batch, safe), select(batch, ~safe)


def by_group(batch: Batch) -> Iterator[tuple[int, Batch]]:
    """Yield the rows of each group that the batch contains, in the groups' order."""
    for group in batch["group"].unique().tolist():
        yield group, select(batch, batch["group"] == group)


def by_length(batch: Batch) -> list[Batch]:
    """Part a batch so that short rows are not padded to the longest; often there is one part."""
    lengths = batch["attention_mask"].sum(1)
    parts = parts_by_length(lengths.tolist())
    if len(parts) == 1:
        return [batch]
    places = torch.arange(len(lengths), device=lengths.device)
    return [select(batch, torch.isin(places, torch.tensor(p, device=places.device))) for p in parts]


def select(batch: Batch, mask: Tensor) -> Batch:
    """Return the rows at which the mask (B,) is set, without columns that are all padding."""
    rows = {k: v[mask.repeat(len(v) // len(mask))] for k, v in batch.items()}
    attended = rows.get("attention_mask")
    if attended is None or not len(attended):
        return rows
    columns = attended.any(0).nonzero()
    width = int(columns.max()) + 1 if len(columns) else 0
    return {
        k: v[:, :width] if v.ndim > 1 and v.shape[1] == attended.shape[1] else v
        for k, v in rows.items()
    }


def weighted(items: Items, batch: Batch, weight: float) -> Items:
    """Return the divisor that weights a batch's loss by `weight`, which must be above 0."""
    return (size(batch) if items is None else items) / weight


def rows_of(batch: Batch) -> int:
    """Return the number of rows of a batch."""
    return len(batch["is_safety"])


class Stream:
    """An endless shuffle of positions: each round visits all of them once, in a new order.

    With `weights`, positions are instead drawn independently, in proportion to their weights.

    Args:
        positions: Row positions to visit.
        seed: Random seed of the orders.
        lengths: Length of every row, by position; rows of similar length are then visited together,
            within windows of the shuffle.
        weights: Weight of every row, by position, above 0.
    """

    WINDOW = 256

    def __init__(
        self,
        positions: Sequence[int],
        seed: int,
        lengths: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.positions = list(positions)
        self.lengths = lengths
        self.weights = weights
        self.rng = np.random.default_rng(seed)
        self.order: list[int] = []

    def take(self, n: int) -> list[int]:
        """Return the next n positions.

        Raises:
            UsageError: There are no positions.
        """
        if n and not self.positions:
            raise UsageError("there are no rows to draw from: give some")
        taken: list[int] = []
        while len(taken) < n:
            if not self.order:
                self.order = self._round()
            missing = n - len(taken)
            taken += self.order[:missing]
            self.order = self.order[missing:]
        return taken

    def _round(self) -> list[int]:
        if self.weights is None:
            indices = self.rng.permutation(len(self.positions))
        else:
            weights = np.array([self.weights[p] for p in self.positions])
            n = len(self.positions)
            indices = self.rng.choice(n, n, p=weights / weights.sum())
        order = [self.positions[i] for i in indices]
        if self.lengths is None:
            return order
        windows = [order[i : i + self.WINDOW] for i in range(0, len(order), self.WINDOW)]
        return [p for window in windows for p in sorted(window, key=self.lengths.__getitem__)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"rng": self.rng.bit_generator.state, "order": self.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rng.bit_generator.state = state["rng"]
        self.order = list(state["order"])
