"""The attacker's first direction: which way fine-tuning on given rows pulls the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from holdfast.examples import Examples
from holdfast.losses import chunks
from holdfast.models import collate, encode
from holdfast.weights import step_along, trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def descent(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Examples,
    max_length: int,
    *,
    batch_size: int = 32,
) -> list[Tensor]:
    """Return -g / ||g|| over the trainable parameters, g the gradient of the rows' answer loss.

    Gradients that were accumulated in `.grad` are put back.
    """
    parameters = trainable(model)
    encoded = encode(tokenizer, rows, max_length)
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
    return step_along(grads, -1.0)
