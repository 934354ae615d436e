"""Progress of long work: stages report to whatever the command line has installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all."""
Say = Callable[[str], None]
"""Called with a sentence that a person should see."""


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _unheard(text: str) -> None:
    del text


_current: ContextVar[Report] = ContextVar("progress", default=_silent)
_listener: ContextVar[Say] = ContextVar("listener", default=_unheard)


@contextmanager
def showing(report: Report, say: Say = _unheard) -> Iterator[None]:
    """Send progress to `report`, and what is said to `say`, inside the block."""
    token, other = _current.set(report), _listener.set(say)
    try:
        yield
    finally:
        _current.reset(token)
        _listener.reset(other)


def report(what: str, done: int, total: int) -> None:
    """Report progress; does nothing unless somebody is showing it."""
    _current.get()(what, done, total)


def say(text: str) -> None:
    """Say a sentence; it is lost unless somebody is showing it."""
    _listener.get()(text)
