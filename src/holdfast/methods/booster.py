"""Booster: reduce what a harmful step gains.

Huang et al., ICLR 2025, arXiv 2409.01586. With l_a the alignment loss, l_h the loss of harmful rows
and g_h its gradient, the objective is

    min_theta l_a(theta) + lam [ l_h(theta) - l_h(theta') ],   theta' = theta - alpha g_h / ||g_h||.

The bracket is the gain of a harmful step: how much a normalized step of length alpha lowers the
harmful loss. The gradient is first order; theta' is treated as moving with theta:

    g = grad l_a(theta) + lam ( g_h(theta) - g_h(theta') ).

It does not raise the harmful loss itself but flattens the way down. It takes three backward passes.

Differences from the published code:

- Both harmful gradients are those of the whole optimizer step, with as many harmful rows as
  alignment rows over all micro-batches, so that accumulation equals one large batch. The published
  code clears the gradient between the passes.
- The sum of the gradients is clipped once.
- Weights are restored from a copy, bit for bit.
- Both harmful gradients are computed without dropout: with two masks, their difference would be
  noise.

alpha = 0.1 and lam = 5 are the published values. In bfloat16, alpha spread over billions of weights
is smaller than their last digit and mostly rounded away; train adapters, or weights in float32.
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
    """Weight of the gain of that step; 0 is plain fine-tuning."""


class Booster(HarmfulTrainer):
    """SFT that reduces the gain of a harmful step; 3 backward passes, one copy of the weights.

    With gradient accumulation a second copy exists for a moment.
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
        model = cast(nn.Module, self.model)
        after = losses.new_zeros(())
        with evaluation_mode(model), reversible_steps(self.trainable_parameters()) as move:
            before, steps = self._harmful_step(model, batches, tokens)
            move(consume(steps))
            for batch in batches:
                loss = self._scaled_harmful_loss(model, batch, tokens)
                self.accelerator.backward(-self.options.lam * loss)
                after += loss.detach()
        self.check_finite(after)
        self.note({"harmful_loss": float(before), "harmful_gain": float(before - after)})

    def _harmful_step(
        self, model: nn.Module, batches: Sequence[Batch], tokens: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Add lam g_h(theta) to the gradient; return l_h(theta) and -alpha g_h / ||g_h||."""
        harmful_loss = torch.zeros((), device=self.args.device)
        total: list[Tensor] = []
        for batch in batches:
            loss, grads = self.gradient_of(
                model, partial(self._scaled_harmful_loss, model, batch, tokens)
            )
            harmful_loss += loss
            total = [a.add_(g) for a, g in zip(total, grads, strict=True)] if total else grads
        self.check_finite(harmful_loss)
        self.add_gradient(total, self.options.lam)
        return harmful_loss, step_along(total, -self.options.alpha, in_place=True)

    def _scaled_harmful_loss(self, model: nn.Module, batch: Batch, tokens: int) -> Tensor:
        """Return the batch's part of the mean loss over all harmful answer tokens of the step."""
        return self.answer_loss(model, batch) * (answer_tokens(batch) / tokens)
