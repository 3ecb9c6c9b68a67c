"""Sealed windows that are to be listed again: they have come of age, or have pending calls.

All of it is derived from the bucket: the line of a window's newest revision says when it was
listed last and which calls were pending. It is read once, and looked for again every hour, because
another writer may have sealed something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from archiver.clock import Clock
from archiver.manifest.layout import SegmentName
from archiver.model import DAY, Window
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.window import ROUND, Aim, Outcome, Windows

SCAN_SECONDS = 3600.0
LATE = timedelta(days=35)
"""How much longer than its last age a window is looked after, should the loop have been down."""
PAUSE_SECONDS = 900.0
"""How long a window rests whose listing would not settle, or whose source does not answer."""


@dataclass
class _Sealed:
    """What is known of a sealed window."""

    window: Window
    newest: SegmentName
    listed_at: datetime | None
    pending: frozenset[str]
    complete: bool
    """Whether all its revisions have their seal."""
    rests_until: float = 0.0


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
        self._ages = sorted(relist)
        self._reach = max([give_up, *relist]) + LATE
        self._length = length
        self._sealed: dict[datetime, _Sealed] = {}
        self._scanned_at: float | None = None

    def due(self) -> list[tuple[Window, Aim]]:
        """The windows to list again now, oldest first, and to what end."""
        self._scan()
        remembered = self._windows.remembered
        found = []
        for start in sorted(self._sealed):
            known = self._sealed[start]
            if self._clock.monotonic() < known.rests_until:
                continue
            age = self._age_due(known)
            attempts = self._windows.attempts
            waits = bool(known.pending) and not attempts.all_resting(known.pending)
            if age is not None:
                found.append((known.window, Aim(due=age)))
            elif waits or not known.complete or known.window in remembered:
                found.append((known.window, ROUND))
        return found

    def note(self, outcome: Outcome) -> None:
        """Keep in mind what was done about a window that is sealed, or is about to be."""
        window = outcome.window
        known = self._sealed.get(window.start)
        if outcome.segments and outcome.closed:
            known = _Sealed(
                window,
                outcome.segments[-1].name,
                outcome.listed_at,
                frozenset(item.call.id for item in outcome.unarchived),
                complete=True,
            )
            self._sealed[window.start] = known
        elif known is not None and outcome.listed_at is not None:
            known.listed_at = outcome.listed_at  # another writer was faster
        if known is not None and (outcome.postponed or not outcome.closed):
            known.rests_until = self._clock.monotonic() + PAUSE_SECONDS

    def aim(self, window: Window) -> Aim:
        """To what end a window is closed that is not sealed yet: one that has come of age already
        will not be listed again for that, so its archived calls are looked at again now."""
        return Aim(due=self._newest_age(window))

    def _age_due(self, known: _Sealed) -> datetime | None:
        """When the window came to the newest age that no listing of it has seen."""
        due = self._newest_age(known.window)
        if due is None or (known.listed_at is not None and known.listed_at >= due):
            return None
        return due

    def _newest_age(self, window: Window) -> datetime | None:
        passed = [window.end + age for age in self._ages if window.end + age <= self._clock.now()]
        return passed[-1] if passed else None

    def _scan(self) -> None:
        """Look at the bucket, if that was not done within the hour."""
        now = self._clock.monotonic()
        if self._scanned_at is not None and now < self._scanned_at + SCAN_SECONDS:
            return
        self._scanned_at = now
        fresh: dict[SegmentName, bool] = {}
        kept: dict[datetime, _Sealed] = {}
        for name, complete in self._newest_names():
            known = self._sealed.get(name.start)
            if known is not None and known.newest == name and known.complete == complete:
                kept[name.start] = known
            else:
                fresh[name] = complete
        for line in self._windows.newest_lines(fresh):
            kept[line.name.start] = _Sealed(
                line.window,
                line.name,
                line.listed_at,
                frozenset(line.pending),
                fresh[line.name],
            )
        self._sealed = kept

    def _newest_names(self) -> Iterator[tuple[SegmentName, bool]]:
        """The newest revision of each window within reach that is sealed, and whether all of its
        revisions are."""
        now = self._clock.now()
        oldest = now - self._reach
        day = oldest.date()
        while day <= now.date():
            windows: dict[datetime, dict[SegmentName, bool]] = {}
            for name, sealed in self._segments.look(day).items():
                windows.setdefault(name.start, {})[name] = sealed
            for start, names in windows.items():
                if start + self._length >= oldest and names.get(SegmentName(start, 1)):
                    yield max(names), all(names.values())
            day += DAY
