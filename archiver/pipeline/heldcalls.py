"""Which calls the ledger says are held, as whoever archives needs to know it.

- A call is held where its newest act says `add`: in the order of the seals, as the pointers beside
  the segments number them. Of acts about one call in one seal an `add` counts.
- An `add` that is not sealed counts too, unless a removal was sealed that is younger: its command
  may be at work. A removal that is not sealed does not count.
- It costs a LIST of all events, and two small GETs for each segment of events, once. Who is held is
  asked again now and then, and just before anything is held: so a removal holds at once.
- Damage stops nothing: a segment that cannot be read, be it damaged, refused by the store or
  written by a newer release, is left to `verify`, with a warning in the log, and what was known
  goes on counting. Only a store that is out is an error.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from archiver import hub
from archiver.clock import Clock
from archiver.errors import FormatError, Reach, StoreError
from archiver.manifest import event, layout, seal
from archiver.pipeline.ports import Store
from archiver.store.control import is_of_one_object

log = structlog.get_logger()

LOOK_AGAIN_SECONDS = 300.0
"""What is known is never older, where somebody asks."""
LOOK_CLOSER_SECONDS = 10.0
"""Nor, of a call that is held, than this."""


@dataclass(frozen=True)
class _Said:
    """What an act says of a call."""

    call_id: str
    adds: bool
    at: datetime


@dataclass(frozen=True)
class _Segment:
    """A segment of events; `seal` is its number, None while it has none that can be read."""

    key: str
    said: tuple[_Said, ...]
    seal: int | None = None

    @property
    def place(self) -> tuple[int, bool]:
        """Where it stands on the chain; what adds comes last in a seal."""
        return self.seal or 0, any(one.adds for one in self.said)


@dataclass(frozen=True)
class Evidence:
    """A sealed segment of events: the number of its seal, when its last act was, and whether one
    of its calls is held now."""

    key: str
    seal: int
    at: datetime
    holds: bool


@dataclass(frozen=True)
class _Known:
    ids: frozenset[str] = frozenset()
    looked_at: float | None = None
    segments: Mapping[str, _Segment] = field(default_factory=dict)


class HeldCalls:
    """Knows it. Threads share it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known = _Known()
        self._unreadable: set[str] = set()
        self._lock = hub.Lock()

    def look(self, after_seconds: float = 0.0) -> None:
        """Read what was said since, unless somebody has looked so short a while ago. Raises
        `StoreError` where the store does not answer."""
        now = self._clock.monotonic()
        with self._lock:
            at = self._known.looked_at
            if at is None or now >= at + after_seconds:
                try:
                    segments = self._read_on(self._known.segments)
                except StoreError as error:
                    if error.reach is not Reach.ITEM:
                        raise
                    # A store that will not list events must not stop the archiving of calls.
                    log.error("holds.unknown", error=str(error))
                    segments = self._known.segments
                self._known = _Known(_fold(segments.values()), now, segments)

    def is_held(self, call_id: str) -> bool:
        """Whether a call is held, by what is known, which is looked at again where it is old."""
        self.look(LOOK_AGAIN_SECONDS)
        if call_id not in self._known.ids:
            return False
        self.look(LOOK_CLOSER_SECONDS)
        return call_id in self._known.ids

    def ids(self) -> frozenset[str]:
        """The calls that are held."""
        self.look(LOOK_AGAIN_SECONDS)
        return self._known.ids

    def evidence(self) -> list[Evidence]:
        """The sealed segments of events, as of the last look."""
        known = self._known
        return [
            Evidence(
                one.key,
                one.seal,
                max(said.at for said in one.said),
                any(said.call_id in known.ids for said in one.said),
            )
            for one in known.segments.values()
            if one.seal is not None and one.said
        ]

    # --- the bucket

    def _read_on(self, before: Mapping[str, _Segment]) -> Mapping[str, _Segment]:
        """All segments: what was read once is not read again, and does not go away."""
        stems: dict[str, set[str]] = {}
        for item in self._store.list(layout.EVENTS):
            if (parsed := layout.parse_event_key(item.key)) is not None:
                stems.setdefault(parsed[0], set()).add(parsed[1])
        found = dict(before)
        for stem, parts in stems.items():
            key = stem + ".jsonl"
            one = found.get(key) or (self._read(key) if "jsonl" in parts else None)
            if one is not None and one.seal is None and "seal" in parts:
                one = replace(one, seal=self._number(layout.pointer_key(key)))
            if one is not None:
                found[key] = one
        return found

    def _read(self, key: str) -> _Segment | None:
        """None where it is damaged: it is tried again at the next look."""
        try:
            data = self._store.read(key, max_bytes=event.MAX_SEGMENT_BYTES) or b""
            if hashlib.sha256(data).hexdigest()[:8] != key.removesuffix(".jsonl")[-8:]:
                raise FormatError("other bytes than its name says")
            # Line by line, because an act may name very many objects, and these are not kept.
            holds = filter(None, map(event.parse, io.BytesIO(data)))
            return _Segment(key, tuple(_Said(h.call_id, h.action == "add", h.at) for h in holds))
        except (FormatError, StoreError) as error:
            self._pass_by(key, error)
            return None

    def _number(self, key: str) -> int | None:
        """What a pointer says."""
        try:
            number = seal.parse_pointer(self._store.read(key, max_bytes=seal.POINTER_BYTES) or b"")
            if number is None:
                raise FormatError("no number of a seal")
        except (FormatError, StoreError) as error:
            self._pass_by(key, error)
            return None
        return number

    def _pass_by(self, key: str, error: FormatError | StoreError) -> None:
        if isinstance(error, StoreError) and not is_of_one_object(self._store, error):
            raise error
        if key not in self._unreadable:
            self._unreadable.add(key)
            log.warning("holds.unreadable", key=key, error=str(error))


def _fold(segments: Iterable[_Segment]) -> frozenset[str]:
    """The calls that all of this holds."""
    newest: dict[str, _Said] = {}
    sealed = (one for one in segments if one.seal is not None)
    for segment in sorted(sealed, key=lambda one: one.place):
        newest |= {said.call_id: said for said in segment.said}
    held = {said.call_id for said in newest.values() if said.adds}
    for segment in segments:
        for said in segment.said if segment.seal is None else ():
            last = newest.get(said.call_id)
            if said.adds and (last is None or last.at <= said.at):
                held.add(said.call_id)
    return frozenset(held)
