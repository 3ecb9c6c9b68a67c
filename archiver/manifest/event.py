"""Events: what a person or the archiver did, in sealed segments (docs/manifest-format.md).

Rules:
- A segment of events lies at `manifest/events/dt=<day>/<HHMMSS>-<8 hex>.jsonl`. Day and time are
  those of its first event; the digits are the first of the segment's own SHA-256. It has one event
  a line and no window line. As for any segment, its checksum list has the suffix `.sha256` and,
  once it is sealed, its seal pointer the suffix `.seal`.
- Every event has `type`, `v` and `at`. Readers skip events of a type that they do not know.
- `id` is 16 random hex digits. It makes the bytes of each event unique, and so the key of its
  segment: two commands with the same text in the same second write two segments. Events of older
  releases have no `id`.
- `hold`: a legal hold was set on a call (`action` `add`) or removed (`remove`). `objects` lists
  every file and record that the call had then, with their versions.
- A call is held if its newest `hold` event says `add`. Events are ordered as in the chain: by the
  number of the seal, then the segment's place in the seal, then the line.
- `by` and `reason` are one line of 1 to 500 printable characters.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from archiver.core.errors import FormatError
from archiver.core.model import format_second, parse_time
from archiver.manifest import canonical, layout
from archiver.manifest.record import refuse_newer

Action = Literal["add", "remove"]

_KEY = re.compile(r"(recordings|records)/[A-Za-z0-9_.=-]{1,200}/[A-Za-z0-9_./-]{1,500}")
_VERSION = re.compile("[!-~]{1,1024}")
_ID = re.compile("[0-9a-f]{16}")
MAX_TEXT = 500
"""Maximum length of `by` and of `reason`, in characters."""
MAX_SEGMENT_BYTES = 64 << 20
"""Maximum size of a segment of events. A segment has the events of one command."""


@dataclass(frozen=True, order=True)
class ObjectRef:
    """An object in one version. `version_id` is None for the newest version, and in a store that
    keeps no versions."""

    key: str
    version_id: str | None


@dataclass(frozen=True)
class HoldEvent:
    """An event: a legal hold was set on a call, or removed."""

    action: Action
    call_id: str
    by: str
    reason: str
    at: datetime
    objects: tuple[ObjectRef, ...]
    """Sorted by key, then version."""
    id: str | None = None
    """16 hex digits that no other event has; None in events of older releases."""

    @property
    def line(self) -> bytes:
        """The event in canonical form, newline included."""
        document = {
            "action": self.action,
            "at": format_second(self.at),
            "by": self.by,
            "call_id": self.call_id,
            "id": self.id,
            "objects": [vars(one) for one in self.objects],
            "reason": self.reason,
            "type": "hold",
            "v": 1,
        }
        if self.id is None:
            del document["id"]
        return canonical.dump(document)


@dataclass(frozen=True)
class SealedHold:
    """A sealed `HoldEvent`: the event, the key of its segment, and the number of its seal."""

    hold: HoldEvent
    segment: str
    seal: int


def by_call(acts: Iterable[SealedHold]) -> dict[str, list[SealedHold]]:
    """Group acts by call id. The calls are in the order of their first acts."""
    found: dict[str, list[SealedHold]] = {}
    for act in acts:
        found.setdefault(act.hold.call_id, []).append(act)
    return found


def deciding_acts(acts: Sequence[SealedHold]) -> list[SealedHold]:
    """Return the acts that decide whether a call is held: the last ones with the same action.

    `acts` are those of one call, oldest first. A call may be held several times, and one removal
    ends all of these holds.
    """
    found = list[SealedHold]()
    for act in reversed(acts):
        if act.hold.action != acts[-1].hold.action:
            break
        found.append(act)
    return found[::-1]


def is_text(text: str) -> bool:
    """Whether a text is valid as `by` or `reason`."""
    return 0 < len(text) <= MAX_TEXT and text.isprintable() and not text.isspace()


def random_id() -> str:
    """Return 16 random hex digits for the `id` of a new event."""
    return secrets.token_hex(8)


def segment(events: Iterable[HoldEvent]) -> tuple[str, bytes]:
    """Build a segment of at least one event. Returns `(key, bytes)`."""
    held = list(events)
    data = b"".join(event.line for event in held)
    tag = hashlib.sha256(data).hexdigest()[:8]
    return layout.event_key(held[0].at.astimezone(UTC), tag), data


def parse_segment(data: bytes) -> list[HoldEvent]:
    """Return the `hold` events of a segment, in order. Raises `FormatError`."""
    if not data.endswith(b"\n"):
        raise FormatError("a segment of events without a newline at its end")
    events = (parse(line + b"\n") for line in data[:-1].split(b"\n"))
    return [event for event in events if event is not None]


def checksum_list(key: str, data: bytes) -> bytes:
    """Return the checksum list of a segment of events: one line for `sha256sum -c`."""
    return f"{hashlib.sha256(data).hexdigest()}  {key}\n".encode()


def parse(line: bytes) -> HoldEvent | None:
    """Parse one line. Returns None for an event of an unknown type. Raises `FormatError`."""
    document, is_canonical = canonical.load_line(line)
    refuse_newer(document)
    at = parse_time(document.get("at"))
    if not isinstance(document.get("type"), str) or document.get("v") != 1 or at is None:
        raise FormatError("an event without type, v 1 or at")
    own_id = document.get("id", "0" * 16)
    if not (isinstance(own_id, str) and _ID.fullmatch(own_id)):
        raise FormatError("an event with a malformed id")
    if not is_canonical:
        raise FormatError("an event that is not in canonical form")
    return _hold(document, at) if document["type"] == "hold" else None


def _hold(document: Mapping[str, Any], at: datetime) -> HoldEvent:
    call_id, by, reason = (document.get(name) for name in ("call_id", "by", "reason"))
    action, objects = document.get("action"), document.get("objects")
    if action not in ("add", "remove") or not (
        isinstance(call_id, str) and isinstance(by, str) and isinstance(reason, str)
    ):
        raise FormatError("a hold with a missing or malformed field")
    if not isinstance(objects, list):
        raise FormatError("a hold without its objects")
    refs = tuple(map(_object, objects))
    if any(one.key.split("/")[2] != layout.call_dir(call_id) for one in refs):
        raise FormatError("an object of another call")
    return HoldEvent(action, call_id, by, reason, at, refs, document.get("id"))


def _object(one: object) -> ObjectRef:
    key = one.get("key") if isinstance(one, dict) else None
    version_id = one.get("version_id") if isinstance(one, dict) else None
    if not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise FormatError("a hold with a malformed object")
    is_text = isinstance(version_id, str) and _VERSION.fullmatch(version_id)
    if not (version_id is None or is_text):
        raise FormatError("a hold with a malformed version")
    return ObjectRef(key, version_id)


def in_order(objects: Iterable[ObjectRef]) -> tuple[ObjectRef, ...]:
    """Sort objects as `HoldEvent.objects` has them."""
    return tuple(sorted(objects, key=lambda one: (one.key, one.version_id or "")))
