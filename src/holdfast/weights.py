"""Moving a model's weights along a direction, and putting them back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn

Geometry = Literal["l2", "sign"]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training may change, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of a loss without touching `.grad`, zeros where it does not reach.

    `torch.autograd.grad` leaves gradients that were accumulated so far alone.
    """
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm over all tensors together, a float32 scalar (float64 if they are)."""
    kind = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    norms = torch.stack([torch.linalg.vector_norm(t.to(kind)) for t in tensors])
    return cast(Tensor, torch.linalg.vector_norm(norms))


def step_along(
    grads: Sequence[Tensor],
    size: float,
    *,
    geometry: Geometry = "l2",
    eps: float = 1e-7,
    in_place: bool = False,
) -> list[Tensor]:
    """Return a step of a given size along a gradient; a negative size descends.

    l2: size * g / (||g|| + eps), one global norm, as in SAM (Foret et al. 2021).
    sign: size * sign(g), the first step of Adam; `size` is then per coordinate.

    Args:
        grads: One tensor per parameter.
        size: Length of the step (l2) or of each coordinate (sign).
        geometry: l2 or sign.
        eps: Keeps a gradient of zero from dividing by zero.
        in_place: Turn the gradients themselves into the step, which saves a copy of them.
    """
    steps = list(grads) if in_place else [g.clone() for g in grads]
    scale = size / (global_norm(grads) + eps) if geometry == "l2" else None
    for step in steps:
        if scale is None:
            step.sign_().mul_(size)
        else:
            step.mul_(scale.to(step.dtype))
    return steps


def consumed(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Yield tensors and forget each, so that its memory is free once it has been used."""
    while tensors:
        yield tensors.pop(0)


@contextmanager
def restored(parameters: Sequence[nn.Parameter]) -> Iterator[Callable[[Iterable[Tensor]], None]]:
    """Yield a function that adds steps to the weights; on exit they are bit for bit as before.

    Subtracting a step again would not restore half-precision weights, so they are kept: one extra
    copy of `parameters`, taken at the first step. The restore happens on any way out.
    """
    kept: list[Tensor] = []

    @torch.no_grad()
    def add(steps: Iterable[Tensor]) -> None:
        first = not kept
        for p, step in zip(parameters, steps, strict=True):
            if first:
                kept.append(p.detach().clone())
            p.add_(step)

    try:
        yield add
    finally:
        with torch.no_grad():
            # Fewer are kept than there are if the first step was cut short.
            for p, old in zip(parameters, kept, strict=False):
                p.copy_(old)


@contextmanager
def kept(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let the block move the weights as it likes; on any way out they are bit for bit as before."""
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)


@contextmanager
def perturbed(parameters: Sequence[nn.Parameter], steps: Iterable[Tensor]) -> Iterator[None]:
    """Hold the weights at theta + steps inside the block."""
    with restored(parameters) as add:
        add(steps)
        yield
