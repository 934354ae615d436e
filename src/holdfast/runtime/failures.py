"""When the machine runs out of something: what a user can do about it, in one message."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path

from holdfast.errors import DiskFull, HoldfastError, JobError

logger = logging.getLogger(__name__)

FAILS = (Exception,)
"""What may be raised by one call that fails, while the others go on: anything, also the mistake of
a plug-in or of a library, as in a process of its own. An interruption is none of these."""


def failure(error: Exception) -> HoldfastError:
    """Return one of `FAILS` as the error of a call.

    It has neither traceback nor cause: their frames would hold the model, and with it the memory
    that the next call needs.
    """
    logger.debug("%s", error, exc_info=error)
    if isinstance(error, HoldfastError):
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return HoldfastError(f"{where}{error.strerror or error}")
    return JobError(f"{type(error).__name__}: {error}")


def plain(error: BaseException, root: Path, what: str) -> HoldfastError | None:
    """Return the error that says what a user can do about another one; None if none is known.

    Args:
        error: What was raised.
        root: Directory that was written to.
        what: What was being done.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(_is_full(one, root) for one in chain):
        return DiskFull(
            f"{root}: no room on the disk for {what}{_largest(root)}. Make room, and give the same "
            "command again; what is finished is kept."
        )
    # torch names its own by this class; it is not imported for the sake of a comparison.
    if any(isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" for e in chain):
        return HoldfastError(
            f"{what}: out of memory. Use fewer jobs at the same time, fewer rows per step, shorter "
            "rows, or LoRA; what is finished is kept."
        )
    return error if isinstance(error, HoldfastError) else None


def _is_full(error: BaseException, root: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    if "No space left on device" in text or "os error 28" in text:  # safetensors
        return True
    # torch.save says only that a position in the file is not the expected one.
    wrote_short = isinstance(error, RuntimeError) and "unexpected pos" in text
    return wrote_short and shutil.disk_usage(root).free < 2**24


def _largest(root: Path) -> str:
    """Say what takes most room in a run directory."""
    sizes = {
        folder.name: _size(folder)
        for folder in (root / "models", root / "attacked", root / "work")
        if folder.is_dir()
    }
    shown = ", ".join(
        f"{name}/ {size / 2**20:.0f} MiB"
        for name, size in sorted(sizes.items(), key=lambda x: -x[1])
    )
    return f" (here lie {shown})" if shown else ""


def _size(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # others remove their files at the same time
                total += os.stat(os.path.join(where, name)).st_size
    return total
