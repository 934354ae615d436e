"""Attack directions: the direction in which fine-tuning on some rows moves the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from holdfast.errors import TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.models.encoding import (
    IGNORE,
    Encoded,
    check_context,
    collate,
    encode,
    encode_openings,
    usable_length,
)
from holdfast.models.head_loss import answer_loss
from holdfast.models.losses import chunks, first_logits
from holdfast.models.weights import Geometry, all_finite, step_along, trainable
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
    """Return the unit direction of the first training step on these rows.

    With g the gradient of the rows' answer loss over the trainable parameters: -g / ||g|| (l2,
    plain gradient descent) or -sign(g) / ||sign(g)|| (sign, the first step of Adam). Gradients
    accumulated in `.grad` are restored. The batch size affects only rounding and memory.

    Returns:
        One tensor per trainable parameter; together they have norm 1.
    """
    encoded = encode(tokenizer, rows, usable_length(model, max_length))
    pad = cast(int, tokenizer.pad_token_id)
    total = sum(len(row.ids) - row.learned_from for row in encoded)

    def batch_loss(positions: Sequence[int]) -> Tensor:
        batch = collate([encoded[i] for i in positions], pad, model.device)
        share = int((batch["labels"][:, 1:] != IGNORE).sum()) / total
        return answer_loss(model, batch) * share

    losses = map(batch_loss, chunks(range(len(encoded)), batch_size))
    return _descent(trainable(model), losses, geometry)


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
        base: The model before alignment; it gets the prompts in its own template.
        model: The aligned model.
        tokenizer: The aligned model's tokenizer.
        prompts: Prompts for both models.
        geometry: See `descent_direction`.
        batch_size: Prompts per batch.

    Returns:
        One tensor per trainable parameter; together they have norm 1.

    Raises:
        UsageError: The base has a different vocabulary.
    """
    _check_same_tokens(base.tokenizer, tokenizer)
    model_prompts = _encode_checked_prompts(model, tokenizer, prompts)
    base_prompts = _encode_checked_prompts(base.model, base.tokenizer, prompts)
    model_pad = cast(int, tokenizer.pad_token_id)
    base_pad = cast(int, base.tokenizer.pad_token_id)

    def batch_loss(positions: Sequence[int]) -> Tensor:
        with torch.no_grad():
            base_logits = first_logits(base.model, [base_prompts[i] for i in positions], base_pad)
        logits = first_logits(model, [model_prompts[i] for i in positions], model_pad)
        # Columns that only one of the two has are padding, or tokens added by the alignment.
        width = min(logits.shape[1], base_logits.shape[1])
        target = base_logits[:, :width].softmax(1).to(logits.device)
        return F.cross_entropy(logits[:, :width], target, reduction="sum") / len(prompts)

    losses = map(batch_loss, chunks(range(len(prompts)), batch_size))
    return _descent(trainable(model), losses, geometry)


def _descent(
    parameters: Sequence[nn.Parameter], losses: Iterable[Tensor], geometry: Geometry
) -> list[Tensor]:
    """Return the unit descent direction of the sum of the losses, back-propagated one at a time."""
    previous_grads = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        for loss in losses:
            loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, previous_grads, strict=True):
            p.grad = grad
    # The sign of a nan is 0, which would look like a weight that does not matter.
    if not all_finite(grads):
        raise TrainingError(
            "the gradient of the attack's direction is not finite: check the model's weights, or "
            "load it in bfloat16 or float32"
        )
    if geometry == "sign":
        grads = step_along(grads, 1.0, geometry="sign", in_place=True)
    return step_along(grads, -1.0, in_place=True)


def _encode_checked_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[Encoded]:
    rows = [Encoded(tuple(ids), len(ids)) for ids in encode_openings(tokenizer, prompts)]
    check_context(model, rows, "prompts")
    return rows


def _check_same_tokens(base: PreTrainedTokenizerBase, aligned: PreTrainedTokenizerBase) -> None:
    aligned_ids = aligned.get_vocab()
    base_ids = base.get_vocab()
    moved = [token for token, i in base_ids.items() if aligned_ids.get(token, i) != i]
    if moved or not aligned_ids.keys() & base_ids.keys():
        raise UsageError(
            f"the base has other tokens than the model ({len(moved)} of {len(base_ids)} have "
            "a different id), so it is not the model before alignment; give that model as --base, "
            "or use source=mismatched"
        )


def finetuning_direction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Examples,
    config: FinetuneConfig,
) -> list[Tensor]:
    """Return the unit direction in which several fine-tuning steps move the weights.

    The weights and the gradients accumulated in `.grad` are restored exactly. This takes four
    copies of the trainable parameters: the original weights, their change, and Adam's two moments.

    Returns:
        One tensor per trainable parameter; together they have norm 1.
    """
    parameters = trainable(model)
    previous_grads = [p.grad for p in parameters]
    starts = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        finetune(model, tokenizer, rows, config)
        changes = [p.detach() - start for p, start in zip(parameters, starts, strict=True)]
    finally:
        for p, start, grad in zip(parameters, starts, previous_grads, strict=True):
            p.detach().copy_(start)
            p.grad = grad
    return step_along(changes, 1.0, in_place=True)


def forward_derivative(
    model: nn.Module, direction: Sequence[Tensor], read: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the value of `read` at the model's weights and its derivative along a direction.

    The derivative is exact, by forward-mode automatic differentiation. Attention runs in its plain
    kernel, because the fused kernels have no forward derivative.

    Args:
        model: The model that `read` uses.
        direction: One tensor per trainable parameter.
        read: Computes a tensor (n,) from the model by differentiable operations.

    Returns:
        Value and derivative, (n,) each.

    Raises:
        UsageError: An operation of the model has no forward derivative.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    module = _ReadModule(model, read)
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals = {
            f"model.{name}": forward_ad.make_dual(p.detach(), d)
            for name, p, d in zip(names, trainable(model), direction, strict=True)
        }
        try:
            dual = functional_call(module, duals, ())
        except NotImplementedError as error:
            raise UsageError(
                f"{type(model).__name__} has an operation without a forward derivative "
                f"({str(error).splitlines()[0]}); load the model with attn_implementation='eager', "
                "or use variant=first_flips, which needs no derivative"
            ) from error
        value, slope = forward_ad.unpack_dual(dual)
        return value.detach(), torch.zeros_like(value) if slope is None else slope.detach()


class _ReadModule(nn.Module):
    """Wraps `read`, so that `functional_call` can swap the weights of the model it uses."""

    def __init__(self, model: nn.Module, read: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.read = read

    def forward(self) -> Tensor:
        return self.read()
