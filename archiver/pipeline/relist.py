"""Sealed windows that are to be listed again: they have come to an age of `RELIST`, have pending
calls, or do not name calls that a listing showed since.

All of it is derived from the bucket: the line of a window's newest revision says when it was listed
last and which calls were pending, the sightings which calls were listed. All days within reach are
scanned when the process starts and once a day, the newest ones every hour: another writer may have
sealed something, or may have ended before it archived what it had listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

import structlog

from archiver.core.clock import Clock
from archiver.core.errors import Reach, StoreError
from archiver.core.model import DAY, Window
from archiver.manifest.layout import SegmentName
from archiver.pipeline.bucket_state import SegmentIndex, WindowLine
from archiver.pipeline.plan import Purpose
from archiver.pipeline.window import WindowArchiver, WindowResult, WindowStatus
from archiver.store.types import ListedObject

log = structlog.get_logger()

SCAN_SECONDS = 3600.0
SCAN_ALL_SECONDS = 86_400.0
NEWEST = timedelta(days=3)
LATE = timedelta(days=35)
"""How much longer than its last age a window is watched, should the loop have been down."""
SKEW = timedelta(minutes=15)
"""A sighting that is so much older than the newest listing was known to whoever wrote that: clocks
differ by less."""
PAUSE_SECONDS = 900.0
"""How long a window rests whose listing would not settle, or whose source does not answer."""


@dataclass
class _Sealed:
    """What is known of a sealed window."""

    line: WindowLine
    complete: bool = True
    """Whether all its revisions have their seal."""
    unrefreshed: bool = False
    """Whether its calls are to be refreshed, whatever its line says."""
    sightings: int = 0
    """So many of its sightings were compared with it."""
    lacks_sighted: bool = False
    """Whether one of these has an id that it does not name."""
    rests_until: float = 0.0
    waits_until: datetime | None = None
    """Until when it may wait for a source that does not answer; None while the source does."""


class Relisting:
    """Which sealed windows to list again. One thread uses it."""

    def __init__(
        self,
        windows: WindowArchiver,
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
        self._scanned_at: dict[timedelta, float] = {}

    def round_began(self, sealed_at: datetime) -> None:
        """A round begins, behind a seal that was made then."""
        self._awake_at = self._awake_at or sealed_at

    def due(self) -> list[tuple[Window, Purpose, bool]]:
        """The windows to list again now, oldest first, as `WindowArchiver.process` takes them."""
        self._scan()
        unnamed, due = self._windows.with_unnamed_calls, []
        for _, known in sorted(self._sealed.items(), key=lambda item: item[0]):
            if self._clock.monotonic() >= known.rests_until and self._is_due(known, unnamed):
                purpose = Purpose.REFRESH if known.unrefreshed else Purpose.CLOSE
                due.append((known.line.window, purpose, self._may_wait(known)))
        return due

    def note(self, result: WindowResult) -> None:
        """Note what was done about a window that is sealed, or is about to be."""
        window, postponed = result.window, result.status is WindowStatus.POSTPONED
        known = self._sealed.get(window.start)
        if known is None and not (result.segments and result.is_closed):
            return
        if known is None or result.segments:
            name = result.segments[-1].name
            line = WindowLine(name, window, result.listed_at, result.pending)
            known = self._sealed[window.start] = _Sealed(line, unrefreshed=result.unrefreshed)
            if line.pending and window.end < self._clock.now() - self._reach:
                # Another process would not find it.
                pending = len(line.pending)
                log.warning("window.beyond_reach", window=str(window), pending=pending)
        elif result.worked or result.listed_at != known.line.listed_at:
            pending_ids = result.pending if result.worked else known.line.pending
            known.line = WindowLine(known.line.name, window, result.listed_at, pending_ids)
        if result.status is WindowStatus.CLOSED:
            known.lacks_sighted = False
        if postponed and known.waits_until is None:
            known.waits_until = self._clock.now() + self._give_up
        # Foreign bytes in the place of a revision will be there at the next scan, too.
        stays_incomplete = not known.complete and not result.segments
        if postponed or not result.is_closed or stays_incomplete:
            known.rests_until = self._clock.monotonic() + PAUSE_SECONDS

    def _is_due(self, known: _Sealed, unnamed: set[Window]) -> bool:
        line = known.line
        age = self._windows.newest_age(line.window)
        seen = line.listed_at is not None and age is not None and line.listed_at >= age
        if age is not None and (not seen or known.unrefreshed):
            return True
        waits = bool(line.pending) and not self._windows.backoff.all_resting(line.pending)
        return waits or not known.complete or known.lacks_sighted or line.window in unnamed

    def _may_wait(self, known: _Sealed) -> bool:
        """Whether a window that has come of age may still wait for the source.

        A process knows since when it has waited itself. One that begins anew, as each `run --once`
        does, counts what was waited before it: the loop was awake until the seal that it began
        with. A loop that was down has not waited.
        """
        if known.waits_until is not None:
            return self._clock.now() < known.waits_until
        age = self._windows.newest_age(known.line.window)
        if age is None or self._awake_at is None:
            return True
        return self._awake_at < age + self._give_up

    # --- scanning the bucket

    def _scan(self) -> None:
        """Scan the bucket, as far back as it is time to."""
        for reach, seconds in ((self._reach, SCAN_ALL_SECONDS), (NEWEST, SCAN_SECONDS)):
            at = self._scanned_at.get(reach)
            if at is None or self._clock.monotonic() >= at + seconds:
                self._scan_back(reach)
                self._scanned_at |= dict.fromkeys((NEWEST, reach), self._clock.monotonic())

    def _scan_back(self, reach: timedelta) -> None:
        """1. Find the newest sealed revision of each window within reach, and read its line where
        it is not known. 2. Forget windows beyond all reach that have nothing pending. 3. Compare
        the windows with their sightings."""
        oldest, fresh = self._clock.now() - reach, dict[SegmentName, bool]()
        # 1.
        for day in self._days(oldest.date()):
            windows: dict[datetime, dict[SegmentName, bool]] = {}
            try:
                segments = self._segments.list_day(day)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                log.error("day.unlistable", day=day.isoformat(), error=str(error))
                continue
            for name, sealed in segments.items():
                windows.setdefault(name.start, {})[name] = sealed
            for start, names in windows.items():
                official = [name for name, sealed in names.items() if sealed]
                if start + self._length < oldest or not official:
                    continue
                name, complete, known = max(official), all(names.values()), self._sealed.get(start)
                if known is None or known.line.name != name or known.complete != complete:
                    fresh[name] = complete
        for line in self._windows.newest_lines(fresh):
            self._sealed[line.name.start] = _Sealed(line, fresh[line.name])
        # 2.
        beyond = self._clock.now() - self._reach
        for start, known in list(self._sealed.items()):
            if start + self._length < beyond and not known.line.pending:
                del self._sealed[start]
        # 3.
        for day in self._days(oldest.date()):
            for start, objects in self._windows.sightings.of_day(day).items():
                if start in self._sealed and self._sealed[start].sightings != len(objects):
                    self._compare(self._sealed[start], objects)

    def _compare(self, known: _Sealed, sightings: list[ListedObject]) -> None:
        """Whether a sealed window lacks calls that were sighted since it was listed last. Most
        sightings are older, which their dates in the store's listing show."""
        line, known.sightings = known.line, len(sightings)
        after = line.listed_at - SKEW if line.listed_at else None
        keys = [
            one.key
            for one in sightings
            if after is None or one.modified_at is None or one.modified_at >= after
        ]
        try:
            known.lacks_sighted = self._windows.records.lacks_sighted(line.name, line.pending, keys)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            known.lacks_sighted = True  # what cannot be read names none of them

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
