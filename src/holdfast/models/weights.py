"""Moving a model's weights along a direction, and putting them back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from holdfast.models.processes import (
    average_over_processes_,
    is_sharded,
    local_piece,
    sum_over_processes,
)

Geometry = Literal["l2", "sign"]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training may change, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of a loss without touching `.grad`, zeros where it does not reach.

    `torch.autograd.grad` leaves gradients that were accumulated so far alone.
    """
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def gradients_everywhere(
    model: nn.Module,
    loss: Callable[[], Tensor],
    parameters: Sequence[nn.Parameter],
    *,
    scale: float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """Return a loss, and the gradient of its mean over all processes; `.grad` is left as it was.

    `torch.autograd.grad` leaves accumulated gradients alone, but goes round FSDP2's hooks, which
    gather the weights' pieces and scatter the gradient's. Where weights are sharded the gradients
    are therefore set aside, and the loss is back-propagated as usual. Under DDP the forward pass
    must not get the reducer ready, or the next backward pass would be taken for this one's.

    Args:
        model: As the loss calls it, wrapped or not.
        loss: Computes this process's loss; the mean over processes is the loss that is meant.
        parameters: What to differentiate by; zeros where the loss does not reach.
        scale: Back-propagate so many times the loss, and divide what comes: in half precision small
            gradients vanish otherwise.
    """
    if is_sharded(parameters):
        found, grads = _set_aside(loss, parameters, scale)
    else:
        wrapped = isinstance(model, DistributedDataParallel)
        with cast(DistributedDataParallel, model).no_sync() if wrapped else nullcontext():
            found = loss()
            grads = gradients(found * scale, parameters)
        average_over_processes_(grads)
    if scale != 1:
        for grad in grads:
            grad.div_(scale)
    return found.detach(), grads


def _set_aside(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], scale: float
) -> tuple[Tensor, list[Tensor]]:
    previous = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        found = loss()
        (found * scale).backward()
        return found, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, previous, strict=True):
            p.grad = grad


def global_norm(tensors: Sequence[Tensor], *, of_batch: bool = False) -> Tensor:
    """Return the L2 norm over all tensors together, a float32 scalar (float64 if they are).

    Of sharded tensors every process adds up its own pieces, and the sum goes over all of them; so
    it does where the tensors are of this process's rows of a batch (`of_batch`).
    """
    kind = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    norms = torch.stack([torch.linalg.vector_norm(local_piece(t).to(kind)) for t in tensors])
    norm = cast(Tensor, torch.linalg.vector_norm(norms))
    return sum_over_processes(norm.square()).sqrt() if of_batch or is_sharded(tensors) else norm


