"""Questions to the manifest: which records a range has, and what is known of one call.

Only what is sealed counts (`sealed_segments.py`). What is damaged, cannot be read or was written by
a newer release is left out, and `damages` names it.

What a question costs: `records` takes one LIST a day and three small GETs a segment. `find` does
not know the call's day: it asks which days there are (a LIST or two), and from the newest backwards
whether the day has a record of the call (one LIST a day, several at a time), so a recent call is
found at once, and an unknown one costs a LIST for each day that has records. Then the segments
around that day are read, those nearest to the call's start first; all others only where the source
placed the call far from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import groupby
from typing import IO, Any

from archiver.audit.hold_ledger import CallHolds, object_document
from archiver.audit.safe_reader import ItemReader, Reader, Unreadable
from archiver.audit.sealed_segments import SealedSegments, record_day, record_days
from archiver.audit.segment_lines import MAX_RECORD_BYTES, lines_of, parse_record, read_window
from archiver.core.concurrency import ordered
from archiver.core.errors import FormatError
from archiver.core.model import DAY, Window, parse_time
from archiver.manifest import canonical, layout
from archiver.manifest.event import ObjectRef
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.manifest.seal import SegmentEntry

LISTS_AT_ONCE = 8


@dataclass(frozen=True)
class Row:
    """A record as its segment has it, and where. `line` is its exact bytes, newline included."""

    line: bytes
    record: Record
    segment: str
    seal: int


@dataclass
class CallHistory:
    """What is known of a call: its records, oldest first, each with its segment and seal."""

    call_id: str
    revisions: list[Record]
    sealed: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Key of a record → key of its segment, number of its seal. Absent: not sealed yet, or a newer
    revision was there before any segment named it."""
    holds: CallHolds | None = None
    """Its legal holds and what the store says of its objects, where that was asked for."""

    @property
    def objects(self) -> set[ObjectRef]:
        """All that its records name, and the records themselves."""
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
    """A record, in the version that is there, and the files that it names."""
    files = record.document["files"]
    named = [ObjectRef(file["key"], file.get("version_id")) for file in files]
    return [ObjectRef(record.key, None), *named]


