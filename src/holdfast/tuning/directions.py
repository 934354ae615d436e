"""The attacker's first direction: which way fine-tuning on given rows pulls the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.models.encoding import (
    IGNORE,
    Encoded,
    check_context,
    collate,
    encode,
    encode_prompts,
    usable_length,
)
from holdfast.models.losses import chunks, first_logits
from holdfast.models.weights import Geometry, step_along, trainable
from holdfast.tuning.loop import FinetuneConfig, finetune

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.models.checkpoints import Loaded


def descent_direction(
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
    Gradients that were accumulated in `.grad` are put back. How many rows go at a time changes
    nothing but rounding and memory.
    """
    encoded = encode(tokenizer, rows, usable_length(model, max_length))
    pad = cast(int, tokenizer.pad_token_id)
    total = sum(len(row.ids) - row.start for row in encoded)

    def part(rows: Sequence[Encoded]) -> Tensor:
        batch = collate(rows, pad, model.device)
        share = int((batch["labels"][:, 1:] != IGNORE).sum()) / total
        return cast(Tensor, model(**batch).loss * share)

    parts = (part([encoded[i] for i in few]) for few in chunks(range(len(encoded)), batch_size))
    return _descent(trainable(model), parts, geometry)


def descent_direction_to_base(
    base: Loaded,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    geometry: Geometry = "l2",
    batch_size: int = 32,
) -> list[Tensor]:
    """Return the unit direction that pulls first answer tokens towards the base model's.

    Like `descent_direction`, for the mean over prompts x of -sum_v q(v | x) log p(v | x), where q
    and p are the base's and the model's distributions of the first answer token. This
    cross-entropy has the same gradient as the divergence KL(q || p). Nothing is generated, and no
    answers are needed.

    Args:
        base: The model before its alignment; asked in its own prompt template.
        model: The aligned one.
        tokenizer: Of the model.
        prompts: What both are asked.
        geometry: As for `descent_direction`.
        batch_size: Prompts at a time.

    Raises:
        UsageError: The base has other tokens.
    """
    _check_same_tokens(base.tokenizer, tokenizer)
    ours = _asked(model, tokenizer, prompts)
    theirs = _asked(base.model, base.tokenizer, prompts)
    pads = [cast(int, words.pad_token_id) for words in (tokenizer, base.tokenizer)]

    def part(few: Sequence[int]) -> Tensor:
        with torch.no_grad():
            wanted = first_logits(base.model, [theirs[i] for i in few], pads[1])
        found = first_logits(model, [ours[i] for i in few], pads[0])
        # Beyond the narrower of the two lie padding and tokens that the alignment added.
        width = min(found.shape[1], wanted.shape[1])
        share = wanted[:, :width].softmax(1).to(found.device)
        return F.cross_entropy(found[:, :width], share, reduction="sum") / len(prompts)

    parts = map(part, chunks(range(len(prompts)), batch_size))
    return _descent(trainable(model), parts, geometry)


def _descent(
    parameters: Sequence[nn.Parameter], losses: Iterable[Tensor], geometry: Geometry
) -> list[Tensor]:
    """Return the unit direction down the sum of the losses, each of which is dropped in turn."""
    previous = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        for loss in losses:
            loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, previous, strict=True):
            p.grad = grad
    if geometry == "sign":
        grads = step_along(grads, 1.0, geometry="sign", in_place=True)
    return step_along(grads, -1.0, in_place=True)


def _asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[Encoded]:
    rows = [Encoded(tuple(ids), len(ids)) for ids in encode_prompts(tokenizer, prompts)]
    check_context(model, rows, "prompts")
    return rows


def _check_same_tokens(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> None:
    known = ours.get_vocab()
    other = theirs.get_vocab()
    moved = [token for token, i in other.items() if known.get(token, i) != i]
    if moved or not known.keys() & other.keys():
        raise UsageError(
            f"the base has other tokens than the model ({len(moved)} of {len(other)} with another "
            "number): it is not what this model was aligned from; give --base that one, or take "
            "source=mismatched"
        )


def finetuning_direction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Examples,
    config: FinetuneConfig,
) -> list[Tensor]:
    """Return the unit direction in which several steps of fine-tuning on these rows lead.

    The weights are restored exactly and accumulated gradients put back. It takes four copies of
    the trainable parameters: the weights before, the way they moved, and Adam's two moments.
    """
    parameters = trainable(model)
    previous = [p.grad for p in parameters]
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        finetune(model, tokenizer, rows, config)
        moved = [p.detach() - b for p, b in zip(parameters, before, strict=True)]
    finally:
        for p, old, grad in zip(parameters, before, previous, strict=True):
            p.detach().copy_(old)
            p.grad = grad
    return step_along(moved, 1.0, in_place=True)


def forward_derivative(
    model: nn.Module, direction: Sequence[Tensor], read: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return what `read` finds at the model's weights, and its derivative along a direction.

    Exact, by forward-mode automatic differentiation; attention runs in its plain kernel, since the
    fused ones have no forward derivative.

    Args:
        model: The model that `read` uses.
        direction: One tensor per trainable parameter.
        read: Computes a tensor (n,) from the model by differentiable operations.

    Raises:
        UsageError: An operation of the model has no forward derivative.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    inside = _Reading(model, read)
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals = {
            f"model.{name}": forward_ad.make_dual(p.detach(), d)
            for name, p, d in zip(names, trainable(model), direction, strict=True)
        }
        try:
            found = functional_call(inside, duals, ())
        except NotImplementedError as error:
            raise UsageError(
                f"{type(model).__name__} has an operation without forward derivative "
                f"({str(error).splitlines()[0]}); load the model with attn_implementation='eager', "
                "or use variant=first_flips, which needs none"
            ) from error
        value, slope = forward_ad.unpack_dual(found)
        return value.detach(), torch.zeros_like(value) if slope is None else slope.detach()


class _Reading(nn.Module):
    """Lets `functional_call` swap the weights under a function that closes over the model."""

    def __init__(self, model: nn.Module, read: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.read = read

    def forward(self) -> Tensor:
        return self.read()