def step_along(
    grads: Sequence[Tensor],
    size: float,
    *,
    geometry: Geometry = "l2",
    eps: float = 1e-7,
    in_place: bool = False,
    of_batch: bool = False,
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
        of_batch: The gradients are those of this process's rows, see `global_norm`.
    """
    steps = list(grads) if in_place else [g.clone() for g in grads]
    scale = size / (global_norm(grads, of_batch=of_batch) + eps) if geometry == "l2" else None
    for step in steps:
        if scale is not None:
            step.mul_(scale.to(step.dtype))
        else:
            step.sign_().mul_(size)
    return steps


def consume(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Yield tensors and forget each, so that its memory is free once it has been used."""
    while tensors:
        yield tensors.pop(0)


@contextmanager
def reversible_steps(
    parameters: Sequence[nn.Parameter],
) -> Iterator[Callable[[Iterable[Tensor]], None]]:
    """Yield a function that adds steps to the weights; on exit they are bit for bit as before.

    Subtracting a step again would not restore half-precision weights, so they are kept: one extra
    copy of `parameters`, taken at the first step. The restore happens on any way out.
    """
    values: list[Tensor] = []

    @torch.no_grad()
    def add(steps: Iterable[Tensor]) -> None:
        first = not values
        for p, step in zip(parameters, steps, strict=True):
            if first:
                values.append(p.detach().clone())
            p.add_(step)

    try:
        yield add
    finally:
        with torch.no_grad():
            # Fewer are kept than there are if the first step was cut short.
            for p, old in zip(parameters, values, strict=False):
                p.copy_(old)


_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@dataclass(frozen=True)
class _Lost:
    """What a step that is taken back leaves wrong, in units of a weight's last place.

    Attributes:
        near: For every weight, one byte.
        where: Places of those that it does not fit.
        far: What is wrong with them.
    """

    near: Tensor
    where: Tensor
    far: Tensor

    @classmethod
    def between(cls, old: Tensor, back: Tensor) -> _Lost | None:
        """Return what turns `back`, which is used up, into `old`; None if a copy were smaller."""
        # Wraps around, and so does the way back.
        lost = torch.sub(_bits(old), _bits(back), out=_bits(back)).flatten()
        near = lost.to(torch.int8)
        # A comparison of the two kinds as they are takes twice as long.
        where = near.to(lost.dtype).ne_(lost).nonzero().squeeze(1)
        size = near.nbytes + len(where) * (where.itemsize + lost.itemsize)
        return cls(near, where, lost[where]) if size < old.nbytes else None

    def put_right(self, back: Tensor) -> None:
        bits = _bits(back)
        wrong = self.near.to(bits.dtype)
        wrong[self.where] = self.far
        bits.add_(wrong.view_as(bits))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_BITS[tensor.itemsize])


@contextmanager
def displace(
    parameters: Sequence[nn.Parameter], steps: Callable[[], Iterable[Tensor]]
) -> Iterator[None]:
    """Hold the weights at theta + steps inside the block; on exit they are bit for bit as before.

    `reversible_steps` keeps a copy of the weights. This one subtracts the same steps again and
    keeps only what rounding lost: a few units in the last place of each weight, which fit in one
    byte unless the step is far larger than the weight. For single-precision weights that is a
    quarter of a copy. A tensor with many weights far smaller than their steps is copied in full.

    Args:
        parameters: What moves. The block must not change it.
        steps: Makes the steps, one per parameter: the same ones on the way in and on the way out.
            They are used up.
    """
    originals: list[Tensor | _Lost] = []
    try:
        with torch.no_grad():
            for p, step in zip(parameters, steps(), strict=True):
                old = p.detach().clone()
                originals.append(old)
                p.add_(step)
                originals[-1] = _Lost.between(old, step.neg_().add_(p)) or old
        yield
    finally:
        with torch.no_grad():
            for p, step, before in zip(parameters, steps(), originals, strict=False):
                if isinstance(before, Tensor):
                    p.copy_(before)
                else:
                    p.sub_(step)
                    before.put_right(p)


@contextmanager
def preserve_weights(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let the block move the weights as it likes; on any way out they are bit for bit as before."""
    before = [p.detach().clone() for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)


@contextmanager
def perturb(parameters: Sequence[nn.Parameter], steps: Iterable[Tensor]) -> Iterator[None]:
    """Hold the weights at theta + steps inside the block."""
    with reversible_steps(parameters) as add:
        add(steps)
        yield


@contextmanager
def freeze(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let parameters need no gradient inside the block; their `.grad` is left as it is."""
    held = [p for p in parameters if p.requires_grad]
    try:
        for p in held:
            p.requires_grad_(False)
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


@contextmanager
def replace_values(values: Iterable[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Hold parameters at other values inside the block; on exit they are bit for bit as before.

    Costs a copy of the parameters that are named. The restore happens on any way out.
    """
    originals: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for p, value in values:
                originals.append((p, p.detach().clone()))
                p.copy_(value)
        yield
    finally:
        with torch.no_grad():
            # Backwards: of a parameter that was named twice, the older copy is the right one.
            for p, old in reversed(originals):
                p.copy_(old)
