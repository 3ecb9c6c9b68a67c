"""Archives a range of windows, several at a time, and seals them in order.

Several windows are processed at once so that the workers stay busy while the last calls of one
window finish. Only the thread that calls `run` appends seals. It puts all windows that are ready
into one seal, so the chain stays short.
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
from archiver.pipeline.window import Totals, WindowArchiver, WindowResult, WindowStatus

log = structlog.get_logger()

WINDOWS_AT_ONCE = 4
SEALED_AT_ONCE = 64
"""Most windows that one seal names, and how many finished windows may wait behind a slow one."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def range_windows(
    start: datetime, end: datetime, length: timedelta, shard: tuple[int, int] = (0, 1)
) -> list[Window]:
    """The windows of a range, extended to whole windows, that belong to this shard (index, count).
    Windows are numbered from 1970, so the shard of a window does not depend on the range."""
    index, count = shard
    windows = windows_between(start, end, length)
    return [one for one in windows if (one.start - _EPOCH) // length % count == index]


class Backfill:
    """Processes the given windows and seals them in order."""

    def __init__(
        self,
        windows: WindowArchiver,
        chain: Chain,
        segments: SegmentIndex,
        progress: BackfillProgress | None = None,
        at_once: int = WINDOWS_AT_ONCE,
    ) -> None:
        """`at_once` windows are processed at a time; 1 uses the caller's thread."""
        self._at_once = at_once
        self._windows = windows
        self._chain = chain
        self._segments = segments
        self._progress = progress or NoProgress()

    def run(self, todo: Iterable[Window], purpose: Purpose = Purpose.BACKFILL) -> Totals:
        """Archive the calls of the windows, close the windows and seal them. While our clock is
        wrong, only archive.

        At the end it processes some windows again: those that are stuck; those with an undecided
        call, which the source refused before any answer proved the credentials; and sealed ones
        that gained calls or records from another window's listing.

        Raises what `WindowArchiver.process` and `Chain.append` raise.
        """
        self._windows.held.refresh()
        if self._windows.may_close(remind=True):
            self._windows.retention.keep_archive(self._chain.head.key_id)
        totals, done, again = Totals(), set[Window](), set[Window]()
        for batch in self.batches((window, purpose, True) for window in todo):
            self.seal(batch, None)
            for result in batch:
                undecided = any(item.undecided for item in result.unarchived)
                if result.status is WindowStatus.STUCK or undecided:
                    again.add(result.window)
                    # How the window ends is counted after the second try, what is committed now.
                    totals += Totals(committed=result.done.committed, bytes=result.done.bytes)
                else:
                    done.add(result.window)
                    self._finish(result, totals)
        late = {w for w in self._windows.with_unnamed_calls - done if self.is_sealed(w)}
        for batch in self.batches((window, purpose, True) for window in sorted(again | late)):
            self.seal(batch, None)
            for result in batch:
                self._finish(result, totals)
        return totals

    def plan(self, todo: Iterable[Window]) -> Iterator[Plan | None]:
        """Yield the plan of each window that `run` would process; writes nothing. None for
        a window that fails on its own, with an error in the log."""
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
        """Whether a seal covers the window. Returns False if the store fails for this window only:
        processing the window then shows the error."""
        try:
            return self._segments.is_sealed(window.start)
        except StoreError as error:
            if not self._windows.is_about_one_window(window, error):
                raise
            return False

    def seal(self, batch: Sequence[WindowResult], watermark: datetime | None) -> None:
        """Append one seal for all segments of a batch that no other writer has sealed."""
        segments = [segment for result in batch for segment in result.segments]
        if segments:
            self._chain.append(segments, watermark)
        for segment in segments:
            self._segments.add(segment.name, sealed=True)

    def batches(self, todo: Iterable[tuple[Window, Purpose, bool]]) -> Iterator[list[WindowResult]]:
        """Yield the results in the order of the windows, as batches of those that are ready.
        `todo` has the arguments of `WindowArchiver.process`."""
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
                # Wait for the oldest window: seals are in the order of the windows.
                batch = [running.popleft().result()]
                while running and running[0].done() and len(batch) < SEALED_AT_ONCE:
                    batch.append(running.popleft().result())
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _finish(self, result: WindowResult, totals: Totals) -> None:
        totals += result.totals()
        self._progress.window_done(result.window)
