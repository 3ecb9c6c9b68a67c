"""What the bucket tells of a window: its segments, taken together, and the records behind them.

Of a record a window keeps its bytes compressed, and parses them when somebody asks: a window may
have 100,000.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import IO, Any

import structlog

from archiver import liveness
from archiver.errors import FormatError, KeyTaken, Reach, StoreError
from archiver.manifest import layout, record, seal, segment
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Outcome, Record
from archiver.manifest.seal import SegmentEntry
from archiver.manifest.segment import Summed
from archiver.model import Retention, Window
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.ports import Store
from archiver.pipeline.promise import covered_date, is_behind
from archiver.pipeline.spool import spool

log = structlog.get_logger()

MAX_SEGMENT_BYTES = 1 << 30
_COMMON = (
    b'"archived_at":"20-01-15T10:07:12Z","audio":{"bits_per_sample":16,"channels":1,'
    b'"duration_seconds":30.0,"encoding":"pcm","sample_rate_hz":8000},"call_id":"vc_",'
    b'"campaign_id":"camp_","direction":"Inbound","direction":"Outbound","duration_seconds":30,'
    b'"ended_at":"20-01-15T10:05:12Z","files":[{"bytes":4992044,"content_type":"audio/wav",'
    b'"key":"recordings/dt=20-01-15/vc_/recording.wav","kind":"recording","sha256":"",'
    b'"version_id":""},{"bytes":499,"content_type":"application/json",'
    b'"key":"recordings/dt=20-01-15/vc_/transcript.json","kind":"transcript","sha256":"",'
    b'"version_id":null},{"bytes":499,"content_type":"application/json",'
    b'"key":"recordings/dt=20-01-15/vc_/epa.json","kind":"epa","sha256":"","version_id":null}],'
    b'"findings":[],"outcome":"failed","outcome":"no_recording","outcome":"archived",'
    b'"reason":null,"record":"records/dt=20-01-15/vc_/r1.json","retention":null,'
    b'"retention":{"mode":"COMPLIANCE","until":"20-01-12T10:05:12Z"},"revision":1,'
    b'"source":{"api":"https://","content_md5":"==","etag":"0x8D","last_modified":'
    b'"Mon, 15 Jan 20 10:05:20 GMT","recording_host":"","request_id":""},'
    b'"started_at":"20-01-15T10:00:00Z","state":"Completed","type":"call","v":1}\n'
)
"""What most records have in common: as a dictionary for zlib it makes them a third as long."""
TAIL_BYTES = 64 << 10
"""A window line is rarely longer: it would have to name thousands of ids."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest record of a call, as a window keeps it."""

    key: str
    outcome: Outcome
    revision: int
    incomplete: bool
    """Whether a document of the call could not be had."""
    _packed: bytes

    @classmethod
    def of(cls, found: Record) -> Standing:
        packer = zlib.compressobj(1, zdict=_COMMON)
        packed = packer.compress(found.data) + packer.flush()
        return cls(found.key, found.outcome, found.revision, bool(found.incomplete), packed)

    @property
    def data(self) -> bytes:
        """The record's bytes."""
        return zlib.decompressobj(zdict=_COMMON).decompress(self._packed)

    @property
    def day(self) -> date:
        """The day below which it lies."""
        parsed = layout.parse_record_key(self.key)
        if parsed is None:
            raise StoreError(f"{self.key} is no record's key: run archiver verify")
        return parsed[0]

    @property
    def files(self) -> Sequence[Mapping[str, Any]]:
        """Its record's files; it was checked when it came here."""
        found: Sequence[Mapping[str, Any]] = json.loads(self.data)["files"]
        return found

    def record(self) -> Record:
        return record.parse(self.data)

    def revisions(self, store: Store) -> Iterator[Record | None]:
        """All records of the call, the newest first; None for one that is gone or damaged."""
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
class Unsealed:
    """A segment that waits for its seal: what the seal will say of it, and the latest date that
    what it covers is locked until."""

    name: SegmentName
    entry: SegmentEntry
    retain_until: datetime | None
    found_since: datetime | None = None
    """Of a segment that was there already: no seal before this time can cover it. None where this
    process has just written it."""


@dataclass(frozen=True)
class Line:
    """What the window line of a window's newest revision says."""

    name: SegmentName
    window: Window
    listed_at: datetime | None
    pending: frozenset[str]


