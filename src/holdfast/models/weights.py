"""Moving a model's weights along a direction and restoring them exactly."""

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
    """Return the parameters that require gradients, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of a loss, zeros for parameters it does not depend on.

    Gradients accumulated in `.grad` are not touched.
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
    """Return this process's loss and the gradient of its mean over all processes.

    `.grad` is not changed. `torch.autograd.grad` does not touch it, but bypasses FSDP2's hooks,
    which gather the weights and scatter the gradients. For sharded weights `.grad` is therefore
    set aside and the loss is back-propagated as usual. Under DDP the forward pass must not prepare
    the reducer, or DDP would mistake the next backward pass for this one's.

    Args:
        model: The model the loss calls, wrapped or not.
        loss: Computes this process's loss.
        parameters: Parameters to differentiate by; zeros where the loss does not depend on them.
        scale: Factor on the loss during back-propagation, divided out of the gradients afterwards;
            in half precision it keeps small gradients from vanishing.
    """
    if is_sharded(parameters):
        value, grads = _gradients_by_backward(loss, parameters, scale)
    else:
        is_ddp = isinstance(model, DistributedDataParallel)
        with cast(DistributedDataParallel, model).no_sync() if is_ddp else nullcontext():
            value = loss()
            grads = gradients(value * scale, parameters)
        average_over_processes_(grads)
    if scale != 1:
        for grad in grads:
            grad.div_(scale)
    return value.detach(), grads


def _gradients_by_backward(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], scale: float
) -> tuple[Tensor, list[Tensor]]:
    previous = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        value = loss()
        (value * scale).backward()
        return value, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, previous, strict=True):
            p.grad = grad


def global_norm(tensors: Sequence[Tensor], *, of_batch: bool = False) -> Tensor:
    """Return the L2 norm over all tensors together, a float32 scalar (float64 if they are).

    The squared norms are summed over processes if the tensors are sharded, or if they belong to
    this process's rows of a batch (`of_batch`).
    """
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    norms = torch.stack([torch.linalg.vector_norm(local_piece(t).to(dtype)) for t in tensors])
    norm = cast(Tensor, torch.linalg.vector_norm(norms))
    return sum_over_processes(norm.square()).sqrt() if of_batch or is_sharded(tensors) else norm


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether no tensor holds a nan or infinity; all processes get the same answer."""
    if not tensors:
        return True
    broken = torch.stack([_is_broken(local_piece(t)) for t in tensors]).sum()
    return not int(sum_over_processes(broken) if is_sharded(tensors) else broken)


def _is_broken(values: Tensor) -> Tensor:
    """Return 1 if a value is nan or infinite, else 0, as a scalar tensor."""
    if not values.numel():  # a process may hold no rows of a sharded weight
        return values.new_zeros((), dtype=torch.long)
    # The extremes are nan where a value is. `isfinite` of all values would need their memory again.
    extremes = torch.stack(torch.aminmax(values))
    return (~torch.isfinite(extremes)).any().long()


def not_finite(model: nn.Module) -> list[str]:
    """Return the names of the weights that hold a nan or infinity."""
    return [name for name, p in model.named_parameters() if not all_finite([p.detach()])]


def weights_not_finite(model: nn.Module) -> str:
    """Return a sentence about the weights that are not finite, " " first; "" if all are."""
    names = not_finite(model)
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" The model has weights that are not finite: {names[0]}{more}."


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
    sign: size * sign(g), the first step of Adam.

    Args:
        grads: One tensor per parameter.
        size: Length of the whole step (l2) or of each coordinate (sign).
        geometry: l2 or sign.
        eps: Avoids division by zero.
        in_place: Overwrite the gradients with the step, which saves a copy of them.
        of_batch: The gradients belong to this process's rows of a batch, see `global_norm`.
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
    """Yield tensors and drop each from the list, so that its memory can be freed after use."""
    while tensors:
        yield tensors.pop(0)


