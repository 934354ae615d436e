"""Booster: weaken what one harmful step would gain.

Huang et al., ICLR 2025, arXiv 2409.01586. With l_a the alignment loss, l_h the loss of harmful rows
and g_h its gradient, the objective is

    min_theta l_a(theta) + lam [ l_h(theta) - l_h(theta') ],   theta' = theta - alpha g_h / ||g_h||.

The bracket is by how much a normalized harmful step of length alpha lowers the harmful loss. The
gradient is first order, theta' being taken to move as theta does:

    g = grad l_a(theta) + lam ( g_h(theta) - g_h(theta') ).

It does not raise the harmful loss itself, only flattens the road down. Three backward passes.

What it changes against the published code: both harmful gradients are those of the whole optimizer
step, as many harmful rows as alignment rows over all its micro-batches, so that accumulation equals
one large batch (published, it is cleared between the passes); the sum is clipped once; weights are
restored from a copy, bit for bit; and both are taken without dropout, since between two masks their
difference would be noise. alpha = 0.1 and lam = 5 are the published values.

In bfloat16, alpha spread over billions of weights is below their last digit and mostly rounded
away; train adapters, or weights in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods._batches import Batch, answer_tokens
from holdfast.methods._harmful import HarmfulTrainer
from holdfast.models.modes import evaluation_mode
from holdfast.models.weights import consume, reversible_steps, step_along
from holdfast.options import Options


class BoosterOptions(Options):
    """Options of Booster; the defaults are the published ones."""

    owner: ClassVar[str] = "booster"

    alpha: float = Field(default=0.1, gt=0)
    """Length of the simulated harmful step."""
    lam: float = Field(default=5.0, ge=0)
    """Weight of what that step gains; 0 is plain fine-tuning."""


class Booster(HarmfulTrainer):
    """SFT against what a harmful step gains; 3 backward passes, one copy of the weights.

    A second copy is alive for a moment where gradients are accumulated.
    """

    Options: ClassVar[type[Options]] = BoosterOptions
    neutral: ClassVar[Mapping[str, Any]] = {"lam": 0.0}
    options: BoosterOptions

    def before_update(self, losses: Tensor) -> None:
        """Add lam (g_h(theta) - g_h(theta')) to the alignment gradient of the step."""
        super().before_update(losses)
        if self.options.lam == 0:
            return
        batches = [self.harmful_batch(self.args.train_batch_size) for _ in range(len(losses))]
        tokens = sum(map(answer_tokens, batches))
        model, there = cast(nn.Module, self.model), losses.new_zeros(())
        with evaluation_mode(model), reversible_steps(self.trainable_parameters()) as move:
            here, steps = self._harmful_step(model, batches, tokens)
            move(consume(steps))
            for batch in batches:
                loss = self._share(model, batch, tokens)
                self.accelerator.backward(-self.options.lam * loss)
                there += loss.detach()
        self.check_finite(there)
        self.note({"harmful_loss": float(here), "harmful_gain": float(here - there)})

    def _harmful_step(
        self, model: nn.Module, batches: Sequence[Batch], tokens: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Add lam g_h(theta) to the gradient; return l_h(theta) and -alpha g_h / ||g_h||."""
        here, grads = torch.zeros((), device=self.args.device), list[Tensor]()
        for batch in batches:
            loss, found = self.gradient_of(model, partial(self._share, model, batch, tokens))
            grads = [g.add_(f) for g, f in zip(grads, found, strict=True)] if grads else found
            here += loss
        self.check_finite(here)
        self.add_gradient(grads, self.options.lam)
        return here, step_along(grads, -self.options.alpha, in_place=True)

    def _share(self, model: nn.Module, batch: Batch, tokens: int) -> Tensor:
        return self.answer_loss(model, batch) * (answer_tokens(batch) / tokens)
