"""T-Vaccine: Vaccine on a few layers at a time, drawn by how much harmful rows pull at them.

Liu et al. 2024, arXiv 2410.09760. Every `measure_every` steps each layer l, with attention output
e_l, gets a probability from a batch of harmful rows, with loss l_h,

    s_l = ||grad of l_h with respect to e_l||,  p_l = s_l / sum_k s_k,

and every `draw_every` steps `layers` layers are drawn by p without replacement. Until the next draw
these alone are perturbed, as in Vaccine, and trained: the others are frozen.

Frozen means that nothing moves them. They need no gradient while a micro-batch is accumulated, so
theirs stays None and the optimizer passes them by: no momentum, no weight decay, no step counted. A
gradient of zero would not do, as AdamW moves weights on momentum and decay alone.

Defaults are the paper's: rho 3, 8 layers, 200 and 20 steps. Deviations: a layer is a whole decoder
layer, where the published code, which adapts nothing else, freezes attention modules only; weights
outside of the layers (embeddings, head) are trained throughout; the extra layer below each drawn
one, which the published code lists in models of more than 26 layers, is left out; s is measured on
a batch of the training size instead of one row, and without dropout. The rest as in Vaccine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, cast

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.methods._batches import Batch, Items, Stream
from holdfast.methods._perturbing import PerturbingTrainer
from holdfast.models.attention import blocks, output_gradients, shift_outputs
from holdfast.models.modes import evaluation_mode
from holdfast.models.processes import world_size
from holdfast.models.weights import freeze, global_norm, step_along, trainable
from holdfast.options import Options


class TVaccineOptions(Options):
    """Options of T-Vaccine; the defaults are the published ones."""

    owner: ClassVar[str] = "t_vaccine"

    rho: float = Field(default=3.0, ge=0)
    """Size of the drift, over the drawn layers."""
    layers: int = Field(default=8, ge=1)
    """Layers trained at a time; all of them if the model has fewer."""
    measure_every: int = Field(default=200, ge=1)
    """Steps between measurements of the layers' probabilities."""
    draw_every: int = Field(default=20, ge=1)
    """Steps between draws of layers."""


class TVaccine(PerturbingTrainer):
    """Vaccine on drawn layers; two backward passes, the first without weights, no copy of them."""

    Options: ClassVar[type[Options]] = TVaccineOptions
    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0, "layers": 10**9}
    options: TVaccineOptions

    def prepare(self) -> None:
        """Find the layers, and set up the harmful rows and the draws."""
        super().prepare()
        if world_size() > 1:
            raise UsageError(
                "t_vaccine freezes other layers every few steps, which the processes of DDP and "
                "FSDP2 cannot follow; train on one process, or take vaccine"
            )
        rows = cast(Examples, self.data.harmful)
        if not rows:
            raise UsageError(f"{rows.name}: no harmful rows to measure layers with")
        found = blocks(cast(nn.Module, self.model))
        self.blocks = [block for block in found if trainable(block.layer)]
        self.harmful = self.encode(rows)
        order, draws = np.random.SeedSequence(self.args.seed).generate_state(2).tolist()
        self.stream = Stream(range(len(self.harmful)), order)
        self.rng = np.random.default_rng(draws)
        self.probabilities: list[float] = []
        self.active = list(range(len(self.blocks)))

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Measure the layers and draw from them where it is time, then take the loader's next n."""
        step = self.state.global_step
        if step % self.options.measure_every == 0:
            self.probabilities = self.measured()
        if step % self.options.draw_every == 0:
            size = min(self.options.layers, len(self.blocks))
            drawn = self.rng.choice(len(self.blocks), size, replace=False, p=self.probabilities)
            self.active = sorted(drawn.tolist())
        return super().draw_batches(epoch_iterator, n)

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Accumulate the gradient of the active layers, and of what is in no layer."""
        resting = (b.layer for i, b in enumerate(self.blocks) if i not in self.active)
        with freeze([p for layer in resting for p in layer.parameters()]):
            return super().accumulate(model, batch, num_items)

    def perturbation(
        self, model: nn.Module, safety: Batch, num_items: Items
    ) -> AbstractContextManager[None]:
        """Hold the active layers' attention outputs at e_l + eps_l."""
        attentions = [self.blocks[i].attention for i in self.active]
        grads = output_gradients(
            attentions,
            lambda: self.scaled_loss(model, safety, num_items),
            scale=self.loss_scale,
        )
        return shift_outputs(attentions, step_along(grads, self.options.rho))

    def method_state(self) -> dict[str, Any]:
        """Return probabilities, active layers, generator and the order of the harmful rows."""
        return {
            **super().method_state(),
            "probabilities": self.probabilities,
            "active": self.active,
            "rng": self.rng.bit_generator.state,
            "stream": self.stream.state_dict(),
        }

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.probabilities, self.active = list(state["probabilities"]), list(state["active"])
        self.rng.bit_generator.state = state["rng"]
        self.stream.load_state_dict(state["stream"])

    # ------------------------------------------------------------------------ the equation

    def measured(self) -> list[float]:
        """Return p_l (n_layers,) on the next batch of harmful rows.

        Raises:
            TrainingError: A norm is not finite.
        """
        model = cast(nn.Module, self.model)
        chosen = self.stream.take(self.args.train_batch_size)
        batch = self.collate_rows([self.harmful[i] for i in chosen])
        with evaluation_mode(model):
            grads = output_gradients(
                [block.attention for block in self.blocks],
                lambda: self.answer_loss(model, batch),
                scale=self.loss_scale,
            )
        # The least number lets a layer without gradient be drawn, once no other is left.
        norms = [float(global_norm([grad])) + sys.float_info.min for grad in grads]
        total = sum(norms)
        if not math.isfinite(total):
            raise TrainingError(
                f"the harmful rows' gradient is not finite at step {self.state.global_step + 1}: "
                "layers cannot be drawn by it. Lower the learning rate or rho."
            )
        return [norm / total for norm in norms]
