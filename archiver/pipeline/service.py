"""The loop: which windows are due, round after round, until the process must end.

What is due is derived from the bucket alone: the watermark of the newest seal says up to where
all is sealed; everything from there to now is listed each round. A call is archived in the first
round that lists it; its window is sealed once it has settled. Sealed windows are listed again when
they come of age, and while they have pending calls (`followups.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from archiver import metrics
from archiver.allocator import give_back
from archiver.clock import Clock, Interrupted
from archiver.errors import ArchiverError, UsageError
from archiver.model import Window, format_time, window_of, windows_between
from archiver.pipeline.backfill import WINDOWS_AT_ONCE, Backfill, Summary
from archiver.pipeline.followups import FollowUps
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.oldest_unarchived import OldestUnarchived
from archiver.pipeline.planning import OPEN, ROUND
from archiver.pipeline.sealing import Chain
from archiver.pipeline.window import Outcome, Windows

log = structlog.get_logger()

T = TypeVar("T")

CLOSED_AT_A_TIME = 8
"""Due windows closed between two seals; the newest calls are looked at in between, where that was
not done for a poll interval, so that a backlog starves nobody."""
LONGEST_FOLLOW_UP_SECONDS = 60.0
"""How long a round may spend on sealed windows, unless the poll interval is longer."""


@dataclass(frozen=True)
class Schedule:
    """The loop's lengths of time."""

    window: timedelta
    settle: timedelta
    give_up: timedelta
    poll_interval_seconds: float
    relist: tuple[timedelta, ...] = ()


