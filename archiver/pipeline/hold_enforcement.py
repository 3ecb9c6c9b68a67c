"""Legal holds for the archiver: which calls are held, and putting holds that are missing.

`HeldCalls` reads the ledger (the segments of events):

- A call is held if its newest act is an `add`. Acts are ordered by their seals, whose numbers are
  in the seal pointers. If one seal has several acts about a call, an `add` wins.
- An unsealed `add` counts too, unless a younger removal is sealed: its command may still be
  running. An unsealed removal does not count.
- It costs a LIST of all events, and two small GETs per segment of events, once. The ledger is
  refreshed at intervals, and just before a hold is put, so that a removal counts at once.
- Damage stops nothing. A segment that is damaged, refused by the store or written by a newer
  release is logged as a warning and left to `verify`; what was known before still counts. Only an
  outage of the store is an error.

`HoldEnforcement` puts the holds of the ledger on a window's objects, each time a settled window is
processed. The command that puts a hold on a call covers the objects that exist by then. Objects
that came later, and those that a crash left between a record and the second check of its call's
hold, are found here. New objects are created with the hold (`call.py`). Holds are never removed
here.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from archiver.core.clock import Clock
from archiver.core.concurrency import Workers
from archiver.core.errors import FormatError, Reach, StoreError
from archiver.core.model import Window
from archiver.manifest import event, layout, seal
from archiver.manifest.event import HoldEvent, ObjectRef
from archiver.manifest.record import Record
from archiver.store.bucket import Bucket, is_of_one_object
from archiver.store.types import ObjectHead

if TYPE_CHECKING:
    from archiver.pipeline.bucket_state import LatestRecord

log = structlog.get_logger()

REFRESH_SECONDS = 300.0
"""Refresh the ledger at most this often before treating a call as not held."""
REFRESH_HELD_SECONDS = 10.0
"""Refresh the ledger at most this often before treating a call as held."""
CALLS_AT_ONCE = 1000
"""Calls checked at a time, to bound the memory: a window may have 100,000 held calls."""


@dataclass(frozen=True)
class EventSegment:
    """A segment of events. Of its acts only call, action and time are kept: an act may name very
    many objects. `seal` is the number of its seal; None without a readable pointer."""

    key: str
    acts: tuple[HoldEvent, ...]
    seal: int | None = None


class HeldCalls:
    """Knows which calls are held. Thread-safe."""

    def __init__(self, store: Bucket, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._ids: frozenset[str] = frozenset()
        self._segments: dict[str, EventSegment] = {}
        self._refreshed_at: float | None = None
        self._logged: set[str] = set()
        self._mutex = threading.RLock()

    def refresh(self, after_seconds: float = 0.0) -> None:
        """Read what was added to the ledger, unless it was read less than `after_seconds` ago.
        Raises `StoreError` if the store is out."""
        now = self._clock.monotonic()
        with self._mutex:
            if self._refreshed_at is not None and now < self._refreshed_at + after_seconds:
                return
            try:
                self._segments = self._read_new(self._segments)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                # A store that refuses to list events must not stop the archiving of calls.
                log.error("holds.list_failed", error=str(error))
            self._ids = _held_by(self._segments.values())
            self._refreshed_at = now

    def is_held(self, call_id: str) -> bool:
        self.refresh(REFRESH_SECONDS)
        if call_id not in self._ids:
            return False
        self.refresh(REFRESH_HELD_SECONDS)
        return call_id in self._ids

    def ids(self) -> frozenset[str]:
        """The calls that are held."""
        self.refresh(REFRESH_SECONDS)
        return self._ids

    def events(self) -> list[tuple[EventSegment, bool]]:
        """The sealed segments of events, as of the last refresh; with each, whether one of its
        calls is held."""
        with self._mutex:
            ids, segments = self._ids, list(self._segments.values())
        sealed = [one for one in segments if one.seal is not None and one.acts]
        return [(one, any(act.call_id in ids for act in one.acts)) for one in sealed]

    def _read_new(self, before: Mapping[str, EventSegment]) -> dict[str, EventSegment]:
        """Return all segments. A segment that was read once is kept and not read again; a damaged
        one is tried again at the next refresh."""
        suffixes: dict[str, set[str]] = {}
        for item in self._store.list(layout.EVENTS):
            if (parsed := layout.parse_event_key(item.key)) is not None:
                suffixes.setdefault(parsed[0], set()).add(parsed[1])
        found = dict(before)
        for stem, there in suffixes.items():
            key = stem + ".jsonl"
            if key not in found and "jsonl" in there:
                with self._passing_over(key):
                    found[key] = self._read(key)
            if key in found and found[key].seal is None and "seal" in there:
                pointer = layout.seal_pointer_key(key)
                with self._passing_over(pointer):
                    data = self._store.read(pointer, max_bytes=seal.POINTER_BYTES)
                    if (number := seal.parse_seal_pointer(data or b"")) is None:
                        raise FormatError("no number of a seal")
                    found[key] = replace(found[key], seal=number)
        return found

    def _read(self, key: str) -> EventSegment:
        data = self._store.read(key, max_bytes=event.MAX_SEGMENT_BYTES) or b""
        if hashlib.sha256(data).hexdigest()[:8] != key.removesuffix(".jsonl")[-8:]:
            raise FormatError("other bytes than its name says")
        acts = filter(None, map(event.parse, io.BytesIO(data)))  # line by line, to bound the memory
        return EventSegment(key, tuple(replace(act, by="", reason="", objects=()) for act in acts))

    @contextmanager
    def _passing_over(self, key: str) -> Iterator[None]:
        """Log an error about this object once, as a warning, and go on. Raises `StoreError` that is
        about more than one object."""
        try:
            yield
        except (FormatError, StoreError) as error:
            if isinstance(error, StoreError) and not is_of_one_object(self._store, error):
                raise
            if key not in self._logged:
                self._logged.add(key)
                log.warning("holds.unreadable", key=key, error=str(error))


def _adds(act: HoldEvent) -> bool:
    return act.action == "add"


def _held_by(segments: Iterable[EventSegment]) -> frozenset[str]:
    """The calls that these acts hold together."""
    sealed = [one for one in segments if one.seal is not None]
    sealed.sort(key=lambda one: (one.seal or 0, any(map(_adds, one.acts))))
    newest = {act.call_id: act for segment in sealed for act in segment.acts}
    held = {act.call_id for act in newest.values() if _adds(act)}
    for segment in segments:
        for act in segment.acts if segment.seal is None else ():
            last = newest.get(act.call_id)
            if _adds(act) and (last is None or last.at <= act.at):
                held.add(act.call_id)
    return frozenset(held)


@dataclass(eq=False, repr=False)
class HoldEnforcement:
    """Puts holds on objects of held calls. Thread-safe while no two threads process one window."""

    store: Bucket
    held: HeldCalls
    workers: Workers

    def enforce(
        self,
        window: Window,
        latest: Mapping[str, LatestRecord],
        named: Mapping[str, LatestRecord],
    ) -> None:
        """Put holds on the objects, of all revisions, of a window's held calls.

        `latest` and `named` have the latest records by call id; `latest` takes precedence. A
        missing object, or one that the store refuses, is logged as an error and left to `verify`.
        Raises `StoreError` that is about more than one object.
        """
        held = self.held.ids()
        if not held:
            return
        known = {**named, **latest}
        calls = [known[call_id] for call_id in known.keys() & held]
        loose = gone = 0
        for at in range(0, len(calls), CALLS_AT_ONCE):
            checked = self.workers.map(self._check, calls[at : at + CALLS_AT_ONCE])
            if any(refs for _, refs, _ in checked):
                self.held.refresh()  # a call released meanwhile must not be held again
            held = self.held.ids()
            todo = [ref for call_id, refs, _ in checked if call_id in held for ref in refs]
            self.workers.map(self._hold, todo)
            loose += len(todo)
            gone += sum(count for _, _, count in checked)
        if loose:
            log.warning("window.holds_set", window=str(window), objects=loose)
        if gone:
            log.error("window.objects_gone", window=str(window), objects=gone)

    def _check(self, latest: LatestRecord) -> tuple[str, list[ObjectRef], int]:
        """A call's id, its objects without a hold, and how many are missing or damaged."""
        records = list(latest.revisions(self.store))
        refs = dict.fromkeys(ref for one in records if one is not None for ref in refs_of(one))
        heads = [(ref, self._head(ref)) for ref in refs]
        loose = [ref for ref, head in heads if head is not None and not head.held]
        gone = records.count(None) + sum(head is None for _, head in heads)
        return latest.record().call_id, loose, gone

    def _head(self, ref: ObjectRef) -> ObjectHead | None:
        """The object's metadata; None if it is missing, or if the store refuses, with an error in
        the log."""
        try:
            return self.store.head(ref.key, ref.version_id)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("hold.unknown", key=ref.key, error=str(error))
            return None

    def _hold(self, ref: ObjectRef) -> None:
        try:
            self.store.set_hold(ref.key, ref.version_id, True)
        except StoreError as error:
            if error.reach is Reach.ITEM:
                log.error("hold.refused", key=ref.key, error=str(error))
            elif self.store.head(ref.key, ref.version_id) is not None:
                raise


def refs_of(found: Record) -> Iterator[ObjectRef]:
    """The objects of a record: its own key in the newest version, and its files."""
    yield ObjectRef(found.key, None)
    for file in found.files:
        yield ObjectRef(file["key"], file["version_id"])
