"""Sharpness-aware minimization: the gradient of the worst weights nearby.

Foret et al., ICLR 2021, arXiv 2010.01412; adaptive: ASAM, Kwon et al., ICML 2021, arXiv 2102.11600.
The objective is min_theta max over ||eps|| <= rho of l(theta + eps), to first order

    eps = rho g / ||g||,  g = grad l(theta),

and with `adaptive` the ball is measured relative to the weights, ||T^-1 eps|| <= rho:

    eps = rho T^2 g / ||T g||,  T = diag(|theta| + eta).

Unlike plain fine-tuning, the gradient is computed at theta + eps. This is VAA without groups and
curriculum. The defaults rho = 0.05 and eta = 0.01 are published; for ASAM the paper uses rho = 0.5.

Deviations: only safety rows are perturbed, as everywhere in holdfast; without benign rows this is
the published method. T is elementwise on all trainable tensors; ASAM's own code uses T = 1 for
biases. The second pass draws its own dropout mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.methods._perturbing import Move, Part, Per, WeightPerturbingTrainer
from holdfast.models.weights import consume, step_along
from holdfast.options import Options


class SamOptions(Options):
    """Options of SAM; the defaults are the published ones."""

    owner: ClassVar[str] = "sam"

    rho: float = Field(default=0.05, ge=0)
    """Size of the perturbation; ASAM was published with 0.5."""
    adaptive: bool = False
    """ASAM: measure the perturbation relative to the weights."""
    eta: float = Field(default=0.01, ge=0)
    """ASAM: constant added to |theta|."""
    per: Per = "micro_batch"
    """Scope of a perturbation: a micro-batch, or an update (takes another copy of the weights)."""


class Sam(WeightPerturbingTrainer):
    """SAM or ASAM; two backward passes over safety rows, one copy of the trained weights."""

    Options: ClassVar[type[Options]] = SamOptions
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0}
    options: SamOptions

    def displace(self, model: nn.Module, move: Move, safety: Sequence[Part]) -> None:
        """Move the weights to theta + eps."""
        options = self.options
        _, grads = self.ascent(model, safety)
        if options.adaptive:
            weights = self.trainable_parameters()
            steps = adaptive_step(grads, weights, options.rho, eta=options.eta)
        else:
            steps = step_along(grads, options.rho, in_place=True)
        move(consume(steps))


@torch.no_grad()
def adaptive_step(
    grads: Sequence[Tensor], parameters: Sequence[Tensor], rho: float, *, eta: float
) -> list[Tensor]:
    """Return rho T^2 g / ||T g||, overwriting the gradients."""

    def scale(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [t.mul_(p.abs() + eta) for t, p in zip(tensors, parameters, strict=True)]

    # T times SAM's step along T g.
    return list(scale(step_along(scale(grads), rho, in_place=True)))
