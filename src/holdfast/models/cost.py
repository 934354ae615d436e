"""Cost of work on a model: tokens, time and memory, counted with hooks from outside."""

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
    """The cost of a `measure_cost` block.

    Attributes:
        forward_tokens: Tokens that went through the model, padding included.
        backward_tokens: Forward tokens that were processed with gradients enabled.
        generated_tokens: Forward tokens fed one at a time to continue an answer. The first token
            of an answer is not among them: it comes from the pass over the prompt.
        seconds: Wall-clock time.
        processor_seconds: CPU time of all threads of this process, which varies less than
            wall-clock time on a shared machine.
        peak_bytes: Increase of the peak memory: allocated memory on an accelerator, resident
            memory of the process on Linux; nan where it cannot be measured.
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
    """Measure what a model, and copies made of it, cost inside the block.

    A forward pass with gradients enabled is assumed to be followed by its backward pass, which
    holds wherever losses are computed only to be differentiated.

    Yields:
        The cost; times and memory are filled in at the end of the block.
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
        # A mask longer than the ids also covers the tokens in the cache. Those are an answer's only
        # if one token follows at a time: a prompt may also continue a beginning in the cache.
        if ids.shape[-1] == 1 and mask is not None and mask.shape[-1] > 1:
            cost.generated_tokens += ids.numel()

    device = next(model.parameters()).device
    start_bytes = _reset_peak(device)
    start_seconds = time.monotonic()
    start_processor_seconds = time.process_time()
    meter = _meter.set(count)
    try:
        with count_tokens(model):
            yield cost
    finally:
        _meter.reset(meter)
        cost.seconds = time.monotonic() - start_seconds
        cost.processor_seconds = time.process_time() - start_processor_seconds
        cost.peak_bytes = _peak(device) - start_bytes


@contextlib.contextmanager
def count_tokens(model: nn.Module) -> Iterator[None]:
    """Count another model's tokens too, if this block runs inside a `measure_cost` block.

    Copies of the model made inside the block are counted as well, because copy.deepcopy keeps a
    hook that is a plain function.
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


def _reset_peak(device: torch.device) -> float:
    """Reset the peak memory; return the bytes held now, nan if the peak cannot be reset."""
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
