"""Processes one window: list it, archive its calls, write its segment. The caller seals it.

`WindowArchiver._process` has the steps up to the segment; `Backfill.seal` seals the segments of
several windows at once, in the order of the windows. The work that is left is derived from the
bucket each time: from the segments, which say what the archive vouches for, and from the records,
which say what was done. So the first try, a concurrent writer and a process after a crash run the
same code.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from archiver.core.clock import Clock, Interrupted
from archiver.core.concurrency import Workers
from archiver.core.errors import ArchiverError, KeyTaken, Reach, StoreError
from archiver.core.model import Call, Retention, Window
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.pipeline.backfill_progress import BackfillProgress, NoProgress
from archiver.pipeline.bucket_state import (
    LatestRecord,
    RecordIndex,
    SegmentIndex,
    UnsealedSegment,
    WindowLine,
    WindowReader,
    WindowState,
)
from archiver.pipeline.call import SOURCE_SILENT, CallArchiver, FailedTry
from archiver.pipeline.call_records import CallRecords
from archiver.pipeline.health import ClockCheck
from archiver.pipeline.hold_enforcement import HoldEnforcement
from archiver.pipeline.plan import Plan, Purpose, Task, make_plan
from archiver.pipeline.recording import random_tag
from archiver.pipeline.retention import RetentionKeeper
from archiver.pipeline.segment_writer import SegmentWriter, balance_of
from archiver.pipeline.sightings import Sighted, Sightings
from archiver.source.listing import Lister, WindowListing
from archiver.store.bucket import Bucket

if TYPE_CHECKING:
    from typing import Self

log = structlog.get_logger()

CONFLICTS = 5
"""How often a concurrent writer may close the window while it is processed; then it is an error."""


class WindowStatus(Enum):
    """The state of a window after it was processed."""

    OPEN = auto()
    """Open as expected: it has not settled, or was not to be closed."""
    CLOCK_WRONG = auto()
    """Open because our clock is wrong, whether or not it has settled."""
    STUCK = auto()
    """It has settled and stays open: its listing kept changing, or it failed."""
    CLOSED = auto()
    """Every call of it is in a segment, sealed or about to be."""
    POSTPONED = auto()
    """Closed before. It has reached an age and waits for the source to answer."""


@dataclass
class Totals:
    """Counts of a run over some windows: a backfill, or a round of the loop."""

    windows: int = 0
    closed: int = 0
    unsettled: int = 0
    """Windows that are open as expected."""
    stuck: int = 0
    """Windows that have settled and stay open: their listing kept changing, or they failed."""
    failed_open: int = 0
    """Windows that are open as expected, and failed."""
    segments: int = 0
    committed: Counter[str] = field(default_factory=Counter)
    """Calls that got a record in this run, by outcome."""
    bytes: int = 0
    failed: int = 0
    """Calls that this run tried and whose record says `failed`."""
    incomplete: int = 0
    """Calls that this run processed and that are archived without one of their documents."""
    unreadable: int = 0
    """Listing entries that are not calls."""
    pending: int = 0
    """Calls without a record in closed windows."""
    waiting: int = 0
    """Calls without a record in windows that are still open."""
    clock_wrong: int = 0
    """Windows that stay open because our clock is wrong. `unsettled` includes them."""

    @property
    def needs_a_person(self) -> bool:
        """Whether a person has to act. Calls that wait in open windows do not count here."""
        left = self.failed or self.pending or self.incomplete or self.unreadable
        return bool(left or self.stuck or self.failed_open or self.clock_wrong)

    def __iadd__(self, other: Totals) -> Self:
        for name in (each.name for each in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass
class WindowResult:
    """The result of processing a window. `segments` are durable and wait for their seal."""

    window: Window
    status: WindowStatus = WindowStatus.OPEN
    segments: list[UnsealedSegment] = field(default_factory=list)
    done: Totals = field(default_factory=Totals)
    """What this run has counted so far; `totals` adds the rest."""
    unarchived: list[FailedTry] = field(default_factory=list)
    """Calls without a record."""
    listed_at: datetime | None = None
    """When the newest revision was listed, as far as this run knows."""
    processed: bool = False
    """Whether the window was listed and its calls processed. If not, their state is unknown."""
    unrefreshed: bool = False
    """Whether it was first closed after it had reached an age, with calls archived earlier. These
    may have changed since, so it is to be listed again."""
    error: ArchiverError | None = None
    """The error that stopped this window alone; the others go on."""

    @property
    def is_closed(self) -> bool:
        return self.status in (WindowStatus.CLOSED, WindowStatus.POSTPONED)

    @property
    def pending(self) -> frozenset[str]:
        return frozenset(one.call.id for one in self.unarchived)

    def totals(self) -> Totals:
        status, is_closed, left = self.status, self.is_closed, len(self.unarchived)
        rightly_open = status in (WindowStatus.OPEN, WindowStatus.CLOCK_WRONG)
        return replace(
            self.done,
            windows=1,
            closed=int(is_closed),
            unsettled=int(rightly_open),
            stuck=int(status is WindowStatus.STUCK),
            failed_open=int(rightly_open and self.error is not None),
            segments=len(self.segments),
            pending=left if is_closed else 0,
            waiting=0 if is_closed else left,
            clock_wrong=int(status is WindowStatus.CLOCK_WRONG),
        )


class WindowArchiver:
    """Processes windows. Thread-safe while no two threads process the same window."""

    def __init__(
        self,
        lister: Lister,
        calls: CallArchiver,
        store: Bucket,
        workers: Workers,
        clock: Clock,
        *,
        segments: SegmentIndex,
        retention: Retention,
        settle: timedelta,
        relist: tuple[timedelta, ...] = (),
        progress: BackfillProgress | None = None,
        clock_check: ClockCheck | None = None,
        tag: Callable[[], str] = random_tag,
    ) -> None:
        """`relist`: the ages, counted from a window's end, at which it is listed again. Without a
        `clock_check` our clock is trusted. `tag` returns 16 hex digits, unique among writers."""
        self._lister = lister
        self._calls = calls
        self._workers = workers
        self._clock = clock
        self._clock_check = clock_check
        self._segments = segments
        self._settle = settle
        self._ages = sorted(relist)
        self._progress = progress or NoProgress()
        self.held = calls.held
        self.backoff = calls.backoff
        self.retention = RetentionKeeper(store, segments, workers, retention, clock, self.held)
        self._hold_enforcement = HoldEnforcement(store, self.held, workers)
        self._reader = WindowReader(store, segments, retention)
        self._writer = SegmentWriter(store, segments)
        self._record_index = RecordIndex(store)
        self.sightings = Sightings(store, self._record_index, workers, clock, tag)
        self.records = CallRecords(
            store, self._record_index, segments, workers, lister, self.sightings
        )
        self._refreshed: dict[Window, tuple[datetime | None, frozenset[str]]] = {}
        """Windows for whose archived calls the source did not answer completely: an age, and the
        calls that were refreshed for it. Only the thread that processes a window uses its entry."""

    def process(
        self, window: Window, purpose: Purpose = Purpose.CLOSE, may_wait: bool = True
    ) -> WindowResult:
        """Archive the missing calls of a window and, once it has settled, close it.

        Writes revision 1, or a later one if something changed since or an age of `RELIST` requires
        it. `may_wait` postpones that while the source does not answer for archived calls. A failure
        of this window alone (its listing, an object that it needs) leaves it open, with an error in
        the log and in the result.

        Raises `SourceRefused`, `SourceError` and `StoreError` if they reach beyond the window,
        `UsageError` and `Interrupted`.
        """
        result = WindowResult(window)
        try:
            for _ in range(CONFLICTS):
                if self._process(result, purpose, may_wait):
                    return result
                log.info("window.conflict", window=str(window))
                self._segments.forget()
            raise StoreError(
                f"other writers keep changing the window {window}",
                reason="conflict",
                reach=Reach.WINDOW,
            )
        except ArchiverError as error:
            if not self.is_about_one_window(window, error):
                raise
            result.error = error
            if result.status is not WindowStatus.CLOCK_WRONG:
                settled = self._has_settled(window, purpose)
                result.status = WindowStatus.STUCK if settled else WindowStatus.OPEN
            log.error("window.failed", window=str(window), error=str(error))
            return result
        finally:
            self.records.forget_if_empty(window)

    def _process(self, result: WindowResult, purpose: Purpose, may_wait: bool) -> bool:
        """One try at a window. Returns False if a concurrent writer closed it meanwhile.

        1. Read its segments.
        2. Check our clock, whether the window has settled, and which age it has reached.
        3. Complete segments that a crash left without their checksum list.
        4. Return if nothing is due.
        5. List the window.
        6. Write which listed calls have no record (sightings).
        7. Plan which calls need work.
        8. Archive them; the record of each call is its commit.
        9. Put missing legal holds on objects of held calls.
        10. Extend the locks in the window to today's policy.
        11. Write its segment, which the caller seals.
        """
        window = result.window
        # 1.
        state = self._reader.read(window)
        # 2. Before the listing: if the window settles or reaches an age while it is listed, that
        #    listing began too early to count.
        clock_wrong = purpose is not Purpose.OPEN and not self.may_close()
        settled = self._has_settled(window, purpose) and not clock_wrong
        settled_at, newest_age = window.end + self._settle, self.newest_age(window)
        age = None  # the newest age, unless the closed window was listed since it reached it
        if state.revision and newest_age is not None:
            is_seen = state.listed_at is not None and state.listed_at >= newest_age
            age = newest_age if purpose is Purpose.REFRESH or not is_seen else None
        # 3. With a wrong clock, segments that a crash left unsealed stay unsealed.
        result.segments, result.listed_at = [], state.listed_at
        if clock_wrong:
            result.status = WindowStatus.CLOCK_WRONG
        else:
            result.status = WindowStatus.STUCK if settled else WindowStatus.OPEN
            for segment in state.unsealed:
                self._writer.complete(segment)
            result.segments = state.unsealed
        # 4.
        is_due = not state.revision or purpose is Purpose.BACKFILL or age is not None
        if not is_due and not self._has_work(window, state):
            self._refreshed.pop(window, None)  # another writer has listed it at that age
            if not clock_wrong:
                result.status = WindowStatus.CLOSED
            return True
        # 5. A crash before 6 leaves listed calls unknown, with nothing done about them. The calls
        #    that a failing listing showed are written: if the source hid them now, no later process
        #    would know them.
        seen: dict[str, Call] = {}
        beside: dict[str, Call] = {}
        began = self._clock.now()
        since = max((m for m in (settled_at if settled else None, newest_age) if m), default=None)
        try:
            listed = self._lister.list(
                window, seen, beside, since=since, is_open=purpose is Purpose.OPEN
            )
        except Interrupted:
            raise
        except Exception:
            self.sightings.note_cut_short(
                window, seen.values(), beside.values(), began, state.records
            )
            raise
        result.error, result.done.unreadable = listed.error, listed.listing.unreadable
        # 6. From here on a crash leaves no listed call unknown: the next process reads the
        #    sighting.
        sighted = self.sightings.note(listed, state.records, reload=settled)
        # 7.
        self.records.load_orphans(listed, skip_crowded_days=purpose is Purpose.BACKFILL)
        is_first_close = settled and not state.revision
        plan = self._plan(listed, state, sighted, purpose, age, is_first_close=is_first_close)
        had_archived = any(one.outcome == "archived" for one in plan.latest.values())
        result.unrefreshed = had_archived and not state.revision and newest_age is not None
        self._progress.window_listed(window, len(plan.todo))
        # 8. A crash here leaves files without a record, which the next try adopts, and records that
        #    no segment names, which the next process finds by their keys.
        work = partial(self._archive_call, window, settled, listed.listing.listed_at)
        failures = list(plan.waiting)
        for task, (done, new_bytes) in zip(
            plan.todo, self._workers.map(work, plan.todo), strict=True
        ):
            if isinstance(done, FailedTry):
                failures.append(done)
                if done.amended is not None:
                    plan.latest[task.call.id] = LatestRecord.of(done.amended)
                continue
            plan.latest[task.call.id] = done
            result.done.failed += done.outcome == "failed"
            result.done.incomplete += done.incomplete
            if new_bytes is not None:
                result.done.committed[done.outcome] += 1
                result.done.bytes += new_bytes
        result.processed = True
        result.unarchived = [one for one in failures if one.call.id not in plan.latest]
        # The window may stay open. Records that no segment names are kept until one does.
        self.records.add_orphans(window, _unnamed(plan, state))
        silent = {one.call.id for one in failures if one.reason in SOURCE_SILENT}
        unanswered = silent & plan.latest.keys()
        self._refreshed.pop(window, None)
        if unanswered:
            self._refreshed[window] = (age, frozenset(listed.calls) - unanswered)
        # 9.
        if not settled:
            return True
        self._hold_enforcement.enforce(window, plan.latest, state.records)
        if not listed.stable:
            return True
        if state.revision and unanswered and age is not None and may_wait:
            result.status = WindowStatus.POSTPONED
            return True
        # 10. Before a segment names the new records.
        unnamed = list(_unnamed(plan, state).values())
        until = self.retention.keep_window(window, state, unnamed)
        # 11. If something has changed, or as evidence that the window was listed at an age. A crash
        #     after it leaves a segment without its checksum list or its seal. The next process that
        #     processes the window completes it (3), and the caller seals it.
        pending = result.pending
        balance = balance_of(set(listed.calls), plan.latest, pending, state)
        lists = (frozenset(balance.pending), frozenset(balance.vanished))
        is_same = state.revision and not unnamed and lists == (state.pending, state.vanished)
        if not is_same or (age is not None and purpose is not Purpose.BACKFILL):
            name = SegmentName(window.start, state.newest_key + 1)
            try:
                written = self._writer.write(name, window, unnamed, balance, listed.listing, until)
            except KeyTaken:
                return False
            self._calls.store_health.succeeded()
            result.segments.append(written)
            result.listed_at = listed.listing.listed_at
        result.status = WindowStatus.CLOSED
        self.records.named(window, {*plan.latest, *pending})
        self._refreshed.pop(window, None)
        self.sightings.closed(window, sighted, pending=bool(pending))
        return True

    def plan(self, window: Window) -> Plan:
        """Return what a backfill would do with the window; writes nothing."""
        state = self._reader.read(window)
        listed, sighted = self._lister.list(window), self.sightings.read(window)
        return self._plan(listed, state, sighted, Purpose.BACKFILL, None, is_first_close=True)

    def _plan(
        self,
        listed: WindowListing,
        state: WindowState,
        sighted: Sighted,
        purpose: Purpose,
        age: datetime | None,
        *,
        is_first_close: bool,
    ) -> Plan:
        missing = self.records.missing(listed, state, sighted.ids)
        latest, unreadable = self.records.latest(listed, missing, state)
        for_age, refreshed = self._refreshed.get(listed.window, (None, frozenset[str]()))
        # Backoff does not apply to a backfill or a first close: a window is closed on fresh
        # knowledge.
        rests = purpose is not Purpose.BACKFILL and not is_first_close
        return make_plan(
            listed,
            missing,
            latest,
            unreadable,
            pending=state.pending,
            purpose=purpose,
            age=age,
            refreshed=refreshed if for_age == age else frozenset(),
            waiting=self.backoff.waiting if rests else lambda call_id: None,
        )

    def _archive_call(
        self, window: Window, settled: bool, listed_at: datetime, task: Task
    ) -> tuple[LatestRecord | FailedTry, int | None]:
        """Archive or refresh one call. Returns its latest record, and the bytes that a new record
        added, None if there is no new record.

        An exception that one call's data provokes (a bug of ours) leaves only that call pending.
        """
        call, previous = task.call, task.previous.record() if task.previous else None
        result: Record | FailedTry
        try:
            result = self._calls.archive(
                call,
                window,
                settled=settled,
                listed_at=listed_at,
                previous=previous,
                was_pending=task.was_pending,
                taken=task.taken,
            )
        except ArchiverError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error(
                "call.internal_error",
                call_id=call.id,
                error=type(error).__name__,
                place=f"{place.name}, line {place.lineno} of {Path(place.filename).name}",
            )
            result = FailedTry(call, "internal_error", 1, None)
            self.backoff.failed(result)
        if isinstance(result, FailedTry):
            self._progress.call_done("pending", 0)
            if result.amended is not None:
                self._record_index.add(result.amended.key)
            return result, None
        if result is previous and task.previous is not None:
            self._progress.call_done(result.outcome, 0)
            return task.previous, None
        self._record_index.add(result.key)
        known = {file["key"] for file in previous.files} if previous else set()
        new = {file["kind"]: file["bytes"] for file in result.files if file["key"] not in known}
        self._progress.call_done(result.outcome, new.get("recording", 0))
        return LatestRecord.of(result), sum(new.values())

    # --- for the loop and backfills

    def is_about_one_window(self, window: Window, error: ArchiverError) -> bool:
        """Whether an error, raised while processing a window, concerns that window alone."""
        if isinstance(error, StoreError):
            return not self._calls.store_health.is_outage(str(window), error)
        return error.reach in (Reach.ITEM, Reach.WINDOW)

    def forget_listings(self) -> None:
        """List anew from now on, also the windows of a day that was listed before."""
        self._lister.forget()

    def newest_lines(self, names: Iterable[SegmentName]) -> list[WindowLine]:
        """The window lines of these segments. One that cannot be read is skipped, with an error in
        the log."""
        lines = self._workers.map(self._reader.read_line, names)
        return [line for line in lines if line is not None]

    def newest_age(self, window: Window) -> datetime | None:
        """When the window reached the newest of its ages; None if it has reached none."""
        now = self._clock.now()
        return max(
            (window.end + age for age in self._ages if window.end + age <= now), default=None
        )

    def may_close(self, *, remind: bool = False) -> bool:
        """Whether our clock is right, so that windows may be closed and sealed now. Each change is
        logged; with `remind` a clock that is still wrong is logged again."""
        return self._clock_check is None or self._clock_check.is_right(remind=remind)

    @property
    def with_unnamed_calls(self) -> set[Window]:
        """The windows with calls or refreshed records that this process knows and no segment names
        yet. If such a window is sealed, another writer closed it, or it was listed without these
        calls."""
        return (
            self.records.windows_with_orphans
            | {window for window, (_, calls) in list(self._refreshed.items()) if calls}
            | self.sightings.unaccounted
        )

    def _has_settled(self, window: Window, purpose: Purpose) -> bool:
        return purpose is not Purpose.OPEN and self._clock.now() >= window.end + self._settle

    def _has_work(self, window: Window, state: WindowState) -> bool:
        """Whether a closed window has calls without a record, or with a record that none of its
        segments names."""
        if state.pending or window in self.records.windows_with_orphans:
            return True
        sighted = self.sightings.read(window)
        if sighted.ids - state.records.keys():
            return True
        self.sightings.closed(window, sighted, pending=False)
        return False


def _unnamed(plan: Plan, state: WindowState) -> dict[str, LatestRecord]:
    """The latest records that no segment of the window names, by call id."""
    named = {call_id: one.key for call_id, one in state.records.items()}
    return {i: one for i, one in plan.latest.items() if named.get(i) != one.key}
