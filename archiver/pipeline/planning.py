"""What is to be done about a window's calls: what stands of each, and which are to be worked at.

Beside its listing, a window has calls that were listed before and have no record (`sightings.py`);
those that another window's listing showed; and those that another process archived and never told
of.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

import structlog

from archiver.clock import Interrupted
from archiver.errors import FormatError, NewerFormat, Reach, StoreError
from archiver.manifest import layout, record
from archiver.manifest.layout import SegmentName
from archiver.model import Call, Window, placing_time, window_of
from archiver.pipeline.attempts import Attempts, Unarchived
from archiver.pipeline.history import History, Standing
from archiver.pipeline.index import RecordIndex, SegmentIndex
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.pipeline.recall import NEAR, Recall
from archiver.pipeline.sightings import Sighted, Sightings
from archiver.source.listing import Listed, Lister

log = structlog.get_logger()

Revision = Callable[[date, str], int]
"""The newest revision of a call's record below a day, 0 where there is none."""


@dataclass(frozen=True)
class Aim:
    """Who asks. A window that has come of age since it was listed last has its archived calls
    looked at again, and those whose record says that there is no recording tried again; a round of
    the loop then writes its revision, be it empty.

    `backfill`: those without a recording, or without a document that could not be had, are tried
    again in any case, and a revision is written only where something changed. `patient`: where the
    source is out, an aged window may wait.
    `look`: an age counts as unseen, though the window was listed since. `closes`: a window that has
    settled is closed, for which whoever asks then has to have it sealed.
    """

    backfill: bool = False
    patient: bool = True
    look: bool = False
    closes: bool = True


ROUND, OPEN, BACKFILL = Aim(), Aim(closes=False), Aim(backfill=True)


@dataclass(frozen=True)
class Task:
    """A call to be worked at. `previous` is its record, where it has one."""

    call: Call
    previous: Standing | None = None
    was_pending: bool = False
    """Whether a segment calls it pending: another try was made before."""
    taken: int = 0
    """The highest revision whose key is taken by bytes that are no record: the next one is free."""


@dataclass
class Plan:
    """What a window's calls need: `standing` have a record, `todo` are to be worked at, `resting`
    failed a short while ago."""

    listed: Listed
    standing: dict[str, Standing] = field(default_factory=dict)
    todo: list[Task] = field(default_factory=list)
    resting: list[Unarchived] = field(default_factory=list)

    @property
    def lacking(self) -> int:
        """Calls that have no record yet, or one that says failed."""
        found = [task.previous for task in self.todo]
        return sum(1 for one in found if one is None or one.outcome == "failed")


@dataclass(frozen=True)
class Unreadable:
    """What lies under the key of a call's newest record, and is none that can be used here.

    `foreign`: it is no record at all, so that the call is archived under the next revision. Else it
    may be one (a newer release wrote it, or the store refuses to give it out): the call is left to
    who can read it.
    """

    revision: int
    foreign: bool


NEVER: tuple[datetime | None, frozenset[str]] = (None, frozenset())


@dataclass
class Memory:
    """What this process knows of a window and no segment tells."""

    untold: dict[str, Standing] = field(default_factory=dict)
    """Listed at some time, with a record that no segment has."""
    recalled: bool = False
    """Whether what an earlier process had archived is among these."""
    refreshed: tuple[datetime | None, frozenset[str]] = NEVER
    """An age, and the archived calls that were looked at again for it."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost with it."""
        return not (self.untold or self.refreshed[1])


