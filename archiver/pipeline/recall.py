"""Records that no segment tells of yet: a process wrote them and ended before it closed the window.

Those that are still listed are found anyway. One that is not listed any more would never be told
of: so a process that starts anew looks for them, once for each day of records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from datetime import UTC, date, datetime, timedelta

import structlog

from archiver import hub
from archiver.errors import Reach, StoreError
from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from archiver.model import DAY, Window, parse_time, window_of
from archiver.pipeline.history import MAX_SEGMENT_BYTES, Standing
from archiver.pipeline.index import RecordIndex, SegmentIndex
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.pipeline.spool import spool

log = structlog.get_logger()

NEAR = timedelta(hours=3)
MANY = 10_000


class Recall:
    """Finds them. Threads share it."""

    def __init__(
        self,
        store: Store,
        records: RecordIndex,
        segments: SegmentIndex,
        workers: Workers,
        read: Callable[[str], object],
    ) -> None:
        self._store = store
        self._records = records
        self._segments = segments
        self._workers = workers
        self._read = read
        self._lock = hub.Lock()
        self._days: set[date] = set()
        self._found: dict[Window, dict[str, Standing]] = {}
        self._told: set[tuple[date, str]] = set()

    def take(self, window: Window, *, few: bool) -> dict[str, Standing]:
        """The records of a window that no segment tells of, by call id; they are handed out once.

        `few`: not where there are very many, which others are at work on. Raises `StoreError`.
        """
        day = window.start.date()
        with self._lock:
            if day not in self._days:
                if not self._look(day, window, few):
                    return {}
                self._days.add(day)
            return self._found.pop(window, {})

    def told_among(self, wanted: Set[tuple[date, str]], window: Window) -> set[tuple[date, str]]:
        """Those of these records, given by day and call directory, that a segment of the windows
        near this one tells of. Raises `StoreError`."""
        with self._lock:
            left = wanted - self._told
            if left:
                if len(self._told) > MANY:
                    self._told.clear()
                names = self._names_around(window.start.date())
                for keys in self._workers.map(self.told_keys, names):
                    self._told |= left & set(keys)
            return {one for one in wanted if one in self._told}

    def _look(self, day: date, window: Window, few: bool) -> bool:
        untold = self._records.revisions(day)
        if untold:
            for keys in self._workers.map(self.told_keys, self._names_around(day)):
                for told_day, call_dir in keys:
                    if told_day == day:
                        untold.pop(call_dir, None)
        if few and len(untold) > MANY:
            log.info("records.untold", day=day.isoformat(), count=len(untold))
            return False
        keys_of = [f"{layout.record_prefix(day)}{name}/r{n}.json" for name, n in untold.items()]
        for found in self._workers.map(self._read, keys_of):
            if not isinstance(found, Standing):
                continue  # it cannot be read: the log names it, and `verify` does
            moment = _placing_time(found)
            # Without any time of its own it may be any window's of the day: so it is this one's.
            home = window_of(moment, window.end - window.start) if moment else window
            self._found.setdefault(home, {})[found.record().call_id] = found
        return True

    def _names_around(self, day: date) -> Iterator[SegmentName]:
        """A call may be told of in a window of the day before or after its own, near midnight."""
        midnight = datetime.combine(day, datetime.min.time(), UTC)
        for number in (-1, 0, 1):
            try:
                names = self._segments.look(day + number * DAY)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                log.error("day.unlistable", day=str(day + number * DAY), error=str(error))
                continue
            for name in names:
                if midnight - NEAR <= name.start < midnight + DAY + NEAR:
                    yield name

    def told_keys(self, name: SegmentName) -> list[tuple[date, str]]:
        """Day and call directory of a segment's records, from its companion: the cheaper one to
        read. None of a companion that the store refuses: the window that has these records knows
        them from its segment, so that nothing is said twice."""
        found = []
        with spool() as file:
            try:
                self._store.read_into(name.sha256, file, MAX_SEGMENT_BYTES)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                log.error("segment.unreadable", key=name.sha256, error=str(error))
                return []
            file.seek(0)
            for line in file:
                parsed = layout.parse_record_key(line[66:].decode("utf-8", "replace").rstrip("\n"))
                if parsed is not None:
                    found.append(parsed[:2])
        return found


def _placing_time(found: Standing) -> datetime | None:
    """The time that says to which window a record's call belongs; None where the record tells none,
    or one that was too late to be true when the call was listed: that lay ahead when the record was
    written, and the record lies below an earlier day.
    """
    document = found.record().document
    moment = parse_time(document.get("started_at")) or parse_time(document.get("ended_at"))
    archived_at = parse_time(document.get("archived_at"))
    ahead = moment is not None and archived_at is not None and moment > archived_at
    return None if moment and ahead and moment.date() > found.day else moment
