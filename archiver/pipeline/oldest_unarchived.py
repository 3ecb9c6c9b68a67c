"""How old the oldest call is that may be lost: `archiver_oldest_unarchived_seconds`.

It is the age of the oldest of these:
- a call that is listed and has no record, from its own time on;
- a window that is not sealed and could not be listed, or not to its end, from its start on: it may
  hold any call;
- where rounds fail as a whole, the start of the last one that did not.

It is worked out when it is asked for, so it goes on growing while the loop waits or hangs.
"""

from __future__ import annotations

import itertools
import threading
from datetime import datetime

from archiver import metrics
from archiver.clock import Clock
from archiver.model import Window, placing_time
from archiver.pipeline.window import Outcome


class OldestUnarchived:
    """Knows it, as of the newest word on each window. The loop tells it; any thread may ask."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[Window, list[datetime]] = {}
        """The own times of the calls of a window that have no record."""
        self._unlisted: set[Window] = set()
        self._good = self._began = clock.now()
        """When the last good round began, and when the last one did."""
        self._fails = False

    def begin(self) -> None:
        """A round begins."""
        self._began = self._clock.now()
        metrics.OLDEST_UNARCHIVED.set_function(self.seconds)

    def note(self, outcome: Outcome, watermark: datetime) -> None:
        """A window was worked at. Nothing is known of one that is not `tallied`: what waited goes
        on waiting. A listing of a sealed window that fails says nothing new of its calls."""
        window = outcome.window
        with self._lock:
            if outcome.tallied:
                self._waiting.pop(window, None)
                now = self._clock.now()
                if times := [placing_time(one.call, window, now) for one in outcome.unarchived]:
                    self._waiting[window] = times
            # A window that has settled and stays open was never listed twice the same.
            unlisted = not outcome.tallied or outcome.settled or outcome.error is not None
            if unlisted and not outcome.closed and window.start >= watermark:
                self._unlisted.add(window)
            else:
                self._unlisted.discard(window)

    def end(self, watermark: datetime) -> int:
        """A round ends well; how many calls wait. What another process has sealed is listed."""
        with self._lock:
            self._good, self._fails = self._began, False
            self._unlisted = {one for one in self._unlisted if one.start >= watermark}
            return sum(map(len, self._waiting.values()))

    def fail(self) -> None:
        """A round ends with an error."""
        self._fails = True

    def seconds(self) -> float:
        with self._lock:
            times = [*itertools.chain.from_iterable(self._waiting.values())]
            times += [window.start for window in self._unlisted]
        times += [self._good] * self._fails
        now = self._clock.now()
        return max(0.0, (now - min(times, default=now)).total_seconds())
