"""Decides which sealed windows to list again: those that have reached an age of `RELIST`, those
with pending calls, and those that do not name calls which a later listing showed.

All of this is derived from the bucket. The line of a window's newest revision says when the window
was last listed and which calls were pending; the sightings say which calls were listed. All days
within reach are scanned at the start and once a day, the newest days every hour, because another
writer may have sealed a window, or may have ended before it archived what it had listed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
"""How often the days within `NEWEST` are scanned."""
SCAN_ALL_SECONDS = 86_400.0
NEWEST = timedelta(days=3)
LATE = timedelta(days=35)
"""How long a window is watched after its last age, in case the loop was down."""
SKEW = timedelta(minutes=15)
"""A sighting older than the newest listing by more than this was known to the process that wrote
that listing. Clocks differ by less."""
PAUSE_SECONDS = 900.0
"""The pause after a listing that kept changing, or a source that did not answer."""


@dataclass
class _Sealed:
    """The state of a sealed window."""

    line: WindowLine
    complete: bool = True
    """Whether all its revisions are sealed."""
    unrefreshed: bool = False
    """Whether its calls must be refreshed, whatever its line says."""
    sightings: int = 0
    """How many of its sightings were compared with it."""
    lacks_sighted: bool = False
    """Whether one of them has an id that the window does not name."""
    rests_until: float = 0.0
    waits_until: datetime | None = None
    """The end of its wait for a source that does not answer; None while it answers."""


@dataclass(eq=False, repr=False)
class Relisting:
    """Decides which sealed windows to list again. Not thread-safe."""

    windows: WindowArchiver
    segments: SegmentIndex
    clock: Clock
    relist: tuple[timedelta, ...]
    """The ages, counted from a window's end."""
    give_up: timedelta
    length: timedelta
    _sealed: dict[datetime, _Sealed] = field(default_factory=dict, init=False)
    _scanned_at: dict[timedelta, float] = field(default_factory=dict, init=False)
    _awake_at: datetime | None = field(default=None, init=False)
    """When the newest seal was made that existed when this process started: the last time that
    another loop is known to have run."""

    def __post_init__(self) -> None:
        self._reach = max([self.give_up, *self.relist]) + LATE

    def round_began(self, sealed_at: datetime) -> None:
        """Note that a round begins; the newest seal was made at `sealed_at`."""
        self._awake_at = self._awake_at or sealed_at

    def due(self) -> list[tuple[Window, Purpose, bool]]:
        """The windows to list again now, oldest first, as arguments of `WindowArchiver.process`."""
        self._scan()
        unnamed, due = self.windows.with_unnamed_calls, []
        for _, known in sorted(self._sealed.items(), key=lambda item: item[0]):
            if self.clock.monotonic() >= known.rests_until and self._is_due(known, unnamed):
                purpose = Purpose.REFRESH if known.unrefreshed else Purpose.CLOSE
                due.append((known.line.window, purpose, self._may_wait(known)))
        return due

    def note(self, result: WindowResult) -> None:
        """Note the result of a window that is sealed, or about to be."""
        window, postponed = result.window, result.status is WindowStatus.POSTPONED
        known = self._sealed.get(window.start)
        if known is None and not (result.segments and result.is_closed):
            return
        if known is None or result.segments:
            name = result.segments[-1].name
            line = WindowLine(name, window, result.listed_at, result.pending)
            known = self._sealed[window.start] = _Sealed(line, unrefreshed=result.unrefreshed)
            if line.pending and window.end < self.clock.now() - self._reach:
                # After a restart no scan finds it, so its pending calls are not tried again.
                pending = len(line.pending)
                log.warning("window.beyond_reach", window=str(window), pending=pending)
        elif result.processed or result.listed_at != known.line.listed_at:
            pending_ids = result.pending if result.processed else known.line.pending
            known.line = WindowLine(known.line.name, window, result.listed_at, pending_ids)
        if result.status is WindowStatus.CLOSED:
            known.lacks_sighted = False
        if postponed and known.waits_until is None:
            known.waits_until = self.clock.now() + self.give_up
        # Foreign bytes under a revision's key will still be there at the next scan.
        stays_incomplete = not known.complete and not result.segments
        if postponed or not result.is_closed or stays_incomplete:
            known.rests_until = self.clock.monotonic() + PAUSE_SECONDS

    def _is_due(self, known: _Sealed, unnamed: set[Window]) -> bool:
        line = known.line
        age = self.windows.newest_age(line.window)
        seen = line.listed_at is not None and age is not None and line.listed_at >= age
        if age is not None and (not seen or known.unrefreshed):
            return True
        waits = bool(line.pending) and not self.windows.backoff.all_waiting(line.pending)
        return waits or not known.complete or known.lacks_sighted or line.window in unnamed

    def _may_wait(self, known: _Sealed) -> bool:
        """Whether a window that has reached an age may still wait for the source.

        A running process knows when its own wait began. A new process, such as each `run --once`,
        counts earlier waiting as well: a loop was running until the newest seal that it found. Time
        when no loop was running does not count.
        """
        if known.waits_until is not None:
            return self.clock.now() < known.waits_until
        age = self.windows.newest_age(known.line.window)
        if age is None or self._awake_at is None:
            return True
        return self._awake_at < age + self.give_up

    # --- scanning the bucket

    def _scan(self) -> None:
        """Scan the bucket, as far back as is due."""
        for reach, seconds in ((self._reach, SCAN_ALL_SECONDS), (NEWEST, SCAN_SECONDS)):
            at = self._scanned_at.get(reach)
            if at is None or self.clock.monotonic() >= at + seconds:
                self._scan_back(reach)
                # A scan of all days includes the newest ones.
                self._scanned_at |= dict.fromkeys((NEWEST, reach), self.clock.monotonic())

    def _scan_back(self, reach: timedelta) -> None:
        """Scan the days within `reach`.

        1. Find the newest sealed revision of each window, and read its line unless it is known.
        2. Forget windows beyond reach that have no pending calls.
        3. Compare the windows with their sightings.
        """
        oldest, fresh = self.clock.now() - reach, dict[SegmentName, bool]()
        # 1.
        for day in self._days(oldest.date()):
            windows: dict[datetime, dict[SegmentName, bool]] = {}
            try:
                segments = self.segments.list_day(day)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                log.error("day.unlistable", day=day.isoformat(), error=str(error))
                continue
            for name, sealed in segments.items():
                windows.setdefault(name.start, {})[name] = sealed
            for start, names in windows.items():
                official = [name for name, sealed in names.items() if sealed]
                if start + self.length < oldest or not official:
                    continue
                name, complete, known = max(official), all(names.values()), self._sealed.get(start)
                if known is None or known.line.name != name or known.complete != complete:
                    fresh[name] = complete
        for line in self.windows.newest_lines(fresh):
            self._sealed[line.name.start] = _Sealed(line, fresh[line.name])
        # 2.
        beyond = self.clock.now() - self._reach
        for start, known in list(self._sealed.items()):
            if start + self.length < beyond and not known.line.pending:
                del self._sealed[start]
        # 3.
        for day in self._days(oldest.date()):
            for start, objects in self.windows.sightings.of_day(day).items():
                if start in self._sealed and self._sealed[start].sightings != len(objects):
                    self._compare(self._sealed[start], objects)

    def _compare(self, known: _Sealed, sightings: list[ListedObject]) -> None:
        """Note whether a sealed window lacks calls that were sighted since it was last listed.
        Older sightings are skipped without reading them, by their dates in the store's listing."""
        line, known.sightings = known.line, len(sightings)
        after = line.listed_at - SKEW if line.listed_at else None
        keys = [
            one.key
            for one in sightings
            if after is None or one.modified_at is None or one.modified_at >= after
        ]
        try:
            known.lacks_sighted = self.windows.records.lacks_sighted(line.name, line.pending, keys)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            known.lacks_sighted = True  # an unreadable segment proves nothing: list the window

    def _days(self, oldest: date) -> list[date]:
        """The days from `oldest` on that have segments; all days if these are unlistable."""
        try:
            return [day for day in self.segments.days() if day >= oldest]
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("day.unlistable", day="all", error=str(error))
            count = (self.clock.now().date() - oldest).days + 1
            return [oldest + number * DAY for number in range(count)]
