"""Antidote: set the weights that harmful answers depend on to 0 after the tuning.

Huang et al., ICML 2025, arXiv 2408.09600. For every linear layer with inputs x on harmful rows,

    score_ij = |W_ij| sqrt(E x_j^2)    (Wanda, Sun et al. 2024, arXiv 2306.11695),

and in every row i of W the `share` of weights with the highest scores is set to 0, by default the
published 0.1. With LoRA, the merged weight W + BA is scored and pruned.

The scores ignore what the customer's rows need, so benign skill is lost as well. The published
code uses 2000 rows, one at a time; this one uses all rows supplied. Biases, embeddings and the
output layer are not pruned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.examples import Examples
from holdfast.guards.base import Guard, Linear, linear_layers
from holdfast.models.encoding import collate, encode
from holdfast.models.losses import chunks
from holdfast.models.modes import evaluation_mode
from holdfast.options import Supplied
from holdfast.tuning.loop import Tuning


class Antidote(Guard):
    """Prunes after the tuning; one backward pass per step, then one forward over harmful rows."""

    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})
    neutral: ClassVar[Mapping[str, Any]] = {"share": 0.0}

    harmful: Supplied[Examples]
    share: float = Field(default=0.1, ge=0, le=1)
    """Share of the weights in each row that is set to 0."""

    def repair(self, tuning: Tuning) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Prune every linear layer."""
        if not self.share:
            return
        layers = linear_layers(tuning.model)
        for layer, energy in zip(layers, self._energies(tuning, layers), strict=True):
            yield layer.weight, prune(_merged(layer), energy, self.share)
            if layer.lora_b is not None:
                yield layer.lora_b, torch.zeros_like(layer.lora_b)

    def _energies(self, tuning: Tuning, layers: Sequence[Linear]) -> list[Tensor]:
        """Return E x^2 of every layer's inputs, (in,) float32 each, before any layer is pruned."""
        rows = encode(tuning.tokenizer, self.harmful, tuning.config.max_length)
        pad = cast(int, tuning.tokenizer.pad_token_id)
        model = tuning.model
        sums = [torch.zeros(x.weight.shape[1], device=x.weight.device) for x in layers]
        attended = torch.empty(0, dtype=torch.bool)

        def adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                tokens = args[0].reshape(-1, len(total))[attended]  # some layers get (B * T, in)
                total.add_(tokens.float().square().sum(0))

            return add

        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluation_mode(model))
            for layer, total in zip(layers, sums, strict=True):
                stack.callback(layer.module.register_forward_pre_hook(adder(total)).remove)
            for indices in chunks(range(len(rows)), tuning.config.batch_size):
                batch = collate([rows[i] for i in indices], pad, model.device)
                attended = batch["attention_mask"].bool().flatten()
                with torch.no_grad():
                    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return [total / sum(len(row.ids) for row in rows) for total in sums]


def prune(
    weight: Tensor,  # (out, in)
    energy: Tensor,  # (in,)
    share: float,
) -> Tensor:
    """Return a copy with the round(share * in) highest-scoring weights of each row set to 0."""
    scores = weight.float().abs() * energy.sqrt()
    top = scores.topk(round(share * weight.shape[1]), dim=1).indices
    return weight.scatter(1, top, 0.0)


def _merged(layer: Linear) -> Tensor:
    weight = layer.weight.detach()
    if layer.lora_a is None or layer.lora_b is None:
        return weight
    return weight + layer.scale * (layer.lora_b @ layer.lora_a).detach()
