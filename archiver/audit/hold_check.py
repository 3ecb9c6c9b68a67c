"""Legal holds: what the ledger says of each call, against what the store says of its objects.

The ledger is read first. Files are asked for by HEAD anyway, records where the bucket takes holds
at all or their call is held; at the end comes what the events of held calls name besides.
Somebody may put a call on hold, or take it off, while we look. So what disagrees is kept until the
end, and what a newer seal speaks of is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from archiver.audit.chain import MAX_SEAL_BYTES
from archiver.audit.safe_reader import Head, ReportingReader
from archiver.audit.segment_lines import is_events, is_held_object, lines_of
from archiver.audit.segments import MAX_SEGMENT_BYTES, EventSegment
from archiver.core.errors import FormatError
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Hold, ObjectRef

MAX_KEPT = 10_000
"""Disagreements that are kept until the end; beyond them each is reported at once."""


class HoldCheck:
    """Which calls are held, and whether their objects are. Threads share it once `add` is over."""

    def __init__(self, reader: ReportingReader) -> None:
        self._reader = reader
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._seen: set[int] = set()
        """Hashes of the objects of held calls that were looked at."""
        self._kept: dict[tuple[str, str], tuple[str, str]] = {}
        """Code and key of each disagreement → call id and detail."""
        self.possible = False
        """Whether the bucket takes holds at all."""
        self.known = True
        """Whether all events could be read: else nobody knows who is held."""

    def add(self, events: EventSegment) -> None:
        """Add a segment of events; to be called in the order of the chain."""
        self.known = self.known and events.is_whole
        for call_id, action in events.holds:
            (self._held.add if action == "add" else self._held.discard)(call_id)

    def concern(self, call_id: str) -> bool:
        """Whether a record of the call must be looked at for a hold: one that is to be there, or
        one that may be there without a reason."""
        return self.known and (self.possible or call_id in self._held)

    def look(self, call_id: str, asked: ObjectRef, head: Head | None) -> None:
        """Compare an object of a call with the ledger. `head` None: it is not there, and that was
        said."""
        if not self.known:
            return
        is_held = call_id in self._held
        if is_held:
            self._mark(asked, head)
        if head is not None and head.held != is_held:
            self._keep("hold_missing" if is_held else "hold_unrecorded", asked.key, call_id, "")

    def not_looked_at(self, segments: Iterable[str]) -> Iterator[tuple[str, ObjectRef]]:
        """What the events in these segments name of held calls and was not looked at: objects of
        windows out of range, or in no sealed window yet. Each once, with its call."""
        for key in segments if self.known and self._held else ():
            for hold in _holds_in(self._reader, key):
                for one in hold.objects if hold.action == "add" else ():
                    is_new = hold.call_id in self._held and self._mark(one, None)
                    if is_new and is_held_object(hold.call_id, one):
                        yield hold.call_id, one

    def look_up(self, call_id: str, one: ObjectRef) -> None:
        """Ask the store for an object that was `not_looked_at`."""
        head = self._reader.head(one.key, one.version_id, None)
        if head is None:
            self._keep("hold_missing", one.key, call_id, "the object is not there")
        elif not head.held:
            self._keep("hold_missing", one.key, call_id, "")

    def finish(self, last: int) -> None:
        """Report what disagrees, and was not changed since seal `last`."""
        changed = set(self._changed_since(last)) if self._kept else set()
        for (code, key), (call_id, detail) in self._kept.items():
            if call_id not in changed:
                self._reader.findings.add(code, key, detail)

    def _mark(self, asked: ObjectRef, head: Head | None) -> bool:
        """Remember that an object was looked at, in the version found; whether that was new."""
        version_id = asked.version_id or (head.version_id if head is not None else None)
        mark = hash(ObjectRef(asked.key, version_id))
        with self._lock:
            is_new = mark not in self._seen
            self._seen.add(mark)
            return is_new

    def _keep(self, code: str, key: str, call_id: str, detail: str) -> None:
        with self._lock:
            if (code, key) in self._kept or len(self._kept) < MAX_KEPT:
                self._kept[code, key] = (call_id, detail)
                return
        self._reader.findings.add(code, key, detail)

    def _changed_since(self, last: int) -> Iterator[str]:
        """The calls that events of newer seals are about."""
        while True:
            last += 1
            data = self._reader.read(layout.seal_key(last), MAX_SEAL_BYTES, None)
            try:
                newer = seal.parse_seal(data) if data is not None else None
            except FormatError:
                return
            if newer is None:
                return
            for entry in newer.segments:
                if is_events(entry.key):
                    yield from (hold.call_id for hold in _holds_in(self._reader, entry.key))


def _holds_in(reader: ReportingReader, key: str) -> Iterator[Hold]:
    """The holds in a segment of events, as far as they can be read: damage was reported."""
    spooled = reader.spool(key, MAX_SEGMENT_BYTES, None)
    if spooled is None:
        return
    with spooled.file:
        try:
            for line in lines_of(spooled.file):
                if (hold := event.parse(line)) is not None:
                    yield hold
        except FormatError:
            return
