"""Vulnerability-Aware Alignment: group DRO over vulnerable and invulnerable examples.

Chen et al., ICML 2025, arXiv 2506.03850. The objective is

    min_theta max_q sum_i q_i f_i(theta),
    f_i(theta) = (1 - lambda) l_i(theta) + lambda l_i(theta + eps_i),
    eps_i = rho grad l_i / ||grad l_i||

over groups i of safety examples. What it adds to group DRO (`GroupDro`: a step draws a group from
q, and q moves towards groups with the larger loss) is the perturbation eps, and a curriculum:
lambda grows linearly from 0 to its final value and is the probability of a perturbed step, which is
unbiased for the mixture and costs 1 + lambda backward passes.

What it changes against the published code: the ascent gradient is taken without touching the
accumulated one, so gradient accumulation works; only trainable parameters are perturbed and they
are restored exactly, so LoRA and half precision work; group draws, streams and curriculum are part
of the checkpoint; lambda grows by the step. Benign rows, which the paper does not have, take their
share of every batch and are never perturbed.

Ours, not the paper's, beside the options of `GroupDro`:

- `mixture="both"`: (1 - lambda) of the gradient at theta, which the ascent needs anyway, and lambda
  of that at theta + eps, in every step. Less variance than the coin, 2 backward passes. The
  adversary is paid f_i.
- `curriculum="cosine"`: lambda = lam (1 - cos(pi t / T)) / 2; `"safety"`: lambda =
  lam (1 - m / m_0) with m the smoothed safety loss and m_0 the first one, so that a model that has
  not yet learnt to refuse is left alone.
- `perturbation="random"`: eps a random direction of the same length, the control that says whether
  the direction matters.

The perturbation along the attacker's direction is a method of its own, `hold`.
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


class VaaOptions(GroupDroOptions):
    """Options of VAA; the defaults are the published ones for Llama-2-7B."""

    owner: ClassVar[str] = "vaa"

    rho: float = Field(default=0.4, ge=0)
    """Size of the perturbation."""
    lam: float = Field(default=1.0, ge=0, le=1)
    """Final weight lambda of the perturbed loss."""
    curriculum: Literal["linear", "cosine", "safety", "constant"] = "linear"
    """Growth of lambda: linear from 0, along half a cosine, with the safety loss, or constant."""
    mixture: Literal["coin", "both"] = "coin"
    """Gradient of a step: one of the two by a coin (published), or both."""
    perturbation: Literal["own_loss", "random"] = "own_loss"
    """Direction of the perturbation: up the safety loss, or a random one as a control."""
    per: Per = "micro_batch"
    """What a perturbation is made for: every micro-batch, or an update (one more copy)."""

    @model_validator(mode="after")
    def _check_mixture(self) -> Self:
        if self.mixture == "both" and self.perturbation == "random":
            raise ValueError(
                "mixture=both needs the gradient of the perturbation, and perturbation=random has "
                "none: use mixture=coin"
            )
        return self


class Vaa(WeightPerturbingTrainer, GroupDro):
    """Group DRO with a perturbation; 1 + lambda backward passes, one copy of the weights."""

    Options: ClassVar[type[Options]] = VaaOptions
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0}
    options: VaaOptions

    def prepare(self) -> None:
        """Make the coin."""
        super().prepare()
        self.coin = np.random.default_rng([self.args.seed, 1])
        self.lam, self.perturb = 0.0, False
        self.safety = [math.nan, math.nan]  # the first safety loss, and the smoothed one

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Draw the step's batches and toss the curriculum's coin."""
        self.lam = self.curriculum()
        tossed = self.coin.random() < self.lam
        both = self.options.mixture == "both" and self.lam > 0
        self.perturb = self.options.rho > 0 and (both or tossed)
        return super().draw_batches(epoch_iterator, n)

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Hold the weights at theta + eps, if this step is a perturbed one."""
        if not self.perturb:
            return nullcontext()
        return super().perturbation(model, safety, num_items)

    def accumulate_safety(self, model: nn.Module, safety: Batch, num_items: Items) -> Tensor:
        """Back-propagate the safety rows; with `mixture="both"`, lambda times."""
        if not self.perturb or self.options.mixture != "both":
            return super().accumulate_safety(model, safety, num_items)
        self._clean = torch.zeros((), device=self.args.device)
        items = weighted(num_items, safety, self.lam)
        return super().accumulate_safety(model, safety, items) + self._clean

    def before_update(self, losses: Tensor) -> None:
        """Follow the safety loss, and log the curriculum."""
        super().before_update(losses)
        first, smooth = self.safety
        self.safety = [
            self.safety_loss if math.isnan(first) else first,
            self.safety_loss
            if math.isnan(smooth)
            else SMOOTHING * smooth + (1 - SMOOTHING) * self.safety_loss,
        ]
        self.note({"perturbed": int(self.perturb), "lambda": self.lam})

    def method_state(self) -> dict[str, Any]:
        """Return the coin and the safety loss."""
        known = [None if math.isnan(loss) else loss for loss in self.safety]
        coin = self.coin.bit_generator.state
        return {**super().method_state(), "coin": coin, "safety": known}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.coin.bit_generator.state = state["coin"]
        self.safety = [math.nan if loss is None else loss for loss in state["safety"]]

    # ------------------------------------------------------------------------ the equations

    def curriculum(self) -> float:
        """Return lambda_t in [0, lam]."""
        first, smooth = self.safety
        done = self.state.global_step / max(self.state.max_steps, 1)
        grown = {
            "constant": 1.0,
            "linear": done,
            "cosine": (1 - math.cos(math.pi * done)) / 2,
            "safety": 1 - smooth / first if first > 0 else 0.0,  # nan > 0 is False
        }
        return self.options.lam * min(max(grown[self.options.curriculum], 0.0), 1.0)

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
        # One seed for all processes, which share the coin.
        seed = int(self.coin.integers(2**31))
        generator = torch.Generator(device=parameters[0].device).manual_seed(seed)
        return [
            torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
            for p in parameters
        ]
