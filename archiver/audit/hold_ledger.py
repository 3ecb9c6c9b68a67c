"""Reads legal holds: all sealed hold events ("acts"), and all objects of the calls concerned.

- Only sealed events count. Of a segment of events and its seal pointer, all versions are read, and
  the version counts whose SHA-256 a seal states. So somebody with write access to the bucket can
  neither add an act nor hide one below a newer version or a delete marker. Signatures are not
  checked here; `verify` does that.
- A hold must cover every object of a call. The objects are not taken from records, which may be
  hidden or overwritten: every version of every object in the call's two directories counts.
- The records of a call are all on one day, except for a call that the source moved to another day
  before the archive knew it: that call has records on both days. So all days are searched.

Requests for the acts: a LIST of all events, and three small GETs for each segment of events, which
is one command. Reading again takes GETs for new segments only. Requests for the objects: a LIST for
each day, or, if the day is large, for each call's own directory; a HEAD for each object; a GET for
each record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import partial
from itertools import chain
from typing import Any

from archiver.audit.chain import MAX_SEAL_BYTES, SealedSegments, record_days
from archiver.audit.safe_reader import Damages, ItemReader, Reader, Unreadable, lists_no_versions
from archiver.audit.segment_lines import MAX_RECORD_BYTES, is_held_object, parse_record
from archiver.core.concurrency import ordered
from archiver.core.errors import FormatError, Reach, StoreError
from archiver.core.model import format_second, format_time
from archiver.manifest import event, layout, seal
from archiver.manifest.event import HoldEvent, ObjectRef, SealedHold
from archiver.manifest.seal import POINTER_BYTES, SegmentEntry, parse_seal_pointer
from archiver.store.types import CallObjects, ObjectHead

AT_ONCE = 8
LIST_PAGE = 1000
"""Keys in one page of a LIST response."""
ChainPlace = tuple[int, int]
"""A segment's place in the chain: the number of its seal, and its index in that seal."""


class AllVersions:
    """Lists all versions; in a store without versions, all objects. Threads share it.

    Somebody with write access can add a version or a delete marker to any key, locked or not, and a
    plain listing shows only the newest version. Objects that must not be missed are listed here.
    """

    def __init__(self, reader: ItemReader) -> None:
        self._reader = reader
        self._has_versions: bool | None = None

    def below(self, prefix: str) -> Iterator[tuple[ObjectRef, bool]]:
        """Yield each version; the bool is True for a delete marker. Raises `StoreError`, also if we
        have no permission to list versions: a hidden version would count as missing."""
        if not self._lists_versions():
            yield from ((ObjectRef(item.key, None), False) for item in self._reader.list(prefix))
            return
        for one in self._reader.versions(prefix):
            # `null` is the version of an object that was written without versioning. As the newest
            # version it has no version id here, as in records.
            version_id = None if one.version_id == "null" and one.is_latest else one.version_id
            yield ObjectRef(one.key, version_id), one.is_delete_marker

    def folders(self, prefix: str) -> set[str]:
        """The names of the folders directly below a prefix, also of those whose objects are all
        hidden by delete markers."""
        return self._reader.folders(prefix, hidden=self._lists_versions())

    def _lists_versions(self) -> bool:
        """Whether the store lists versions. Tested with seal 0, which every archive has, hidden or
        not."""
        if self._has_versions is None:
            try:
                first = next(iter(self._reader.versions(layout.seal_key(0))), None)
            except StoreError as error:
                if not lists_no_versions(error):
                    raise
                first = None
            self._has_versions = first is not None
        return self._has_versions


# --- the acts


@dataclass
class _EventSegment:
    """The versions of a segment of events, and those of its seal pointer."""

    key: str
    jsonl: list[ObjectRef] = field(default_factory=list)
    pointers: list[ObjectRef] = field(default_factory=list)


