"""What work on a model costs: tokens through it, time and memory, counted from outside."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass
class Cost:
    """What was spent inside a `measure_cost` block.

    Attributes:
        forward_tokens: Tokens that went through the model, padding included.
        backward_tokens: Those of them that went through it with gradients on.
        generated_tokens: Tokens that were fed one at a time to continue an answer, a subset of
            forward_tokens; the first token of every answer comes from its prompt's pass.
        seconds: Wall clock.
        processor_seconds: Of all threads of this process: on a shared machine the steadier one.
        peak_bytes: Peak of the allocated memory on an accelerator, above what was held before, or
            of the process's resident memory on Linux; nan where it cannot be known.
    """

    forward_tokens: int = 0
    backward_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_bytes: float = math.nan


_meter: ContextVar[Callable[..., None] | None] = ContextVar("_meter", default=None)
"""The hook of the innermost `measure_cost` block."""


@contextlib.contextmanager
def measure_cost(model: nn.Module) -> Iterator[Cost]:
    """Count what goes through a model, and through copies made of it, inside the block.

    A pass with gradients on is taken to be followed by its backward pass, which holds wherever
    losses are only computed to be differentiated.
    """
    import torch

    cost = Cost()

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids: Tensor | None = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            return
        cost.forward_tokens += ids.numel()
        if torch.is_grad_enabled():
            cost.backward_tokens += ids.numel()
        mask: Tensor | None = kwargs.get("attention_mask")
        # A mask that is longer than the ids covers what a cache already holds.
        if mask is not None and mask.shape[-1] > ids.shape[-1]:
            cost.generated_tokens += ids.numel()

    device = next(model.parameters()).device
    before = _start_peak(device)
    started = time.monotonic()
    worked = time.process_time()
    meter = _meter.set(count)
    try:
        with count_tokens(model):
            yield cost
    finally:
        _meter.reset(meter)
        cost.seconds = time.monotonic() - started
        cost.processor_seconds = time.process_time() - worked
        cost.peak_bytes = _peak(device) - before


@contextlib.contextmanager
def count_tokens(model: nn.Module) -> Iterator[None]:
    """Count what goes through another model as well, if a `measure_cost` block is around this one.

    Copies that are made of the model inside the block are counted too: copy.deepcopy keeps a hook
    that is a plain function.
    """
    count = _meter.get()
    if count is None:
        yield
        return
    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _start_peak(device: torch.device) -> float:
    """Set the high-water mark back; return what is held now, nan if that cannot be done."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM, see proc(5)
    except OSError:
        return math.nan
    return _resident("VmRSS")


def _peak(device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return _resident("VmHWM")


def _resident(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    kibibytes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024.0 * int(kibibytes[0]) if kibibytes else math.nan
