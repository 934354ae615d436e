"""Failures turned into messages that say what a user can do."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path

from holdfast.errors import DiskFull, HoldfastError, JobError

logger = logging.getLogger(__name__)


def failure(error: Exception) -> HoldfastError:
    """Return the error of a job from whatever its code, a plug-in or a library raised.

    The result has neither traceback nor cause: their frames would hold the model, and with it the
    memory that the next job needs.
    """
    logger.debug("%s", error, exc_info=error)
    if isinstance(error, HoldfastError):
        error.__cause__ = None
        error.__context__ = None
        return error.with_traceback(None)
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        return HoldfastError(f"{file}{error.strerror or error}")
    return JobError(f"{type(error).__name__}: {error}")


def plain(error: BaseException, root: Path, activity: str) -> HoldfastError | None:
    """Return the error that says what a user can do about another one; None if none is known.

    Args:
        error: What was raised.
        root: Directory that was written to.
        activity: What was being done.
    """
    chain = _chain(error)
    if any(_is_full(link, root) for link in chain):
        return DiskFull(
            f"{root}: no room on the disk for {activity}{_largest_folders(root)}. Free some space "
            "and rerun the same command; finished work is kept."
        )
    # torch names its own by this class; it is not imported for the sake of a comparison.
    if any(isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" for e in chain):
        return HoldfastError(
            f"{activity}: out of memory. Use fewer parallel jobs, fewer rows per step, shorter "
            "rows, or LoRA; finished work is kept."
        )
    return error if isinstance(error, HoldfastError) else None


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error, its cause, that one's cause, and so on."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _is_full(error: BaseException, root: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    if "No space left on device" in text or "os error 28" in text:  # safetensors
        return True
    # torch.save says only that a position in the file is not the expected one.
    wrote_short = isinstance(error, RuntimeError) and "unexpected pos" in text
    return wrote_short and shutil.disk_usage(root).free < 2**24


def _largest_folders(root: Path) -> str:
    """Return which folders of a run directory take most space, to be put into a sentence."""
    sizes = {
        folder.name: _size(folder)
        for folder in (root / "models", root / "attacked", root / "work")
        if folder.is_dir()
    }
    largest_first = sorted(sizes.items(), key=lambda item: -item[1])
    folders = ", ".join(f"{name}/ {size / 2**20:.0f} MiB" for name, size in largest_first)
    return f" (in use: {folders})" if folders else ""


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # others remove their files at the same time
                total += os.stat(os.path.join(parent, name)).st_size
    return total
