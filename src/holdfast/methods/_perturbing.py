"""Bases of the methods that take the safety rows' gradient somewhere else than at the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.methods._batches import Batch, Items, by_safety, chosen, rows_of
from holdfast.methods.base import AlignmentTrainer, unscaled
from holdfast.models.processes import sum_over_processes, world_size
from holdfast.models.weights import reversible_steps

Move = Callable[[Iterable[Tensor]], None]
"""Adds steps, one tensor per trainable parameter, to the weights."""
Per = Literal["micro_batch", "update"]
"""What a perturbation of the weights is made for."""
Part = tuple[Batch, Items]
"""Rows, and what their losses are divided by."""


class PerturbingTrainer(AlignmentTrainer):
    """Takes the gradient of safety rows under a perturbation, that of benign rows without."""

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Return a context to train the safety rows in, which leaves all as it was on any way out.

        It may take gradients, but must not touch `.grad`: it holds what was accumulated so far.
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
        """Return the part, or a row that counts for nothing where only other processes have some.

        Processes meet in every backward pass, so all of them must make the same ones.
        """
        if world_size() == 1:
            return part, num_items
        somewhere = int(sum_over_processes(torch.tensor(rows_of(part))))  # every process must ask
        if rows_of(part) or not somewhere:
            return part, num_items
        first = torch.arange(len(batch["is_safety"])) == 0
        return chosen(batch, first), math.inf

    def accumulate_benign(self, model: nn.Module, benign: Batch, num_items: Items) -> Tensor:
        """Back-propagate the benign rows of a micro-batch."""
        return super().accumulate(model, benign, num_items)

    def accumulate_safety(self, model: nn.Module, safety: Batch, num_items: Items) -> Tensor:
        """Back-propagate the safety rows of a micro-batch."""
        with self.perturbation(model, safety, num_items):
            return super().accumulate(model, safety, num_items)


class WeightPerturbingTrainer(PerturbingTrainer):
    """Moves the weights, and keeps them there for a micro-batch's safety rows or an update's.

    With `per="micro_batch"`, the default, the perturbation is made anew for every micro-batch:
    m-SAM, m being the micro-batch's safety rows. Foret et al. (2021, section 4.1) generalize better
    with small m, and it costs no memory beyond the copy that restores the weights. But rho is then
    of a micro-batch, and an update accumulated over several is not that of one large batch.

    With `per="update"` there is one perturbation, made of all safety rows of the update before the
    first of them is trained on, and an accumulated update equals that of one large batch. It is
    kept through the update, which is one more copy of the trainable parameters. Without
    accumulation the two are the same.
    """

    @property
    def per(self) -> Per:
        """What a perturbation is made for."""
        return cast(Per, self.options.per)

    def displace(self, model: nn.Module, move: Move, safety: Sequence[Part]) -> None:
        """Move the weights.

        Args:
            model: As training calls it.
            move: Adds steps to the weights; may be called several times.
            safety: Safety rows of the micro-batch, or of all micro-batches of the update.
        """
        raise NotImplementedError

    def prepare(self) -> None:
        """Start without a perturbation at hand."""
        super().prepare()
        self._kept: list[Tensor] = []
        self._items: Items = None
        self._seen_here, self._seen_there = np.zeros(2), np.zeros(2)  # loss and tokens

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Remember what the update's losses are divided by, however some rows are weighted."""
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
            elif self._kept:
                move(self._kept)
            else:
                self.displace(model, self._recorded(move), self._parts_of_update())
            yield

    def _parts_of_update(self) -> list[Part]:
        batches = [self._prepare_inputs(batch) for batch in self.update_batches]
        parts = [self._some(by_safety(batch)[0], batch, self._items) for batch in batches]
        return [(rows, items) for rows, items in parts if rows_of(rows)]

    def before_update(self, losses: Tensor) -> None:
        """Let the update's perturbation go, and log by how much it raised the safety loss."""
        super().before_update(losses)
        self._kept.clear()
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
        """Take note of a safety loss at the weights as they are."""
        self._seen_here += unscaled(loss, batch, num_items)

    def _recorded(self, move: Move) -> Move:
        def moved(steps: Iterable[Tensor]) -> None:
            made = list(steps)
            move(made)
            if self._kept:
                for kept, step in zip(self._kept, made, strict=True):
                    kept.add_(step)
            else:
                self._kept = [step.clone() for step in made]

        return moved

    def ascent(self, model: nn.Module, safety: Sequence[Part]) -> tuple[Tensor, list[Tensor]]:
        """Return the safety loss over all these rows, and its gradient, `.grad` left as it was."""
        losses: list[Tensor] = []
        found: list[Tensor] = []
        for batch, items in safety:
            loss, grads = self.gradient_of(model, partial(self.scaled_loss, model, batch, items))
            self.count_here(loss, batch, items)
            losses.append(loss)
            found = [a.add_(g) for a, g in zip(found, grads, strict=True)] if found else grads
        return torch.stack(losses).sum(), found
