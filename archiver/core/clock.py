"""Time as a port: what the pipeline reads and waits on, so that tests can turn it by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

from archiver.core import liveness
from archiver.core.errors import ArchiverError


class Interrupted(ArchiverError):
    """Somebody asked the process to end: work in flight is aborted, nothing is half committed."""

    exit_code = 130

    def __init__(self, what_to_do: str = "") -> None:
        super().__init__(f"interrupted{what_to_do}", reason="interrupted")


LONGEST_NAP_SECONDS = 0.2
"""How late a request to end is heard by what sleeps."""


class Clock(Protocol):
    """Threads share a clock. `sleep` and `check` raise `Interrupted` once the process must end."""

    def now(self) -> datetime:
        """The time of day, UTC, to the microsecond."""

    def monotonic(self) -> float:
        """Seconds that never go back, for durations."""

    def sleep(self, seconds: float) -> None:
        """Wait, but not past the request to end."""

    def check(self) -> None:
        """Raise `Interrupted` if the process must end."""


class SystemClock:
    """The machine's clock, and the process's request to end."""

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

        For a signal handler: it takes no lock. An `Event` would: set by a handler that interrupts
        its own thread's wait at the wrong moment, it waits for itself for ever.
        """
        self._stopped = True


class RemoteClock:
    """A server's clock, as the `Date` headers of its answers tell it. Threads share it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: tuple[str, float] | None = None
        """The `Date` of the latest answer, and our monotonic clock when it came."""

    def tells(self, date: str | None) -> None:
        """Take in the `Date` of an answer that has just come, if it has one."""
        if date is not None:
            self._latest = date, self._clock.monotonic()

    def skew_seconds(self) -> float | None:
        """What the server's clock shows now less what ours shows; None where it tells nothing.

        The time since its latest answer is measured on our monotonic clock, so that a clock of
        ours that was set meanwhile is noticed without a further answer.
        """
        if self._latest is None:
            return None
        date, at = self._latest
        try:
            shown = parsedate_to_datetime(date)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        if shown.tzinfo is None:  # "-0000" says UTC, and that no zone is known
            shown = shown.replace(tzinfo=UTC)
        return (shown - self._clock.now()).total_seconds() + self._clock.monotonic() - at
