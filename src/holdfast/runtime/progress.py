"""Progress of long work: stages report it, and the command line shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[str, int, int], None]
"""Called with the name of the work, how much of it is done, and the total."""
Say = Callable[[str], None]
"""Called with a sentence for the user."""


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _unheard(text: str) -> None:
    del text


_current: ContextVar[Report] = ContextVar("progress", default=_silent)
_listener: ContextVar[Say] = ContextVar("listener", default=_unheard)


@contextmanager
def showing(report: Report, say: Say = _unheard) -> Iterator[None]:
    """Send progress to `report` and sentences to `say` inside the block."""
    report_token = _current.set(report)
    say_token = _listener.set(say)
    try:
        yield
    finally:
        _current.reset(report_token)
        _listener.reset(say_token)


def report(what: str, done: int, total: int) -> None:
    """Report progress; does nothing outside a `showing` block."""
    _current.get()(what, done, total)


def say(text: str) -> None:
    """Send a sentence to the user; does nothing outside a `showing` block."""
    _listener.get()(text)
