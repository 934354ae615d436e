"""T-Vaccine: Vaccine on a few layers at a time, drawn by the gradients of harmful rows.

Liu et al. 2024, arXiv 2410.09760. Every `measure_every` steps, each layer l with attention output
e_l gets a probability from a batch of harmful rows with loss l_h:

    s_l = ||grad of l_h with respect to e_l||,  p_l = s_l / sum_k s_k.

Every `draw_every` steps, `layers` layers are drawn by p without replacement. Until the next draw,
only these are perturbed as in Vaccine, and trained; the others are frozen.

A frozen layer does not move at all. While a micro-batch is accumulated, its parameters require no
gradient, so `.grad` stays None and the optimizer skips them: no momentum, no weight decay, no step
count. A zero gradient would not be enough, as AdamW also moves weights by momentum and decay.

The defaults are published: rho 3, 8 layers, 200 and 20 steps. Deviations:

- A layer is a whole decoder layer. The published code trains adapters in attention modules only,
  and freezes these.
- Weights outside the layers (embeddings, head) are always trained.
- The published code also draws the layer below each drawn one in models of more than 26 layers.
- s is measured on a batch of the training size instead of one row, and without dropout.

For the rest, see `vaccine`.
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
    """Size of the drift over all drawn layers."""
    layers: int = Field(default=8, ge=1)
    """Number of layers trained at a time; all of them if the model has fewer."""
    measure_every: int = Field(default=200, ge=1)
    """Steps between measurements of the layers' probabilities."""
    draw_every: int = Field(default=20, ge=1)
    """Steps between draws of layers."""


class TVaccine(PerturbingTrainer):
    """Vaccine on drawn layers; two backward passes, the first only to activations; no copies."""

    Options: ClassVar[type[Options]] = TVaccineOptions
    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})
    neutral: ClassVar[Mapping[str, Any]] = {"rho": 0.0, "layers": 10**9}
    options: TVaccineOptions

    def prepare(self) -> None:
        """Find the layers, and set up the harmful rows and the random draws."""
        super().prepare()
        if world_size() > 1:
            raise UsageError(
                "t_vaccine changes the frozen layers every few steps, which DDP and FSDP2 do not "
                "support; train on one process, or use vaccine"
            )
        rows = cast(Examples, self.data.harmful)
        if not rows:
            raise UsageError(f"{rows.name}: no harmful rows to measure layers with")
        all_blocks = blocks(cast(nn.Module, self.model))
        self.blocks = [block for block in all_blocks if trainable(block.layer)]
        self.harmful = self.encode(rows)
        seeds = np.random.SeedSequence(self.args.seed).generate_state(2).tolist()
        self.stream = Stream(range(len(self.harmful)), seeds[0])
        self.rng = np.random.default_rng(seeds[1])
        self.probabilities: list[float] = []
        self.active = list(range(len(self.blocks)))

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Measure and draw layers if a measurement or a draw is due; return the loader's next n."""
        step = self.state.global_step
        if step % self.options.measure_every == 0:
            self.probabilities = self.layer_probabilities()
        if step % self.options.draw_every == 0:
            n_layers = len(self.blocks)
            n_drawn = min(self.options.layers, n_layers)
            drawn = self.rng.choice(n_layers, n_drawn, replace=False, p=self.probabilities)
            self.active = sorted(drawn.tolist())
        return super().draw_batches(epoch_iterator, n)

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Accumulate the gradient of the active layers and of weights outside the layers."""
        frozen = [block.layer for i, block in enumerate(self.blocks) if i not in self.active]
        with freeze([p for layer in frozen for p in layer.parameters()]):
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
        """Return probabilities, active layers, generator and the stream of harmful rows."""
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
        self.probabilities = list(state["probabilities"])
        self.active = list(state["active"])
        self.rng.bit_generator.state = state["rng"]
        self.stream.load_state_dict(state["stream"])

    # ------------------------------------------------------------------------ the equation

    def layer_probabilities(self) -> list[float]:
        """Return p_l (n_layers,) from the next batch of harmful rows.

        Raises:
            TrainingError: A norm is not finite.
        """
        model = cast(nn.Module, self.model)
        positions = self.stream.take(self.args.train_batch_size)
        batch = self.collate_rows([self.harmful[i] for i in positions])
        with evaluation_mode(model):
            grads = output_gradients(
                [block.attention for block in self.blocks],
                lambda: self.answer_loss(model, batch),
                scale=self.loss_scale,
            )
        # The smallest float lets a layer without gradient be drawn if no other is left.
        norms = [float(global_norm([grad])) + sys.float_info.min for grad in grads]
        total = sum(norms)
        if not math.isfinite(total):
            raise TrainingError(
                f"the gradient of the harmful rows is not finite at step "
                f"{self.state.global_step + 1}, so no layers can be drawn. Lower the learning "
                "rate or rho."
            )
        return [norm / total for norm in norms]
