"""Records that no segment tells of yet: a process wrote them and ended before it closed the window.

Those that are still listed are found anyway. One that is not listed any more would never be told
of: so a loop that starts anew looks for them, once a day of records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import date, timedelta

from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from archiver.model import DAY, Window, parse_time, window_of
from archiver.pipeline.history import MAX_SEGMENT_BYTES, Standing
from archiver.pipeline.index import RecordIndex, SegmentIndex
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store


class Recall:
    """Finds them. Threads share it."""

    def __init__(
        self,
        store: Store,
        records: RecordIndex,
        segments: SegmentIndex,
        workers: Workers,
        read: Callable[[str], Standing],
    ) -> None:
        self._store = store
        self._records = records
        self._segments = segments
        self._workers = workers
        self._read = read
        self._lock = threading.Lock()
        self._days: set[date] = set()
        self._found: dict[Window, dict[str, Standing]] = {}

    def take(self, window: Window) -> dict[str, Standing]:
        """The records of a window that is not closed, by call id; they are handed out once."""
        day = window.start.date()
        with self._lock:
            if day not in self._days:
                self._days.add(day)
                self._look(day, window.end - window.start)
            return self._found.pop(window, {})

    def _look(self, day: date, length: timedelta) -> None:
        untold = self._records.revisions(day)
        for name in self._names_around(day):
            if not untold:
                return
            for key in self._told_keys(name):
                parsed = layout.parse_record_key(key)
                if parsed is not None and parsed[0] == day:
                    untold.pop(parsed[1], None)
        keys = [f"{layout.record_prefix(day)}{name}/r{n}.json" for name, n in untold.items()]
        for found in self._workers.map(self._read, keys):
            record = found.record()
            started = parse_time(record.document.get("started_at"))
            if started is not None:
                home = window_of(started, length)
                self._found.setdefault(home, {})[record.call_id] = found

    def _names_around(self, day: date) -> Iterator[SegmentName]:
        """A call may be told of in a window of the day before or after its own."""
        for number in (0, -1, 1):
            yield from self._segments.look(day + number * DAY)

    def _told_keys(self, name: SegmentName) -> Iterator[str]:
        """The keys of a segment's records, from its companion: it is the cheaper one to read."""
        data = self._store.read(name.sha256, max_bytes=MAX_SEGMENT_BYTES) or b""
        for line in data.splitlines():
            key = line[66:]
            if key.startswith(b"records/"):
                yield key.decode("utf-8", "replace")
