"""How much may be under way at a time: less while source or store say that it is too much.

Each 429 or 503 halves it, at most once a second, for one crowded moment is told to many. Each piece
of work that ends brings a little back, so that it has doubled after as many pieces as there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from archiver.clock import LONGEST_NAP_SECONDS, Clock

log = structlog.get_logger()

CROWDED_STATUS = (429, 503)
HALVED_EVERY_SECONDS = 1.0


class Pressure:
    """A limit that many threads work within, at most `most` pieces at a time, at least one."""

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = most
        self._clock = clock
        self._limit = float(most)
        self._active = 0
        self._halved_at = -HALVED_EVERY_SECONDS
        self._free = threading.Condition()

    @property
    def limit(self) -> int:
        return int(self._limit)

    def crowded(self) -> None:
        """The other side answered that it has too much to do."""
        with self._free:
            now = self._clock.monotonic()
            if now - self._halved_at < HALVED_EVERY_SECONDS or self.limit == 1:
                return
            if self.limit == self._most:
                log.warning("workers.fewer", reason="throttled")
            self._halved_at, self._limit = now, max(1.0, self._limit / 2)

    @contextmanager
    def room(self) -> Iterator[None]:
        """Wait until there is room for a piece of work, and take it. Raises `Interrupted`."""
        with self._free:
            while self._active >= self.limit:
                self._clock.check()
                self._free.wait(LONGEST_NAP_SECONDS)
            self._active += 1
        try:
            yield
        finally:
            with self._free:
                self._active -= 1
                self._recover()
                self._free.notify_all()

    def _recover(self) -> None:
        if self.limit == self._most:
            return
        self._limit = min(float(self._most), self._limit + 1 / self._limit)
        if self.limit == self._most:
            log.info("workers.all")
