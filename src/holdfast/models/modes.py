"""Loading, saving and adapting causal language models, and turning rows into tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block and put every module's mode back afterwards.

    Gradient checkpointing stays on where it is on.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with _checkpointing(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _checkpointing(model: nn.Module) -> Iterator[None]:
    """Keep gradient checkpointing at work outside training mode, where transformers ends it.

    Whoever needs it to train would otherwise lack the memory for a gradient without dropout.
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
            # An instance may have a forward of its own already: that is how accelerate offloads.
            own = {k: v for k, v in vars(layer).items() if k == "forward"}
            stack.callback(vars(layer).update, own)
            stack.callback(vars(layer).pop, "forward")
            vars(layer)["forward"] = partial(_recomputed, layer, layer.forward)
        yield


def _recomputed(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a layer; where a gradient will be taken, keep its inputs only and compute it again."""
    import torch
    from torch.utils.checkpoint import checkpoint

    # In training mode transformers does the same itself.
    if layer.training or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _without_cache(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Ask for no key-value cache: a layer that is computed again would append to it again."""
    return args, {"use_cache": False, **kwargs}


@contextlib.contextmanager
def preserved_rng(seed: int) -> Any:
    """Seed torch inside the block and put the global random state back afterwards."""
    import torch

    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield
