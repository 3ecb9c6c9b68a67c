"""Legal holds as the ledger tells of them: every act, in the order of the chain.

Only what is sealed counts: of a segment of events, and of its pointer, all versions are looked at,
and the one counts whose SHA-256 a seal tells of. So who may write to the bucket can add nothing,
and hide or overlay nothing. Signatures are `verify`'s business. What it costs: a LIST of all
events, and for each segment of events, which is one command of somebody's, three small GETs,
several at a time; asked again, only for new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from archiver.audit.callobjects import Finder, Found
from archiver.audit.chain import MAX_SEAL_BYTES
from archiver.audit.control import ItemReader, Unreadable
from archiver.audit.everyversion import EveryVersion
from archiver.audit.reader import Head, Reader
from archiver.audit.sealed import SealedSegments
from archiver.errors import FormatError, StoreError
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Act, Hold, ObjectRef
from archiver.manifest.seal import POINTER_BYTES, SegmentEntry, parse_pointer
from archiver.model import format_second, format_time
from archiver.store.objects import CallObjects

AT_ONCE = 8
Place = tuple[int, int]
"""Where a segment stands: the number of its seal, and which of that seal's segments it is."""
Entries = Mapping[str, tuple[Place, SegmentEntry]]
"""What a seal says of segments of events, by their keys."""


@dataclass
class _Versions:
    """The versions of a segment of events, and of its pointer."""

    jsonl: list[ObjectRef] = field(default_factory=list)
    seal: list[ObjectRef] = field(default_factory=list)


class Ledger:
    """Reads the acts of an archive. One thread uses it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = ItemReader(reader)
        self._every = EveryVersion(self._reader)
        self._read: dict[str, tuple[Place, list[Act]]] = {}
        self._seals: dict[int, Entries] = {}
        self.unsealed: list[str] = []
        """The segments of events that no seal tells of, as of the last look."""
        self.damaged: list[str] = []
        """What is wrong with those that are not as they were sealed, as of the last look."""

    def acts(self) -> list[Act]:
        """All acts that are sealed by now, oldest first. Raises `StoreError`, also where one is
        not as it was sealed or cannot be read: then nobody can tell who is held."""
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

    def readable(self) -> list[Act]:
        """The same without those that are `damaged`. Raises `Unreadable` where the events cannot
        be listed."""
        todo = {
            key: found
            for key, found in sorted(self._versions(layout.EVENTS).items())
            if key not in self._read
        }
        self.unsealed, self.damaged = [], []
        with ThreadPoolExecutor(AT_ONCE) as executor:
            pointers = dict(zip(todo, executor.map(self._numbers, todo.values()), strict=True))
            self._read_seals(executor, {n for named in pointers.values() for n in named})
            unplaced = [key for key in todo if self._entry(key, pointers[key]) is None]
            if unplaced:
                self._look_again(executor, unplaced, pointers)
            list(executor.map(lambda key: self._take_in(key, todo[key], pointers[key]), todo))
        self.unsealed, self.damaged = sorted(self.unsealed), sorted(set(self.damaged))
        found = sorted(self._read.values(), key=lambda one: one[0])
        return [act for _, acts in found for act in acts]

    # --- which seal tells of a segment

    def _versions(self, prefix: str) -> dict[str, _Versions]:
        """By the keys of segments; delete markers are passed by."""
        found: dict[str, _Versions] = {}
        for ref, is_marker in self._every.below(prefix):
            parsed = layout.parse_event_key(ref.key)
            if parsed is not None and parsed[1] != "sha256" and not is_marker:
                one = found.setdefault(f"{parsed[0]}.jsonl", _Versions())
                (one.jsonl if parsed[1] == "jsonl" else one.seal).append(ref)
        return found

    def _numbers(self, found: _Versions) -> set[int]:
        """The seals that the pointer's versions name."""
        numbers = (parse_pointer(self._bytes(ref, POINTER_BYTES) or b"") for ref in found.seal)
        return {number for number in numbers if number is not None}

    def _look_again(
        self, executor: ThreadPoolExecutor, keys: Iterable[str], pointers: dict[str, set[int]]
    ) -> None:
        """A seal is completed before the next is made, so only the newest can lack its pointers;
        and one that was there no more may have got them while the newest was looked for."""
        newest = SealedSegments(self._reader).newest().seq
        for key in keys:
            again = self._versions(layout.pointer_key(key)).get(key, _Versions())
            pointers[key] |= {newest, *self._numbers(again)}
        self._read_seals(executor, {n for key in keys for n in pointers[key]})

    def _read_seals(self, executor: ThreadPoolExecutor, numbers: set[int]) -> None:
        new = sorted(numbers - self._seals.keys())
        read = zip(new, executor.map(self._read_seal, new), strict=True)
        self._seals |= {number: entries for number, entries in read if entries is not None}

    def _read_seal(self, number: int) -> Entries | None:
        """What it says of events; None where there is no such seal: anybody may write a pointer."""
        key = layout.seal_key(number)
        before = len(self.damaged)
        data = self._bytes(ObjectRef(key, None), MAX_SEAL_BYTES)
        if len(self.damaged) > before:
            return None  # it cannot be read, and that was said
        if data is None and next(iter(self._every.below(key + ".sig")), None) is None:
            return None
        try:
            sealed = seal.parse_seal(data or b"")
        except FormatError as error:
            self.damaged.append(f"{key} cannot be read ({error})")
            return None
        return {
            entry.key: ((number, at), entry)
            for at, entry in enumerate(sealed.segments)
            if layout.parse_event_key(entry.key) is not None
        }

    def _entry(self, key: str, numbers: Iterable[int]) -> tuple[Place, SegmentEntry] | None:
        told = (self._seals.get(number, {}).get(key) for number in sorted(numbers))
        return next((one for one in told if one is not None), None)

    # --- what a segment says

    def _take_in(self, key: str, found: _Versions, numbers: Iterable[int]) -> None:
        told = self._entry(key, numbers)
        if told is None:
            self.unsealed += [key] if found.jsonl else []
            return
        place, entry = told
        before = len(self.damaged)
        versions = (self._bytes(ref, entry.bytes) or b"" for ref in found.jsonl)
        data = next((d for d in versions if hashlib.sha256(d).hexdigest() == entry.sha256), None)
        if data is None and len(self.damaged) > before:
            return  # a version of it cannot be read, and that was said
        if data is None:
            self.damaged.append(f"{key} is not there as seal {place[0]} tells of it")
            return
        try:
            events = event.parse_segment(data)
        except FormatError as error:
            self.damaged.append(f"{key}: {error}")
            return
        self._read[key] = place, [Act(one, key, place[0]) for one in events]

    def _bytes(self, ref: ObjectRef, max_bytes: int) -> bytes | None:
        """None where it is not there, larger than that, or cannot be read (`damaged`)."""
        try:
            return self._reader.read(ref.key, ref.version_id, max_bytes)
        except Unreadable as error:
            if error.reason != "too_large":
                self.damaged.append(str(error))
            return None


