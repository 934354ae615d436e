"""Safe LoRA: after the tuning, project updates that leave the alignment's directions.

Hsu et al., NeurIPS 2024, arXiv 2405.16833. For every linear layer, with V = W_aligned - W_base and
U what the tuning added to W_aligned,

    U^ = C U,   C = V V^T / ||V||_F,

and U^ replaces U in the layers where they differ most: the `number` layers with the smallest
cos(U^, U), or with number=0 all whose cosine is below tau. With LoRA, U = B A, and B <- C B is
enough; with full fine-tuning U = W - W_aligned. The three factors are multiplied in the cheapest
order, so V V^T is only formed where that is cheapest. Defaults are the published code's: the ten
least similar layers (otherwise tau = 0.5).

C is at best a projection up to scale, since ||V||_F is not squared and C C is not C. A repair must
therefore start from the tuned weights, as it does here at every checkpoint.

Deviations: embeddings, biases, norms and the output layer are not projected. Neither are layers
that the tuning or the alignment did not move, which have no cosine. In the paper V is the alignment
of the chat model; here it is the step from `base` to the attacked model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.guards.base import Guard, Linear, copies, linear_layers
from holdfast.models import checkpoints
from holdfast.options import Supplied
from holdfast.tuning.loop import Tuning


class SafeLora(Guard):
    """Projects updates after the tuning; one backward pass per step.

    Full fine-tuning needs a copy of the linear layers' weights, LoRA none. The base model is read
    into CPU memory at the start and for every repair.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"base"})
    neutral: ClassVar[Mapping[str, Any]] = {"number": 0, "tau": -1.0}

    base: Supplied[str]
    number: int = Field(default=10, ge=0)
    """Number of layers to project, the least similar ones; 0 selects them by `tau`."""
    tau: float = Field(default=0.5, ge=-1)
    """Cosine below which a layer is projected, with number=0."""

    def begin(self, tuning: Tuning) -> None:
        """Store the aligned weights that will be tuned, and check that the base fits them."""
        layers = linear_layers(tuning.model)
        base = self._base_weights()
        for layer in layers:
            if layer.name not in base or base[layer.name].shape != layer.weight.shape:
                raise UsageError(
                    f"base {self.base!r}: it has no layer {layer.name} of shape "
                    f"{tuple(layer.weight.shape)}; give the model before its alignment"
                )
        unmoved = [
            torch.equal(layer.weight.cpu(), base[layer.name].to(layer.weight.dtype))
            for layer in layers
        ]
        if all(unmoved):
            raise UsageError(
                f"base {self.base!r}: its linear layers equal those of the aligned model, so there "
                "is no direction to project onto; give the model before its alignment"
            )
        tuning.memory["aligned"] = copies(x.weight for x in layers if x.weight.requires_grad)

    def repair(self, tuning: Tuning) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield the projected values of the selected layers."""
        base = self._base_weights()
        aligned = iter(tuning.memory["aligned"])
        updates = [
            _Update(layer, next(aligned) if layer.weight.requires_grad else None, base[layer.name])
            for layer in linear_layers(tuning.model)
            if layer.weight.requires_grad or layer.lora_b is not None
        ]
        for i in self.select([update.cosine() for update in updates]):
            yield updates[i].parameter, updates[i].repaired()

    def select(self, cosines: list[float]) -> list[int]:
        """Return the positions of the layers to project; a nan cosine is never selected."""
        measured = [i for i, cosine in enumerate(cosines) if not math.isnan(cosine)]
        if self.number:
            return sorted(measured, key=cosines.__getitem__)[: self.number]
        return [i for i in measured if cosines[i] < self.tau]

    def _base_weights(self) -> dict[str, Tensor]:
        base = checkpoints.load(self.base, device="cpu").model
        return {layer.name: layer.weight.detach() for layer in linear_layers(base)}


class _Update:
    """The update of a layer, U = left @ right, with right = A for LoRA and 1 otherwise."""

    def __init__(self, layer: Linear, aligned: Tensor | None, base: Tensor) -> None:
        self.parameter = layer.weight if layer.lora_b is None else layer.lora_b
        self.aligned = layer.weight.detach() if aligned is None else aligned
        self.right = None if layer.lora_a is None else layer.lora_a.detach().float()
        self.base = base

    @property
    def left(self) -> Tensor:
        left = self.parameter.detach().float()
        return left - self.aligned.float() if self.right is None else left

    def projected(self) -> Tensor:
        """Return C left."""
        v = self.aligned.float() - self.base.to(self.aligned).float()
        product = cast(Tensor, torch.linalg.multi_dot([v, v.T, self.left]))
        return product / cast(Tensor, torch.linalg.matrix_norm(v))

    def cosine(self) -> float:
        """Return cos(C U, U); nan if either is 0.

        With right = A, <X A, Y A> = <X, Y A A^T>: an inner product of matrices of r columns.
        """
        c = self.projected()
        u = self.left
        gram = None if self.right is None else self.right @ self.right.T

        def inner(x: Tensor, y: Tensor) -> Tensor:
            return (x * (y if gram is None else y @ gram)).sum()

        return float(inner(c, u) / (inner(c, c).sqrt() * inner(u, u).sqrt()))

    def repaired(self) -> Tensor:
        """Return the new value of the parameter."""
        return self.projected() + (self.aligned.float() if self.right is None else 0)
