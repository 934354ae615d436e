"""Attention modules: finding them, and differentiating and perturbing their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.models.weights import global_norm

OutputChange = Callable[[int, Tensor], Tensor]
"""Maps the index of an attention module and its output (B, T, d) to a new output."""


@dataclass(frozen=True)
class Block:
    """A decoder layer and its attention module."""

    layer: nn.Module
    attention: nn.Module


def blocks(model: nn.Module) -> list[Block]:
    """Return the decoder layers in order, each with its attention module.

    The search uses the module tree only, not the architecture: the layers are a `ModuleList`, and
    the attention is the child with "attn" or "attention" in its name that has children itself
    (norms and dropouts named after the attention have none).

    Raises:
        UsageError: There is no such list or several (encoder and decoder, vision and text), or a
            layer has no attention (state space) or two (cross-attention).
    """
    stacks = {
        name: [(layer, _attentions(layer)) for layer in module]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(map(_attentions, module))
    }
    layers = next(iter(stacks.values()), [])
    if len(stacks) != 1 or any(len(attentions) != 1 for _, attentions in layers):
        descriptions = [
            f"{name} with {sorted({len(attentions) for _, attentions in stack})}"
            for name, stack in stacks.items()
        ]
        raise UsageError(
            f"{type(model).__name__}: perturbing attention outputs needs one list of layers with "
            f"one attention module each, got {' and '.join(descriptions) or 'none'}; use a "
            "decoder-only model, or a method that perturbs weights (sam, vaa)"
        )
    return [Block(layer, attention) for layer, (attention,) in layers]


def _attentions(layer: nn.Module) -> list[nn.Module]:
    return [
        child
        for name, child in layer.named_children()
        if ("attn" in name.lower() or "attention" in name.lower()) and any(child.children())
    ]


def output_gradients(
    attentions: Sequence[nn.Module], loss: Callable[[], Tensor], *, scale: float = 1.0
) -> list[Tensor]:  # of (B, T, d)
    """Return the gradient of a loss with respect to the output of each attention module.

    Takes one forward pass and one backward pass down to the first attention module. Weight
    gradients are not computed, and `.grad` is not touched.

    Args:
        attentions: The attention modules that `blocks` returns.
        loss: Runs the model and returns the loss.
        scale: Factor on the loss that keeps small gradients from vanishing in float16. The
            gradients keep the factor; if they overflow with it, they are computed without it.

    Raises:
        UsageError: An attention module did not run, so it has no output.
    """
    grads = _gradients(attentions, lambda: loss() * scale)
    if scale != 1 and not torch.isfinite(global_norm(grads)):
        return _gradients(attentions, loss)
    return grads


def _gradients(attentions: Sequence[nn.Module], loss: Callable[[], Tensor]) -> list[Tensor]:
    zeros: dict[int, Tensor] = {}

    def add_zero(index: int, output: Tensor) -> Tensor:
        # d/dz loss(e + z) at z = 0 exists even if e needs no gradient (everything below frozen).
        # When checkpointing recomputes e, the gradient belongs to the z of the first pass.
        if index not in zeros:
            zeros[index] = torch.zeros_like(output, requires_grad=True)
        return output + zeros[index]

    with change_outputs(attentions, add_zero):
        value = loss()
        if len(zeros) < len(attentions):
            raise UsageError(
                f"{len(attentions) - len(zeros)} of {len(attentions)} attention modules did not "
                "run; layers must not be dropped at random: set the model's layerdrop to 0"
            )
        inputs = [zeros[index] for index in range(len(attentions))]
        return list(torch.autograd.grad(value, inputs))


@contextmanager
def shift_outputs(attentions: Sequence[nn.Module], shifts: Sequence[Tensor]) -> Iterator[None]:
    """Add shifts[l] to the output e_l of each module inside the block; shifts get no gradient.

    The backward pass must run inside the block too, because checkpointing recomputes the outputs.
    """
    with change_outputs(attentions, lambda index, output: output + shifts[index]):
        yield


@contextmanager
def change_outputs(attentions: Sequence[nn.Module], change: OutputChange) -> Iterator[None]:
    """Replace the output e_l of each module with change(l, e_l) inside the block.

    Passes without gradients are not changed. This leaves the reference model of preference losses
    intact, which with LoRA is this same model.
    """
    with ExitStack() as stack:
        for index, attention in enumerate(attentions):
            hook = partial(_replace_output, change, index)
            stack.enter_context(attention.register_forward_hook(hook))
        yield


def _replace_output(
    change: OutputChange, index: int, module: nn.Module, args: Any, output: Any
) -> Any:
    """Change an output; most modules return a tuple of the output and the attention weights."""
    if not torch.is_grad_enabled():
        return output
    if isinstance(output, tuple):
        return (change(index, output[0]), *output[1:])
    return change(index, output)
