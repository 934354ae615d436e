"""What a refused command leaves behind: nothing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from holdfast.errors import UsageError

ROWS_ALONE = frozenset({"rows", "sources"})
"""Folders of a run that are written while its rows are read, before any job starts."""


@contextlib.contextmanager
def nothing_left(out: Path) -> Iterator[None]:
    """Remove the run directory again if the block created it and was refused before any job.

    A directory that was there before stays, and so does one in which a job has left anything.

    Args:
        out: The run directory.
    """
    is_new = not out.exists()
    try:
        yield
    except UsageError:
        if is_new and out.is_dir() and {path.name for path in out.iterdir()} <= ROWS_ALONE:
            shutil.rmtree(out, ignore_errors=True)
        raise
