"""Reads what the bucket has of a day and of a window. Nothing here writes.

- `RecordIndex`, `SegmentIndex`: the records and segments of a day, from one LIST per day. They only
  save requests. A stale index costs repeated work, and never causes a wrong result, because records
  and segments are created once.
- `WindowReader`: the contents of all segments of one window (`WindowState`).
- `LatestRecord`: the latest record of a call.
"""

from __future__ import annotations

import json
import tempfile
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import IO, Any, Generic, TypeVar

import structlog

from archiver.core import liveness
from archiver.core.errors import FormatError, Reach, StoreError
from archiver.core.model import Retention, Window
from archiver.manifest import layout, record, seal, segment
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Outcome, Record
from archiver.manifest.seal import SegmentEntry
from archiver.pipeline.retention import covering_date, is_behind_policy, latest_date
from archiver.store.bucket import Bucket

log = structlog.get_logger()

V = TypeVar("V")
Revision = Callable[[date, str], int]
"""The highest revision of a call's record below a day; 0 if there is none."""

MAX_SEGMENT_BYTES = 1 << 30
TAIL_BYTES = 64 << 10
"""How much is read of a segment's end to get its window line. A longer line names thousands of ids.
"""
IN_MEMORY_BYTES = 8 << 20
"""A segment up to this size stays in memory; a larger one is written to a temporary file."""
REMEMBERED_RECORD_DAYS = 4
REMEMBERED_SEGMENT_DAYS = 16


@contextmanager
def spool(chunks: Iterable[bytes] = ()) -> Iterator[IO[bytes]]:
    """Yield a temporary file with these bytes, and delete it afterwards. A segment may have 100 MB.
    Raises `StoreError` if its directory is full, also for the caller's writes."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as file:
        try:
            for chunk in chunks:
                liveness.note()  # a large window takes its time
                file.write(chunk)
            file.seek(0)
            yield file
        except OSError as error:
            raise StoreError(
                f"a temporary file cannot be written ({error.strerror}): set TMPDIR to a directory "
                "with room"
            ) from None


# --- the records and segments of a day


class _DayIndex(Generic[V]):
    """Caches the listings of the most recently used days. Thread-safe."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._days: OrderedDict[date, V] = OrderedDict()
        self._lock = threading.RLock()

    def list_day(self, day: date) -> V:
        """List the day in the bucket. Raises `StoreError`."""
        raise NotImplementedError

    def _of(self, day: date) -> V:
        """The caller holds the lock, and keeps holding it while it uses the result."""
        if day not in self._days:
            self._days[day] = self.list_day(day)
            if len(self._days) > self._remembered:
                self._days.popitem(last=False)
        self._days.move_to_end(day)
        return self._days[day]

    def forget(self) -> None:
        """Drop the cached listings, because another writer may have added something."""
        with self._lock:
            self._days.clear()


class RecordIndex(_DayIndex[dict[str, int]]):
    """The highest revision of each call's record on a day, by call directory."""

    def __init__(self, store: Bucket) -> None:
        super().__init__(REMEMBERED_RECORD_DAYS)
        self._store = store

    def list_day(self, day: date) -> dict[str, int]:
        revisions: dict[str, int] = {}
        for item in self._store.list(layout.record_prefix(day)):
            parsed = layout.parse_record_key(item.key)
            if parsed is not None:
                revisions[parsed[1]] = max(parsed[2], revisions.get(parsed[1], 0))
        return revisions

    def revision(self, day: date, call_id: str) -> int:
        """The highest revision of a call's record; 0 if there is none."""
        with self._lock:
            return self._of(day).get(layout.call_dir(call_id), 0)

    def revisions(self, day: date) -> dict[str, int]:
        with self._lock:
            return dict(self._of(day))

    def add(self, key: str) -> None:
        """Add a record that was just written. A day that is not cached is listed later."""
        parsed = layout.parse_record_key(key)
        with self._lock:
            if parsed is not None and (revisions := self._days.get(parsed[0])) is not None:
                revisions[parsed[1]] = max(parsed[2], revisions.get(parsed[1], 0))

    def tolerant(self, window: Window) -> Revision:
        """Return `revision` for one pass over the calls of a window. If the store does not list a
        day other than the window's own, that day counts as empty: its failure must not stop this
        window. A record that is missed costs repeated work only, because records are created once.
        """
        unlistable = set[date]()

        def revision(day: date, call_id: str) -> int:
            if day in unlistable:
                return 0
            try:
                return self.revision(day, call_id)
            except StoreError as error:
                if day == window.start.date() or error.reach is not Reach.ITEM:
                    raise
                unlistable.add(day)
                log.error("day.unlistable", day=day.isoformat(), error=str(error))
                return 0

        return revision


