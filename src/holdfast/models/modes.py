"""Context managers that set a model's mode or the random state and restore it afterwards."""

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
    """Put a model into evaluation mode inside the block and restore every module's mode after it.

    Gradient checkpointing stays enabled where it is enabled.
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
    """Restore the global random states of Python, numpy and torch after the block."""
    import numpy as np

    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  # the global state
    try:
        with isolate_rng(0):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
