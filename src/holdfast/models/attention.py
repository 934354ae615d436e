"""The outputs of a model's attention modules: where they are, their gradients, and moving them."""

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
"""Takes the number of an attention module and its output (B, T, d); returns another output."""


@dataclass(frozen=True)
class Block:
    """A decoder layer, and the attention module in it."""

    layer: nn.Module
    attention: nn.Module


def blocks(model: nn.Module) -> list[Block]:
    """Return the decoder layers from the first to the last, each with its attention module.

    They are found by the module tree and know no architecture: the layers are a list of modules,
    and the attention is the child that is called so and is made of further modules, which the
    norms and dropouts named after it are not.

    Raises:
        UsageError: There is no such list, there are several (encoder and decoder, vision and
            text), or a layer has no attention (state space) or two of them (cross-attention).
    """
    stacks = {
        name: [(layer, _attentions(layer)) for layer in module]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(map(_attentions, module))
    }
    pairs = next(iter(stacks.values()), [])
    if len(stacks) != 1 or any(len(inside) != 1 for _, inside in pairs):
        attention_blocks = [
            f"{name} with {sorted({len(inside) for _, inside in layers})}"
            for name, layers in stacks.items()
        ]
        raise UsageError(
            f"{type(model).__name__}: attention outputs are perturbed in one list of layers with "
            f"one attention module each, got {' and '.join(attention_blocks) or 'none'}; take a "
            "decoder-only model, or a method that perturbs weights (sam, vaa)"
        )
    return [Block(layer, attention) for layer, (attention,) in pairs]


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

    One forward pass, and a backward pass down to the first of them that leaves out the weights'
    gradients; `.grad` is not touched.

    Args:
        attentions: As `blocks` finds them.
        loss: Runs the model.
        scale: What the loss is multiplied by, lest small gradients vanish in float16. They keep the
            factor; where it is too large for them they are taken without.

    Raises:
        UsageError: One of them did not run, so it has no output.
    """
    grads = _gradients(attentions, lambda: loss() * scale)
    if scale != 1 and not torch.isfinite(global_norm(grads)):
        return _gradients(attentions, loss)
    return grads


def _gradients(attentions: Sequence[nn.Module], loss: Callable[[], Tensor]) -> list[Tensor]:
    zeros: dict[int, Tensor] = {}

    def add_zero(number: int, output: Tensor) -> Tensor:
        # d/dz loss(e + z) at 0 exists for an e that needs no gradient, since all below is frozen.
        # Where checkpointing computes e again, the gradient belongs to the z of the first time.
        if number not in zeros:
            zeros[number] = torch.zeros_like(output, requires_grad=True)
        return output + zeros[number]

    with change_outputs(attentions, add_zero):
        value = loss()
        if len(zeros) < len(attentions):
            raise UsageError(
                f"{len(attentions) - len(zeros)} of {len(attentions)} attention modules did not "
                "run: layers must not be dropped at random (set the model's layerdrop to 0)"
            )
        inputs = [zeros[number] for number in range(len(attentions))]
        return list(torch.autograd.grad(value, inputs))


@contextmanager
def shift_outputs(attentions: Sequence[nn.Module], shifts: Sequence[Tensor]) -> Iterator[None]:
    """Hold the outputs at e_l + shifts[l] inside the block; the shifts get no gradient.

    A backward pass belongs inside the block too: checkpointing computes the outputs again.
    """
    with change_outputs(attentions, lambda number, output: output + shifts[number]):
        yield


@contextmanager
def change_outputs(attentions: Sequence[nn.Module], change: OutputChange) -> Iterator[None]:
    """Put change(l, e_l) in the place of the output e_l of each module inside the block.

    A pass without gradients is left alone: it is not trained on. So the reference of preference
    losses, which with LoRA is this same model, stays what it is.
    """
    with ExitStack() as stack:
        for number, attention in enumerate(attentions):
            hook = partial(_replace, change, number)
            stack.enter_context(attention.register_forward_hook(hook))
        yield


def _replace(change: OutputChange, number: int, module: nn.Module, args: Any, output: Any) -> Any:
    """Change an output, which most modules return first of a tuple, with the attention weights."""
    if not torch.is_grad_enabled():
        return output
    if isinstance(output, tuple):
        return (change(number, output[0]), *output[1:])
    return change(number, output)