@dataclass
class History:
    """What the segments of a window tell, taken together; `revision` 0 where there is none."""

    revision: int = 0
    taken: int = 0
    """The highest revision whose key is taken, be it by bytes that are no segment."""
    listed_at: datetime | None = None
    """When the newest revision was listed."""
    records: dict[str, Standing] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    vanished: frozenset[str] = frozenset()
    unsealed: list[Unsealed] = field(default_factory=list)
    behind: bool = False
    """Whether one of the records promises less than today's policy gives."""
    keep_until: datetime | None = None
    """The latest date that today's policy gives what is told, or that this promises; None without
    a lock."""


class HistoryReader:
    """Reads what is told of windows. Threads share it."""

    def __init__(self, store: Store, segments: SegmentIndex, retention: Retention) -> None:
        self._store = store
        self._segments = segments
        self._retention = retention

    def read(self, window: Window, *, complete: bool = True) -> History:
        """All that the window's segments tell; `complete` what a crash left of the unsealed ones.

        An unsealed one that cannot be parsed is foreign: its key is taken, and that is all. Raises
        `StoreError` that reaches this window where a sealed one cannot be parsed: what it tells is
        official, and not known here.
        """
        history = History()
        for name, sealed in self._segments.of(window.start):
            history.taken = max(history.taken, name.revision)
            with spool() as file:
                self._store.read_into(name.jsonl, file, MAX_SEGMENT_BYTES)
                try:
                    latest = self._take_in(file, window, history)
                except FormatError as error:
                    if sealed:
                        raise StoreError(
                            f"{name.jsonl} cannot be read ({error}): run archiver verify",
                            reason="segment_unreadable",
                            reach=Reach.WINDOW,
                        ) from None
                    log.error("segment.unreadable", key=name.jsonl, error=str(error))
                    continue
                if complete and not sealed:
                    file.seek(0)
                    entry = seal.describe(name.jsonl, file)
                    ready = self.ready(name, entry, _again(file), latest)
                    history.unsealed.append(replace(ready, found_since=history.listed_at))
        return history

    def newest_line(self, name: SegmentName) -> Line | None:
        """The window line of a segment, read from its end; None for one that cannot be read."""
        try:
            data = self._store.tail(name.jsonl, TAIL_BYTES) or b""
            if len(data) == TAIL_BYTES and data.count(b"\n") < 2:
                data = self._store.read(name.jsonl, max_bytes=MAX_SEGMENT_BYTES) or b""
            found = segment.parse_tail(data)
        except (FormatError, StoreError) as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("segment.unreadable", key=name.jsonl, error=str(error))
            return None
        return Line(name, found.window, found.listed_at, frozenset(found.pending))

    def ready(
        self,
        name: SegmentName,
        entry: SegmentEntry,
        records: Iterable[Summed],
        until: datetime | None,
    ) -> Unsealed:
        """Make a durable segment ready for its seal: its companion is written, or adopted.

        A crash before this leaves a segment without one; whoever reads the history completes it.
        Foreign bytes under the companion's key stay there, for `verify` to tell: the seal and the
        segment stand without it.
        """
        with spool() as files, spool(segment.companion(entry.sha256, name, records, files)) as file:
            try:
                self._store.put_once(
                    name.sha256, file, content_type="text/plain", retain_until=until
                )
            except KeyTaken:
                log.error("segment.companion_foreign", key=name.sha256)
        return Unsealed(name, entry, until)

    def _take_in(self, file: IO[bytes], window: Window, history: History) -> datetime | None:
        """Fold a revision into a window's history; the latest date that it covers."""
        file.seek(0)
        last = deque(file, maxlen=1)
        found = segment.parse_tail(last[0] if last else b"")
        if found.window != window:
            raise FormatError(f"it is of the window {found.window}, not of {window}")
        latest = self._retention.until(window.end)
        records: dict[str, Standing] = {}
        behind = False
        for one in _again(file):
            told = records.get(one.call_id) or history.records.get(one.call_id)
            if told is None or one.revision >= told.revision:
                records[one.call_id] = Standing.of(one)
            latest = max_date(latest, covered_date(one, window, self._retention))
            behind = behind or is_behind(one, window, self._retention)
        # Only now: a segment that cannot be parsed to its end must leave nothing behind.
        history.records |= records
        history.behind = history.behind or behind
        history.keep_until = max_date(history.keep_until, latest)
        history.revision, history.listed_at = found.revision, found.listed_at
        history.pending, history.vanished = frozenset(found.pending), frozenset(found.vanished)
        return latest


def _again(file: IO[bytes]) -> Iterator[Record]:
    """The records of a segment that lies in a file, from its start."""
    file.seek(0)
    for one in segment.records_of(file):
        liveness.note()  # a segment may have 100,000
        yield one


def max_date(one: datetime | None, other: datetime | None) -> datetime | None:
    """The later one; None only where both are."""
    return max((date for date in (one, other) if date is not None), default=None)
