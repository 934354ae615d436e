"""The precision in which models compute: float32, or bfloat16 where the hardware has it.

Weights, gradients, the optimizer and losses are float32 either way. In bfloat16 the matrix products
of a model run under `torch.autocast`, which rounds their factors to 8 bits of mantissa and sums in
float32. Margins, and everything else whose sign or order is a result, are always read in float32.

"auto" is bfloat16 if the device computes in it natively and the model has at least `SMALLEST`
weights, else float32. On a processor with AVX512-BF16 and AMX (two threads, batches of 16 x 48
tokens, Llama models), the ratio of a training step's time in bfloat16 to that in float32 was

    weights in millions   0.8   4.2   9.0  13.6  20.5  44.0  66.7
    ratio                1.46  0.85  0.79  0.66  0.53  0.74  0.60

A small model spends more of a step on converting weights, and its steps are short anyway. It stays
in float32, which also gives the same numbers on every machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from holdfast.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

Precision = Literal["auto", "float32", "bfloat16"]
"""The option."""
Computing = Literal["float32", "bfloat16"]
"""What the option comes to for one model on one device."""
SMALLEST = 20_000_000
"""Number of weights from which "auto" uses bfloat16."""

_computing: ContextVar[Computing] = ContextVar("_computing", default="float32")


def resolve(precision: Precision, device: torch.device, weights: int) -> Computing:
    """Return the precision for a model on a device.

    Args:
        precision: The option.
        device: Device of the model.
        weights: Number of weights of the model.

    Raises:
        UsageError: The option is bfloat16 and the device only emulates it.
    """
    if precision == "float32":
        return "float32"
    native = has_bfloat16(device)
    if precision == "bfloat16":
        if not native:
            raise UsageError(
                f"precision=bfloat16: this {_noun(device)} only emulates bfloat16, which is slower "
                "than float32; use precision=auto or precision=float32"
            )
        return "bfloat16"
    return "bfloat16" if native and weights >= SMALLEST else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 matrices natively."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _processor_has_bfloat16()


def _processor_has_bfloat16() -> bool:
    """Return whether the processor has AVX512-BF16, AMX, or the instructions of ARM.

    `torch.ops.mkldnn._is_mkldnn_bf16_supported` is true for every processor with AVX512, which is
    enough to emulate bfloat16.
    """
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        names = ("avx512_bf16", "amx_bf16", "bf16")
        return any(capabilities().get(name) for name in names)
    # Earlier versions of torch have only these.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _noun(device: torch.device) -> str:
    return "processor" if device.type == "cpu" else f"device ({device})"


def weights_of(model: nn.Module) -> int:
    """Return the number of weights of a model; shared weights count once."""
    return sum(p.numel() for p in model.parameters())


@contextlib.contextmanager
def computing_in(precision: Computing) -> Iterator[None]:
    """Let training and generation inside the block compute in a precision."""
    token = _computing.set(precision)
    try:
        yield
    finally:
        _computing.reset(token)


def computing() -> Computing:
    """Return the precision of the innermost `computing_in` block, float32 outside."""
    return _computing.get()


@contextlib.contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """Run forward passes inside the block in the current precision (`computing`)."""
    import torch

    if computing() == "float32":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16):
        yield


@contextlib.contextmanager
def attention_in_float32(device: torch.device, *, autocast: bool) -> Iterator[None]:
    """Compute attention in float32 inside the block where autocast would round it on a processor.

    The backward pass of torch 2.13's attention kernel is four times as slow in bfloat16 as in
    float32 (16 rows of 64 tokens, 9 heads of 64: 22.8 ms and 5.5 ms a layer), a fifth of a step of
    SmolLM2-135M. The block must hold the backward pass too, which may recompute layers.

    Args:
        device: Device of the model.
        autocast: Whether the block uses autocast; without it, nothing is changed.
    """
    if device.type != "cpu" or not autocast:
        yield
        return
    with _attention_mode():
        yield


def _attention_mode() -> contextlib.AbstractContextManager[Any]:
    import torch
    from torch.nn import functional as F
    from torch.overrides import TorchFunctionMode

    attention = F.scaled_dot_product_attention

    class InFloat32(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is not attention or not torch.is_autocast_enabled("cpu"):
                return func(*args, **kwargs)
            dtype = args[0].dtype
            named = {name: _widened(value) for name, value in kwargs.items()}
            with torch.autocast("cpu", enabled=False):
                return func(*map(_widened, args), **named).to(dtype)

    return InFloat32()


def _widened(value: Any) -> Any:
    """Return a tensor of numbers in half precision as float32, and everything else as it is."""
    import torch

    is_half = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_half else value


@contextlib.contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Run forward passes inside the block without autocast, whatever is around it."""
    import torch

    with torch.autocast(device.type, enabled=False):
        yield
