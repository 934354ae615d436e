"""Base classes of the methods that take the safety rows' gradient under a perturbation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.methods._batches import Batch, Items, by_safety, rows_of, select
from holdfast.methods.base import AlignmentTrainer, unscaled
from holdfast.models.processes import sum_over_processes, world_size
from holdfast.models.weights import reversible_steps

Move = Callable[[Iterable[Tensor]], None]
"""Adds steps, one tensor per trainable parameter, to the weights."""
Per = Literal["micro_batch", "update"]
"""Scope of a perturbation of the weights."""
Part = tuple[Batch, Items]
"""Rows, and the divisor of their losses."""


class PerturbingTrainer(AlignmentTrainer):
    """Perturbs the weights for the gradient of safety rows, but not for that of benign rows."""

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Return the context in which the safety rows are trained; it must restore everything.

        It may take gradients but must not touch `.grad`, which holds the accumulated gradient.
        """
        raise NotImplementedError

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Back-propagate the safety rows under the perturbation, then the benign rows."""
        losses = []
        for part, accumulate in zip(
            by_safety(batch), (self.accumulate_safety, self.accumulate_benign), strict=True
        ):
            rows, items = self._some(part, batch, num_items)
            if rows_of(rows):
                losses.append(accumulate(model, rows, items))
        return torch.stack(losses).sum()

    def _some(self, part: Batch, batch: Batch, num_items: Items) -> tuple[Batch, Items]:
        """Return the part, or a row of weight 0 if only other processes have rows.

        Processes synchronise in every backward pass, so all must make the same passes.
        """
        if world_size() == 1:
            return part, num_items
        somewhere = int(sum_over_processes(torch.tensor(rows_of(part))))  # every process must ask
        if rows_of(part) or not somewhere:
            return part, num_items
        first = torch.arange(len(batch["is_safety"])) == 0
        return select(batch, first), math.inf

    def accumulate_benign(self, model: nn.Module, benign: Batch, num_items: Items) -> Tensor:
        """Back-propagate the benign rows of a micro-batch."""
        return super().accumulate(model, benign, num_items)

    def accumulate_safety(self, model: nn.Module, safety: Batch, num_items: Items) -> Tensor:
        """Back-propagate the safety rows of a micro-batch."""
        with self.perturbation(model, safety, num_items):
            return super().accumulate(model, safety, num_items)


class WeightPerturbingTrainer(PerturbingTrainer):
    """Perturbs the weights for the safety rows of a micro-batch or of an update.

    With `per="micro_batch"`, the default, every micro-batch has its own perturbation. This is m-SAM
    with m the safety rows of the micro-batch. Foret et al. (2021, section 4.1) generalize better
    with small m, and it needs no memory beyond the copy that restores the weights. But rho then
    applies to a micro-batch, and an accumulated update differs from that of one large batch.

    With `per="update"`, one perturbation is computed from all safety rows of the update before it
    trains on the first of them, and an accumulated update equals that of one large batch. Storing
    the perturbation takes another copy of the trainable parameters. Without accumulation the two
    are the same.
    """

    @property
    def per(self) -> Per:
        """Scope of a perturbation."""
        return cast(Per, self.options.per)

    def displace(self, model: nn.Module, move: Move, safety: Sequence[Part]) -> None:
        """Move the weights.

        Args:
            model: The model that training calls.
            move: Adds steps to the weights; may be called several times.
            safety: Safety rows of the micro-batch, or of all micro-batches of the update.
        """
        raise NotImplementedError

    def prepare(self) -> None:
        """Start without a stored perturbation."""
        super().prepare()
        self._perturbation: list[Tensor] = []
        self._items: Items = None
        self._seen_here, self._seen_there = np.zeros(2), np.zeros(2)  # loss and tokens

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Remember the divisor of the update's losses before some rows are weighted."""
        self._items = num_items
        return super().accumulate(model, batch, num_items)

    def accumulate_safety(self, model: nn.Module, safety: Batch, num_items: Items) -> Tensor:
        """Back-propagate the safety rows of a micro-batch, and count their loss."""
        loss = super().accumulate_safety(model, safety, num_items)
        self._seen_there += unscaled(loss, safety, num_items)
        return loss

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Hold the weights where `displace` brings them."""
        return self._displaced(model, safety, num_items)

    @contextmanager
    def _displaced(self, model: nn.Module, safety: Batch, num_items: Items) -> Iterator[None]:
        with reversible_steps(self.trainable_parameters()) as move:
            if self.per == "micro_batch":
                stands_in = num_items is not None and math.isinf(num_items)
                items = num_items if stands_in or self._items is None else self._items
                self.displace(model, move, [(safety, items)])
            elif self._perturbation:
                move(self._perturbation)
            else:
                self.displace(model, self._recording(move), self._parts_of_update())
            yield

    def _parts_of_update(self) -> list[Part]:
        batches = [self._prepare_inputs(batch) for batch in self.update_batches]
        parts = [self._some(by_safety(batch)[0], batch, self._items) for batch in batches]
        return [(rows, items) for rows, items in parts if rows_of(rows)]

    def before_update(self, losses: Tensor) -> None:
        """Discard the update's perturbation and log by how much it raised the safety loss."""
        super().before_update(losses)
        self._perturbation.clear()
        gap = self.gap()
        if not math.isnan(gap):
            self.note({"perturbation_gap": gap})
        self._seen_here[:], self._seen_there[:] = 0, 0

    def gap(self) -> float:
        """Return by how much the update's perturbation raised the safety loss; nan if unknown."""
        sums = sum_over_processes(
            torch.tensor(np.stack([self._seen_here, self._seen_there]))
        ).numpy()
        if (sums[:, 1] == 0).any():
            return math.nan
        here, there = sums[:, 0] / sums[:, 1]
        return float(there - here)

    def count_here(self, loss: Tensor, batch: Batch, num_items: Items) -> None:
        """Record a safety loss at the unperturbed weights."""
        self._seen_here += unscaled(loss, batch, num_items)

    def _recording(self, move: Move) -> Move:
        def move_and_record(steps: Iterable[Tensor]) -> None:
            step_list = list(steps)
            move(step_list)
            if self._perturbation:
                for total, step in zip(self._perturbation, step_list, strict=True):
                    total.add_(step)
            else:
                self._perturbation = [step.clone() for step in step_list]

        return move_and_record

    def ascent(self, model: nn.Module, safety: Sequence[Part]) -> tuple[Tensor, list[Tensor]]:
        """Return the safety loss over all these rows and its gradient; `.grad` does not change."""
        losses: list[Tensor] = []
        total: list[Tensor] = []
        for batch, items in safety:
            loss, grads = self.gradient_of(model, partial(self.scaled_loss, model, batch, items))
            self.count_here(loss, batch, items)
            losses.append(loss)
            total = [a.add_(g) for a, g in zip(total, grads, strict=True)] if total else grads
        return torch.stack(losses).sum(), total