class SegmentIndex(_DayIndex[dict[SegmentName, bool]]):
    """The segments of a day, and whether each is sealed (has a seal pointer)."""

    def __init__(self, store: Bucket) -> None:
        super().__init__(REMEMBERED_SEGMENT_DAYS)
        self._store = store

    def list_day(self, day: date) -> dict[SegmentName, bool]:
        suffixes: dict[SegmentName, set[str]] = {}
        for item in self._store.list(layout.segment_prefix(day)):
            parsed = layout.parse_segment_key(item.key)
            if parsed is not None:
                suffixes.setdefault(parsed[0], set()).add(parsed[1])
        return {name: "seal" in found for name, found in suffixes.items() if "jsonl" in found}

    def of(self, start: datetime) -> list[tuple[SegmentName, bool]]:
        """The segments of the window that starts at `start`, oldest first."""
        with self._lock:
            names = self._of(start.date()).items()
            return sorted((name, sealed) for name, sealed in names if name.start == start)

    def is_sealed(self, start: datetime) -> bool:
        return any(sealed for _, sealed in self.of(start))

    def add(self, name: SegmentName, *, sealed: bool) -> None:
        with self._lock:
            self._of(name.start.date())[name] = sealed

    def days(self) -> list[date]:
        """The days that have segments, oldest first. Stores differ in the order of a listing."""
        names = self._store.folders(layout.SEGMENTS)
        return sorted(day for name in names if (day := layout.parse_day_dir(name)) is not None)


# --- records


@dataclass(frozen=True, slots=True)
class LatestRecord:
    """The latest record of a call. The bytes are kept compressed: a window may have 100,000."""

    key: str
    outcome: Outcome
    revision: int
    incomplete: bool
    """Whether a document of the call could not be fetched."""
    _packed: bytes

    @classmethod
    def of(cls, found: Record) -> LatestRecord:
        packed = zlib.compress(found.data, 1)
        return cls(found.key, found.outcome, found.revision, bool(found.incomplete), packed)

    @property
    def data(self) -> bytes:
        """The bytes of the record."""
        return zlib.decompress(self._packed)

    @property
    def day(self) -> date:
        """The day in the record's key."""
        parsed = layout.parse_record_key(self.key)
        if parsed is None:
            raise StoreError(f"{self.key} is no record's key: run archiver verify")
        return parsed[0]

    @property
    def files(self) -> Sequence[Mapping[str, Any]]:
        """The files that the record names. They were checked when the record was first parsed."""
        found: Sequence[Mapping[str, Any]] = json.loads(self.data)["files"]
        return found

    def record(self) -> Record:
        return record.parse(self.data)

    def revisions(self, store: Bucket) -> Iterator[Record | None]:
        """Yield all records of the call, newest first; None for one that is gone or damaged."""
        newest = self.record()
        yield newest
        for number in range(newest.revision - 1, 0, -1):
            key = layout.record_key(self.day, newest.call_id, number)
            try:
                yield record.parse(store.read(key) or b"")
            except (FormatError, StoreError) as error:
                if error.reach is not Reach.ITEM:
                    raise
                yield None


@dataclass(frozen=True)
class UnreadableRecord:
    """An object under the key of a call's latest record that cannot be used as a record.

    `foreign`: it is not a record, so the call is archived as the next revision. Otherwise it may be
    one: a newer release wrote it, or the store refuses to return it. Then the call is skipped, and
    a process that can read the record handles it.
    """

    revision: int
    foreign: bool


# --- the segments of a window


@dataclass(frozen=True)
class UnsealedSegment:
    """A durable segment, of a window or of events, that has no seal yet. `entry` is what its seal
    will say of it; `retain_until` is the latest lock date of what it covers."""

    entry: SegmentEntry
    retain_until: datetime | None
    found_since: datetime | None = None
    """Set for a segment that was in the bucket already: no seal older than this can name it. None
    for a segment that this process wrote."""

    @property
    def name(self) -> SegmentName:
        """The name of a window's segment; event segments have none."""
        parsed = layout.parse_segment_key(self.entry.key)
        assert parsed is not None  # noqa: S101  (a window's)
        return parsed[0]


