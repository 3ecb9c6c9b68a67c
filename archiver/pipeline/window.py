"""One window: list → archive its calls → close it into a segment.

What a window still needs is derived from the bucket each time: the segments that stand there tell
what was told, the records what was done. So the first try, a second writer and the one after a
crash all run this same code. Sealing is the caller's, in the order of the windows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import structlog

from archiver.clock import Clock
from archiver.errors import FormatError, SourceError, StoreError
from archiver.manifest import layout, record
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.manifest.segment import Segment
from archiver.model import Call, Retention, Window
from archiver.pipeline.attempts import Attempts, Unarchived
from archiver.pipeline.closing import Closing, Tally, is_due
from archiver.pipeline.history import History, HistoryReader, Standing, Unsealed
from archiver.pipeline.index import RecordIndex, SegmentIndex
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import NoProgress, Progress, Store
from archiver.pipeline.recall import Recall
from archiver.pipeline.transfer import Transfer
from archiver.source.listing import Listed, Lister

log = structlog.get_logger()

RIVAL_ROUNDS = 5
"""How often another writer may be faster at the same window before that is an error."""


@dataclass(frozen=True)
class Aim:
    """What to do beyond archiving the calls that have no record.

    `retry`: calls whose record says that there is no recording are tried again. `due`: the window
    is listed again because it has come of age: archived calls are looked at again too, and the
    revision is written, be it empty, unless one was listed since.
    """

    retry: bool = False
    due: datetime | None = None


ROUND, BACKFILL = Aim(), Aim(retry=True)


@dataclass(frozen=True)
class Task:
    """A call to be worked at. `previous` is its record, where it has one."""

    call: Call
    previous: Standing | None = None


@dataclass
class Plan:
    """What a window's calls need: `standing` have a record, `todo` are to be worked at, `resting`
    failed a short while ago."""

    listed: Listed
    standing: dict[str, Standing] = field(default_factory=dict)
    todo: list[Task] = field(default_factory=list)
    resting: list[Unarchived] = field(default_factory=list)


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
    unarchived: list[Unarchived] = field(default_factory=list)
    """Calls without a record."""
    settled: bool = False
    """Whether the window had settled when it was listed: else it is rightly open yet."""
    closed: bool = False
    """Whether every call of the window stands in a segment, sealed or about to be."""
    listed_at: datetime | None = None
    """When the newest revision was listed, as far as this run knows."""
    postponed: bool = False
    """Whether a window that is due to be listed again waits for the source to answer."""


@dataclass
class _Open:
    """What this process remembers of a window until it is closed."""

    awaited: dict[str, Call] = field(default_factory=dict)
    """Listed at some time, and without a record."""
    standing: dict[str, Standing] = field(default_factory=dict)
    """Listed at some time, with its record."""
    recalled: bool = False
    """Whether what an earlier process had archived is among these."""


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
        give_up: timedelta,
        progress: Progress | None = None,
    ) -> None:
        self._lister = lister
        self._transfer = transfer
        self._store = store
        self._workers = workers
        self._clock = clock
        self._records = RecordIndex(store)
        self._segments = segments
        self.reader = HistoryReader(store, segments, retention)
        self._closing = Closing(store, segments, self.reader, retention)
        self._settle = settle
        self._give_up = give_up
        self._progress = progress or NoProgress()
        self._recall = Recall(store, self._records, segments, workers, self._read_record)
        self._open: dict[Window, _Open] = {}

    def process(self, window: Window, aim: Aim = ROUND) -> Outcome:
        """Archive what the window lacks and, once it has settled, close it.

        Writes revision 1, or a later one where something changed since or `aim` says so.
        A listing that is malformed leaves the window open, with an error in the log.
        Raises `SourceRefused`, `SourceError` (unreachable), `StoreError` and `Interrupted`.
        """
        outcome = Outcome(window)
        for _ in range(RIVAL_ROUNDS):
            try:
                if self._try(outcome, aim):
                    return outcome
            except SourceError as error:
                if error.reason != "bad_document":
                    raise
                # One listing that cannot be read must not keep the other windows from sealing.
                log.error("window.unreadable", window=str(window), error=str(error))
                return outcome
            log.info("window.rival", window=str(window))
            self._segments.forget()
        raise StoreError(f"other writers keep changing the window {window}", reason="conflict")

    def plan(self, window: Window, aim: Aim = BACKFILL) -> Plan:
        """What `process` would do; writes nothing."""
        history = self.reader.read(window, complete=False)
        return self._plan(self._lister.list(window), history, aim, closing=True)

    def newest_lines(self, names: Iterable[SegmentName]) -> list[Segment]:
        """The segments of these names, without their records."""
        return self._workers.map(self.reader.newest_line, names)

    @property
    def attempts(self) -> Attempts:
        return self._transfer.attempts

    @property
    def remembered(self) -> set[Window]:
        """The windows of which this process knows calls that it has not told of: where such a
        window is sealed, another writer closed it, or listed it without them."""
        known = list(self._open.items())
        return {window for window, memory in known if memory.awaited or memory.standing}

    def _try(self, outcome: Outcome, aim: Aim) -> bool:
        """One attempt; False where another writer closed the window meanwhile."""
        window = outcome.window
        history = self.reader.read(window)
        outcome.segments, outcome.listed_at = history.unsealed, history.listed_at
        # Judged before the listing: what settles while we list was not listed settled.
        outcome.settled = self._clock.now() >= window.end + self._settle
        if aim.due is not None and not is_due(history, aim.due):
            outcome.closed = True
            return True  # another writer has listed it since
        if not history.revision and not aim.retry:
            self._recall_records(window)
        tally, stable, unsure = self._work(outcome, history, aim)
        if not outcome.settled or not stable:
            return True
        outcome.closed = True
        if history.revision and unsure and self._may_wait(aim):
            outcome.postponed = True
            return True
        ours, written = self._closing.close(tally, history, aim.due)
        if written is not None:
            outcome.segments.append(written)
            outcome.listed_at = tally.listing.listed_at
        self._open.pop(window, None)
        return ours

    def _may_wait(self, aim: Aim) -> bool:
        return aim.due is not None and self._clock.now() < aim.due + self._give_up

    def _work(self, outcome: Outcome, history: History, aim: Aim) -> tuple[Tally, bool, bool]:
        """List the window and work at its calls: how they stand then, whether the listing can be
        relied on, and whether the source was out when an archived call was looked at again."""
        window = outcome.window
        listed = self._lister.list(window)
        self._remember_strays(listed)
        closing = outcome.settled and not history.revision
        plan = self._plan(listed, history, aim, closing)
        self._progress.window_listed(window, len(plan.todo))
        failures = [*plan.resting, *self._archive(plan, outcome)]
        outcome.unarchived = [item for item in failures if item.call.id not in plan.standing]
        unsure = any(
            item.call.id in plan.standing and item.reason == "source_unavailable"
            for item in failures
        )
        if not history.revision or not listed.stable:
            memory = self._open.setdefault(window, _Open())
            memory.standing = plan.standing
            memory.awaited = {item.call.id: item.call for item in outcome.unarchived}
        pending = {item.call.id for item in outcome.unarchived}
        tally = Tally(window, listed.listing, set(listed.calls), plan.standing, pending)
        return tally, listed.stable, unsure

    # --- what is there

    def _plan(self, listed: Listed, history: History, aim: Aim, closing: bool) -> Plan:
        """Sort the calls that are listed, and those that were and have no record yet."""
        plan = Plan(listed)
        awaited = self._awaited(listed, history)
        plan.standing = self._standing([*listed.calls.values(), *awaited.values()], listed, history)
        for call in awaited.values():
            if call.id not in plan.standing:
                self._add(plan, Task(call), rest=not (closing or aim.retry))
        for call in listed.calls.values():
            found = plan.standing.get(call.id)
            if found is None or self._is_wanted(found, aim):
                self._add(plan, Task(call, found), rest=not (closing or aim.retry))
        return plan

    def _is_wanted(self, found: Standing, aim: Aim) -> bool:
        """Whether a call that has a record is to be worked at again."""
        again = aim.retry or aim.due is not None
        return aim.due is not None if found.outcome == "archived" else again

    def _add(self, plan: Plan, task: Task, rest: bool) -> None:
        """In the loop, what failed a short while ago rests; but a window is closed on fresh
        knowledge."""
        resting = self._transfer.attempts.resting(task.call.id) if rest else None
        if resting is None:
            plan.todo.append(task)
        else:
            plan.resting.append(resting)

    def _awaited(self, listed: Listed, history: History) -> dict[str, Call]:
        """The calls that were listed before, are not listed now, and had no record then: by what
        the manifest calls pending, by what this process saw, by another pass of this listing."""
        memory = self._open.get(listed.window, _Open())
        known = {call_id: Call(call_id, {}) for call_id in history.pending}
        known = {**known, **memory.awaited, **listed.glimpsed}
        return {call_id: call for call_id, call in known.items() if call_id not in listed.calls}

    def _standing(
        self, calls: Iterable[Call], listed: Listed, history: History
    ) -> dict[str, Standing]:
        """The newest record of each call, as segments, this process or the bucket know it."""
        memory = self._open.get(listed.window, _Open())
        standing = dict(memory.standing)
        keys = {}
        for call in calls:
            found = _newest(standing.get(call.id), history.records.get(call.id))
            day = (call.own_time or listed.window.start).date()
            revision = self._records.revision(day, call.id)
            if revision > (found.revision if found else 0):
                keys[call.id] = layout.record_key(day, call.id, revision)
            elif found is not None:
                standing[call.id] = found
        read = self._workers.map(self._read_record, keys.values())
        return {**standing, **dict(zip(keys, read, strict=True))}

    def _recall_records(self, window: Window) -> None:
        """What another process had archived of a window that it never closed."""
        memory = self._open.setdefault(window, _Open())
        if not memory.recalled:
            memory.recalled = True
            memory.standing = {**self._recall.take(window), **memory.standing}

    def _read_record(self, key: str) -> Standing:
        data = self._store.read(key)
        try:
            return Standing.of(record.parse(data or b""))
        except FormatError as error:
            raise StoreError(f"{key} is damaged ({error}): run archiver verify") from None

    def _remember_strays(self, listed: Listed) -> None:
        """Calls that the source lists in another window too, the one of their own time: that
        window waits for those without a record, should it not list them any more."""
        for home, calls in listed.strays.items():
            missing = {
                call.id: call
                for call in calls.values()
                if not self._records.revision((call.own_time or home.start).date(), call.id)
            }
            if missing:
                memory = self._open.setdefault(home, _Open())
                memory.awaited = {**missing, **memory.awaited}

    # --- archiving

    def _archive(self, plan: Plan, outcome: Outcome) -> list[Unarchived]:
        """Work at the calls of the plan; `plan.standing` then has their newest records."""
        work = partial(self._work_at, outcome.window, outcome.settled)
        failures = []
        results = self._workers.map(work, plan.todo)
        for task, (result, written) in zip(plan.todo, results, strict=True):
            if isinstance(result, Unarchived):
                failures.append(result)
                continue
            plan.standing[task.call.id] = result
            outcome.failed += result.outcome == "failed"
            if written is not None:
                outcome.committed[result.outcome] = outcome.committed.get(result.outcome, 0) + 1
                outcome.bytes += written
        return failures

    def _work_at(
        self, window: Window, settled: bool, task: Task
    ) -> tuple[Standing | Unarchived, int | None]:
        """One call; what stands of it then, and the bytes that a new record brought."""
        call, previous = task.call, task.previous.record() if task.previous else None
        result: Record | Unarchived
        if previous is not None and previous.outcome == "archived":
            result = self._transfer.refresh(call, window, previous)
        else:
            result = self._transfer.archive(call, window, settled=settled, previous=previous)
        if isinstance(result, Unarchived):
            self._progress.call_done("pending", 0)
            return result, None
        if result is previous:
            self._progress.call_done(result.outcome, 0)
            return Standing.of(result), None
        self._records.add(result.key)
        sizes = _new_sizes(result, previous)
        self._progress.call_done(result.outcome, sizes.get("recording", 0))
        return Standing.of(result), sum(sizes.values())


def _newest(one: Standing | None, other: Standing | None) -> Standing | None:
    found = [standing for standing in (one, other) if standing is not None]
    return max(found, key=lambda standing: standing.revision, default=None)


def _new_sizes(found: Record, previous: Record | None) -> dict[str, int]:
    """The bytes of the files that a record brought, by kind; not those of the record before."""
    known = {file["key"] for file in previous.document["files"]} if previous else set()
    files = found.document["files"]
    return {file["kind"]: file["bytes"] for file in files if file["key"] not in known}
