"""Legal holds as the ledger tells of them: every act, in the order of the chain.

Only what is sealed counts (`sealed.py`). What it costs: a LIST of all events, and for each segment
of events, which is one command of somebody's, three small GETs; asked again, only for new ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from archiver.audit.callobjects import Finder
from archiver.audit.reader import Head, Reader
from archiver.audit.sealed import SealedSegments
from archiver.errors import FormatError
from archiver.manifest import event, layout
from archiver.manifest.event import Act, Hold, ObjectRef
from archiver.model import format_second, format_time
from archiver.store.objects import CallObjects

Place = tuple[int, int]
"""Where a segment stands: the number of its seal, and which of that seal's segments it is."""


class Ledger:
    """Reads the acts of an archive. One thread uses it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._read: dict[str, tuple[Place, list[Act]]] = {}
        self.unsealed: list[str] = []
        """The segments of events without a seal, as of the last `acts`."""

    def acts(self) -> list[Act]:
        """All acts that are sealed by now, oldest first. Raises `FormatError` where a segment is
        not as it was sealed, and `StoreError`."""
        sealed, self.unsealed = SealedSegments(self._reader), []
        for item in self._reader.list(layout.EVENTS):
            parsed = layout.parse_event_key(item.key)
            if parsed is not None and parsed[1] == "jsonl" and item.key not in self._read:
                self._take_in(item.key, sealed)
        found = sorted(self._read.values(), key=lambda one: one[0])
        return [act for _, acts in found for act in acts]

    def _take_in(self, key: str, sealed: SealedSegments) -> None:
        # Asked twice: a pointer may have come, and the next seal, while the newest was looked for.
        place = sealed.place(key) or sealed.place(key)
        if place is None:
            self.unsealed.append(key)
            return
        entry, seal = place
        with sealed.open(entry) as file:
            data = file.read()
        try:
            events = event.parse_segment(data)
        except FormatError as error:
            raise FormatError(f"{key}: {error}; run archiver verify") from None
        where = (seal.seq, seal.segments.index(entry))
        self._read[key] = where, [Act(one, key, seal.seq) for one in events]


class Told:
    """What the archive tells of calls and of holds: the port of `pipeline/holds.py`."""

    def __init__(self, reader: Reader, at_once: int) -> None:
        self._ledger = Ledger(reader)
        self._finder = Finder(reader, at_once)

    def acts(self) -> list[Act]:
        return self._ledger.acts()

    def find(self, call_ids: Collection[str], now: datetime) -> Mapping[str, CallObjects]:
        return self._finder.find(call_ids, now)

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
    found: dict[str, list[Act]] = {}
    for act in acts:
        found.setdefault(act.hold.call_id, []).append(act)
    return {call_id: Standing(own) for call_id, own in found.items()}


def standing_of(reader: Reader, call_id: str, objects: Collection[ObjectRef]) -> Standing:
    """How a call stands whose records tell of these objects; an act may tell of more."""
    acts = [act for act in Ledger(reader).acts() if act.hold.call_id == call_id]
    wanted = {*objects, *(acts[-1].hold.objects if acts else ())}
    with ThreadPoolExecutor(8) as executor:
        heads = executor.map(lambda one: reader.head(one.key, one.version_id), wanted)
        return Standing(acts, dict(zip(wanted, heads, strict=True)))


def act_document(act: Act) -> dict[str, Any]:
    hold = act.hold
    return {
        "action": hold.action,
        "at": format_second(hold.at),
        "by": hold.by,
        "objects": [vars(one) for one in hold.objects],
        "reason": hold.reason,
        "seal": act.seal,
        "segment": act.segment,
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
