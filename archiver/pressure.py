"""How much may be under way at a time: less while source or store say that it is too much.

Each 429 or 503 halves it, at most once a second, for one crowded moment is told to many. Each piece
of work that ends brings a little back, so that it has doubled after as many pieces as there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from archiver.clock import Clock

log = structlog.get_logger()

CROWDED_STATUS = (429, 503)
HALVED_EVERY_SECONDS = 1.0


class Pressure:
    """A limit: at most `most` pieces of work at a time, at least one. Threads share it."""

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._limit = float(most)
        self._halved_at = -HALVED_EVERY_SECONDS
        self._lock = threading.Lock()
        self._freed = threading.Condition()
        self._at_work = 0

    @property
    def limit(self) -> int:
        return int(self._limit)

    def crowded(self) -> None:
        """The other side answered that it has too much to do."""
        with self._lock:
            now = self._clock.monotonic()
            if now - self._halved_at < HALVED_EVERY_SECONDS or self.limit == 1:
                return
            if self.limit == self._most:
                log.warning("workers.fewer", reason="throttled")
            self._halved_at, self._limit = now, max(1.0, self._limit / 2)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Held by a piece of work; waits while as many as the limit are under way."""
        with self._freed:
            self._freed.wait_for(lambda: self._at_work < self.limit)
            self._at_work += 1
        try:
            yield
        finally:
            self._recover()
            with self._freed:
                self._at_work -= 1
                self._freed.notify_all()

    def _recover(self) -> None:
        """A piece of work has ended."""
        with self._lock:
            if self.limit == self._most:
                return
            self._limit = min(float(self._most), self._limit + 1 / self._limit)
            if self.limit == self._most:
                log.info("workers.all")
