"""The loop: processes the windows that are due, round after round, until the process must end.

What is due is derived from the bucket alone. The watermark of the newest seal marks the end of the
sealed windows; everything from there to now is listed each round. A call is archived in the first
round that lists it. Its window is sealed once it has settled. Sealed windows are listed again when
they reach an age of `RELIST`, and while they have pending calls (`relist.py`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from archiver.core.clock import Clock, Interrupted
from archiver.core.errors import ArchiverError, UsageError
from archiver.core.model import Window, format_time, placing_time, window_of, windows_between
from archiver.observability import metrics
from archiver.pipeline.backfill import WINDOWS_AT_ONCE, Backfill
from archiver.pipeline.bucket_state import SegmentIndex
from archiver.pipeline.chain import Chain
from archiver.pipeline.plan import Purpose
from archiver.pipeline.relist import Relisting
from archiver.pipeline.window import Totals, WindowArchiver, WindowResult, WindowStatus

log = structlog.get_logger()

T = TypeVar("T")

CLOSED_AT_A_TIME = 8
"""Due windows closed between two seals. After each batch the open windows are listed again if a
poll interval has passed, so that a backlog does not delay new calls."""
RELIST_SECONDS = 60.0
"""How long a round may spend on sealed windows, unless the poll interval is longer."""


@dataclass(frozen=True)
class Schedule:
    """The lengths of time that the loop uses."""

    window: timedelta
    settle: timedelta
    give_up: timedelta
    poll_interval_seconds: float
    relist: tuple[timedelta, ...] = ()


class Loop:
    """The loop of `archiver run`. Not thread-safe."""

    def __init__(
        self,
        windows: WindowArchiver,
        chain: Chain,
        segments: SegmentIndex,
        clock: Clock,
        schedule: Schedule,
        at_once: int = WINDOWS_AT_ONCE,
    ) -> None:
        """`at_once`: as in `Backfill`."""
        self._windows = windows
        self._chain = chain
        self._segments = segments
        self._clock = clock
        self._schedule = schedule
        self._backfill = Backfill(windows, chain, segments, at_once=at_once)
        self._relisting = Relisting(
            windows, segments, clock, schedule.relist, schedule.give_up, schedule.window
        )
        self._open_listed_at = clock.monotonic()
        self._oldest = OldestUnarchived(clock)

    def run_forever(self) -> None:
        """Run rounds, `poll_interval` apart. A round that fails is logged, and the next one tries
        again.

        Raises `Interrupted` when the process must end, `UsageError` if no retry can help.
        """
        while True:
            try:
                self.round()
            except (Interrupted, UsageError):
                raise
            except ArchiverError as error:
                log.error("round.failed", error=str(error))
                self._oldest.round_failed()
            self._clock.sleep(self._schedule.poll_interval_seconds)

    def round(self) -> Totals:
        """List the windows that are not sealed, archive new calls, seal the settled windows.

        1. Read the chain up to its newest seal. Its watermark is the loop's position.
        2. Archive new calls of the open windows.
        3. While our clock is wrong, archive the calls of the due windows too, and end the round: a
           date from a wrong clock cannot be undone. The answers in 2. show whether the clock is
           right.
        4. Close and seal the due windows, oldest first.
        5. List sealed windows again, oldest first, until the time is up.
        """
        totals, length = Totals(), self._schedule.window
        self._oldest.round_began()
        self._segments.forget()
        # 1.
        head = self._chain.refresh()
        self._relisting.round_began(head.sealed_at)
        self._windows.held.refresh()
        if self._windows.sightings.first_window_start is None:
            self._windows.sightings.first_window_start = self._chain.genesis().watermark
        now, mark = self._clock.now(), head.watermark
        settled_until = now - self._schedule.settle
        due = [w for w in windows_between(mark, settled_until, length) if w.end <= settled_until]
        if mark > now:
            log.error("clock.behind", watermark=format_time(mark), now=format_time(now))
        first_open = due[-1].end if due else mark
        # 2.
        self._archive_open(first_open, totals)
        # 3.
        if not self._windows.may_close(remind=True):
            totals.clock_wrong += len(due)
            for window in reversed(due):
                if not self._backfill.is_sealed(window):
                    self._note(self._windows.process(window, Purpose.OPEN), totals)
            self._report(now)
            return totals
        # 4.
        self._windows.retention.keep_archive(head.key_id)
        for batch in _batches(due, CLOSED_AT_A_TIME):
            mark = self._close(batch, mark, first_open, totals)
            self._archive_open_in_time(first_open, totals)
        # 5.
        longest = max(RELIST_SECONDS, self._schedule.poll_interval_seconds)
        end = self._clock.monotonic() + longest
        for tasks in _batches(self._relisting.due(), CLOSED_AT_A_TIME):
            if self._clock.monotonic() >= end:
                break
            for results in self._backfill.batches(tasks):
                self._backfill.seal(results, None)
                for result in results:
                    self._note(result, totals)
                    self._relisting.note(result)
            self._archive_open_in_time(first_open, totals)
        self._report(now)
        return totals

    def _archive_open(self, start: datetime, totals: Totals) -> None:
        """Archive new calls in the windows that have not settled, newest first. Never closes a
        window: a window closed in this step would not be sealed. One that settles meanwhile is due
        in the next round."""
        self._open_listed_at = self._clock.monotonic()
        self._windows.forget_listings()
        windows = windows_between(start, self._clock.now(), self._schedule.window)
        for window in reversed(list(windows)):
            self._note(self._windows.process(window, Purpose.OPEN), totals)

    def _archive_open_in_time(self, start: datetime, totals: Totals) -> None:
        """Call `_archive_open` between other work, unless it ran within the last poll interval."""
        if self._clock.monotonic() >= self._open_listed_at + self._schedule.poll_interval_seconds:
            self._archive_open(start, totals)

    def _close(
        self, batch: list[Window], mark: datetime, end: datetime, totals: Totals
    ) -> datetime:
        """Close and seal due windows, oldest first. Returns the new watermark: the end of the
        unbroken run of sealed windows, which may lie beyond the batch, up to `end`."""
        todo = [window for window in batch if not self._backfill.is_sealed(window)]
        batches = self._backfill.batches((window, Purpose.CLOSE, True) for window in todo)
        results = {one.window: one for results in batches for one in results}
        for window in batch:
            if mark == window.start and (window not in results or results[window].is_closed):
                mark = window.end
        if mark == batch[-1].end and any(result.segments for result in results.values()):
            # A backfill may have sealed later windows, or the loop may have, while an older one
            # stayed open. Their batches have nothing to seal, so this seal must move the watermark
            # past them.
            later = windows_between(mark, end, self._schedule.window)
            mark = next((w.start for w in later if not self._backfill.is_sealed(w)), end)
        self._backfill.seal(list(results.values()), mark)
        for result in results.values():
            self._note(result, totals)
            self._relisting.note(result)
        return mark

    def _note(self, result: WindowResult, totals: Totals) -> None:
        totals += result.totals()
        self._oldest.note(result, self._chain.head.watermark)

    def _report(self, started: datetime) -> None:
        self._windows.forget_listings()  # the next round lists anew, and they may be large
        now, watermark = self._clock.now(), self._chain.head.watermark
        pending = self._oldest.round_ended(watermark)
        metrics.PENDING.set(pending)
        metrics.LAST_ROUND.set(now.timestamp())
        log.info(
            "round.done",
            watermark=format_time(watermark),
            pending=pending,
            seconds=round((now - started).total_seconds(), 3),
        )


class OldestUnarchived:
    """The age of the oldest call that may be lost: `archiver_oldest_unarchived_seconds`. The loop
    reports to it; any thread may read it.

    It is the age of the oldest of these:
    - a call that is listed and has no record, counted from its own time;
    - a window that is not sealed and could not be listed completely, counted from its start,
      because it may have any call;
    - while rounds fail as a whole, the start of the last successful one.

    It is computed when it is read, so it grows while the loop waits or hangs.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[Window, list[datetime]] = {}
        """The own times of the calls without a record, by window."""
        self._unlisted: set[Window] = set()
        self._began = self._last_good = clock.now()
        """When the last round began, and when the last successful one did."""
        self._fails = False

    def round_began(self) -> None:
        self._began = self._clock.now()
        metrics.OLDEST_UNARCHIVED.set_function(self.seconds)

    def note(self, result: WindowResult, watermark: datetime) -> None:
        """Note the result of a window. If its calls were not processed, its earlier waiting calls
        stay. A failed listing of a sealed window shows nothing new about its calls."""
        window = result.window
        with self._lock:
            if result.processed:
                now = self._clock.now()
                self._waiting.pop(window, None)
                if times := [placing_time(one.call, window, now) for one in result.unarchived]:
                    self._waiting[window] = times
            # The listing of such a window kept changing or failed, so it may have missed calls.
            is_stuck = result.status is WindowStatus.STUCK or result.error is not None
            is_unlisted = (not result.processed or is_stuck) and not result.is_closed
            if is_unlisted and window.start >= watermark:
                self._unlisted.add(window)
            else:
                self._unlisted.discard(window)

    def round_ended(self, watermark: datetime) -> int:
        """Note a successful round; returns how many calls wait. Windows that another process has
        sealed are no longer unlisted."""
        with self._lock:
            self._last_good, self._fails = self._began, False
            self._unlisted = {one for one in self._unlisted if one.start >= watermark}
            return sum(map(len, self._waiting.values()))

    def round_failed(self) -> None:
        self._fails = True

    def seconds(self) -> float:
        with self._lock:
            times = [*itertools.chain.from_iterable(self._waiting.values())]
            times += [window.start for window in self._unlisted]
        times += [self._last_good] * self._fails
        now = self._clock.now()
        return max(0.0, (now - min(times, default=now)).total_seconds())


def _batches(items: list[T], size: int) -> Iterable[list[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def loop_start(start: datetime | None, now: datetime, length: timedelta) -> datetime:
    """Where the loop begins in an empty archive: the window of `START`, else of now."""
    return window_of(start or now, length).start
