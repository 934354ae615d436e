"""Vaccine: train under the worst small drift of the hidden embeddings.

Huang et al., NeurIPS 2024, arXiv 2402.01109. Fine-tuning on harmful rows lets the embeddings of
alignment rows drift, so the alignment is trained to withstand a drift. With e_l the output of the
attention module of layer l,

    min_theta max over ||eps|| <= rho of l(theta; e_1 + eps_1, ..., e_L + eps_L),
    eps_l = rho g_l / sqrt(sum_k ||g_k||^2),  g_l = grad of l with respect to e_l.

Unlike plain fine-tuning, a second forward pass adds eps_l to the outputs as constants, and its
gradient trains the model. This is not SAM: the weights never move. The rows of a micro-batch share
one budget: eps has an entry for every token of every row, and rho is the norm of all entries.

The default rho = 2 is published. Deviations: only safety rows are perturbed, as everywhere in
holdfast; without benign rows this is the published method. The first pass computes no gradient of
the weights; the published code does, and then clears it together with the accumulated gradient. The
norm is computed in float32. The second pass draws its own dropout mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast

from pydantic import Field
from torch import nn

from holdfast.methods._batches import Batch, Items
from holdfast.methods._perturbing import PerturbingTrainer
from holdfast.models.attention import blocks, output_gradients, shift_outputs
from holdfast.models.weights import step_along
from holdfast.options import Options


class VaccineOptions(Options):
    """Options of Vaccine; the default is the published one."""

    owner: ClassVar[str] = "vaccine"

    rho: float = Field(default=2.0, ge=0)
    """Size of the drift, over all layers."""


class Vaccine(PerturbingTrainer):
    """Perturbed embeddings; two backward passes, the first only to activations; no copies."""

    Options: ClassVar[type[Options]] = VaccineOptions
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0}
    options: VaccineOptions

    def prepare(self) -> None:
        """Find the attention modules."""
        super().prepare()
        self.attentions = [block.attention for block in blocks(cast(nn.Module, self.model))]

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Hold the attention outputs at e_l + eps_l."""
        grads = output_gradients(
            self.attentions,
            lambda: self.scaled_loss(model, safety, num_items),
            scale=self.loss_scale,
        )
        return shift_outputs(self.attentions, step_along(grads, self.options.rho, of_batch=True))
