"""Several processes training one model: what must be summed over them, and what is kept in pieces.

On one process everything here is the identity. With DDP every rank holds all weights and its own
rows; with FSDP2 (`fully_shard`) every rank holds a piece of each weight, a `DTensor`.
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
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if world_size() == 1:
        return values
    # NCCL meets on accelerators only.
    where = torch.device("cuda") if dist.get_backend() == "nccl" else values.device
    summed = values.to(where, copy=True)
    dist.all_reduce(summed)
    return summed.to(values.device)


def local_piece(tensor: Tensor) -> Tensor:
    """Return this process's piece of a tensor: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensors: Sequence[Tensor]) -> bool:
    """Say whether the tensors are kept in pieces."""
    return any(isinstance(t, DTensor) for t in tensors)


def average_over_processes_(tensors: Sequence[Tensor]) -> None:
    """Turn tensors into their means over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(world_size())
