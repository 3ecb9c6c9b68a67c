"""Finds the latest record of each call of a window, and the calls that its listing lacks.

- A missing call was listed before, is not listed now, and no segment of its window has a record of
  it. It is known from the newest segment's pending ids, from the sightings, or from another pass of
  this listing.
- An orphan record is one that no segment names yet: a process wrote it and ended before it closed
  the window, or the call came from another window's listing. A record of a listed call is found by
  its key. A record of a call that is no longer listed would never reach a segment, so each process
  looks for orphans once per day of records.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from datetime import UTC, date, datetime, timedelta

import structlog

from archiver.core.clock import Interrupted
from archiver.core.concurrency import Workers
from archiver.core.errors import FormatError, NewerFormat, Reach, StoreError
from archiver.core.model import DAY, Call, Window, parse_time, placing_time, window_of
from archiver.manifest import layout, record
from archiver.manifest.layout import SegmentName
from archiver.pipeline.bucket_state import (
    MAX_SEGMENT_BYTES,
    LatestRecord,
    RecordIndex,
    SegmentIndex,
    UnreadableRecord,
    WindowState,
    spool,
)
from archiver.pipeline.sightings import Sightings
from archiver.source.listing import Lister, WindowListing
from archiver.store.bucket import Bucket

log = structlog.get_logger()

MIDNIGHT_MARGIN = timedelta(hours=3)
"""A window may list calls of the day before or after its own, this close to midnight."""
MAX_ORPHANS = 10_000
"""With more orphan records on a day, a backfill does not load them; also the most records of other
windows' segments that are kept in memory."""


