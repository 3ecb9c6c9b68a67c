"""A clock that is turned by hand: sleeping takes no time but moves it on."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from archiver.clock import Interrupted

NOON = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)


class HandClock:
    """Many threads may share it. `sleeps` holds every wait that was asked for, in seconds."""

    def __init__(self, now: datetime = NOON) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._monotonic = 1000.0
        self._stopped = False
        self.sleeps: list[float] = []

    def now(self) -> datetime:
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic

    def sleep(self, seconds: float) -> None:
        self.check()
        with self._lock:
            self.sleeps.append(seconds)
        self.forward(timedelta(seconds=max(0.0, seconds)))
        self.check()

    def check(self) -> None:
        if self._stopped:
            raise Interrupted

    def stop(self) -> None:
        self._stopped = True

    def go_on(self) -> None:
        """Take `stop` back, for the test to look around."""
        self._stopped = False

    def forward(self, by: timedelta) -> None:
        if by < timedelta(0):
            raise ValueError("this clock never goes back")
        with self._lock:
            self._now += by
            self._monotonic += by.total_seconds()

    def turn_to(self, moment: datetime) -> None:
        self.forward(moment - self.now())
