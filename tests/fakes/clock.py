"""A clock that is turned by hand: sleeping takes no time but moves it on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from archiver.core.clock import Interrupted

NOON = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)


class HandClock:
    """Many threads may share it. `sleeps` holds every wait that was asked for, in seconds."""

    def __init__(self, now: datetime = NOON) -> None:
        self._lock = threading.Lock()
        self._sleeping = threading.RLock()
        self._now = now
        self._monotonic = 1000.0
        self._stopped = False
        self.sleeps: list[float] = []
        self._later: list[tuple[float, Callable[[], None]]] = []

    def when_asleep(self, seconds: float, change: Callable[[], None]) -> None:
        """Have `change` done once all sleeps together have taken so long from now: no other thread
        sleeps on before it is."""
        self._later.append((sum(self.sleeps) + seconds, change))

    def now(self) -> datetime:
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic

    def sleep(self, seconds: float) -> None:
        self.check()
        with self._sleeping:
            self.sleeps.append(seconds)
            self.forward(timedelta(seconds=max(0.0, seconds)))
            slept = sum(self.sleeps) if self._later else 0.0
            for item in [item for item in self._later if item[0] <= slept]:
                self._later.remove(item)
                item[1]()
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


class TurnedClock:
    """The clock of one machine: as the world's, but off `by` so much."""

    def __init__(self, world: HandClock, by: timedelta = timedelta(0)) -> None:
        self._world = world
        self.by = by
        self.monotonic = world.monotonic
        self.sleep = world.sleep
        self.check = world.check

    def now(self) -> datetime:
        return self._world.now() + self.by
