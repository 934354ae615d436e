"""Training one model on several processes: sums over processes, and sharded tensors.

On a single process every function here is the identity. With DDP each rank holds all weights and
its own rows; with FSDP2 (`fully_shard`) each rank holds a piece of each weight, a `DTensor`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if world_size() == 1:
        return values
    # NCCL reduces tensors on accelerators only.
    device = torch.device("cuda") if dist.get_backend() == "nccl" else values.device
    summed = values.to(device, copy=True)
    dist.all_reduce(summed)
    return summed.to(values.device)


def local_piece(tensor: Tensor) -> Tensor:
    """Return this process's piece of a tensor, or the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensors: Sequence[Tensor]) -> bool:
    """Return whether any of the tensors is sharded."""
    return any(isinstance(t, DTensor) for t in tensors)


def average_over_processes_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors with their means over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(world_size())
