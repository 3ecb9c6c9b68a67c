"""A pause that the source asked for (`Retry-After`), in which no worker sends it a request."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from archiver.core.clock import Clock
from archiver.observability.metrics import SOURCE_PAUSE

log = structlog.get_logger()


class Pause:
    """One pause for all workers. Thread-safe."""

    def __init__(self, clock: Clock, on_begin: Callable[[float], None]) -> None:
        """`on_begin` is called with the seconds of each pause as it begins."""
        self._clock = clock
        self._on_begin = on_begin
        self._until = clock.monotonic()
        self._is_on = False
        # Held by the thread that sleeps; the others wait for it, so there is one sleep, not N.
        self._sleeping = threading.Lock()
        SOURCE_PAUSE.set_function(self.seconds_left)

    def seconds_left(self) -> float:
        return max(0.0, self._until - self._clock.monotonic())

    def covers(self, sent_at: float) -> bool:
        """Whether a request that was sent then is older than the end of the latest pause: what it
        was refused for has been waited for, or is."""
        return sent_at < self._until

    def begin(self, seconds: float, status: int | None) -> None:
        """Begin a pause after an answer with this status."""
        log.warning("source.paused", seconds=round(seconds), status=status)
        self._until, self._is_on = self._clock.monotonic() + seconds, True
        self._on_begin(seconds)

    def wait(self) -> None:
        """Wait for the end of the pause, if there is one. Raises `Interrupted`."""
        if not self._is_on:
            return
        with self._sleeping:
            if self._is_on:
                self._clock.sleep(self.seconds_left())
                self._until, self._is_on = self._clock.monotonic(), False
                log.info("source.resumed")