class HoldEvents:
    """Reads the acts of an archive. For one thread."""

    def __init__(self, reader: Reader) -> None:
        self._reader = ItemReader(reader)
        self._versions = AllVersions(self._reader)
        self._acts: dict[str, tuple[ChainPlace, list[SealedHold]]] = {}
        """The acts read so far, by the key of the segment."""
        self._seals: dict[int, Mapping[str, tuple[ChainPlace, SegmentEntry]]] = {}
        """Seal number → its entries for segments of events, by their keys."""
        self.unsealed: list[str] = []
        """The keys of segments of events that no seal names, as of the last reading."""
        self._damages = Damages()

    @property
    def damaged(self) -> list[str]:
        """A line for each object that is damaged or cannot be read, as of the last reading."""
        return sorted(self._damages)

    def acts(self) -> list[SealedHold]:
        """Return all sealed acts, oldest first. Raises `StoreError`, also if an act is damaged or
        cannot be read: without it nobody can tell which calls are held."""
        try:
            found = self.readable()
        except Unreadable as error:
            raise StoreError(str(error), reason="damaged") from None
        if self.damaged:
            raise StoreError(
                f"{self.damaged[0]}: run archiver verify, and bring it back from a copy; until "
                "then nobody can tell for certain what is held (hold add works all the same)",
                reason="damaged",
            )
        return found

    def readable(self) -> list[SealedHold]:
        """Return the acts that can be read, and set `unsealed` and `damaged`. Raises `Unreadable`
        if the events cannot be listed.

        1. List the segments of events, and skip those that were read before.
        2. Read each segment as the seals that its pointers name have it.
        3. For segments that no seal names so far, read the newest seal, and list their pointers
           again. A writer completes a seal before it writes the next one, so only the newest seal
           can lack pointers, and a pointer may have been written since step 1.
        """
        # 1. New segments.
        listed = sorted(self._list(layout.EVENTS).items())
        todo = [segment for key, segment in listed if key not in self._acts]
        self.unsealed, self._damages = [], Damages()
        # 2. The segments with a pointer.
        with ThreadPoolExecutor(AT_ONCE) as executor:
            read = list(executor.map(self._read_acts, todo))
        # 3. The newest seal, and pointers written since.
        unplaced = [segment for segment, is_sealed in zip(todo, read, strict=True) if not is_sealed]
        newest = SealedSegments(self._reader).newest().seq if unplaced else 0
        for segment in unplaced:
            again = self._list(layout.seal_pointer_key(segment.key)).get(segment.key)
            segment.pointers = again.pointers if again is not None else []
            if not self._read_acts(segment, newest) and segment.jsonl:
                self.unsealed.append(segment.key)
        in_order = sorted(self._acts.values(), key=lambda one: one[0])
        return [act for _, acts in in_order for act in acts]

    def _list(self, prefix: str) -> dict[str, _EventSegment]:
        """List segments and seal pointers, by the key of the segment. Skips delete markers."""
        found: dict[str, _EventSegment] = {}
        for ref, is_marker in self._versions.below(prefix):
            parsed = layout.parse_event_key(ref.key)
            if parsed is not None and parsed[1] != "sha256" and not is_marker:
                key = f"{parsed[0]}.jsonl"
                segment = found.setdefault(key, _EventSegment(key))
                (segment.jsonl if parsed[1] == "jsonl" else segment.pointers).append(ref)
        return found

    def _read_acts(self, segment: _EventSegment, *numbers: int) -> bool:
        """Read the acts of a segment, as the first of the seals has them that its pointers or
        `numbers` name. Returns False if none of these seals names the segment."""
        key, seals = segment.key, set(numbers)
        for ref in segment.pointers:
            with self._damages:
                number = parse_seal_pointer(self._read(ref, POINTER_BYTES) or b"")
                seals |= {number} if number is not None else set()
        entries = [self._entries(number) for number in sorted(seals)]
        sealed = next((one[key] for one in entries if key in one), None)
        if sealed is None:
            return False
        place, entry = sealed
        unreadable = Damages()
        for ref in segment.jsonl:
            data = b""
            with unreadable:
                data = self._read(ref, entry.bytes) or b""
            if hashlib.sha256(data).hexdigest() == entry.sha256:
                try:
                    holds = event.parse_segment(data)
                    self._acts[key] = (place, [SealedHold(one, key, place[0]) for one in holds])
                except FormatError as error:
                    self._damages[f"{key}: {error}"] = None
                return True
        self._damages |= unreadable or {f"{key} is not there as seal {place[0]} tells of it": None}
        return True

    def _entries(self, number: int) -> Mapping[str, tuple[ChainPlace, SegmentEntry]]:
        """Return a seal's entries for segments of events, by their keys. Ignores a number without a
        seal: anybody with write access may write a pointer."""
        if number in self._seals:
            return self._seals[number]
        key = layout.seal_key(number)
        try:
            data = self._read(ObjectRef(key, None), MAX_SEAL_BYTES)
        except Unreadable as error:
            self._damages[str(error)] = None
            return {}
        # Without a seal and without its signature, the number was never used. A signature without
        # its seal shows that the seal was removed or hidden: that is damage.
        if data is None and next(iter(self._versions.below(key + ".sig")), None) is None:
            return {}
        try:
            sealed = seal.parse_seal(data or b"")
        except FormatError as error:
            self._damages[f"{key} cannot be read ({error})"] = None
            return {}
        self._seals[number] = {
            entry.key: ((number, at), entry)
            for at, entry in enumerate(sealed.segments)
            if layout.parse_event_key(entry.key) is not None
        }
        return self._seals[number]

    def _read(self, ref: ObjectRef, max_bytes: int) -> bytes | None:
        """Return None if the object is missing or larger than `max_bytes`. Raises `Unreadable`."""
        try:
            return self._reader.read(ref.key, ref.version_id, max_bytes)
        except Unreadable as error:
            if error.reason != "too_large":
                raise
            return None


