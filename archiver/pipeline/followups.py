"""Sealed windows that are to be listed again: they have come of age, have pending calls, or do not
tell of calls that a listing showed since.

All of it is derived from the bucket: the line of a window's newest revision says when it was
listed last and which calls were pending, the sightings which calls were listed. All days within
reach are looked at when the process starts and once a day, the newest ones every hour: another
writer may have sealed something, or may have ended before it archived what it had listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import structlog

from archiver.clock import Clock
from archiver.errors import Reach, StoreError
from archiver.manifest.layout import SegmentName
from archiver.model import DAY, Window
from archiver.pipeline.history import Line
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.planning import Aim
from archiver.pipeline.window import Outcome, Windows
from archiver.store.objects import Listed

log = structlog.get_logger()

SCAN_SECONDS = 3600.0
SCAN_ALL_SECONDS = 86_400.0
NEWEST = timedelta(days=3)
LATE = timedelta(days=35)
"""How much longer than its last age a window is looked after, should the loop have been down."""
SKEW = timedelta(minutes=15)
"""A sighting that is so much older than the newest listing was known to whoever wrote that: clocks
differ by less."""
PAUSE_SECONDS = 900.0
"""How long a window rests whose listing would not settle, or whose source does not answer."""


@dataclass
class _Sealed:
    """What is known of a sealed window."""

    line: Line
    complete: bool = True
    """Whether all its revisions have their seal."""
    unlooked: bool = False
    """Whether it must be looked at again, whatever its line says."""
    sightings: int = 0
    """So many of its sightings were held against it."""
    silent: bool = False
    """Whether one of these has an id that it does not tell of."""
    rests_until: float = 0.0
    patient_until: datetime | None = None
    """Until when it may wait for the source, since that was first of no use."""


class FollowUps:
    """Which sealed windows to list again. One thread uses it."""

    def __init__(
        self,
        windows: Windows,
        segments: SegmentIndex,
        clock: Clock,
        relist: tuple[timedelta, ...],
        give_up: timedelta,
        length: timedelta,
    ) -> None:
        """`relist` are the ages, counted from a window's end."""
        self._windows = windows
        self._segments = segments
        self._clock = clock
        self._give_up = give_up
        self._reach = max([give_up, *relist]) + LATE
        self._length = length
        self._sealed: dict[datetime, _Sealed] = {}
        self._awake_at: datetime | None = None
        """When the newest seal was made that this process began with: the last sign of another
        loop."""
        self._scans: dict[timedelta, float] = {}

    def due(self) -> list[tuple[Window, Aim]]:
        """The windows to list again now, oldest first, and to what end."""
        self._scan()
        remembered = self._windows.remembered
        found = []
        for start in sorted(self._sealed):
            known = self._sealed[start]
            if self._clock.monotonic() >= known.rests_until and self._is_due(known, remembered):
                aim = Aim(patient=self._is_patient(known), look=known.unlooked)
                found.append((known.line.window, aim))
        return found

    def begin(self, sealed_at: datetime) -> None:
        """A round begins, behind a seal that was made then."""
        self._awake_at = self._awake_at or sealed_at

    def note(self, outcome: Outcome) -> None:
        """Keep in mind what was done about a window that is sealed, or is about to be."""
        window = outcome.window
        known = self._sealed.get(window.start)
        if known is None and not (outcome.segments and outcome.closed):
            return
        if known is None or outcome.segments:
            known = _Sealed(
                Line(outcome.segments[-1].name, window, outcome.listed_at, _pending(outcome)),
                unlooked=outcome.unlooked,
            )
            self._sealed[window.start] = known
            self._tell_of_late(known)
        elif outcome.tallied or outcome.listed_at != known.line.listed_at:
            pending = _pending(outcome) if outcome.tallied else known.line.pending
            known.line = Line(known.line.name, window, outcome.listed_at, pending)
        if outcome.closed and not outcome.postponed:
            known.silent = False
        if outcome.postponed and known.patient_until is None:
            known.patient_until = self._clock.now() + self._give_up
        # A foreign object in the place of a revision will be there at the next look, too.
        stays_incomplete = not known.complete and not outcome.segments
        if outcome.postponed or not outcome.closed or stays_incomplete:
            known.rests_until = self._clock.monotonic() + PAUSE_SECONDS

    def _is_patient(self, known: _Sealed) -> bool:
        """Whether a window that has come of age may still wait for the source.

        A process knows since when it has waited itself. One that begins anew, as each `run --once`
        does, counts what was waited before it: the loop was awake until the seal that it began
        with. A loop that was down has not waited.
        """
        if known.patient_until is not None:
            return self._clock.now() < known.patient_until
        age = self._windows.newest_age(known.line.window)
        if age is None or self._awake_at is None:
            return True
        return self._awake_at < age + self._give_up

    def _is_due(self, known: _Sealed, remembered: set[Window]) -> bool:
        line = known.line
        age = self._windows.newest_age(line.window)
        if age is not None and (line.listed_at is None or line.listed_at < age or known.unlooked):
            return True
        waits = bool(line.pending) and not self._windows.attempts.all_resting(line.pending)
        return waits or not known.complete or known.silent or line.window in remembered

    def _tell_of_late(self, known: _Sealed) -> None:
        """Another process would not find it."""
        if known.line.pending and known.line.window.end < self._clock.now() - self._reach:
            log.warning(
                "window.beyond_reach",
                window=str(known.line.window),
                pending=len(known.line.pending),
            )

    # --- the bucket

    def _scan(self) -> None:
        """Look at the bucket, as far back as it is time to."""
        for reach, seconds in ((self._reach, SCAN_ALL_SECONDS), (NEWEST, SCAN_SECONDS)):
            at = self._scans.get(reach)
            if at is None or self._clock.monotonic() >= at + seconds:
                self._scan_back(reach)
                self._scans = {**self._scans, NEWEST: self._clock.monotonic()}
                self._scans[reach] = self._clock.monotonic()

    def _scan_back(self, reach: timedelta) -> None:
        fresh: dict[SegmentName, bool] = {}
        for name, complete in self._newest_names(reach):
            known = self._sealed.get(name.start)
            if known is None or known.line.name != name or known.complete != complete:
                fresh[name] = complete
        for line in self._windows.newest_lines(fresh):
            self._sealed[line.name.start] = _Sealed(line, fresh[line.name])
        oldest = self._clock.now() - self._reach
        for start, known in list(self._sealed.items()):
            if start + self._length < oldest and not known.line.pending:
                del self._sealed[start]
        for day in self._days((self._clock.now() - reach).date()):
            for start, objects in self._windows.sightings.of_day(day).items():
                if start in self._sealed and self._sealed[start].sightings != len(objects):
                    self._hold_against(self._sealed[start], objects)

    def _hold_against(self, known: _Sealed, sightings: list[Listed]) -> None:
        """Whether a sealed window is silent of what was sighted since it was listed last. Most
        sightings are older, which their dates in the store's listing say."""
        line, known.sightings = known.line, len(sightings)
        after = line.listed_at - SKEW if line.listed_at else None
        keys = []
        for one in sightings:
            modified = one.modified_at
            if after is None or modified is None or modified >= after:
                keys.append(one.key)
        try:
            known.silent = self._windows.planner.is_silent(line.name, line.pending, keys)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            known.silent = True  # what cannot be read says nothing of them

    def _newest_names(self, reach: timedelta) -> Iterator[tuple[SegmentName, bool]]:
        """The newest revision of each window within reach that is sealed, and whether all of its
        revisions are."""
        oldest = self._clock.now() - reach
        for day in self._days(oldest.date()):
            windows: dict[datetime, dict[SegmentName, bool]] = {}
            try:
                segments = self._segments.look(day)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                log.error("day.unlistable", day=day.isoformat(), error=str(error))
                continue
            for name, sealed in segments.items():
                windows.setdefault(name.start, {})[name] = sealed
            for start, names in windows.items():
                official = [name for name, sealed in names.items() if sealed]
                if start + self._length >= oldest and official:
                    yield max(official), all(names.values())

    def _days(self, oldest: date) -> list[date]:
        """The days from `oldest` on that have segments; where the store does not list them, all
        days."""
        try:
            return [day for day in self._segments.days() if day >= oldest]
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("day.unlistable", day="all", error=str(error))
            count = (self._clock.now().date() - oldest).days + 1
            return [oldest + number * DAY for number in range(count)]


def _pending(outcome: Outcome) -> frozenset[str]:
    return frozenset(item.call.id for item in outcome.unarchived)