class CallRecords:
    """Finds records, and keeps the known orphans, each with the window whose segment is to name it.
    Thread-safe while no two threads process the same window."""

    def __init__(
        self,
        store: Bucket,
        index: RecordIndex,
        segments: SegmentIndex,
        workers: Workers,
        lister: Lister,
        sightings: Sightings,
    ) -> None:
        self._store = store
        self._index = index
        self._segments = segments
        self._workers = workers
        self._lister = lister
        self._sightings = sightings
        self._logged: set[str] = set()
        """Keys of unreadable records that are already in the log."""
        self._mutex = threading.Lock()
        self._orphans: dict[Window, dict[str, LatestRecord]] = {}
        self._loading = threading.RLock()  # held while a day's segments are read
        self._loaded_days: set[date] = set()
        self._unclaimed: dict[Window, dict[str, LatestRecord]] = {}
        """Orphans of the loaded days by window. `load_orphans` takes those of its window."""
        self._named: set[tuple[date, str]] = set()

    # --- the newest record of each call

    def missing(
        self, listed: WindowListing, state: WindowState, sighted: Set[str]
    ) -> dict[str, Call]:
        """The missing calls of a window. Two windows may know the same call. This window leaves it
        to the other one if this listing shows it there, if this process has an orphan record of it
        there, or if a segment there names its record. Otherwise both windows account for it."""
        # Ids that no listing, segment or orphan record accounts for.
        loose = set(sighted) - {*listed.calls, *state.records, *listed.seen_once} - state.pending
        loose -= {call_id for calls in listed.other_windows.values() for call_id in calls}
        with self._mutex:
            loose -= {call_id for orphans in self._orphans.values() for call_id in orphans}
        # Drop those with a record that another window's segment names.
        revision, days = self._index.tolerant(listed.window), _days_near(listed.window)
        found = {i: next((day for day in days if revision(day, i)), None) for i in loose}
        recorded = {(day, layout.call_dir(i)) for i, day in found.items() if day is not None}
        named = self._named_among(recorded, listed.window) if recorded else set()
        loose = {i for i in loose if (found[i], layout.call_dir(i)) not in named}
        calls = {call_id: Call(call_id, {}) for call_id in sorted(loose | state.pending)}
        calls |= listed.seen_once
        return {i: call for i, call in calls.items() if i not in listed.calls}

    def latest(
        self, listed: WindowListing, missing: Mapping[str, Call], state: WindowState
    ) -> tuple[dict[str, LatestRecord], dict[str, UnreadableRecord]]:
        """Return the latest record of each listed, missing or orphaned call, from the segments,
        this process or the bucket; and the unreadable objects that take the place of one."""
        with self._mutex:
            orphans = self._orphans.setdefault(listed.window, {})
            for call_id, named in state.records.items():
                if call_id in orphans and orphans[call_id].revision <= named.revision:
                    del orphans[call_id]  # another writer's segment names it or a later revision
            latest = dict(orphans)
        keys: dict[str, str] = {}
        revision_of = self._index.tolerant(listed.window)
        for call_id, days in _days_of_calls(listed, missing, state):
            known = [one for one in (latest.get(call_id), state.records.get(call_id)) if one]
            found = max(known, key=lambda one: one.revision, default=None)
            if found is not None and (call_id in listed.calls or call_id in missing):
                latest[call_id] = found
            in_bucket = ((day, revision_of(day, call_id)) for day in days)
            day, revision = next((one for one in in_bucket if one[1]), (days[0], 0))
            if revision > (found.revision if found else 0):
                keys[call_id] = layout.record_key(day, call_id, revision)
        unreadable: dict[str, UnreadableRecord] = {}
        read = self._workers.map(self._read, keys.values())
        for call_id, newest in zip(keys, read, strict=True):
            if isinstance(newest, UnreadableRecord):
                unreadable[call_id] = newest
            else:
                latest[call_id] = newest
        return latest, unreadable

    def _read(self, key: str) -> LatestRecord | UnreadableRecord:
        """Read a record. One that cannot be read is logged once as an error and stops nothing."""
        try:
            return LatestRecord.of(record.parse(self._store.read(key) or b""))
        except (FormatError, StoreError) as error:
            if error.reach is not Reach.ITEM:
                raise
            if key not in self._logged:
                self._logged.add(key)
                log.error("record.unreadable", key=key, error=str(error))
            foreign = isinstance(error, FormatError) and not isinstance(error, NewerFormat)
            parsed = layout.parse_record_key(key)
            return UnreadableRecord(parsed[2] if parsed else 1, foreign)

    # --- orphan records

    @property
    def windows_with_orphans(self) -> set[Window]:
        with self._mutex:
            return {window for window, orphans in self._orphans.items() if orphans}

    def add_orphans(self, window: Window, records: Mapping[str, LatestRecord]) -> None:
        """Keep these records until a segment of the window names them."""
        with self._mutex:
            self._orphans.setdefault(window, {}).update(records)

    def named(self, window: Window, call_ids: Collection[str]) -> None:
        """Drop the orphans that a segment of the window names now. Orphans that were added from
        other windows' listings meanwhile stay."""
        with self._mutex:
            for call_id in call_ids:
                self._orphans.get(window, {}).pop(call_id, None)

    def forget_if_empty(self, window: Window) -> None:
        """Called only by the thread that processes the window."""
        with self._mutex:
            if not self._orphans.get(window):
                self._orphans.pop(window, None)

    def load_orphans(self, listed: WindowListing, *, skip_crowded_days: bool) -> None:
        """Find the orphan records that an earlier process left. Raises `StoreError`, and what
        listing a neighbour raises.

        1. Load the orphans of the window's day, and take those of the window.
        2. Hand those that this listing lacks to a neighbouring window that lists them.
        3. Keep the rest, unless another window has the same record.

        `skip_crowded_days`: skip a day with more than `MAX_ORPHANS` orphans, because other
        processes are working on it.
        """
        window, day = listed.window, listed.window.start.date()
        # 1.
        with self._loading:
            if day not in self._loaded_days and self._load_day(day, window, skip_crowded_days):
                self._loaded_days.add(day)
            found = self._unclaimed.pop(window, {}) if day in self._loaded_days else {}
        # 2.
        try:
            self._hand_to_neighbours(found, listed)
        finally:  # `_unclaimed` no longer has them: keep them also after an error
            with self._mutex:
                self._orphans[window] = {**found, **self._orphans.get(window, {})}
        # 3. Under one lock: otherwise two windows might leave the same record to each other.
        with self._mutex:
            own = self._orphans[window]
            others = [orphans for other, orphans in self._orphans.items() if other != window]
            for call_id, orphan in list(own.items()):
                same = (other.get(call_id) for other in others)
                if call_id not in listed.calls and any(o and o.key == orphan.key for o in same):
                    del own[call_id]

    def _hand_to_neighbours(self, found: dict[str, LatestRecord], listed: WindowListing) -> None:
        """Hand over the orphans that a neighbouring window lists. An orphan that this listing lacks
        may appear there, because the source may filter by another timestamp."""
        length, listed_at = listed.window.end - listed.window.start, listed.listing.listed_at
        for by in (-length, length):
            if not found.keys() - listed.calls.keys():
                return
            neighbour = Window(listed.window.start + by, listed.window.end + by)
            seen: dict[str, Call] = {}
            try:
                shown = self._lister.list_once(neighbour, seen)
            except Interrupted:
                raise
            except Exception:
                self._sightings.note_cut_short(listed.window, (), seen.values(), listed_at)
                raise
            for home, calls in shown.items():
                if self._sightings.is_ours(home):
                    self._sightings.add(listed.window, {home: calls.values()}, listed_at)
                there = calls.keys() & found.keys() - listed.calls.keys()
                if there:
                    self.add_orphans(neighbour, {call_id: found.pop(call_id) for call_id in there})

    def _load_day(self, day: date, window: Window, skip_crowded_days: bool) -> bool:
        """Load the orphans of a day by the window of their call. False if it was skipped."""
        orphans = self._index.revisions(day)
        if orphans:
            for keys in self._workers.map(self._keys_named_by, self._segments_near(day)):
                for named_day, call_dir in keys:
                    if named_day == day:
                        orphans.pop(call_dir, None)
        if skip_crowded_days and len(orphans) > MAX_ORPHANS:
            log.info("records.orphaned", day=day.isoformat(), count=len(orphans))
            return False
        keys_of = [f"{layout.record_prefix(day)}{name}/r{n}.json" for name, n in orphans.items()]
        for found in self._workers.map(self._read, keys_of):
            if isinstance(found, UnreadableRecord):
                continue  # `_read` has logged it, and `verify` reports it
            moment = _placing_time(found)
            # A record without a time may belong to any window of the day; this window takes it.
            home = window_of(moment, window.end - window.start) if moment else window
            self._unclaimed.setdefault(home, {})[found.record().call_id] = found
        return True

    # --- what segments name

    def lacks_sighted(
        self, newest: SegmentName, pending: Collection[str], keys: Iterable[str]
    ) -> bool:
        """Whether one of these sightings has an id that is neither pending in the newest segment of
        its window nor recorded in any of its segments. Raises `StoreError`."""
        found = self._sightings.read_objects(keys)
        loose = {call_id for one in found for call_id in one.ids}.difference(pending)
        if not loose:
            return False
        names = [SegmentName(newest.start, number) for number in range(1, newest.revision + 1)]
        named = {one for keys in self._workers.map(self._keys_named_by, names) for _, one in keys}
        return any(layout.call_dir(call_id) not in named for call_id in loose)

    def _named_among(self, wanted: Set[tuple[date, str]], window: Window) -> set[tuple[date, str]]:
        """Return those of the wanted records (day and call directory) that a segment near this
        window names. Raises `StoreError`."""
        with self._loading:
            left = wanted - self._named
            if left:
                if len(self._named) > MAX_ORPHANS:
                    self._named.clear()
                names = self._segments_near(window.start.date())
                for keys in self._workers.map(self._keys_named_by, names):
                    self._named |= left & set(keys)
            return {one for one in wanted if one in self._named}

    def _segments_near(self, day: date) -> Iterator[SegmentName]:
        """The segments that may name a record of this day. Skips a day that the store does not
        list."""
        midnight = datetime.combine(day, datetime.min.time(), UTC)
        for other in (day - DAY, day, day + DAY):
            try:
                names = self._segments.list_day(other)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                log.error("day.unlistable", day=str(other), error=str(error))
                continue
            for name in names:
                if midnight - MIDNIGHT_MARGIN <= name.start < midnight + DAY + MIDNIGHT_MARGIN:
                    yield name

    def _keys_named_by(self, name: SegmentName) -> list[tuple[date, str]]:
        """Day and call directory of each record in a segment, from its checksum list, which is
        smaller.

        Returns none if the store refuses the checksum list. The window of these records knows them
        from its segment, so none is named twice.
        """
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
                # A line has 64 hex digits, two characters, and the key.
                parsed = layout.parse_record_key(line[66:].decode("utf-8", "replace").rstrip("\n"))
                if parsed is not None:
                    found.append(parsed[:2])
        return found


