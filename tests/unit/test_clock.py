"""The machine's clock, and the request to end."""

from __future__ import annotations

import signal
import time

import pytest

from archiver.core.clock import Interrupted, SystemClock


def test_a_sleep_ends_soon_after_the_request_to_end():
    clock = SystemClock()
    began = time.monotonic()
    clock.sleep(0.05)
    assert time.monotonic() - began >= 0.05
    clock.stop()
    with pytest.raises(Interrupted):
        clock.sleep(60)
    with pytest.raises(Interrupted):
        clock.check()


def sleep_until_stopped(clock: SystemClock) -> None:
    while True:
        clock.sleep(0)


def test_stop_is_safe_in_a_signal_handler():
    """Wherever in the sleep of its own thread the handler comes: a lock there would hang."""
    for _ in range(100):
        clock = SystemClock()
        stop = clock.stop
        before = signal.signal(signal.SIGPROF, lambda *_, stop=stop: stop())
        try:
            signal.setitimer(signal.ITIMER_PROF, 0.001)
            with pytest.raises(Interrupted):
                sleep_until_stopped(clock)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
