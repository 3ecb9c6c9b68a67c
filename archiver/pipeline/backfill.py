"""A date range, window by window, a few windows at a time, sealed in their order.

Windows overlap in time so that the workers stay busy at a window's end; seals are made by the one
thread that runs `run`, for all windows that are ready, so that the chain costs little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta

import structlog

from archiver.errors import ArchiverError, StoreError
from archiver.model import Window, windows_between
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.planning import BACKFILL, Aim, Plan
from archiver.pipeline.ports import NoProgress, Progress
from archiver.pipeline.sealing import Chain
from archiver.pipeline.window import Outcome, Windows

log = structlog.get_logger()

WINDOWS_AT_ONCE = 4
SEAL_AT_MOST = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Summary:
    """What a backfill, or a round of the loop, did."""

    windows: int = 0
    closed: int = 0
    unsettled: int = 0
    """Windows that are rightly open yet."""
    stuck: int = 0
    """Windows that have settled and stay open: their listing kept changing, or something went wrong
    with them alone."""
    harmed: int = 0
    """Windows that are rightly open yet, and with which something went wrong."""
    segments: int = 0
    committed: dict[str, int] = field(default_factory=dict)
    """Calls that got a record in this run, by outcome."""
    bytes: int = 0
    failed: int = 0
    """Calls that this run tried and that stand as failed."""
    incomplete: int = 0
    """Calls that this run worked at and that are archived without their transcript or survey."""
    unreadable: int = 0
    """Entries of listings that could not be told as calls."""
    pending: int = 0
    """Calls without a record in windows that are closed."""
    waiting: int = 0
    """Calls without a record as yet in windows that are still open."""
    clock_wrong: int = 0
    """Windows that stay open because our clock is wrong. `unsettled` counts them too."""

    @property
    def needs_a_person(self) -> bool:
        """What waits in windows that are rightly open is the caller's to judge."""
        left = self.failed or self.pending or self.incomplete or self.unreadable
        return bool(left or self.stuck or self.harmed or self.clock_wrong)

    def add(self, outcome: Outcome) -> None:
        self.windows += 1
        self.closed += outcome.closed
        self.unsettled += not outcome.settled
        self.stuck += outcome.settled and not outcome.closed
        self.harmed += not outcome.settled and outcome.error is not None
        self.clock_wrong += outcome.clock_wrong
        self.segments += len(outcome.segments)
        self.failed += outcome.failed
        self.incomplete += outcome.incomplete
        self.unreadable += outcome.unreadable
        if outcome.closed:
            self.pending += len(outcome.unarchived)
        else:
            self.waiting += len(outcome.unarchived)
        self.add_committed(outcome)

    def add_committed(self, outcome: Outcome) -> None:
        """Only what it did, and not how it left the window."""
        self.bytes += outcome.bytes
        self._add_counts(outcome.committed)

    def merge(self, other: Summary) -> None:
        """What another process did for the same backfill."""
        for name in (each.name for each in fields(self) if each.name != "committed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._add_counts(other.committed)

    def _add_counts(self, committed: Mapping[str, int]) -> None:
        for name, count in committed.items():
            self.committed[name] = self.committed.get(name, 0) + count


def shard_of(window: Window, length: timedelta, count: int) -> int:
    """Which of `count` shards a window belongs to, whatever the range it is in."""
    return (window.start - _EPOCH) // length % count


def range_windows(
    start: datetime, end: datetime, length: timedelta, shard: tuple[int, int] = (0, 1)
) -> list[Window]:
    """The windows of a range, grown outward to whole ones, that are this shard's."""
    index, count = shard
    return [
        window
        for window in windows_between(start, end, length)
        if shard_of(window, length, count) == index
    ]


class Backfill:
    """Processes given windows and seals them in order."""

    def __init__(
        self,
        windows: Windows,
        chain: Chain,
        segments: SegmentIndex,
        progress: Progress | None = None,
        at_once: int = WINDOWS_AT_ONCE,
    ) -> None:
        """`at_once` windows are worked at side by side; 1 means in the caller's own thread."""
        self._at_once = at_once
        self._windows = windows
        self._chain = chain
        self._segments = segments
        self._progress = progress or NoProgress()

    def run(self, todo: Iterable[Window], aim: Aim = BACKFILL) -> Summary:
        """Archive, close and seal; while our clock is wrong, only archive.

        At the end three kinds of windows are tried once more: those that stay open, those with a
        call that was refused before any call of its kind was answered, and sealed ones to which
        belongs what turned up elsewhere.

        Raises what `Windows.process` and `Chain.append` raise.
        """
        self._windows.held.look()
        if self._windows.may_close(remind=True):
            self._windows.keeper.keep_archive(self._chain.head.key_id)
        summary, done, again = Summary(), set[Window](), set[Window]()
        for batch in self.batches((window, aim) for window in todo):
            self.seal(batch, None)
            for outcome in batch:
                undecided = any(item.undecided for item in outcome.unarchived)
                if (outcome.settled and not outcome.closed) or undecided:
                    again.add(outcome.window)
                    summary.add_committed(outcome)
                    continue
                done.add(outcome.window)
                self._finish(outcome, summary)
        late = again | {w for w in self._windows.remembered - done if self.is_sealed(w)}
        for batch in self.batches((window, aim) for window in sorted(late)):
            self.seal(batch, None)
            for outcome in batch:
                self._finish(outcome, summary)
        return summary

    def _finish(self, outcome: Outcome, summary: Summary) -> None:
        summary.add(outcome)
        self._progress.window_done(outcome.window)

    def is_sealed(self, window: Window) -> bool:
        """Whether a seal covers the window; False also where the store does not say so of this
        window alone: then working at it tells what is wrong."""
        try:
            return self._segments.is_sealed(window.start)
        except StoreError as error:
            if not self._windows.is_about_one_window(window, error):
                raise
            return False

    def seal(self, batch: list[Outcome], watermark: datetime | None) -> None:
        """One seal for all segments of a batch; what another writer sealed is left out."""
        segments = [segment for outcome in batch for segment in outcome.segments]
        if segments:
            self._chain.append(segments, watermark)
        for segment in segments:
            self._segments.add(segment.name, sealed=True)

    def plan(self, todo: Iterable[Window]) -> Iterator[Plan | None]:
        """What `run` would do, window by window; writes nothing. None for a window that something
        is wrong with: the log says what."""
        for window in todo:
            try:
                plan = self._windows.plan(window)
            except ArchiverError as error:
                if not self._windows.is_about_one_window(window, error):
                    raise
                log.error("window.failed", window=str(window), error=str(error))
                yield None
                continue
            yield plan

    def batches(
        self,
        todo: Iterable[tuple[Window, Aim]],
    ) -> Iterator[list[Outcome]]:
        """Outcomes in the order of the windows, all that are ready at a time."""
        process = self._windows.process
        if self._at_once == 1:
            yield from ([process(*task)] for task in todo)
            return
        running: deque[Future[Outcome]] = deque()
        waiting = iter(todo)
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="window")
        try:
            while True:
                while len(running) < self._at_once + SEAL_AT_MOST:
                    task = next(waiting, None)
                    if task is None:
                        break
                    running.append(pool.submit(process, *task))
                if not running:
                    return
                batch = [running.popleft().result()]
                while running and running[0].done() and len(batch) < SEAL_AT_MOST:
                    batch.append(running.popleft().result())
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