@contextmanager
def reversible_steps(
    parameters: Sequence[nn.Parameter],
) -> Iterator[Callable[[Iterable[Tensor]], None]]:
    """Yield a function that adds steps to the weights; restore them bit for bit on exit.

    Subtracting a step again would not restore half-precision weights, so `parameters` are copied
    at the first step. They are restored after errors too.
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
            # There are fewer copies than parameters if the first step was interrupted.
            for p, old in zip(parameters, values, strict=False):
                p.copy_(old)


PIECE = 2**17
"""Number of weights that `displace` moves at a time on a processor."""
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@dataclass(frozen=True)
class _RoundingError:
    """The error left after adding and subtracting a step, in units in the last place.

    Attributes:
        small: (n,) int8, one per weight; valid where the error fits in a byte.
        large_at: (m,) positions of the errors that do not fit.
        large: (m,) these errors.
    """

    small: Tensor
    large_at: Tensor
    large: Tensor

    @classmethod
    def between(cls, original: Tensor, returned: Tensor) -> _RoundingError | None:
        """Return original - returned, overwriting `returned`; None if a copy takes less memory."""
        # The integer difference may wrap around; adding it back wraps around the same way.
        error = torch.sub(_bits(original), _bits(returned), out=_bits(returned)).flatten()
        small = error.to(torch.int8)
        # Comparing int8 with the wider type directly takes twice as long.
        large_at = small.to(error.dtype).ne_(error).nonzero().squeeze(1)
        size = small.nbytes + len(large_at) * (large_at.itemsize + error.itemsize)
        return cls(small, large_at, error[large_at]) if size < original.nbytes else None

    def correct(self, returned: Tensor) -> None:
        """Add the error to `returned` in place, which makes it equal to the original."""
        bits = _bits(returned)
        error = self.small.to(bits.dtype)
        error[self.large_at] = self.large
        bits.add_(error.view_as(bits))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_BITS[tensor.itemsize])


def pieces(weight: Tensor) -> Sequence[Tensor]:
    """Return views that make up a tensor, on a processor so small that they fit its cache.

    `displace` reads and writes every weight a dozen times, which costs little only in the cache.
    """
    if weight.device.type != "cpu" or not weight.is_contiguous():
        return (weight.detach(),)
    return cast("Sequence[Tensor]", weight.detach().view(-1).split(PIECE))


@contextmanager
def displace(weights: Sequence[Tensor], steps: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Hold the weights at theta + steps inside the block; restore them bit for bit on exit.

    `reversible_steps` keeps a copy of the weights. This one subtracts the same steps again and
    keeps only what rounding lost: a few units in the last place of each weight, which fit in one
    byte unless the step is far larger than the weight. For single-precision weights that is a
    quarter of a copy. A tensor with many weights far smaller than their steps is copied in full.

    Args:
        weights: Parameters, or `pieces` of them; the block must not change them.
        steps: Returns one step per tensor, the same steps on entry and on exit. The returned
            tensors are overwritten.
    """
    originals: list[Tensor | _RoundingError] = []
    try:
        with torch.no_grad():
            for weight, step in zip(weights, steps(), strict=True):
                original = weight.detach().clone()
                originals.append(original)
                weight.add_(step)
                error = _RoundingError.between(original, step.neg_().add_(weight))
                originals[-1] = error or original
        yield
    finally:
        with torch.no_grad():
            for weight, step, original_or_error in zip(weights, steps(), originals, strict=False):
                if isinstance(original_or_error, Tensor):
                    weight.copy_(original_or_error)
                else:
                    weight.sub_(step)
                    original_or_error.correct(weight)


@contextmanager
def preserve_weights(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Restore the weights bit for bit after the block, whatever it does to them."""
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
    """Turn off gradients of the parameters inside the block; `.grad` is not changed."""
    trained = [p for p in parameters if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@contextmanager
def replace_values(values: Iterable[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Hold parameters at other values inside the block; restore them bit for bit on exit.

    Takes a copy of each replaced parameter. They are restored after errors too.
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
            # In reverse, so that a parameter replaced twice ends at its oldest copy.
            for p, old in reversed(originals):
                p.copy_(old)
