"""Queries the manifest: the records of a range, and the history of one call.

`records` reads sealed segments only (`SealedSegments`); `find` also reads records that are not
sealed yet. Objects that are damaged, unreadable or written by a newer release are left out, and
`damages` names them.

Requests: `records` takes one LIST for each day, and a segment, its seal pointer and its seal take a
GET each. `find` does not know the call's day. It lists the days (a LIST or two), and then, from the
newest day backwards, the call's records (one LIST a day, several at a time). So a recent call is
found at once, and an unknown one takes a LIST for each day that has records. Then it reads the
segments around that day, nearest to the call's start first, and all others only if a record is not
found there: the source may list a call in a window far from its start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import groupby, islice
from typing import Any

from archiver.audit.chain import SealedEntry, SealedSegments, record_days
from archiver.audit.hold_ledger import CallHolds, object_document
from archiver.audit.safe_reader import Damages, ItemReader, Reader
from archiver.audit.segment_lines import lines_of, load_window_line, parse_record
from archiver.core.concurrency import ordered
from archiver.core.errors import FormatError
from archiver.core.model import DAY, parse_time
from archiver.manifest import layout
from archiver.manifest.event import ObjectRef
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record

LISTS_AT_ONCE = 8


@dataclass(frozen=True)
class Row:
    """A record of a sealed segment, with the segment's key and the seal's number."""

    record: Record
    segment: str
    seal: int


@dataclass
class CallHistory:
    """All records of a call, oldest first, each with its segment and seal."""

    call_id: str
    revisions: list[Record]
    sealed: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Key of a record → key of its segment, number of its seal. A record is absent if it is not
    sealed yet, or if a newer revision existed before any segment named it."""
    holds: CallHolds | None = None
    """The legal holds of the call and the state of its objects; None if they were not read."""

    @property
    def objects(self) -> set[ObjectRef]:
        """The records, and all files that they name."""
        return {one for record in self.revisions for one in objects_of(record)}

    def document(self) -> dict[str, Any]:
        """The form of `manifest show --json`: `type` call_history, `v` 1, `call_id`, `revisions`
        [{key, record, segment, seal}], the last two null where no sealed segment has it; with
        `holds` also `hold` {acts, held}, and each revision's `objects` as the store has them."""
        rows = []
        for record in self.revisions:
            segment, number = self.sealed.get(record.key, (None, None))
            row: dict[str, Any] = {
                "key": record.key,
                "record": dict(record.document),
                "seal": number,
                "segment": segment,
            }
            if self.holds is not None:
                heads = self.holds.heads
                row["objects"] = [object_document(o, heads.get(o)) for o in objects_of(record)]
            rows.append(row)
        document = {"call_id": self.call_id, "revisions": rows, "type": "call_history", "v": 1}
        return document | ({"hold": self.holds.document()} if self.holds else {})


def objects_of(record: Record) -> list[ObjectRef]:
    """Return a record, in its newest version, and the files that it names."""
    files = record.document["files"]
    named = [ObjectRef(file["key"], file.get("version_id")) for file in files]
    return [ObjectRef(record.key, None), *named]