class Query:
    """Asks one archive. One thread uses it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = ItemReader(reader)
        self._sealed = SealedSegments(self._reader)
        self.damages: dict[str, None] = {}
        """What could not be read so far, one line each."""

    def _damaged(self, error: FormatError) -> None:
        self.damages[str(error)] = None

    def _names(self, day: date) -> list[SegmentName]:
        """The segments of a day; none where they cannot be listed."""
        try:
            return self._sealed.names(day)
        except FormatError as error:
            self._damaged(error)
            return []

    def _entry(self, name: SegmentName) -> tuple[SegmentEntry, int] | None:
        """As `SealedSegments.entry`; None also where the seal cannot be read."""
        try:
            return self._sealed.entry(name)
        except FormatError as error:
            self._damaged(error)
            return None

    # --- the records of a range

    def records(self, start: datetime, end: datetime, outcome: str | None = None) -> Iterator[Row]:
        """The newest record of each call in the sealed windows that touch `[start, end)`, window
        by window: a call that vanished is there with its record, and a call that a source moved
        from one window to another is in both.

        Raises `StoreError` where the store is out or refuses everything.
        """
        for names in self._windows(start, end):
            for row in self._window(names, start):
                if outcome is None or row.record.outcome == outcome:
                    yield row

    def _windows(self, start: datetime, end: datetime) -> Iterator[list[SegmentName]]:
        """The segments of each window that may touch the range, oldest revision first."""
        day, before = start.date(), list[SegmentName]()
        while datetime.combine(day, datetime.min.time(), UTC) < end:
            for moment, group in groupby(self._names(day), key=lambda name: name.start):
                if moment <= start:
                    before = list(group)  # the last of these is the one that may reach into it
                    continue
                if before:
                    yield before
                    before = []
                if moment < end:
                    yield list(group)
            if before:
                yield before
                before = []
            day += DAY

    def _window(self, names: list[SegmentName], start: datetime) -> Iterator[Row]:
        """The newest record of each call of a window. Later revisions hold what has changed, and
        are kept in memory; the first one, which holds all the rest, passes through."""
        sealed = [found for name in names if (found := self._entry(name)) is not None]
        changed: dict[str, Row] = {}
        for entry, number in sealed[1:]:
            for row in self._rows(entry, number, start):
                call_id = row.record.call_id
                changed[call_id] = _newest(row, changed.get(call_id))
        for entry, number in sealed[:1]:
            rows = self._rows(entry, number, start)
            for call_id, same in groupby(rows, key=lambda row: row.record.call_id):
                yield _newest(changed.pop(call_id, None), *same)
        yield from sorted(changed.values(), key=lambda row: row.record.key)

    def _rows(self, entry: SegmentEntry, number: int, start: datetime) -> Iterator[Row]:
        """The records of a segment; none where its window ends before `start`. A segment that
        cannot be read has none, and a line that cannot is left out."""
        bad: FormatError | None = None
        try:
            with self._sealed.open(entry) as file:
                if _window_of(file, entry).end <= start:
                    return
                file.seek(0)
                for at, line in enumerate(lines_of(file)):
                    if at >= entry.records:
                        break
                    try:
                        record = parse_record(line)
                    except FormatError as error:
                        bad = bad or FormatError(f"{entry.key}: {error}")
                    else:
                        yield Row(line, record, entry.key, number)
        except FormatError as error:
            bad = bad or error
        if bad is not None:
            self._damaged(bad)

    # --- one call

    def find(self, call_id: str) -> CallHistory | None:
        """All records of a call, sealed or not; None where there is none that can be read."""
        keys = self._record_keys(layout.call_dir(call_id))
        records = [record for key in keys if (record := self._record(key)) is not None]
        if not records:
            return None
        records.sort(key=lambda record: (record.revision, record.key))
        history = CallHistory(call_id, records)
        self._locate(history)
        return history

    def _record_keys(self, call_dir: str) -> list[str]:
        """The keys of a call's records: of the newest day that has any."""
        days = record_days(self._reader.folders(layout.RECORDS))

        def keys_of(day: date) -> list[str]:
            prefix = f"{layout.record_prefix(day)}{call_dir}/"
            try:
                return [item.key for item in self._reader.list(prefix) if record_day(item.key)]
            except FormatError as error:
                self._damaged(error)
                return []

        with ThreadPoolExecutor(LISTS_AT_ONCE) as executor:
            for keys in ordered(executor, keys_of, days, 2 * LISTS_AT_ONCE):
                if keys:
                    executor.shutdown(wait=False, cancel_futures=True)
                    return keys
        return []

    def _record(self, key: str) -> Record | None:
        try:
            return parse_record(self._reader.read(key, None, MAX_RECORD_BYTES) or b"")
        except Unreadable as error:
            self._damaged(error)
        except FormatError as error:
            self._damaged(FormatError(f"{key}: {error}; run archiver verify"))
        return None

    def _locate(self, history: CallHistory) -> None:
        """Fill in `sealed`: look near the call's start first, then anywhere, if a record can be
        sealed at all."""
        wanted = {record.data: record for record in history.revisions}
        newest = history.revisions[-1]
        day = record_day(newest.key) or date.min
        midnight = datetime.combine(day, datetime.min.time(), UTC)
        start = parse_time(newest.document.get("started_at")) or midnight
        near = [name for days in (-1, 0, 1) for name in self._names(day + days * DAY)]
        self._search(history, wanted, near, start)
        if wanted and self._may_be_sealed(wanted.values()):
            names: set[SegmentName] = set()
            try:
                names.update(self._sealed.all_names())
            except FormatError as error:
                self._damaged(error)
            self._search(history, wanted, names - set(near), start)

    def _search(
        self,
        history: CallHistory,
        wanted: dict[bytes, Record],
        names: Iterable[SegmentName],
        start: datetime,
    ) -> None:
        """Look for lines in segments, nearest to `start` first; found ones leave `wanted`."""
        for name in sorted(names, key=lambda name: (abs(name.start - start), name.revision)):
            if not wanted:
                return
            if (sealed := self._entry(name)) is None:
                continue
            entry, number = sealed
            try:
                with self._sealed.open(entry) as file:
                    for line in lines_of(file):
                        if (record := wanted.pop(line, None)) is not None:
                            history.sealed[record.key] = (name.jsonl, number)
            except FormatError as error:
                self._damaged(error)

    def _may_be_sealed(self, records: Iterable[Record]) -> bool:
        """Whether the newest seal is younger than some of them."""
        try:
            sealed_at = self._sealed.newest().sealed_at
        except FormatError as error:
            self._damaged(error)
            return True
        times = [parse_time(record.document.get("archived_at")) for record in records]
        return any(moment is None or moment <= sealed_at for moment in times)


def _newest(*rows: Row | None) -> Row:
    """The one with the highest revision; of some that are as new, the first one given."""
    return max((row for row in rows if row is not None), key=lambda row: row.record.revision)


def _window_of(file: IO[bytes], entry: SegmentEntry) -> Window:
    """The window of a segment, from its last line."""
    last = deque(lines_of(file), maxlen=1)
    try:
        return read_window(canonical.load_object(last[0] if last else b""))
    except FormatError as error:
        raise FormatError(f"{entry.key}: {error}; run archiver verify") from None
