"""Time as a port: the pipeline reads and waits through it, so that tests can control it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

from archiver.core import liveness
from archiver.core.errors import ArchiverError


class Interrupted(ArchiverError):
    """The process was asked to end: work in flight is aborted, and nothing is half committed."""

    exit_code = 130

    def __init__(self, what_to_do: str = "") -> None:
        super().__init__(f"interrupted{what_to_do}", reason="interrupted")


LONGEST_NAP_SECONDS = 0.2
"""How long a sleeping thread may take to notice a request to end."""


class Clock(Protocol):
    """A thread-safe clock. `sleep` and `check` raise `Interrupted` once the process must end."""

    def now(self) -> datetime:
        """The time of day in UTC, to the microsecond."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back, for durations."""

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond a request to end."""

    def check(self) -> None:
        """Raise `Interrupted` if the process must end."""


class SystemClock:
    """The machine's clock, with the process's request to end."""

    def __init__(self) -> None:
        self._stopped = False

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            liveness.note()
            time.sleep(min(left, LONGEST_NAP_SECONDS))
        self.check()

    def check(self) -> None:
        liveness.note()
        if self._stopped:
            raise Interrupted

    def stop(self) -> None:
        """Ask everything that waits on this clock to end.

        Called from a signal handler, so it takes no lock. `Event.set` takes one: a handler that
        interrupts its own thread inside `Event.wait` may deadlock.
        """
        self._stopped = True


class RemoteClock:
    """A server's clock, by the `Date` headers of its answers. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: tuple[str, float] | None = None
        """The `Date` of the latest answer, and our monotonic clock when it came."""

    def note_date(self, date: str | None) -> None:
        """Note the `Date` of an answer that has just come, if it has one."""
        if date is not None:
            self._latest = date, self._clock.monotonic()

    def skew_seconds(self) -> float | None:
        """The server's clock minus ours, in seconds; None if no valid `Date` has come.

        The time since the latest answer is measured on our monotonic clock, so a change of our own
        clock is noticed without a further answer.
        """
        if self._latest is None:
            return None
        date, at = self._latest
        try:
            shown = parsedate_to_datetime(date)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        if shown.tzinfo is None:  # "-0000" means UTC with no zone known (RFC 5322, 3.3)
            shown = shown.replace(tzinfo=UTC)
        return (shown - self._clock.now()).total_seconds() + self._clock.monotonic() - at
