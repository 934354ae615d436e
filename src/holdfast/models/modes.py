"""Modes of a model and of the random state that are set for a block and restored after it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from holdfast.models.recomputing import checkpointing_outside_training

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block and restore every module's mode afterwards.

    Gradient checkpointing stays on where it is on.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with checkpointing_outside_training(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def isolate_rng(seed: int) -> Iterator[None]:
    """Seed torch inside the block and restore the global random state afterwards."""
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Put the global generators of Python, numpy and torch back after the block."""
    import numpy as np

    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  # what others draw from
    try:
        with isolate_rng(0):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
