"""Legal holds: what the ledger says of each call, against what the store says of its objects.

The ledger is read first. Files are asked for by HEAD anyway, records where the bucket takes holds
at all or their call is held; at the end comes what the events of held calls name besides.
Somebody may put a call on hold, or take it off, while we look. So what is odd is kept until the
end, and what a newer seal speaks of is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from archiver.audit.chain import MAX_SEAL_BYTES
from archiver.audit.gate import Gate
from archiver.audit.lines import lines_of
from archiver.audit.reader import Head
from archiver.audit.segments import MAX_SEGMENT_BYTES, Events, is_events, is_held_object
from archiver.errors import FormatError
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Hold, ObjectRef

MAX_ODD = 10_000
"""Odd objects that are kept until the end; beyond them each is reported at once."""


class HoldCheck:
    """Which calls are held, and whether their objects are. Threads share it once `take` is over."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._seen: set[int] = set()
        """Hashes of the objects of held calls that were looked at."""
        self._odd: dict[tuple[str, str], tuple[str, str]] = {}
        self.possible = False
        """Whether the bucket takes holds at all."""
        self.known = True
        """Whether all events could be read: else it cannot be told who is held."""

    def take(self, events: Events) -> None:
        """Take in a segment of events; to be called in the order of the chain."""
        self.known = self.known and events.whole
        for call_id, action in events.holds:
            (self._held.add if action == "add" else self._held.discard)(call_id)

    def concern(self, call_id: str) -> bool:
        """Whether an object of the call must be looked at for a hold: one that is to be there, or
        one that may be there without a reason."""
        return self.known and (self.possible or call_id in self._held)

    def look(self, call_id: str, asked: ObjectRef, head: Head | None) -> None:
        """Compare an object of a call with the ledger. `head` None: it is not there, and that was
        said."""
        if not self.known:
            return
        held = call_id in self._held
        if held:
            self._mark(asked, head)
        if head is not None and head.held != held:
            self._keep("hold_missing" if held else "hold_unrecorded", asked.key, call_id, "")

    def rest(self, segments: Iterable[str]) -> Iterator[tuple[str, ObjectRef]]:
        """What the events in these segments name of held calls and was not looked at: objects of
        windows out of range, or in no sealed window yet. Each once, with its call."""
        for key in segments if self.known and self._held else ():
            for hold in _holds_in(self._gate, key):
                for one in hold.objects if hold.action == "add" else ():
                    new = hold.call_id in self._held and self._mark(one, None)
                    if new and is_held_object(hold.call_id, one):
                        yield hold.call_id, one

    def look_at(self, call_id: str, one: ObjectRef) -> None:
        """Ask for one of the `rest`."""
        head = self._gate.head(one.key, one.version_id, None)
        if head is None:
            self._keep("hold_missing", one.key, call_id, "the object is not there")
        elif not head.held:
            self._keep("hold_missing", one.key, call_id, "")

    def finish(self, last: int) -> None:
        """Report what is odd, and was not changed since seal `last`."""
        changed = set(_changed_since(self._gate, last)) if self._odd else set()
        for (code, key), (call_id, detail) in self._odd.items():
            if call_id not in changed:
                self._gate.findings.add(code, key, detail)

    def _mark(self, asked: ObjectRef, head: Head | None) -> bool:
        """Remember that an object was looked at, in the version found; whether that was new."""
        version_id = asked.version_id or (head.version_id if head is not None else None)
        mark = hash(ObjectRef(asked.key, version_id))
        with self._lock:
            if mark in self._seen:
                return False
            self._seen.add(mark)
            return True

    def _keep(self, code: str, key: str, call_id: str, detail: str) -> None:
        with self._lock:
            if (code, key) in self._odd or len(self._odd) < MAX_ODD:
                self._odd[code, key] = (call_id, detail)
                return
        self._gate.findings.add(code, key, detail)


def _changed_since(gate: Gate, last: int) -> Iterator[str]:
    """The calls that events of newer seals are about."""
    while True:
        last += 1
        data = gate.read(layout.seal_key(last), MAX_SEAL_BYTES, None)
        try:
            newer = seal.parse_seal(data) if data is not None else None
        except FormatError:
            return
        if newer is None:
            return
        for entry in newer.segments:
            if is_events(entry.key):
                yield from (hold.call_id for hold in _holds_in(gate, entry.key))


def _holds_in(gate: Gate, key: str) -> Iterator[Hold]:
    """The holds in a segment of events, as far as they can be read: damage was reported."""
    spooled = gate.spool(key, MAX_SEGMENT_BYTES, None)
    if spooled is None:
        return
    with spooled.file:
        try:
            for line in lines_of(spooled.file):
                if (hold := event.parse(line)) is not None:
                    yield hold
        except FormatError:
            return