class Service:
    """The loop of `archiver run`. One thread runs it."""

    def __init__(
        self,
        windows: Windows,
        chain: Chain,
        segments: SegmentIndex,
        clock: Clock,
        schedule: Schedule,
        at_once: int = WINDOWS_AT_ONCE,
    ) -> None:
        """`at_once` is as `Backfill` has it."""
        self._windows = windows
        self._chain = chain
        self._segments = segments
        self._clock = clock
        self._schedule = schedule
        self._backfill = Backfill(windows, chain, segments, at_once=at_once)
        self._follow_ups = FollowUps(
            windows, segments, clock, schedule.relist, schedule.give_up, schedule.window
        )
        self._looked_at = clock.monotonic()
        self._unarchived = OldestUnarchived(clock)

    def run_forever(self) -> None:
        """Rounds, `poll_interval` apart. A round that fails is logged, and the next one tries.

        Raises `Interrupted` when the process must end, `UsageError` where no retry can help.
        """
        while True:
            try:
                self.round()
            except (Interrupted, UsageError):
                raise
            except ArchiverError as error:
                log.error("round.failed", error=str(error))
                self._unarchived.fail()
            give_back()
            self._clock.sleep(self._schedule.poll_interval_seconds)

    def round(self) -> Summary:
        """List what is not sealed, archive what is new, seal what has settled. While our clock is
        wrong, nothing is sealed."""
        summary = Summary()
        self._unarchived.begin()
        self._segments.forget()
        head = self._chain.refresh()
        self._follow_ups.begin(head.sealed_at)
        mark = head.watermark
        self._windows.held.look()
        if self._windows.planner.begins is None:
            self._windows.planner.begins = self._chain.genesis().watermark
        now = self._clock.now()
        due = list(windows_between(mark, now - self._schedule.settle, self._schedule.window))
        due = [window for window in due if window.end + self._schedule.settle <= now]
        if mark > now:
            log.error("clock.behind", watermark=format_time(mark), now=format_time(now))
        first_open = due[-1].end if due else mark
        self._look_at_open(first_open, summary)
        # What is dated by a wrong clock cannot be taken back. The answers of just now tell.
        if not self._windows.may_close(remind=True):
            self._archive_only(due, summary)
            self._report(now)
            return summary
        self._windows.keeper.keep_archive(head.key_id)
        for batch in _batches(due, CLOSED_AT_A_TIME):
            mark = self._close(batch, mark, first_open, summary)
            self._look_in_time(first_open, summary)
        self._follow_up(first_open, summary)
        self._report(now)
        return summary

    # --- the parts of a round

    def _look_at_open(self, start: datetime, summary: Summary) -> None:
        """Archive at once what is new in the windows that have not settled, newest first. One that
        settles meanwhile is due in the next round, if there is one: what is closed here, nobody
        would seal."""
        self._looked_at = self._clock.monotonic()
        windows = windows_between(start, self._clock.now(), self._schedule.window)
        for window in reversed(list(windows)):
            self._note(self._windows.process(window, OPEN), summary)

    def _archive_only(self, due: list[Window], summary: Summary) -> None:
        """Archive the calls of due windows, newest first, and close none: our clock is wrong. The
        next round looks at it again."""
        summary.clock_wrong += len(due)
        for window in reversed(due):
            if not self._backfill.is_sealed(window):
                self._note(self._windows.process(window, OPEN), summary)

    def _close(
        self, batch: list[Window], mark: datetime, end: datetime, summary: Summary
    ) -> datetime:
        """Close due windows, oldest first; returns how far the run of sealed ones reaches, which
        may be beyond the batch, up to `end`."""
        todo = [window for window in batch if not self._backfill.is_sealed(window)]
        outcomes = {
            outcome.window: outcome
            for outcomes in self._backfill.batches((window, ROUND) for window in todo)
            for outcome in outcomes
        }
        for window in batch:
            outcome = outcomes.get(window)
            if mark == window.start and (outcome is None or outcome.closed):
                mark = window.end
        if mark == batch[-1].end and any(outcome.segments for outcome in outcomes.values()):
            # Later windows may be sealed already: by a backfill, or while an older one stayed
            # open. The batches to come then have nothing to seal, so this seal must tell of them.
            mark = self._sealed_until(mark, end)
        self._backfill.seal(list(outcomes.values()), mark)
        for outcome in outcomes.values():
            self._note(outcome, summary)
            self._follow_ups.note(outcome)
        return mark

    def _sealed_until(self, start: datetime, end: datetime) -> datetime:
        """How far the windows from `start` on are sealed without a gap."""
        for window in windows_between(start, end, self._schedule.window):
            if not self._backfill.is_sealed(window):
                return window.start
        return end

    def _look_in_time(self, start: datetime, summary: Summary) -> None:
        """Between other work: look at the newest calls, unless that was just done."""
        if self._clock.monotonic() >= self._looked_at + self._schedule.poll_interval_seconds:
            self._look_at_open(start, summary)

    def _follow_up(self, first_open: datetime, summary: Summary) -> None:
        """List sealed windows again that are due, oldest first, as many as there is time for: the
        rest are due in the next round."""
        longest = max(LONGEST_FOLLOW_UP_SECONDS, self._schedule.poll_interval_seconds)
        end = self._clock.monotonic() + longest
        for tasks in _batches(self._follow_ups.due(), CLOSED_AT_A_TIME):
            if self._clock.monotonic() >= end:
                return
            for outcomes in self._backfill.batches(tasks):
                self._backfill.seal(outcomes, None)
                for outcome in outcomes:
                    self._note(outcome, summary)
                    self._follow_ups.note(outcome)
            self._look_in_time(first_open, summary)

    def _note(self, outcome: Outcome, summary: Summary) -> None:
        """Keep what the summary and the metrics need of a window."""
        summary.add(outcome)
        self._unarchived.note(outcome, self._chain.head.watermark)

    def _report(self, started: datetime) -> None:
        now, watermark = self._clock.now(), self._chain.head.watermark
        pending = self._unarchived.end(watermark)
        metrics.PENDING.set(pending)
        metrics.LAST_ROUND.set(now.timestamp())
        log.info(
            "round.done",
            watermark=format_time(watermark),
            pending=pending,
            seconds=round((now - started).total_seconds(), 3),
        )


def _batches(items: list[T], size: int) -> Iterable[list[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def loop_start(start: datetime | None, now: datetime, length: timedelta) -> datetime:
    """Where the loop begins in an empty archive: `START`, else now, floored to a window."""
    return window_of(start or now, length).start
