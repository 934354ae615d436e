"""The first Ctrl-C is noted, the second raises, and the handler is put back."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from holdfast.runtime.interrupt import deferred_interrupt


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def run(presses: int, *, error: Exception | None = None) -> list[bool]:
    """Press Ctrl-C in a block and return what `requested` said after each."""
    seen: list[bool] = []
    with deferred_interrupt() as interrupt:
        for _ in range(presses):
            press()
            seen.append(interrupt.requested)
            NOTED.append(len(seen))
        if error is not None:
            raise error
    return seen


NOTED: list[int] = []
"""How many presses the last block lived through."""


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """Whatever happens, the handler must be as before."""
    NOTED.clear()
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_happens_without_a_signal() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as interrupt:
        assert signal.getsignal(signal.SIGINT) is not before
    assert not interrupt.requested
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_is_noted_and_raised_on_the_way_out() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(1)
    assert NOTED == [1]


def test_the_second_raises_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(3)
    assert NOTED == [1]


def test_an_error_in_the_block_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="boom"):
        run(1, error=ValueError("boom"))


def test_blocks_can_be_nested() -> None:
    with deferred_interrupt() as outer:
        with pytest.raises(KeyboardInterrupt):
            run(1)
        assert not outer.requested


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with deferred_interrupt() as interrupt:
            seen.append((signal.getsignal(signal.SIGINT) is before, interrupt.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, False)]
