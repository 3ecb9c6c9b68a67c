"""What the bucket holds already, one LIST a day: state lives in the bucket, never in a file.

Both indexes are only a saving: a stale one costs work done twice, never a wrong result, because
records and segments are created once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import date, datetime
from typing import Generic, TypeVar

from archiver import hub
from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from archiver.pipeline.ports import Store

V = TypeVar("V")

REMEMBERED_DAYS = 4
REMEMBERED_SEGMENT_DAYS = 16


class _Days(Generic[V]):
    """The last few days' listings, each loaded once, by one thread."""

    def __init__(self, load: Callable[[date], V], remembered: int = REMEMBERED_DAYS) -> None:
        self._load = load
        self._remembered = remembered
        self._days: OrderedDict[date, V] = OrderedDict()
        self.lock = hub.Lock()

    def of(self, day: date) -> V:
        with self.lock:
            if day not in self._days:
                self._days[day] = self._load(day)
                if len(self._days) > self._remembered:
                    self._days.popitem(last=False)
            self._days.move_to_end(day)
            return self._days[day]

    def known(self, day: date) -> V | None:
        """What is remembered of a day; asks nobody."""
        with self.lock:
            return self._days.get(day)

    def forget(self) -> None:
        with self.lock:
            self._days.clear()


class RecordIndex:
    """Newest revision of each record of a day, by call directory. Threads share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._days: _Days[dict[str, int]] = _Days(self._load)

    def revision(self, day: date, call_id: str) -> int:
        """The newest revision of a call's record, 0 where there is none."""
        return self._days.of(day).get(layout.call_dir(call_id), 0)

    def revisions(self, day: date) -> dict[str, int]:
        """The newest revision of each record of a day, by call directory."""
        with self._days.lock:
            return dict(self._days.of(day))

    def add(self, key: str) -> None:
        """Remember a record that was just written; a day that is not known yet will list it."""
        parsed = layout.parse_record_key(key)
        if parsed is None:
            return
        with self._days.lock:
            revisions = self._days.known(parsed[0])
            if revisions is not None:
                revisions[parsed[1]] = max(parsed[2], revisions.get(parsed[1], 0))

    def _load(self, day: date) -> dict[str, int]:
        revisions: dict[str, int] = {}
        for item in self._store.list(layout.record_prefix(day)):
            parsed = layout.parse_record_key(item.key)
            if parsed is not None:
                revisions[parsed[1]] = max(parsed[2], revisions.get(parsed[1], 0))
        return revisions


class SegmentIndex:
    """Which segments there are, and which of them have the pointer of a seal."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._days: _Days[dict[SegmentName, bool]] = _Days(self.look, REMEMBERED_SEGMENT_DAYS)

    def of(self, start: datetime) -> list[tuple[SegmentName, bool]]:
        """The segments of the window that starts there, oldest first, with whether it is sealed."""
        with self._days.lock:
            names = self._days.of(start.date())
            return sorted((name, sealed) for name, sealed in names.items() if name.start == start)

    def is_sealed(self, start: datetime) -> bool:
        return any(sealed for _, sealed in self.of(start))

    def add(self, name: SegmentName, *, sealed: bool) -> None:
        with self._days.lock:
            self._days.of(name.start.date())[name] = sealed

    def forget(self) -> None:
        """Look again: another writer may have been at it."""
        self._days.forget()

    def days(self) -> list[date]:
        """The days that have segments, oldest first. No order of a listing is relied on: stores
        differ in it."""
        names = self._store.folders(layout.SEGMENTS)
        return sorted(day for name in names if (day := layout.parse_day_dir(name)) is not None)

    def look(self, day: date) -> dict[SegmentName, bool]:
        """The segments of a day as the bucket has them now, with whether they are sealed."""
        names: dict[SegmentName, set[str]] = {}
        for item in self._store.list(layout.segment_prefix(day)):
            parsed = layout.parse_segment_key(item.key)
            if parsed is not None:
                names.setdefault(parsed[0], set()).add(parsed[1])
        return {name: "seal" in kinds for name, kinds in names.items() if "jsonl" in kinds}
