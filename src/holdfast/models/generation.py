"""Batched generation: the same text whatever the batch, longest prompts first, greedy or sampled.

A sampled answer is drawn with random numbers that belong to its prompt, not to its place in a
batch: the t-th token is the first whose cumulative probability, in the vocabulary's order, exceeds
the t-th number of a generator that is seeded by the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import UsageError
from holdfast.models.encoding import encode_prompts
from holdfast.models.modes import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token (greedy); above, tokens are drawn.
        top_p: Drawn from the smallest set of likeliest tokens with this share of the probability.
        seed: Of the draws.
        draw: Which of several answers to the same prompt.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    draw: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"temperature {self.temperature:g} and top_p {self.top_p:g}: the first must not be "
                "negative, the second must lie above 0 and not above 1"
            )

    def number(self, prompt: str) -> int:
        """Return the seed of a prompt's answer, 32 bits."""
        text = f"{self.seed}\0{self.draw}\0{prompt}"
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)

    def uniforms(self, prompt: str, n: int) -> np.ndarray:
        """Return the numbers in [0, 1) that draw a prompt's first n tokens, (n,) float64."""
        return np.random.default_rng(self.number(prompt)).random(n)


GREEDY = Sampling()
LIKELY = 32
"""Tokens that are looked at first for those that make up `top_p`."""


@torch.no_grad()
def generate(  # noqa: PLR0913  # all but three have a default
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 128,
    sampling: Sampling = GREEDY,
) -> list[str]:
    """Answer every prompt and return the answers in the prompts' order.

    Rows are sorted by length so that little is padded; padding is on the left and masked. The
    model's training mode is put back afterwards.

    Raises:
        UsageError: A prompt with its answer does not fit the model's context.
    """
    encoded = encode_prompts(tokenizer, prompts)
    _check_fits(model, prompts, encoded, max_new_tokens)
    return complete(
        model,
        tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        drawing=lambda few: _drawing(sampling, [prompts[i] for i in few], max_new_tokens),
    )


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    drawing: Callable[[Sequence[int]], dict[str, Any]] | None = None,
) -> list[str]:
    """Go on from every row of tokens and return what was added, as `generate` does.

    Args:
        model: Goes on.
        tokenizer: Its tokenizer.
        encoded: Rows of tokens.
        max_new_tokens: Length of what is added.
        batch_size: Rows at a time, longest first.
        drawing: From the positions of a batch's rows to further options of `model.generate`;
            greedy without.
    """
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
    answers = [""] * len(encoded)
    with evaluation_mode(model):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            ids, mask = pad_left([encoded[i] for i in indices], cast(int, tokenizer.pad_token_id))
            output = model.generate(  # type: ignore[operator]  # a mixin that stubs do not see
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=stop_tokens(model, tokenizer),
                **(drawing(indices) if drawing else {}),
            )
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(indices, texts, strict=True):
                answers[i] = text.strip()
    return answers


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens at which an answer ends: the tokenizer's, and those that the model names.

    Chat models end a turn at a token of its own (<|end|>, <end_of_turn>) that is not the
    tokenizer's end of text; beyond it they make up the next turn.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return sorted({int(t) for t in (tokenizer.eos_token_id, *ids) if t is not None})


def _drawing(sampling: Sampling, prompts: Sequence[str], n: int) -> dict[str, Any]:
    """Return what makes greedy decoding draw: a processor that leaves one token, the drawn one."""
    if not sampling.temperature:
        return {}
    from transformers import LogitsProcessorList

    uniforms = torch.tensor(np.array([sampling.uniforms(prompt, n) for prompt in prompts]))
    return {"logits_processor": LogitsProcessorList([_Drawn(uniforms, sampling)])}


class _Drawn:
    """Leaves of each row's tokens the one that the row's next number draws."""

    def __init__(self, uniforms: Tensor, sampling: Sampling) -> None:
        self.uniforms = uniforms
        self.sampling = sampling
        self.done = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        number = self.uniforms[:, self.done, None].to(scores.device)
        self.done += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, self._token(scores, number), 0.0)

    def _token(self, scores: Tensor, number: Tensor) -> Tensor:
        last = scores.shape[-1] - 1
        # In float64, so that sums over a large vocabulary do not depend on how they are batched.
        chances = (scores.double() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            chances = chances.where(chances >= _least(chances, self.sampling.top_p), 0.0)
        below = chances.cumsum(-1)
        return torch.searchsorted(below, number * below[:, -1:], right=True).clamp(max=last)


def _least(chances: Tensor, share: float) -> Tensor:
    """Return the chance of the last token that it takes to make up a share, (B, 1).

    Most often a few tokens are enough, and no row need be sorted.
    """
    for width in (min(LIKELY, chances.shape[-1]), chances.shape[-1]):
        top = chances.topk(width).values
        short = (top.cumsum(-1) < share).sum(-1, keepdim=True)
        if int(short.max()) < width:
            break
    return top.gather(1, short.clamp(max=width - 1))


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
            f"prompt {longest + 1} of {len(prompts)} has {len(encoded[longest])} tokens; with "
            f"{max_new_tokens} new ones it exceeds the model's context of {limit}. "
            "Let answers be shorter (--max-new-tokens N; of a judge or an estimator its option "
            "max_new_tokens) or drop the prompt."
        )