def _placing_time(found: LatestRecord) -> datetime | None:
    """The time that places a record's call in a window; None if the record states none, or one that
    was implausible when the call was listed. Then the time was in the future when the record was
    written, and the record lies below an earlier day."""
    document = found.record().document
    moment = parse_time(document.get("started_at")) or parse_time(document.get("ended_at"))
    archived_at = parse_time(document.get("archived_at"))
    ahead = moment is not None and archived_at is not None and moment > archived_at
    return None if moment and ahead and moment.date() > found.day else moment


def _days_of_calls(
    listed: WindowListing, missing: Mapping[str, Call], state: WindowState
) -> Iterator[tuple[str, list[date]]]:
    """Yield each known id of the window, with the days below which its record may lie.

    A time that is plausible now may have been too far in the future when the call was archived.
    Such a record lies below the window's day, so that day comes first.
    """
    own_day = listed.window.start.date()
    for call in [*listed.calls.values(), *missing.values()]:
        named = state.records.get(call.id)
        if named is not None:
            yield call.id, [named.day]
        elif call.own_time is None and call.id in missing:
            yield call.id, _days_near(listed.window)
        else:
            day = placing_time(call, listed.window, listed.listing.listed_at).date()
            yield call.id, [own_day, day] if day > own_day else [day]
    for call_id, named in state.records.items():
        if call_id not in listed.calls:
            yield call_id, [named.day]


def _days_near(window: Window) -> list[date]:
    """The days of a window's calls: its own first, then those of calls that the source filters by
    another time than their start."""
    moments = (window.start, window.start - MIDNIGHT_MARGIN, window.end + MIDNIGHT_MARGIN)
    return list(dict.fromkeys(moment.date() for moment in moments))
