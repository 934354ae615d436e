"""Gradient checkpointing outside training mode, which transformers does not do.

A patch of transformers 5: `GradientCheckpointingLayer.__call__` recomputes a layer only if the
layer is in training mode. A gradient without dropout needs the model in evaluation mode, and would
then keep every activation. `tests/test_recomputing.py` names the version and fails once
transformers recomputes by itself.
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
    """Keep gradient checkpointing on inside the block, also in evaluation mode.

    Layers without gradient checkpointing stay as they are.
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
            stack.enter_context(_recomputed_layer(layer))
        yield


@contextlib.contextmanager
def _recomputed_layer(layer: nn.Module) -> Iterator[None]:
    """Replace a layer's forward by one that is recomputed for the gradient."""
    # An instance may have a forward of its own already: that is how accelerate offloads.
    attributes = vars(layer)
    previous = {name: value for name, value in attributes.items() if name == "forward"}
    attributes["forward"] = partial(_recomputed, layer, layer.forward)
    try:
        yield
    finally:
        del attributes["forward"]
        attributes.update(previous)


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a layer; if a gradient will be taken, keep only its inputs and compute it again."""
    import torch
    from torch.utils.checkpoint import checkpoint

    # In training mode transformers does the same itself.
    if layer.training or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _without_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn off the key-value cache, to which a recomputed layer would append twice."""
    return args, {"use_cache": False, **kwargs}
