"""A date range, window by window, a few windows at a time, sealed in their order.

Windows are worked at side by side so that the workers stay busy at a window's end. The one thread
that runs `run` makes the seals, each for all windows that are ready, so that the chain costs
little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice

import structlog

from archiver.core.errors import ArchiverError, StoreError
from archiver.core.model import Window, windows_between
from archiver.pipeline.backfill_progress import BackfillProgress, NoProgress
from archiver.pipeline.bucket_state import SegmentIndex
from archiver.pipeline.chain import Chain
from archiver.pipeline.plan import Plan, Purpose
from archiver.pipeline.window import Summary, WindowArchiver, WindowResult, WindowStatus

log = structlog.get_logger()

WINDOWS_AT_ONCE = 4
SEALED_AT_ONCE = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def range_windows(
    start: datetime, end: datetime, length: timedelta, shard: tuple[int, int] = (0, 1)
) -> list[Window]:
    """The windows of a range, grown outward to whole ones, that belong to this shard. Which shard a
    window belongs to does not depend on the range."""
    index, count = shard
    windows = windows_between(start, end, length)
    return [one for one in windows if (one.start - _EPOCH) // length % count == index]


class Backfill:
    """Works at given windows and seals them in order."""

    def __init__(
        self,
        windows: WindowArchiver,
        chain: Chain,
        segments: SegmentIndex,
        progress: BackfillProgress | None = None,
        at_once: int = WINDOWS_AT_ONCE,
    ) -> None:
        """`at_once` windows are worked at side by side; 1 means in the caller's own thread."""
        self._at_once = at_once
        self._windows = windows
        self._chain = chain
        self._segments = segments
        self._progress = progress or NoProgress()

    def run(self, todo: Iterable[Window], purpose: Purpose = Purpose.BACKFILL) -> Summary:
        """Archive, close and seal; while our clock is wrong, only archive.

        At the end three kinds of windows are tried once more: those that are stuck, those with a
        call that was refused before any call of its kind was answered, and sealed ones to which
        belongs what turned up elsewhere.

        Raises what `WindowArchiver.process` and `Chain.append` raise.
        """
        self._windows.held.refresh()
        if self._windows.may_close(remind=True):
            self._windows.retention.keep_archive(self._chain.head.key_id)
        summary, done, again = Summary(), set[Window](), set[Window]()
        for batch in self.batches((window, purpose, True) for window in todo):
            self.seal(batch, None)
            for result in batch:
                undecided = any(item.undecided for item in result.unarchived)
                if result.status is WindowStatus.STUCK or undecided:
                    again.add(result.window)
                    # How it was left counts once it was tried again; what was done counts now.
                    summary += Summary(committed=result.done.committed, bytes=result.done.bytes)
                else:
                    done.add(result.window)
                    self._finish(result, summary)
        late = {w for w in self._windows.with_unnamed_calls - done if self.is_sealed(w)}
        for batch in self.batches((window, purpose, True) for window in sorted(again | late)):
            self.seal(batch, None)
            for result in batch:
                self._finish(result, summary)
        return summary

    def plan(self, todo: Iterable[Window]) -> Iterator[Plan | None]:
        """What `run` would do, window by window; writes nothing. None for a window that something
        is wrong with: the log says what."""
        for window in todo:
            plan = None
            try:
                plan = self._windows.plan(window)
            except ArchiverError as error:
                if not self._windows.is_about_one_window(window, error):
                    raise
                log.error("window.failed", window=str(window), error=str(error))
            yield plan

    def is_sealed(self, window: Window) -> bool:
        """Whether a seal covers the window; False also where the store does not say so of this
        window alone: then working at it shows what is wrong."""
        try:
            return self._segments.is_sealed(window.start)
        except StoreError as error:
            if not self._windows.is_about_one_window(window, error):
                raise
            return False

    def seal(self, batch: Sequence[WindowResult], watermark: datetime | None) -> None:
        """One seal for all segments of a batch; what another writer sealed is left out."""
        segments = [segment for result in batch for segment in result.segments]
        if segments:
            self._chain.append(segments, watermark)
        for segment in segments:
            self._segments.add(segment.name, sealed=True)

    def batches(self, todo: Iterable[tuple[Window, Purpose, bool]]) -> Iterator[list[WindowResult]]:
        """Results in the order of the windows, all that are ready at a time. What `todo` has are
        the arguments of `WindowArchiver.process`."""
        process, waiting = self._windows.process, iter(todo)
        if self._at_once == 1:
            yield from ([process(*task)] for task in waiting)
            return
        running: deque[Future[WindowResult]] = deque()
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="window")
        try:
            while True:
                room = self._at_once + SEALED_AT_ONCE - len(running)
                running.extend(pool.submit(process, *task) for task in islice(waiting, room))
                if not running:
                    return
                batch = [running.popleft().result()]
                while running and running[0].done() and len(batch) < SEALED_AT_ONCE:
                    batch.append(running.popleft().result())
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _finish(self, result: WindowResult, summary: Summary) -> None:
        summary += result.summary()
        self._progress.window_done(result.window)