class Query:
    """Queries one archive. For one thread."""

    def __init__(self, reader: Reader) -> None:
        self._reader = ItemReader(reader)
        self._sealed = SealedSegments(self._reader)
        self.damages = Damages()

    def _names(self, prefix: str = layout.SEGMENTS) -> list[SegmentName]:
        """Return the segments below a prefix; none if they cannot be listed."""
        with self.damages:
            return self._sealed.names(prefix)
        return []

    def _entry(self, name: SegmentName) -> SealedEntry | None:
        """Return `SealedSegments.entry`; None also if the seal cannot be read."""
        with self.damages:
            return self._sealed.entry(name)
        return None

    # --- the records of a range

    def records(self, start: datetime, end: datetime, outcome: str | None = None) -> Iterator[Row]:
        """Yield the newest record of each call in the sealed windows that overlap `[start, end)`.

        The order is window by window. A call that vanished is included, and a call that the source
        moved to another window is in both. Raises `StoreError` if the store is unreachable or
        refuses everything.
        """
        day = start.date()
        while datetime.combine(day, datetime.min.time(), UTC) < end:
            windows = dict[datetime, list[SegmentName]]()
            with self.damages:
                windows = self._sealed.windows(day)
            # Of the windows that begin before the range, only the last one may reach into it. A
            # window never crosses midnight.
            first = max((moment for moment in windows if moment <= start), default=start)
            for moment, names in windows.items():
                if first <= moment < end:
                    rows = self._window(names, start)
                    yield from (row for row in rows if outcome in (None, row.record.outcome))
            day += DAY

    def _window(self, names: list[SegmentName], start: datetime) -> Iterator[Row]:
        """Yield the newest record of each call of a window. Later revisions have only what changed,
        and are kept in memory. The first revision has all other calls, and is streamed."""
        sealed = [found for name in names if (found := self._entry(name)) is not None]
        changed: dict[str, Row] = {}
        for one in sealed[1:]:
            for row in self._rows(one, start):
                call_id = row.record.call_id
                changed[call_id] = _newest(row, changed.get(call_id))
        for one in sealed[:1]:
            rows = self._rows(one, start)
            for call_id, same in groupby(rows, key=lambda row: row.record.call_id):
                yield _newest(changed.pop(call_id, None), *same)
        yield from sorted(changed.values(), key=lambda row: row.record.key)

    def _rows(self, sealed: SealedEntry, start: datetime) -> Iterator[Row]:
        """Yield the records of a segment; none if its window ends at or before `start`. Leaves out
        lines that cannot be read, and all of a segment that cannot be read."""
        entry, number = sealed
        bad: FormatError | None = None
        try:
            with self._sealed.open(entry) as file:
                last = deque(lines_of(file), maxlen=1)
                _, window = load_window_line(last[0] if last else b"")
                if window.end <= start:
                    return
                file.seek(0)
                for line in islice(lines_of(file), entry.records):
                    try:
                        yield Row(parse_record(line), entry.key, number)
                    except FormatError as error:
                        bad = bad or error
        except FormatError as error:
            bad = bad or error
        if bad is not None:
            about = "" if str(bad).startswith(entry.key) else f"{entry.key}: "
            self.damages[f"{about}{bad}"] = None

    # --- one call

    def find(self, call_id: str) -> CallHistory | None:
        """Return all records of a call, sealed or not; None if it has none that can be read."""
        records = list[Record]()
        for key in self._record_keys(layout.call_dir(call_id)):
            with self.damages:
                records.append(self._sealed.record(key))
        if not records:
            return None
        records.sort(key=lambda record: (record.revision, record.key))
        # Search the days around the call's start first, then all other segments, unless the
        # remaining records are newer than every seal.
        history = CallHistory(call_id, records)
        wanted, newest = {record.data: record for record in records}, records[-1]
        parsed = layout.parse_record_key(newest.key)
        day = parsed[0] if parsed is not None else date.min
        midnight = datetime.combine(day, datetime.min.time(), UTC)
        start = parse_time(newest.document.get("started_at")) or midnight
        prefixes = [layout.segment_prefix(day + number * DAY) for number in (-1, 0, 1)]
        near = [name for prefix in prefixes for name in self._names(prefix)]
        self._search(history, wanted, near, start)
        if wanted and self._may_be_sealed(wanted.values()):
            self._search(history, wanted, set(self._names()) - set(near), start)
        return history

    def _may_be_sealed(self, records: Iterable[Record]) -> bool:
        """Whether one of the records is older than the newest seal, or this is not known."""
        times = [parse_time(record.document.get("archived_at")) for record in records]
        with self.damages:
            sealed_at = self._sealed.newest().sealed_at
            return any(time is None or time <= sealed_at for time in times)
        return True

    def _record_keys(self, call_dir: str) -> list[str]:
        """Return the keys of a call's records, of the newest day that has any."""
        days = record_days(self._reader.folders(layout.RECORDS))

        def keys_of(day: date) -> list[str]:
            with self.damages:
                listed = self._reader.list(f"{layout.record_prefix(day)}{call_dir}/")
                return [one.key for one in listed if layout.parse_record_key(one.key)]
            return []

        with ThreadPoolExecutor(LISTS_AT_ONCE) as executor:
            for keys in ordered(executor, keys_of, days, 2 * LISTS_AT_ONCE):
                if keys:
                    executor.shutdown(wait=False, cancel_futures=True)
                    return keys
        return []

    def _search(
        self,
        history: CallHistory,
        wanted: dict[bytes, Record],
        names: Iterable[SegmentName],
        start: datetime,
    ) -> None:
        """Search segments for the lines in `wanted`, nearest to `start` first, and remove those
        that are found."""
        for name in sorted(names, key=lambda name: (abs(name.start - start), name.revision)):
            if not wanted:
                return
            if (sealed := self._entry(name)) is None:
                continue
            with self.damages, self._sealed.open(sealed.entry) as file:
                for line in lines_of(file):
                    if (record := wanted.pop(line, None)) is not None:
                        history.sealed[record.key] = (name.jsonl, sealed.seq)


def _newest(*rows: Row | None) -> Row:
    """Return the row with the highest revision; of several with the same, the first one."""
    return max((row for row in rows if row is not None), key=lambda row: row.record.revision)
