"""One window: list → archive its calls → close it into a segment.

What a window still needs is derived from the bucket each time: the segments that stand there tell
what was told, the records what was done. So the first try, a second writer and the one after a
crash all run this same code. Sealing is the caller's, in the order of the windows.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from archiver.clock import Clock, Interrupted
from archiver.errors import ArchiverError, Reach, StoreError
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.model import Call, Retention, Window
from archiver.pipeline.attempts import UNSAID, Attempts, Unarchived
from archiver.pipeline.clock_check import ClockCheck
from archiver.pipeline.closing import Closing, Tally
from archiver.pipeline.download import random_tag
from archiver.pipeline.history import History, HistoryReader, Line, Standing, Unsealed
from archiver.pipeline.holding import Holding
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.keeping import Keeper
from archiver.pipeline.planning import BACKFILL, NEVER, ROUND, Aim, Memory, Plan, Planner, Task
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import NoProgress, Progress, Store
from archiver.pipeline.sightings import Sighted, Sightings
from archiver.pipeline.transfer import Transfer
from archiver.source.listing import Listed, Lister

log = structlog.get_logger()

RIVAL_ROUNDS = 5
"""How often another writer may be faster at the same window before that is an error."""


@dataclass
class Outcome:
    """How a window stands after `process`. `segments` are durable and wait for their seal."""

    window: Window
    segments: list[Unsealed] = field(default_factory=list)
    committed: dict[str, int] = field(default_factory=dict)
    """Records of this very run, by outcome."""
    bytes: int = 0
    """What these brought with them."""
    failed: int = 0
    """Calls that this run tried and that stand as failed."""
    incomplete: int = 0
    """Calls that this run worked at and that are archived without their transcript or survey."""
    unreadable: int = 0
    """Entries of the listing that could not be told as calls."""
    unarchived: list[Unarchived] = field(default_factory=list)
    """Calls without a record."""
    settled: bool = False
    """Whether the window had settled when it was listed: else it is rightly open yet."""
    clock_wrong: bool = False
    """Whether it stays open because our clock is wrong, whether or not it has settled."""
    closed: bool = False
    """Whether every call of the window stands in a segment, sealed or about to be."""
    listed_at: datetime | None = None
    """When the newest revision was listed, as far as this run knows."""
    tallied: bool = False
    """Whether the window was listed and its calls worked at: else nothing is known of them."""
    postponed: bool = False
    """Whether a window that has come of age waits for the source to answer."""
    unlooked: bool = False
    """Whether it was closed for the first time, past an age, with calls that had been archived
    before: it is to be listed again, because they may have changed since."""
    error: ArchiverError | None = None
    """What went wrong with this window alone: it stays as it is, and the others go on."""


class Windows:
    """Processes windows. Threads share it, each at a window of its own."""

    def __init__(
        self,
        lister: Lister,
        transfer: Transfer,
        store: Store,
        workers: Workers,
        clock: Clock,
        *,
        segments: SegmentIndex,
        retention: Retention,
        settle: timedelta,
        relist: tuple[timedelta, ...] = (),
        progress: Progress | None = None,
        clock_check: ClockCheck | None = None,
        tag: Callable[[], str] = random_tag,
    ) -> None:
        """`relist` are the ages, counted from a window's end, at which it is listed again. Without
        a `clock_check` our clock is believed. `tag` makes 16 hex digits that no other writer has.
        """
        self._lister = lister
        self._transfer = transfer
        self._store = store
        self._workers = workers
        self._clock = clock
        self._clock_check = clock_check
        self._segments = segments
        self.reader = HistoryReader(store, segments, retention)
        self.held = transfer.held
        self.keeper = Keeper(store, segments, workers, retention, clock, self.held)
        self._holding = Holding(store, self.held, workers)
        self._closing = Closing(store, segments, self.reader, self.keeper)
        self._settle = settle
        self._ages = sorted(relist)
        self._progress = progress or NoProgress()
        self.sightings = Sightings(store, workers, clock, tag)
        self.planner = Planner(lister, store, workers, transfer.attempts, segments, self.sightings)
        self._memories: dict[Window, Memory] = {}

    def process(self, window: Window, aim: Aim = ROUND) -> Outcome:
        """Archive what the window lacks and, once it has settled, close it.

        Writes revision 1, or a later one where something changed since or `aim` says so.
        What goes wrong with this window alone (its listing, an object that it needs) leaves it
        open, with an error in the log and in the outcome.
        Raises `SourceRefused`, `SourceError` and `StoreError` where they reach beyond the window,
        `UsageError` and `Interrupted`.
        """
        outcome = Outcome(window)
        try:
            return self._process(outcome, aim)
        except ArchiverError as error:
            if not self.is_about_one_window(window, error):
                raise
            outcome.error, outcome.closed = error, False
            outcome.settled = aim.closes and self._clock.now() >= window.end + self._settle
            log.error("window.failed", window=str(window), error=str(error))
            return outcome
        finally:
            self.planner.tidy(window, self._memories)

    def is_about_one_window(self, window: Window, error: ArchiverError) -> bool:
        """Whether the harm of an error, met while working at a window, ends there."""
        if isinstance(error, StoreError):
            return not self._transfer.store_health.is_outage(str(window), error)
        return error.reach in (Reach.ITEM, Reach.WINDOW)

    def _process(self, outcome: Outcome, aim: Aim) -> Outcome:
        window = outcome.window
        for _ in range(RIVAL_ROUNDS):
            if self._try(outcome, aim):
                return outcome
            log.info("window.rival", window=str(window))
            self._segments.forget()
        raise StoreError(
            f"other writers keep changing the window {window}",
            reason="conflict",
            reach=Reach.WINDOW,
        )

    def plan(self, window: Window) -> Plan:
        """What a backfill would do; writes nothing."""
        history = self.reader.read(window, complete=False)
        listed, sighted = self._lister.list(window), self.sightings.read(window)
        return self.planner.plan(listed, history, {}, sighted, BACKFILL, None, closing=True)

    def newest_lines(self, names: Iterable[SegmentName]) -> list[Line]:
        """The window lines of these segments; one that cannot be read is left out, with an error in
        the log."""
        lines = self._workers.map(self.reader.newest_line, names)
        return [line for line in lines if line is not None]

    def newest_age(self, window: Window) -> datetime | None:
        """When the window came to the newest of its ages; None while it is too young."""
        now = self._clock.now()
        passed = [window.end + age for age in self._ages if window.end + age <= now]
        return passed[-1] if passed else None

    def may_close(self, *, remind: bool = False) -> bool:
        """Whether our clock is right, so that windows may be closed and sealed now. The log tells
        where that changes, and with `remind` again of a clock that is wrong."""
        return self._clock_check is None or self._clock_check.is_right(remind=remind)

    @property
    def attempts(self) -> Attempts:
        return self._transfer.attempts

    @property
    def remembered(self) -> set[Window]:
        """The windows of which this process knows something that it has not told of, and may do so
        now: where such a window is sealed, another writer closed it, or listed it without them."""
        known = list(self._memories.items())
        untold = {w for w, memory in known if memory.untold or memory.refreshed[1]}
        return untold | self.sightings.unaccounted

    def _try(self, outcome: Outcome, aim: Aim) -> bool:
        """One attempt; False where another writer closed the window meanwhile."""
        window = outcome.window
        history = self.reader.read(window)
        outcome.segments, outcome.listed_at = history.unsealed, history.listed_at
        # Judged before the listing: what settles or comes of age while we list was not then.
        settled = aim.closes and self._clock.now() >= window.end + self._settle
        outcome.clock_wrong = aim.closes and not self.may_close()
        outcome.settled = settled and not outcome.clock_wrong
        if outcome.clock_wrong:
            outcome.segments = []  # what a crash left unsealed waits for a clock that is right
        due = self._due(window, history, aim)
        memory = self._memories.setdefault(window, Memory())
        if history.revision and not (aim.backfill or due or self._has_work(window, history)):
            outcome.closed = not outcome.clock_wrong
            memory.refreshed = NEVER  # another writer saw to that age
            return True
        seen: dict[str, Call] = {}
        beside: dict[str, Call] = {}
        began = self._clock.now()
        try:
            listed = self._lister.list(window, seen, beside)
        except Interrupted:
            raise
        except Exception:
            # Were the source to hide them now, nobody else would know that they were listed.
            self.planner.note_cut_short(
                window, seen.values(), beside.values(), began, history.records
            )
            raise
        outcome.error, outcome.unreadable = listed.error, listed.listing.unreadable
        sighted = self.planner.note(listed, history, afresh=outcome.settled)
        tally, unsure = self._work(listed, outcome, history, sighted, aim, due)
        if outcome.settled:
            self._holding.see_to(window, tally.standing, history.records)
        if not outcome.settled or not listed.stable:
            return True
        outcome.closed = True
        if history.revision and unsure and due is not None and aim.patient:
            outcome.postponed = True
            return True
        written = self._closing.close(tally, history, evidence=due is not None and not aim.backfill)
        if isinstance(written, Unsealed):
            self._transfer.store_health.succeeded()
            outcome.segments.append(written)
            outcome.listed_at = tally.listing.listed_at
        if written is not Closing.TAKEN:
            self.planner.told(window, {*tally.standing, *tally.pending}, self._memories)
            self.sightings.closed(window, sighted, pending=bool(tally.pending))
        return written is not Closing.TAKEN

    def _due(self, window: Window, history: History, aim: Aim) -> datetime | None:
        """The age that no listing of a sealed window has seen."""
        age = self.newest_age(window)
        seen = history.listed_at is not None and age is not None and history.listed_at >= age
        return age if history.revision and (aim.look or not seen) else None

    def _work(
        self,
        listed: Listed,
        outcome: Outcome,
        history: History,
        sighted: Sighted,
        aim: Aim,
        due: datetime | None,
    ) -> tuple[Tally, bool]:
        """Work at a window's calls: how they stand then, and whether the source did not answer for
        an archived one."""
        window, memory = outcome.window, self._memories[outcome.window]
        self.planner.sort_out(listed, self._memories, aim)
        closing = outcome.settled and not history.revision
        plan = self.planner.plan(listed, history, self._memories, sighted, aim, due, closing)
        self._progress.window_listed(window, len(plan.todo))
        before = any(found.outcome == "archived" for found in plan.standing.values())
        outcome.unlooked = before and not history.revision and bool(self.newest_age(window))
        failures = [*plan.resting, *self._archive(plan, outcome)]
        outcome.unarchived = [item for item in failures if item.call.id not in plan.standing]
        unsure = {
            item.call.id
            for item in failures
            if item.call.id in plan.standing and item.reason in UNSAID
        }
        self._remember(plan, history, memory)
        memory.refreshed = (due, frozenset(listed.calls) - unsure if unsure else frozenset())
        outcome.tallied = True
        pending = {item.call.id for item in outcome.unarchived}
        tally = Tally(window, listed.listing, set(listed.calls), plan.standing, pending)
        return tally, bool(unsure)

    def _remember(self, plan: Plan, history: History, memory: Memory) -> None:
        """What no segment tells is kept until one does: the window may not be closed now."""
        for call_id, found in plan.standing.items():
            told = history.records.get(call_id)
            if told is None or told.key != found.key:
                memory.untold[call_id] = found

    def _has_work(self, window: Window, history: History) -> bool:
        """Whether a window that has a segment has calls without a record, or some that no segment
        of it tells of."""
        if history.pending or self._memories[window].untold:
            return True
        sighted = self.sightings.read(window)
        if sighted.ids - history.records.keys():
            return True
        self.sightings.closed(window, sighted, pending=False)
        return False

    # --- archiving

    def _archive(self, plan: Plan, outcome: Outcome) -> list[Unarchived]:
        """Work at the calls of the plan; `plan.standing` then has their newest records."""
        listed_at = plan.listed.listing.listed_at
        work = partial(self._work_at, outcome.window, outcome.settled, listed_at)
        failures = []
        results = self._workers.map(work, plan.todo)
        for task, (result, written) in zip(plan.todo, results, strict=True):
            if isinstance(result, Unarchived):
                failures.append(result)
                if result.amended is not None:
                    plan.standing[task.call.id] = Standing.of(result.amended)
                continue
            plan.standing[task.call.id] = result
            outcome.failed += result.outcome == "failed"
            outcome.incomplete += result.incomplete
            if written is not None:
                outcome.committed[result.outcome] = outcome.committed.get(result.outcome, 0) + 1
                outcome.bytes += written
        return failures

    def _work_at(
        self, window: Window, settled: bool, listed_at: datetime, task: Task
    ) -> tuple[Standing | Unarchived, int | None]:
        """One call; what stands of it then, and the bytes that a new record brought.

        A mistake of ours that one call's data brings out leaves that call pending.
        """
        call, previous = task.call, task.previous.record() if task.previous else None
        result: Record | Unarchived
        try:
            if previous is not None and previous.outcome == "archived":
                result = self._transfer.refresh(call, window, previous, listed_at)
            else:
                result = self._transfer.archive(
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
            result = Unarchived(call, "internal_error", 1, None)
            self.attempts.failed(result)
        if isinstance(result, Unarchived):
            self._progress.call_done("pending", 0)
            if result.amended is not None:
                self.planner.records.add(result.amended.key)
            return result, None
        if result is previous and task.previous is not None:
            self._progress.call_done(result.outcome, 0)
            return task.previous, None
        self.planner.records.add(result.key)
        sizes = _new_sizes(result, previous)
        self._progress.call_done(result.outcome, sizes.get("recording", 0))
        return Standing.of(result), sum(sizes.values())


def _new_sizes(found: Record, previous: Record | None) -> dict[str, int]:
    """The bytes of the files that a record brought, by kind; not those of the record before."""
    known = {file["key"] for file in previous.document["files"]} if previous else set()
    files = found.document["files"]
    return {file["kind"]: file["bytes"] for file in files if file["key"] not in known}