# --- the objects of calls


class CallFinder:
    """Finds the objects of calls. For one thread, except `current_objects`."""

    def __init__(self, reader: Reader, at_once: int, *, page: int = LIST_PAGE) -> None:
        self._reader = ItemReader(reader)
        self._versions = AllVersions(self._reader)
        self._page = page
        self._at_once = at_once

    def find(
        self, call_ids: Collection[str]
    ) -> tuple[dict[str, CallObjects], dict[str, StoreError]]:
        """Return the objects of each call that has a record, hidden or not; and, for calls of which
        an object cannot be read, the error. Raises `StoreError` if the store is unreachable or
        refuses to list."""
        dirs = {layout.call_dir(call_id): call_id for call_id in call_ids}
        days: dict[str, set[str]] = {}

        def try_one(call: tuple[str, set[str]]) -> CallObjects | StoreError:
            """An error about one call's objects does not stop the other calls."""
            try:
                return self._objects(*call)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                return error

        executor = ThreadPoolExecutor(self._at_once, thread_name_prefix="objects")
        try:
            listed = record_days(self._versions.folders(layout.RECORDS))
            find_calls = partial(self._calls_of_day, dirs)
            for found_there in ordered(executor, find_calls, listed, 2 * self._at_once):
                for day, call_dir in found_there:
                    days.setdefault(dirs[call_dir], set()).add(day)
            tried = list(ordered(executor, try_one, days.items(), 2 * self._at_once))
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
        found = list(zip(days, tried, strict=True))
        calls = {call_id: one for call_id, one in found if not isinstance(one, StoreError)}
        return calls, {call_id: one for call_id, one in found if isinstance(one, StoreError)}

    def current_objects(self, hold: HoldEvent) -> CallObjects:
        """Return the objects that exist now in the directories of a hold's objects: later revisions
        of a call stay on the day of the first one. Threads share it. Raises `StoreError`."""
        return self._objects(hold.call_id, {one.key.split("/")[1] for one in hold.objects})

    def _calls_of_day(self, dirs: Collection[str], day: date) -> set[tuple[str, str]]:
        """Return `(dt=<day>, directory)` of each of these calls that has a record on a day."""
        prefix, found = layout.record_prefix(day), set[tuple[str, str]]()
        if len(dirs) > 1:
            for number, (call_dir, is_record) in enumerate(self._records(prefix)):
                if number >= self._page * len(dirs):
                    break  # more pages than calls: listing each call's directory is cheaper
                if call_dir in dirs and is_record:
                    found.add((layout.day_dir(day), call_dir))
            else:
                return found
        return {
            (layout.day_dir(day), call_dir)
            for call_dir in dirs
            if any(is_record for _, is_record in self._records(f"{prefix}{call_dir}/"))
        }

    def _records(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Yield, for each version below a prefix, its call's directory and whether it is a
        record."""
        for ref, is_marker in self._versions.below(prefix):
            is_record = not is_marker and layout.parse_record_key(ref.key) is not None
            yield ref.key.split("/")[2], is_record

    def _objects(self, call_id: str, days: Iterable[str]) -> CallObjects:
        """List a call's objects on these days (`dt=…`), and send a HEAD for each version. Raises
        `StoreError`, with reach `ITEM` if only these objects are affected."""
        held, loose, gone, dates = set[ObjectRef](), set[ObjectRef](), set[str](), set[datetime]()
        tops = (layout.RECORDS, layout.RECORDINGS)
        dirs = [f"{top}{day}/{layout.call_dir(call_id)}/" for day in sorted(days) for top in tops]
        try:
            for ref, is_marker in chain.from_iterable(map(self._versions.below, dirs)):
                head = None if is_marker else self._reader.head(ref.key, ref.version_id)
                if head is None:
                    gone.add(ref.key)
                    continue
                (held if head.held else loose).add(replace(ref, version_id=head.version_id))
                dates |= {head.lock_until} if head.lock_until else set()
            gone |= self._missing(held | loose)
        except Unreadable as error:
            raise StoreError(str(error), reason=error.reason, reach=Reach.ITEM) from None
        return CallObjects(
            call_id,
            held=frozenset(held),
            loose=frozenset(loose),
            named=frozenset(one for one in held | loose if is_held_object(call_id, one)),
            gone=frozenset(gone),
            locked_until=max(dates, default=None),
        )

    def _missing(self, found: Collection[ObjectRef]) -> set[str]:
        """Return the keys that records name and that do not exist, and the keys of damaged records.
        They are only reported, because anybody with write access may have written such a record."""
        missing, keys = set[str](), {one.key for one in found}
        for one in found:
            if layout.parse_record_key(one.key) is None:
                continue
            try:
                data = self._reader.read(one.key, one.version_id, MAX_RECORD_BYTES)
                missing |= {file["key"] for file in parse_record(data or b"").files} - keys
            except FormatError as error:
                if isinstance(error, Unreadable) and error.reason != "too_large":
                    raise
                missing.add(one.key)
        return missing


class ArchivedHolds(HoldEvents):
    """The acts, and the objects of calls: the reading side of `pipeline/hold_acts.py`. For one
    thread, except `current_objects`."""

    def __init__(self, reader: Reader, at_once: int) -> None:
        super().__init__(reader)
        finder = CallFinder(reader, at_once)
        self.find, self.current_objects = finder.find, finder.current_objects


def have_records(reader: Reader, call_ids: Collection[str]) -> set[str]:
    """Return those of these calls that have a record in the archive, hidden or not."""
    calls, left = CallFinder(reader, AT_ONCE).find(call_ids) if call_ids else ({}, {})
    return {*calls, *left}


# --- the holds of one call


@dataclass
class CallHolds:
    """The acts about a call, oldest first, and the HEAD responses for its objects; None for an
    object that is missing or cannot be read."""

    acts: Sequence[SealedHold]
    heads: Mapping[ObjectRef, ObjectHead | None] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        return bool(self.acts) and self.acts[-1].hold.action == "add"

    @property
    def last(self) -> list[SealedHold]:
        """The acts that decide whether the call is held now, oldest first."""
        return event.deciding_acts(self.acts)

    def document(self) -> dict[str, Any]:
        """Return `{"acts", "held"}`, a part of `hold list --json` and `manifest show --json`."""
        acts = [
            {**hold_document(act.hold), "seal": act.seal, "segment": act.segment}
            for act in self.acts
        ]
        return {"acts": acts, "held": self.is_held}


def holds_by_call(acts: Sequence[SealedHold]) -> dict[str, CallHolds]:
    """Group acts by call id. The calls are in the order of their first acts."""
    return {call_id: CallHolds(own) for call_id, own in event.by_call(acts).items()}


def holds_of(
    reader: Reader, call_id: str, objects: Collection[ObjectRef]
) -> tuple[CallHolds, Damages]:
    """Return the holds of a call, and a line for each event or object that could not be read.

    `objects` are those that the call's records name; the objects of its newest act are added.
    """
    ledger, items = HoldEvents(reader), ItemReader(reader)
    acts = [act for act in ledger.readable() if act.hold.call_id == call_id]
    wanted = {*objects, *(acts[-1].hold.objects if acts else ())}
    damages = Damages(dict.fromkeys(ledger.damaged))

    def head(one: ObjectRef) -> ObjectHead | None:
        with damages:
            return items.head(one.key, one.version_id)
        return None

    with ThreadPoolExecutor(AT_ONCE) as executor:
        heads = executor.map(head, wanted)
        return CallHolds(acts, dict(zip(wanted, heads, strict=True))), damages


def hold_document(hold: HoldEvent) -> dict[str, Any]:
    return {
        "action": hold.action,
        "at": format_second(hold.at),
        "by": hold.by,
        "objects": [vars(one) for one in hold.objects],
        "reason": hold.reason,
    }


def object_document(ref: ObjectRef, head: ObjectHead | None) -> dict[str, Any]:
    """An object's version, lock and hold in the store; all null if the object does not exist."""
    until = head.lock_until if head else None
    return {
        "held": head.held if head else None,
        "key": ref.key,
        "lock_mode": head.lock_mode if head else None,
        "lock_until": format_time(until) if until else None,
        "version_id": head.version_id if head else None,
    }
