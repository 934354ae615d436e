"""Batched generation: the same text whatever the batch, longest prompts first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch

from holdfast.errors import UsageError
from holdfast.models import encode_prompts, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 128,
) -> list[str]:
    """Answer every prompt greedily and return the answers in the prompts' order.

    Rows are sorted by length so that little is padded; padding is on the left and masked. The
    model's training mode is put back afterwards.

    Raises:
        UsageError: A prompt with its answer does not fit the model's context.
    """
    encoded = encode_prompts(tokenizer, prompts)
    _check_fits(model, prompts, encoded, max_new_tokens)
    return complete(model, tokenizer, encoded, max_new_tokens=max_new_tokens, batch_size=batch_size)


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 128,
) -> list[str]:
    """Go on greedily from every row of tokens and return what was added, as `generate` does."""
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
    answers = [""] * len(encoded)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            ids, mask = pad_left([encoded[i] for i in indices], cast(int, tokenizer.pad_token_id))
            output = model.generate(  # type: ignore[operator]  # a mixin that stubs do not see
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(indices, texts, strict=True):
                answers[i] = text.strip()
    return answers


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and mask, each (B, T), with the padding on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids, mask


def _check_fits(
    model: PreTrainedModel,
    prompts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None or not encoded:
        return
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    if len(encoded[longest]) + max_new_tokens > limit:
        raise UsageError(
            f"the prompt {prompts[longest][:60]!r} has {len(encoded[longest])} tokens; with "
            f"{max_new_tokens} new ones it exceeds the model's context of {limit}. "
            "Lower --max-new-tokens or drop the prompt."
        )