@dataclass(frozen=True)
class WindowLine:
    """The last line of a window's newest segment."""

    name: SegmentName
    window: Window
    listed_at: datetime | None
    pending: frozenset[str]


@dataclass
class WindowState:
    """The combined contents of a window's segments. `revision` is 0 if there are none."""

    revision: int = 0
    newest_key: int = 0
    """The highest revision whose key is taken, also by bytes that are not a segment."""
    listed_at: datetime | None = None
    """When the listing of the newest revision began."""
    records: dict[str, LatestRecord] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    vanished: frozenset[str] = frozenset()
    unsealed: list[UnsealedSegment] = field(default_factory=list)
    behind_policy: bool = False
    """Whether one of the records promises less than today's policy."""
    lock_until: datetime | None = None
    """The latest lock date that today's policy requires for its calls or their records promise."""


class WindowReader:
    """Reads the segments of windows. Thread-safe."""

    def __init__(self, store: Bucket, segments: SegmentIndex, retention: Retention) -> None:
        self._store = store
        self._segments = segments
        self._retention = retention

    def read(self, window: Window) -> WindowState:
        """Return the combined contents of the window's segments.

        An unsealed segment that cannot be parsed is foreign: it is logged, and only its key counts
        as taken. A sealed one raises `StoreError` that reaches the window, because the archive
        vouches for contents that this process does not know.
        """
        state = WindowState()
        for name, sealed in self._segments.of(window.start):
            state.newest_key = max(state.newest_key, name.revision)
            with spool() as file:
                self._store.read_into(name.jsonl, file, MAX_SEGMENT_BYTES)
                try:
                    until = self._add_segment(file, window, state)
                except FormatError as error:
                    if sealed:
                        raise StoreError(
                            f"{name.jsonl} cannot be read ({error}): run archiver verify",
                            reason="segment_unreadable",
                            reach=Reach.WINDOW,
                        ) from None
                    log.error("segment.unreadable", key=name.jsonl, error=str(error))
                    continue
                if not sealed:
                    file.seek(0)
                    entry = seal.segment_entry(name.jsonl, file)
                    state.unsealed.append(UnsealedSegment(entry, until, state.listed_at))
        return state

    def read_line(self, name: SegmentName) -> WindowLine | None:
        """Return the window line of a segment, read from its end. None, with an error in the log,
        if it is unreadable."""
        try:
            data = self._store.tail(name.jsonl, TAIL_BYTES) or b""
            # The last line may be longer than the tail.
            if len(data) == TAIL_BYTES and data.count(b"\n") < 2:
                data = self._store.read(name.jsonl, max_bytes=MAX_SEGMENT_BYTES) or b""
            found = segment.parse_window_line(data)
        except (FormatError, StoreError) as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("segment.unreadable", key=name.jsonl, error=str(error))
            return None
        return WindowLine(name, found.window, found.listed_at, frozenset(found.pending))

    def _add_segment(self, file: IO[bytes], window: Window, state: WindowState) -> datetime | None:
        """Add a segment to the state; returns the latest lock date of what it covers. Raises
        `FormatError`, with the state unchanged."""
        file.seek(0)
        last = deque(file, maxlen=1)
        found = segment.parse_window_line(last[0] if last else b"")
        if found.window != window:
            raise FormatError(f"it is of the window {found.window}, not of {window}")
        until, records, behind = self._retention.until(window.end), dict[str, LatestRecord](), False
        for one in records_in(file):
            known = records.get(one.call_id) or state.records.get(one.call_id)
            if known is None or one.revision >= known.revision:
                records[one.call_id] = LatestRecord.of(one)
            until = latest_date(until, covering_date(one, window, self._retention))
            behind = behind or is_behind_policy(one, window, self._retention)
        # Only now: a segment that cannot be parsed to its end must not change the state.
        state.records |= records
        state.behind_policy = state.behind_policy or behind
        state.lock_until = latest_date(state.lock_until, until)
        state.revision, state.listed_at = found.revision, found.listed_at
        state.pending, state.vanished = frozenset(found.pending), frozenset(found.vanished)
        return until


def records_in(file: IO[bytes]) -> Iterator[Record]:
    """Yield the records of a segment in a file. Raises `FormatError`."""
    file.seek(0)
    for one in segment.records_of(file):
        liveness.note()  # a segment may have 100,000
        yield one
