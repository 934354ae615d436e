"""Gradient checkpointing in evaluation mode, which transformers does not support.

This patches transformers 5: `GradientCheckpointingLayer.__call__` recomputes a layer only in
training mode. A gradient without dropout needs evaluation mode, and would then keep every
activation. `tests/test_recomputing.py` names the version and fails once transformers recomputes
in evaluation mode too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def checkpointing_outside_training(model: nn.Module) -> Iterator[None]:
    """Apply gradient checkpointing inside the block in evaluation mode too.

    Layers without gradient checkpointing are not changed.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    with contextlib.ExitStack() as stack:
        if layers:
            hook = model.register_forward_pre_hook(_without_cache, with_kwargs=True)
            stack.callback(hook.remove)
        for layer in layers:
            stack.enter_context(_recompute_layer(layer))
        yield


@contextlib.contextmanager
def _recompute_layer(layer: nn.Module) -> Iterator[None]:
    """Replace a layer's forward with one that is recomputed for the gradient."""
    # An instance may already have its own forward: accelerate offloads that way.
    attributes = vars(layer)
    previous = {name: value for name, value in attributes.items() if name == "forward"}
    attributes["forward"] = partial(_checkpointed_forward, layer, layer.forward)
    try:
        yield
    finally:
        del attributes["forward"]
        attributes.update(previous)


def _checkpointed_forward(
    layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Call a layer; with gradients enabled, keep only its inputs and recompute the rest later."""
    import torch
    from torch.utils.checkpoint import checkpoint

    # In training mode transformers does this itself.
    if layer.training or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _without_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Disable the key-value cache, to which a recomputed layer would append twice."""
    return args, {"use_cache": False, **kwargs}