class Planner:
    """Sorts the calls of windows. Threads share it, each at a window of its own."""

    def __init__(
        self,
        lister: Lister,
        store: Store,
        workers: Workers,
        attempts: Attempts,
        segments: SegmentIndex,
        sightings: Sightings,
    ) -> None:
        self._lister = lister
        self._sightings = sightings
        self._store = store
        self._workers = workers
        self._attempts = attempts
        self.records = RecordIndex(store)
        self._lock = threading.Lock()
        self._unreadable: set[str] = set()
        """Keys of records that the log has named as unreadable."""
        self._recall = Recall(store, self.records, segments, workers, self._read_record)
        self.begins: datetime | None = None
        """Calls of windows before this are nobody's business here; None: of all windows beside the
        one that is listed."""

    def plan(
        self,
        listed: Listed,
        history: History,
        memories: Mapping[Window, Memory],
        sighted: Sighted,
        aim: Aim,
        due: datetime | None,
        closing: bool,
    ) -> Plan:
        """Sort the calls that are listed, and those that were and have no record yet. `due` is an
        age to look at archived calls for; `closing` says that the window is about to be closed for
        the first time."""
        plan = Plan(listed)
        memory = memories.get(listed.window) or Memory()
        awaited = self._awaited(listed, history, memories, sighted.ids)
        plan.standing, unreadable = self._standing(listed, awaited, history, memory)
        # A window is closed on fresh knowledge; else what failed a short while ago rests.
        fresh = aim.backfill or closing
        done = memory.refreshed[1] if memory.refreshed[0] == due else frozenset()
        done |= awaited.keys()  # they are worked at for want of a record, and for nothing else
        for call in [*awaited.values(), *listed.calls.values()]:
            found, bad = plan.standing.get(call.id), unreadable.get(call.id)
            if bad is not None and not bad.foreign:
                if found is None:
                    plan.resting.append(Unarchived(call, "record_unreadable", 1, None))
                continue
            if found is None or (call.id not in done and _is_wanted(found, aim, due)):
                taken = bad.revision if bad is not None else 0
                task = Task(call, found, call.id in history.pending, taken)
                self._add(plan, task, rest=not fresh)
        return plan

    def _awaited(
        self,
        listed: Listed,
        history: History,
        memories: Mapping[Window, Memory],
        sighted: frozenset[str],
    ) -> dict[str, Call]:
        """The calls that were listed before and are not listed now, and that no segment of this
        window has a record of: by what the manifest calls pending, by what was written down, by
        another pass of this listing. Two windows may know of the same call. It is left to the other
        one where this listing shows that the call is listed there, where this process will tell of
        its record there, or where a segment there has it; else both answer for it."""
        window, known = listed.window, {*listed.calls, *history.records, *listed.glimpsed}
        loose = sighted - known - history.pending
        loose -= {call_id for calls in listed.strays.values() for call_id in calls}
        with self._lock:
            untold = {i for memory in memories.values() for i in memory.untold.keys() & loose}
        loose -= untold
        revision = self._revisions(window)
        places = {call_id: _place(revision, call_id, _days_near(window)) for call_id in loose}
        recorded = {(day, layout.call_dir(i)) for i, (day, number) in places.items() if number}
        told = self._recall.told_among(recorded, window) if recorded else set()
        ids = {i for i in loose if (places[i][0], layout.call_dir(i)) not in told}
        awaited = {call_id: Call(call_id, {}) for call_id in sorted(ids | history.pending)}
        awaited = {**awaited, **listed.glimpsed}
        return {call_id: call for call_id, call in awaited.items() if call_id not in listed.calls}

    def _revisions(self, window: Window) -> Revision:
        """As `RecordIndex.revision`, for one look at a window. Another day than the window's own
        that the store does not list is taken for empty: harm done there is not this window's, and
        not to know of a record costs work done twice, for records are created once."""
        unlistable = set[date]()

        def revision(day: date, call_id: str) -> int:
            if day in unlistable:
                return 0
            try:
                return self.records.revision(day, call_id)
            except StoreError as error:
                if day == window.start.date() or error.reach is not Reach.ITEM:
                    raise
                unlistable.add(day)
                log.error("day.unlistable", day=day.isoformat(), error=str(error))
                return 0

        return revision

    def _add(self, plan: Plan, task: Task, rest: bool) -> None:
        resting = self._attempts.resting(task.call.id) if rest else None
        if resting is None:
            plan.todo.append(task)
        else:
            plan.resting.append(resting)

    def _standing(
        self,
        listed: Listed,
        awaited: Mapping[str, Call],
        history: History,
        memory: Memory,
    ) -> tuple[dict[str, Standing], dict[str, Unreadable]]:
        """The newest record of each call that is listed or awaited, and of any other that no
        segment tells of yet, as segments, this process or the bucket know it; and what lies in the
        place of such a record and cannot be read."""
        for call_id, told in history.records.items():
            if call_id in memory.untold and memory.untold[call_id].revision <= told.revision:
                del memory.untold[call_id]  # another writer told of it, or of a later one
        standing = dict(memory.untold)
        keys: dict[str, str] = {}
        newest_of = self._revisions(listed.window)
        for call_id, days in _days(listed, awaited, history):
            found = _newest(standing.get(call_id), history.records.get(call_id))
            day, revision = _place(newest_of, call_id, days)
            if found is not None and (call_id in listed.calls or call_id in awaited):
                standing[call_id] = found
            if revision > (found.revision if found else 0):
                keys[call_id] = layout.record_key(day, call_id, revision)
        unreadable: dict[str, Unreadable] = {}
        read = self._workers.map(self._read_record, keys.values())
        for call_id, newest in zip(keys, read, strict=True):
            if isinstance(newest, Unreadable):
                unreadable[call_id] = newest
            else:
                standing[call_id] = newest
        return standing, unreadable

    def _read_record(self, key: str) -> Standing | Unreadable:
        """A record; one that cannot be read stops nobody. It is an error in the log, once."""
        try:
            return Standing.of(record.parse(self._store.read(key) or b""))
        except (FormatError, StoreError) as error:
            if error.reach is not Reach.ITEM:
                raise
            if key not in self._unreadable:
                self._unreadable.add(key)
                log.error("record.unreadable", key=key, error=str(error))
            foreign = isinstance(error, FormatError) and not isinstance(error, NewerFormat)
            parsed = layout.parse_record_key(key)
            return Unreadable(parsed[2] if parsed else 1, foreign)

    # --- what other windows' listings and other processes know

    def note(self, listed: Listed, history: History, *, afresh: bool) -> Sighted:
        """Write down what this listing shows and what has no record: the window's own calls, and
        those that are listed in the windows of their own times, for these. From here on a process
        that ends leaves no call that nobody knows of. What was ever written down for the window;
        `afresh` looks for what others wrote. Raises `StoreError`."""
        own = [*listed.calls.values(), *listed.glimpsed.values()]
        strays = {w: calls.values() for w, calls in listed.strays.items() if self._is_ours(w)}
        self._write_down(
            listed.window,
            {listed.window: own, **strays},
            listed.listing.listed_at,
            history.records,
            afresh=afresh,
        )
        return self._sightings.read(listed.window)

    def note_cut_short(
        self,
        window: Window,
        calls: Iterable[Call],
        beside: Iterable[Call],
        listed_at: datetime,
        told: Collection[str] = (),
    ) -> None:
        """As `note`, of a listing that began at `listed_at` and failed on the way. It did not say
        whether the calls of other windows are listed there: so they are this window's, until a
        listing says more. Those `beside` it, which the listings of other windows showed, are for
        the windows of their own times."""
        shown: dict[Window, list[Call]] = {window: []}
        length = window.end - window.start
        for call, is_listed_here in [*((c, True) for c in calls), *((c, False) for c in beside)]:
            home = window_of(placing_time(call, window, listed_at), length)
            if home == window or self._is_ours(home):
                shown.setdefault(window if is_listed_here else home, []).append(call)
        try:
            self._write_down(window, shown, listed_at, told)
        except StoreError as error:
            log.warning("sighting.unwritten", window=str(window), error=str(error))

    def _write_down(
        self,
        at: Window,
        shown: Mapping[Window, Collection[Call]],
        listed_at: datetime,
        told: Collection[str] = (),
        *,
        afresh: bool = False,
    ) -> None:
        """Those of these calls, by window, that have no record; `told` have one, in a segment. `at`
        is the window that is worked at. Where the bucket does not say who has, all of them stay in
        memory. Raises `StoreError`."""
        revision = self._revisions(at)
        missing = {window: [call.id for call in calls] for window, calls in shown.items()}
        try:
            if afresh:
                self._sightings.read(at, afresh=True)
            for window, calls in shown.items():
                missing[window] = [
                    call.id
                    for call in calls
                    if call.id not in told
                    and not revision(placing_time(call, window, listed_at).date(), call.id)
                ]
        finally:
            for window, ids in missing.items():
                self._sightings.hold(window, ids)
        self._sightings.write()

    def is_silent(self, name: SegmentName, pending: Collection[str], keys: Iterable[str]) -> bool:
        """Whether one of these sightings has an id that neither this newest revision of its window
        calls pending nor any revision has a record of. Raises `StoreError`."""
        found = self._sightings.read_objects(keys)
        loose = {call_id for one in found for call_id in one.ids}.difference(pending)
        if not loose:
            return False
        names = [SegmentName(name.start, number) for number in range(1, name.revision + 1)]
        told = {one for keys in self._workers.map(self._recall.told_keys, names) for _, one in keys}
        return any(layout.call_dir(call_id) not in told for call_id in loose)

    def _is_ours(self, window: Window) -> bool:
        return self.begins is None or window.start >= self.begins

    def sort_out(self, listed: Listed, memories: dict[Window, Memory], aim: Aim) -> None:
        """What an earlier process had archived, and no segment tells, is told by the window that
        lists it, or by the one of its start."""
        memory = memories.setdefault(listed.window, Memory())
        if not memory.recalled:
            found = self._recall.take(listed.window, few=aim.backfill)
            try:
                self._hand_on(found, listed, memories)
                memory.recalled = True
            finally:  # they are handed out once
                with self._lock:
                    memory.untold = {**found, **memory.untold}
        with self._lock:
            self._leave_to_others(listed, memories)

    def told(
        self, window: Window, call_ids: Collection[str], memories: dict[Window, Memory]
    ) -> None:
        """A segment tells of these calls now. What another window's listing showed meanwhile it
        does not tell: that stays."""
        with self._lock:
            memory = memories[window]
            for call_id in call_ids:
                memory.untold.pop(call_id, None)
            memory.refreshed = NEVER

    def tidy(self, window: Window, memories: dict[Window, Memory]) -> None:
        """Drop a memory of nothing. By the thread alone that is at the window."""
        with self._lock:
            memory = memories.get(window)
            if memory is not None and memory.is_empty:
                del memories[window]

    def _hand_on(
        self, found: dict[str, Standing], listed: Listed, memories: dict[Window, Memory]
    ) -> None:
        """What is recalled and not listed here may be listed beside, by a source whose filter reads
        another time: then it is for that window to tell of it."""
        length = listed.window.end - listed.window.start
        for by in (-length, length):
            if not found.keys() - listed.calls.keys():
                return
            beside = Window(listed.window.start + by, listed.window.end + by)
            for home, calls in self._glance(listed, beside).items():
                if self._is_ours(home):
                    shown = {home: calls.values()}
                    self._write_down(listed.window, shown, listed.listing.listed_at)
                with self._lock:
                    for call_id in calls.keys() & found.keys() - listed.calls.keys():
                        memories.setdefault(beside, Memory()).untold[call_id] = found.pop(call_id)

    def _glance(self, listed: Listed, beside: Window) -> dict[Window, dict[str, Call]]:
        """As `Lister.glance`; what it shows before it fails is written down."""
        seen: dict[str, Call] = {}
        try:
            return self._lister.glance(beside, seen)
        except Interrupted:
            raise
        except Exception:
            self.note_cut_short(listed.window, (), seen.values(), listed.listing.listed_at)
            raise

    def _leave_to_others(self, listed: Listed, memories: dict[Window, Memory]) -> None:
        """Forget what is not listed here and what another window has in mind too: one of them tells
        of it. Under a lock, lest both leave it to each other."""
        memory = memories[listed.window]
        others = [known for window, known in list(memories.items()) if window != listed.window]
        for call_id, found in list(memory.untold.items()):
            same = (other.untold.get(call_id) for other in others)
            if call_id not in listed.calls and any(one and one.key == found.key for one in same):
                del memory.untold[call_id]


