"""Vulnerability-Aware Alignment: group DRO over vulnerable and invulnerable examples.

Chen et al., ICML 2025, arXiv 2506.03850. The objective is

    min_theta max_q sum_i q_i f_i(theta),
    f_i(theta) = (1 - lambda) l_i(theta) + lambda l_i(theta + eps_i),
    eps_i = rho grad l_i / ||grad l_i||

over groups i of safety examples. It adds two things to group DRO (`GroupDro`: each step draws a
group from q, and q moves towards groups with larger loss): the perturbation eps, and a curriculum.
lambda grows linearly from 0 to its final value and is the probability of a perturbed step. This is
unbiased for the mixture and costs 1 + lambda backward passes.

Differences from the published code:

- The ascent gradient is computed without touching the accumulated one, so gradient accumulation
  works.
- Only trainable parameters are perturbed, and they are restored exactly, so LoRA and half precision
  work.
- Group draws, streams and curriculum are saved in checkpoints.
- lambda grows with every step.
- Benign rows, which the paper does not use, take their share of every batch, unperturbed.

Options that the paper does not have, besides those of `GroupDro`:

- `mixture="both"`: every step uses (1 - lambda) of the gradient at theta, which the ascent needs
  anyway, and lambda of that at theta + eps. Less variance than the coin, at 2 backward passes. The
  reward of the adversary is f_i.
- `curriculum="cosine"`: lambda = lam (1 - cos(pi t / T)) / 2; `"safety"`: lambda =
  lam (1 - m / m_0), with m the smoothed safety loss and m_0 the first one, so that a model that has
  not yet learned to refuse is not perturbed.
- `perturbation="random"`: eps is a random direction of the same length, as a control for whether
  the direction matters.

The perturbation along the attacker's direction is a separate method, `hold`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.methods._batches import Batch, Items, weighted
from holdfast.methods._perturbing import Move, Part, Per, WeightPerturbingTrainer
from holdfast.methods.group_dro import GroupDro, GroupDroOptions
from holdfast.models.processes import is_sharded
from holdfast.models.weights import consume, step_along
from holdfast.options import Options

SMOOTHING = 0.9
"""Share of itself that the smoothed safety loss keeps at every step."""


class VaaOptions(GroupDroOptions):
    """Options of VAA; the defaults are the published ones for Llama-2-7B."""

    owner: ClassVar[str] = "vaa"

    rho: float = Field(default=0.4, ge=0)
    """Size of the perturbation."""
    lam: float = Field(default=1.0, ge=0, le=1)
    """Final weight lambda of the perturbed loss."""
    curriculum: Literal["linear", "cosine", "safety", "constant"] = "linear"
    """Growth of lambda: linear from 0, a half cosine, as the safety loss falls, or constant."""
    mixture: Literal["coin", "both"] = "coin"
    """Gradient of a step: perturbed or not by a coin toss (published), or a mixture of both."""
    perturbation: Literal["own_loss", "random"] = "own_loss"
    """Direction of the perturbation: up the safety loss, or a random one as a control."""
    per: Per = "micro_batch"
    """Scope of a perturbation: a micro-batch, or an update (takes another copy of the weights)."""

    @model_validator(mode="after")
    def _check_mixture(self) -> Self:
        if self.mixture == "both" and self.perturbation == "random":
            raise ValueError(
                "mixture=both needs the gradient of the perturbation, but a random one has no "
                "gradient: use mixture=coin"
            )
        return self


class Vaa(WeightPerturbingTrainer, GroupDro):
    """Group DRO with a perturbation; 1 + lambda backward passes, one copy of the weights."""

    Options: ClassVar[type[Options]] = VaaOptions
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0}
    options: VaaOptions

    def prepare(self) -> None:
        """Set up the coin and the curriculum."""
        super().prepare()
        self.coin = np.random.default_rng([self.args.seed, 1])
        self.lam = 0.0
        self.perturb = False
        self.first_safety_loss = math.nan
        self.smoothed_safety_loss = math.nan

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Draw the step's batches and toss the curriculum's coin."""
        self.lam = self.curriculum()
        heads = self.coin.random() < self.lam
        both = self.options.mixture == "both" and self.lam > 0
        self.perturb = self.options.rho > 0 and (both or heads)
        return super().draw_batches(epoch_iterator, n)

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Hold the weights at theta + eps if this step is perturbed."""
        if not self.perturb:
            return nullcontext()
        return super().perturbation(model, safety, num_items)

    def accumulate_safety(self, model: nn.Module, safety: Batch, num_items: Items) -> Tensor:
        """Back-propagate the safety rows; with `mixture="both"`, lambda times their loss."""
        if not self.perturb or self.options.mixture != "both":
            return super().accumulate_safety(model, safety, num_items)
        self._clean = torch.zeros((), device=self.args.device)
        items = weighted(num_items, safety, self.lam)
        return super().accumulate_safety(model, safety, items) + self._clean

    def before_update(self, losses: Tensor) -> None:
        """Update the smoothed safety loss and log the curriculum."""
        super().before_update(losses)
        if math.isnan(self.first_safety_loss):
            self.first_safety_loss = self.safety_loss
        self.smoothed_safety_loss = _smoothed(self.smoothed_safety_loss, self.safety_loss)
        self.note({"perturbed": int(self.perturb), "lambda": self.lam})

    def method_state(self) -> dict[str, Any]:
        """Return the coin and the safety losses."""
        losses = (self.first_safety_loss, self.smoothed_safety_loss)
        return {
            **super().method_state(),
            "coin": self.coin.bit_generator.state,
            "safety": [None if math.isnan(loss) else loss for loss in losses],
        }

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.coin.bit_generator.state = state["coin"]
        losses = [math.nan if loss is None else loss for loss in state["safety"]]
        self.first_safety_loss, self.smoothed_safety_loss = losses

    # ------------------------------------------------------------------------ the equations

    def curriculum(self) -> float:
        """Return lambda_t in [0, lam]."""
        done = self.state.global_step / max(self.state.max_steps, 1)
        learned = 0.0
        if self.first_safety_loss > 0:  # False for nan
            learned = 1 - self.smoothed_safety_loss / self.first_safety_loss
        growth = {
            "constant": 1.0,
            "linear": done,
            "cosine": (1 - math.cos(math.pi * done)) / 2,
            "safety": learned,
        }
        return self.options.lam * min(max(growth[self.options.curriculum], 0.0), 1.0)

    def displace(self, model: nn.Module, move: Move, safety: Sequence[Part]) -> None:
        """Move the weights to theta + eps."""
        if self.options.perturbation == "random":
            move(consume(step_along(self._noise(), self.options.rho, in_place=True)))
            return
        loss, grads = self.ascent(model, safety)
        if self.options.mixture == "both":
            self._clean = (1 - self.lam) * loss
            self.add_gradient(grads, 1 - self.lam)
        move(consume(step_along(grads, self.options.rho, in_place=True)))

    def _noise(self) -> list[Tensor]:
        parameters = self.trainable_parameters()
        if is_sharded(parameters):
            raise UsageError("perturbation=random needs whole weights; train with DDP, not FSDP2")
        # The processes share the coin, so they draw the same seed.
        seed = int(self.coin.integers(2**31))
        generator = torch.Generator(device=parameters[0].device).manual_seed(seed)
        return [
            torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
            for p in parameters
        ]


def _smoothed(mean: float, value: float) -> float:
    """Return the running mean after another value; `mean` is nan before the first."""
    return value if math.isnan(mean) else SMOOTHING * mean + (1 - SMOOTHING) * value
