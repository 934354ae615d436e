"""Logits at chosen positions only: the output layer of a model runs where its logits are read.

The output layer maps the hidden state of each position to the vocabulary. It does a fifth of the
work of SmolLM2-135M, and two thirds of that of Gemma 3 270M with its large vocabulary. A training
step reads its logits where answer tokens are predicted, and a probe at one position of each row. A
hook in front of the layer passes on only these positions, so the rest of the forward pass stays the
model's own: wrappers, adapters, gradient checkpointing, and what is done to logits afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from holdfast.models.encoding import IGNORE


def predicting(
    labels: Tensor,  # (B, T)
) -> Tensor:
    """Return which positions predict a labelled token, (B, T) bool: position t predicts t + 1."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE
    return mask


def with_columns(
    mask: Tensor,  # (B, T) bool
    columns: Tensor,  # (B,)
) -> tuple[Tensor, Tensor]:
    """Add one position of every row to a mask.

    Returns:
        The mask (B, T), and the places (B,) of these positions among all that it selects.
    """
    rows = torch.arange(len(mask), device=mask.device)
    extended = mask.clone()
    extended[rows, columns] = True
    places = extended.flatten().cumsum(0).view_as(extended) - 1
    return extended, places[rows, columns]


def logits_at(
    model: nn.Module,
    inputs: Mapping[str, Any],
    mask: Tensor,  # (B, T) bool
) -> Tensor:
    """Return the logits at the positions of a mask, (N, V), row by row.

    Args:
        model: A causal language model, wrapped or not.
        inputs: Its inputs; labels are not among them.
        mask: The positions to read.
    """
    with reading_at(model, mask) as read:
        return read(model(**inputs).logits)


@contextlib.contextmanager
def reading_at(
    model: nn.Module,
    mask: Tensor,  # (B, T) bool
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Run the output layer at the positions of a mask only, in the one forward pass of the block.

    Yields:
        A function from the logits of that pass to those at the positions, (N, V).
    """
    head = output_layer(model)
    narrowed: list[Tensor] = []

    def narrow(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        states = inputs[0] if inputs else None
        # A model without one state for each token keeps its own way.
        if not isinstance(states, Tensor) or states.ndim != 3 or len(states) != len(mask):
            return None
        narrowed.append(mask)
        return (values_at(states, mask)[None], *inputs[1:])

    def read(logits: Tensor) -> Tensor:
        return logits[0] if narrowed else values_at(logits, mask)

    if head is None:
        yield read
        return
    handle = head.register_forward_pre_hook(narrow)
    try:
        yield read
    finally:
        handle.remove()


@contextlib.contextmanager
def states_before(
    layer: nn.Module,
    mask: Tensor,  # (B, T) bool
) -> Iterator[list[Tensor]]:
    """Skip an output layer inside the block, and collect the states (N, H) that it would read.

    The layer's logits are replaced by zeros at one position.
    """
    states: list[Tensor] = []
    size = len(cast(Tensor, layer.weight))

    def collect(inputs: Tensor) -> Tensor:
        states.append(values_at(inputs, mask))
        return inputs.new_zeros(1, 1, size)

    vars(layer)["forward"] = collect
    try:
        yield states
    finally:
        del vars(layer)["forward"]


@contextlib.contextmanager
def last_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the last hidden states (B, T, H) of every pass of the block, whatever runs the model.

    The list stays empty if the model does not name its decoder.
    """
    states: list[Tensor] = []

    def collect(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        last = getattr(output, "last_hidden_state", None)
        if isinstance(last, Tensor):
            states.append(last)

    get = getattr(unwrapped(model), "get_decoder", None)
    decoder = None if get is None else get()
    if not isinstance(decoder, nn.Module):
        yield states
        return
    handle = decoder.register_forward_hook(collect)
    try:
        yield states
    finally:
        handle.remove()


def values_at(values: Tensor, mask: Tensor) -> Tensor:
    """Return values (B, T', D) at a mask (B, T); virtual tokens of adapters come before the T."""
    return values[:, values.shape[1] - mask.shape[1] :][mask.to(values.device)]


def output_layer(model: nn.Module) -> nn.Module | None:
    """Return the layer from hidden states to logits; None if the model does not name it."""
    get = getattr(unwrapped(model), "get_output_embeddings", None)
    return None if get is None else cast("nn.Module | None", get())


def tokens_at(labels: Tensor, mask: Tensor) -> Tensor:
    """Return the labels that the positions of a mask predict, (N,)."""
    return labels.roll(-1, 1)[mask]


def mean_nll(logits: Tensor, tokens: Tensor, num_items: Tensor | float | None = None) -> Tensor:
    """Return the summed negative log-likelihood of tokens, divided by `num_items` or their number.

    Args:
        logits: (N, V), of any floating-point type; the loss is computed in float32.
        tokens: (N,).
        num_items: The divisor.
    """
    tokens = tokens.to(logits.device)
    total = F.cross_entropy(_single(logits), tokens, reduction="sum")
    return total / (len(tokens) if num_items is None else num_items)


def _single(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def has_own_loss(model: nn.Module) -> bool:
    """Return whether a model's loss is more than the mean loss of the labelled tokens.

    Mixtures of experts can add a loss that balances their use.
    """
    config: Any = getattr(unwrapped(model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "output_router_logits", False):
        return True
    declared = getattr(config, "loss_type", None)
    return declared not in (None, "ForCausalLMLoss", "ForCausalLM")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model
