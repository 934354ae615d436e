"""Progress of long work: stages report to whatever the command line has installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all."""


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


_current: ContextVar[Report] = ContextVar("progress", default=_silent)


@contextmanager
def showing(report: Report) -> Iterator[None]:
    """Send progress to `report` inside the block."""
    token = _current.set(report)
    try:
        yield
    finally:
        _current.reset(token)


def report(what: str, done: int, total: int) -> None:
    """Report progress; does nothing unless somebody is showing it."""
    _current.get()(what, done, total)
