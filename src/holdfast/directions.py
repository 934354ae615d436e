"""The attacker's first direction: which way fine-tuning on given rows pulls the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from holdfast.examples import Examples
from holdfast.losses import chunks
from holdfast.models import check_context, collate, encode
from holdfast.weights import Geometry, step_along, trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def descent(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Examples,
    max_length: int,
    *,
    geometry: Geometry = "l2",
    batch_size: int = 32,
) -> list[Tensor]:
    """Return the unit direction in which the first step on these rows goes.

    With g the gradient of the rows' answer loss over the trainable parameters: -g / ||g|| (l2, a
    step of plain gradient descent) or -sign(g) / ||sign(g)|| (sign, the first step of Adam).
    Gradients that were accumulated in `.grad` are put back.
    """
    parameters = trainable(model)
    encoded = encode(tokenizer, rows, max_length)
    check_context(model, encoded, rows.name)
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    pad = cast(int, tokenizer.pad_token_id)
    try:
        for positions in chunks(range(len(encoded)), batch_size):
            batch = collate([encoded[i] for i in positions], pad, model.device)
            loss = model(**batch).loss * (len(positions) / len(encoded))
            loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, kept, strict=True):
            p.grad = grad
    if geometry == "sign":
        grads = step_along(grads, 1.0, geometry="sign", in_place=True)
    return step_along(grads, -1.0, in_place=True)
