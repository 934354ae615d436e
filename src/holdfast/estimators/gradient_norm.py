"""Scores examples by their own gradient: its norm, or the loss gained by a step along it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from pydantic import Field

from holdfast.contracts import Estimate, Estimator
from holdfast.errors import UsageError
from holdfast.examples import Examples

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class GradientNorm(Estimator):
    """Measures how steep each example's own loss is.

        norm:     ||g_i||                                         GraNd, Paul et al. 2021
        sam_gap:  l_i(theta + rho g_i / ||g_i||) - l_i(theta)     Foret et al. 2021 (SAM)

    g_i is the gradient of l_i over the trainable parameters. To first order the gap is rho times
    the norm; the two differ where the surface curves within rho. Both cost one backward pass per
    example, which cannot be batched, and hold one gradient at a time. The gap also needs a copy of
    the parameters and a second forward pass.

    The direction of the attack plays no part: a refusal can be steep along its own gradient and
    flat along the attacker's. The gradient of a model that has learned its refusals is small and,
    in half precision, mostly rounding error. GraNd was proposed for the first epochs and averaged
    over models; this is not.
    """

    kind: Literal["norm", "sam_gap"] = "norm"
    """Which of the two quantities above is the score."""
    quantity: Literal["loss", "first_token", "margin"] = "loss"
    """The loss l_i; margin is the negated refusal margin."""
    rho: float = Field(default=0.05, gt=0)
    """Length of the step with kind=sam_gap, as a norm over all parameters."""
    layers: Literal["all", "last"] = "all"
    """Parameters of the gradient: all, or those of the last block and of the head if it is not tied
    to the embedding. With last, the backward pass ends there.
    """
    max_length: int = Field(default=256, ge=1)
    """Number of tokens kept of each row."""

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Score every example deterministically; the weights and `.grad` do not change."""
        from holdfast.models.encoding import encode_rows_to_rank
        from holdfast.models.losses import nearness_of_batch, refusal_tokens
        from holdfast.models.modes import evaluation_mode

        del seed
        encoded = encode_rows_to_rank(model, tokenizer, examples, self.max_length)
        tokens = refusal_tokens(encoded)
        pad = cast(int, tokenizer.pad_token_id)
        parameters = self._parameters(model)
        with evaluation_mode(model):
            losses = [
                partial(nearness_of_batch, model, [row], self.quantity, tokens, pad=pad)
                for row in encoded
            ]
            values = [self._steepness(loss, parameters) for loss in losses]
        return Estimate(
            np.array(values, dtype=np.float64),
            facts={
                "kind": self.kind,
                "quantity": self.quantity,
                "parameters": sum(p.numel() for p in parameters),
                "refusal_tokens": len(tokens),
            },
        )

    def _parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        from holdfast.models.weights import trainable

        parameters = trainable(model) if self.layers == "all" else last_parameters(model)
        if not parameters:
            raise UsageError(
                f"layers={self.layers}: no parameter there is trainable; set requires_grad on "
                "those that training may change"
            )
        return parameters

    def _steepness(self, loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> float:
        import torch

        from holdfast.models.weights import consume, global_norm, gradients, perturb, step_along

        with torch.enable_grad():
            value = loss()
            grads = gradients(value.sum(), parameters)
        if self.kind == "norm":
            return global_norm(grads).item()
        steps = consume(step_along(grads, self.rho, in_place=True))
        del grads
        with torch.no_grad(), perturb(parameters, steps):
            return (loss() - value).item()


def last_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the trainable parameters of the last decoder block and of an untied head.

    The blocks are the first module list whose length is the configuration's number of layers. A
    head tied to the embedding is left out, since its gradient needs the whole backward pass.

    Raises:
        UsageError: The model has no such list.
    """
    from torch import nn

    from holdfast.models.weights import trainable

    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not depth or not stacks:
        raise UsageError(
            f"layers=last: {type(model).__name__} does not keep its {depth} blocks in a list; "
            "use layers=all"
        )
    ids = {id(p) for p in stacks[0][-1].parameters()}
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        ids |= {id(p) for p in head.parameters()}
    return [p for p in trainable(model) if id(p) in ids]
