"""Memory: what a process can still get, and whether a model fits into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import UsageError

if TYPE_CHECKING:
    import torch

BYTES_TO_TRAIN = 16
"""Bytes that training takes for each weight: it, its gradient and two moments, all in float32."""

_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use and details of a control group, versions 2 and 1."""
_CACHE_OF_FILES = ("inactive_file", "total_inactive_file")
"""Memory of a control group that is freed when it is needed."""


def check_memory(
    needed: int, name: str, *, what: str = "its weights", device: torch.device | None = None
) -> None:
    """Refuse to load a model that is larger than the memory that is left.

    Args:
        needed: Bytes of what is about to be loaded.
        name: The model in messages.
        what: What takes the memory.
        device: The device that must hold it; None for the machine.

    Raises:
        UsageError: It does not fit. Where the memory that is left is not known, nothing is refused.
    """
    left = available_memory(device)
    if left is None or needed <= left:
        return
    way_out = "give a smaller model, or free memory"
    if "gradients" in what:
        way_out = f"{way_out}, or train with --lora-rank 8"
    raise UsageError(
        f"{name}: is too large for the memory here: {what} need {_gigabytes(needed)}, and "
        f"{_gigabytes(left)} are free; {way_out}"
    )


def available_memory(device: torch.device | None = None) -> int | None:
    """Return the bytes that this process can still get; None where that is not known.

    Args:
        device: An accelerator, or the CPU or None for the machine within its control group.
    """
    if device is not None and device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    amounts = [amount for amount in (_machine(), *map(_group, _LIMITS)) if amount is not None]
    return min(amounts, default=None)


def _machine() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _group(files: tuple[str, str, str]) -> int | None:
    limit_file, use_file, details_file = map(Path, files)
    try:
        limit = int(limit_file.read_text())
        use = int(use_file.read_text())
        details = details_file.read_text().split("\n")
    except (OSError, ValueError):  # no control group, or "max": no limit
        return None
    freed = [int(line.split()[1]) for line in details if line.split(" ")[0] in _CACHE_OF_FILES]
    return limit - use + max(freed, default=0)


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