def _place(revision: Revision, call_id: str, days: Iterable[date]) -> tuple[date, int]:
    """The first of these days that has a record of the call, and the record's newest revision;
    the first day and 0 where none has."""
    found = [(day, revision(day, call_id)) for day in days]
    return next((one for one in found if one[1]), found[0])


def _newest(one: Standing | None, other: Standing | None) -> Standing | None:
    found = [standing for standing in (one, other) if standing is not None]
    return max(found, key=lambda standing: standing.revision, default=None)


def _is_wanted(found: Standing, aim: Aim, due: datetime | None) -> bool:
    """Whether a call that has a record is to be worked at again."""
    lacks = found.outcome != "archived" or found.incomplete
    return due is not None or (aim.backfill and lacks)


def _days(
    listed: Listed, awaited: Mapping[str, Call], history: History
) -> Iterator[tuple[str, list[date]]]:
    """Every id that is known of the window, with the days below which its record may lie.

    A time that is plausible now may have been too late to be true when the call was archived: then
    its record lies below the window's day, which comes first.
    """
    window, listed_at = listed.window, listed.listing.listed_at
    for call in [*listed.calls.values(), *awaited.values()]:
        told = history.records.get(call.id)
        if told is not None:
            yield call.id, [told.day]
        elif call.own_time is None and call.id in awaited:
            yield call.id, _days_near(window)
        else:
            day = placing_time(call, window, listed_at).date()
            yield call.id, [window.start.date(), day] if day > window.start.date() else [day]
    for call_id, told in history.records.items():
        if call_id not in listed.calls:
            yield call_id, [told.day]


def _days_near(window: Window) -> list[date]:
    """The days of a window's calls: its own first, then those of calls that were listed in it by
    another time than their start."""
    moments = (window.start, window.start - NEAR, window.end + NEAR)
    return list(dict.fromkeys(moment.date() for moment in moments))