class Told:
    """What the archive tells of calls and of holds: the port of `pipeline/holds.py`."""

    def __init__(self, reader: Reader, at_once: int) -> None:
        self._ledger = Ledger(reader)
        self._finder = Finder(reader, at_once)

    @property
    def damaged(self) -> Sequence[str]:
        return self._ledger.damaged

    def acts(self) -> list[Act]:
        return self._ledger.acts()

    def readable(self) -> list[Act]:
        return self._ledger.readable()

    def find(self, call_ids: Collection[str]) -> Found:
        return self._finder.find(call_ids)

    def beside(self, hold: Hold) -> CallObjects:
        return self._finder.beside(hold)

    def close(self) -> None:
        self._finder.close()


@dataclass
class Standing:
    """How a call stands: its acts, oldest first, and what the store says of its objects."""

    acts: Sequence[Act]
    heads: Mapping[ObjectRef, Head | None] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        return bool(self.acts) and self.acts[-1].hold.action == "add"

    @property
    def last(self) -> list[Act]:
        """The acts that it stands so by, oldest first."""
        return event.standing(self.acts)

    def document(self) -> dict[str, Any]:
        """`{"acts", "held"}`, as `hold list --json` and `manifest show --json` have it."""
        return {"acts": [act_document(act) for act in self.acts], "held": self.is_held}


def standings(acts: Sequence[Act]) -> dict[str, Standing]:
    """By call id; calls in the order of their first acts."""
    return {call_id: Standing(own) for call_id, own in event.by_call(acts).items()}


def have_records(reader: Reader, call_ids: Collection[str]) -> set[str]:
    """Those of these calls that the archive has a record of, hidden or not."""
    finder = Finder(ItemReader(reader), AT_ONCE)
    try:
        found = finder.find(call_ids) if call_ids else Found()
        return {*found.calls, *found.left}
    finally:
        finder.close()


def standing_of(
    reader: Reader, call_id: str, objects: Collection[ObjectRef]
) -> tuple[Standing, list[str]]:
    """How a call stands whose records tell of these objects; an act may tell of more. And what
    could not be read, one line each: events, or what the store says of an object."""
    ledger, items = Ledger(reader), ItemReader(reader)
    acts = [act for act in ledger.readable() if act.hold.call_id == call_id]
    wanted = {*objects, *(acts[-1].hold.objects if acts else ())}
    damages = list(ledger.damaged)

    def head(one: ObjectRef) -> Head | None:
        try:
            return items.head(one.key, one.version_id)
        except Unreadable as error:
            damages.append(str(error))
            return None

    with ThreadPoolExecutor(8) as executor:
        heads = executor.map(head, wanted)
        return Standing(acts, dict(zip(wanted, heads, strict=True))), damages


def act_document(act: Act) -> dict[str, Any]:
    return {**hold_document(act.hold), "seal": act.seal, "segment": act.segment}


def hold_document(hold: Hold) -> dict[str, Any]:
    return {
        "action": hold.action,
        "at": format_second(hold.at),
        "by": hold.by,
        "objects": [vars(one) for one in hold.objects],
        "reason": hold.reason,
    }


def object_document(ref: ObjectRef, head: Head | None) -> dict[str, Any]:
    """An object as the store has it; all of it null where there is none."""
    until = head.lock_until if head else None
    return {
        "held": head.held if head else None,
        "key": ref.key,
        "lock_mode": head.lock_mode if head else None,
        "lock_until": format_time(until) if until else None,
        "version_id": head.version_id if head else None,
    }
