"""The loop: which windows are due, round after round, until the process must end.

What is due is derived from the bucket alone: the watermark of the newest seal says up to where
all is sealed; everything from there to now is listed each round. A call is archived in the first
round that lists it; its window is sealed once it has settled. Windows sealed with pending calls are
listed again until those are archived or given up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from archiver import metrics
from archiver.clock import Clock, Interrupted
from archiver.errors import ArchiverError, UsageError
from archiver.manifest.layout import SegmentName
from archiver.model import Window, format_time, window_of, windows_between
from archiver.pipeline.backfill import Backfill, Summary
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.sealing import Chain
from archiver.pipeline.window import Outcome, Windows

log = structlog.get_logger()

ROUND_WINDOWS = 48
"""Due windows closed between two looks at the newest calls, so that a backlog starves nobody."""


@dataclass(frozen=True)
class Schedule:
    """The loop's lengths of time."""

    window: timedelta
    settle: timedelta
    give_up: timedelta
    poll_interval_seconds: float


class Heartbeat:
    """When the loop last came on: a window done, a round ended well."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at = clock.monotonic()

    def beat(self) -> None:
        self._at = self._clock.monotonic()

    @property
    def age_seconds(self) -> float:
        return self._clock.monotonic() - self._at


class Service:
    """The loop of `archiver run`. One thread runs it."""

    def __init__(
        self,
        windows: Windows,
        chain: Chain,
        segments: SegmentIndex,
        clock: Clock,
        schedule: Schedule,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._windows = windows
        self._chain = chain
        self._segments = segments
        self._clock = clock
        self._schedule = schedule
        self._heartbeat = heartbeat or Heartbeat(clock)
        self._backfill = Backfill(windows, chain, segments)
        self._quiet: dict[Window, list[tuple[SegmentName, bool]]] = {}
        self._waiting: dict[Window, list[datetime]] = {}

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
            self._clock.sleep(self._schedule.poll_interval_seconds)

    def round(self) -> Summary:
        """List what is not sealed, archive what is new, seal what has settled."""
        summary = Summary()
        self._segments.forget()
        mark = self._chain.refresh().watermark
        now = self._clock.now()
        due = list(windows_between(mark, now - self._schedule.settle, self._schedule.window))
        due = [window for window in due if window.end + self._schedule.settle <= now]
        first_open = due[-1].end if due else mark
        # Before any is closed: what this very round leaves pending is for the next one to try.
        left_open = list(self._left_open())
        self._open_windows(first_open, now, summary)
        for batch in _batches(due, ROUND_WINDOWS):
            mark = self._close(batch, mark, summary)
            if batch[-1] != (due[-1] if due else None):
                self._open_windows(first_open, self._clock.now(), summary)
        self._retry_pending(left_open, summary)
        self._report(now)
        return summary

    # --- the parts of a round

    def _open_windows(self, start: datetime, now: datetime, summary: Summary) -> None:
        """Archive at once what is new in the windows that have not settled, newest first."""
        for window in reversed(list(windows_between(start, now, self._schedule.window))):
            self._note(self._windows.process(window, retry_failed=False), summary)

    def _close(self, batch: list[Window], mark: datetime, summary: Summary) -> datetime:
        """Close due windows, oldest first; returns how far the run of sealed ones reaches."""
        todo = [window for window in batch if not self._segments.is_sealed(window.start)]
        outcomes = {
            outcome.window: outcome
            for outcomes in self._backfill.batches(todo, retry_failed=False)
            for outcome in outcomes
        }
        for window in batch:
            outcome = outcomes.get(window)
            if mark == window.start and (outcome is None or outcome.closed):
                mark = window.end
        self._backfill.seal(list(outcomes.values()), mark)
        for outcome in outcomes.values():
            self._note(outcome, summary)
        return mark

    def _retry_pending(self, left_open: list[Window], summary: Summary) -> None:
        """Windows that were sealed with pending calls: list them again, append what changed."""
        for window in left_open:
            outcome = self._windows.process(window, retry_failed=False)
            self._backfill.seal([outcome], None)
            self._note(outcome, summary)

    def _left_open(self) -> Iterator[Window]:
        """As far back as calls are not given up: the windows below the watermark with pending
        calls, or with a later revision that a crash left without its seal.

        Asked of the bucket in each round, because another writer may have sealed them; windows
        whose segments are the same as in the last round are not read again. Older ones, closed
        late after a long downtime, are those that this process left so itself.
        """
        mark = self._chain.head.watermark
        reach = self._schedule.give_up + self._schedule.settle + self._schedule.window
        yield from sorted(window for window in self._waiting if window.end <= mark - reach)
        quiet: dict[Window, list[tuple[SegmentName, bool]]] = {}
        for window in windows_between(mark - reach, mark, self._schedule.window):
            names = self._segments.of(window.start)
            known = self._quiet.get(window) == names
            sealed = all(sealed for _, sealed in names)
            if known or (sealed and not self._windows.pending_of(window)):
                quiet[window] = names
            else:
                yield window
        self._quiet = quiet

    def _note(self, outcome: Outcome, summary: Summary) -> None:
        """Keep what the next round and the metrics need of a window."""
        window = outcome.window
        summary.add(outcome)
        self._heartbeat.beat()
        waiting = [item.call.own_time or window.start for item in outcome.unarchived]
        self._waiting.pop(window, None)
        if waiting:
            self._waiting[window] = waiting

    def _report(self, started: datetime) -> None:
        now = self._clock.now()
        times = list(itertools.chain.from_iterable(self._waiting.values()))
        metrics.PENDING.set(len(times))
        oldest = (now - min(times)).total_seconds() if times else 0.0
        metrics.OLDEST_UNARCHIVED.set(max(0.0, oldest))
        metrics.LAST_ROUND.set(now.timestamp())
        self._heartbeat.beat()
        log.info(
            "round.done",
            watermark=format_time(self._chain.head.watermark),
            pending=len(times),
            seconds=round((now - started).total_seconds(), 3),
        )


def _batches(items: list[Window], size: int) -> Iterable[list[Window]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def loop_start(start: datetime | None, now: datetime, length: timedelta) -> datetime:
    """Where the loop begins in an empty archive: `START`, else now, floored to a window."""
    return window_of(start or now, length).start
