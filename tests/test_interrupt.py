"""The first Ctrl-C is noted, the second raises, and the handler is put back."""

import os
import signal
import threading

import pytest

from holdfast.interrupt import deferred_interrupt


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_nothing_happens_without_a_signal() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as interrupt:
        assert signal.getsignal(signal.SIGINT) is not before
    assert not interrupt.requested
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_is_noted_and_raised_on_the_way_out() -> None:
    before = signal.getsignal(signal.SIGINT)
    steps = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as interrupt:
        press()
        steps.append(interrupt.requested)
    assert steps == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_raises_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        press()
        press()
        pytest.fail("the second one must raise")
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_is_not_hidden() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="boom"), deferred_interrupt():
        press()
        raise ValueError("boom")
    assert signal.getsignal(signal.SIGINT) is before


def test_blocks_can_be_nested() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as outer:
        with pytest.raises(KeyboardInterrupt), deferred_interrupt() as inner:
            press()
        assert inner.requested
        assert not outer.requested
        raise KeyboardInterrupt


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
