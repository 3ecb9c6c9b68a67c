"""Events: what is said of the archive later, on the ledger like all else (docs/manifest-format.md).

Rules:
- A segment of events lies at `manifest/events/dt=<day>/<HHMMSS>-<8 hex>.jsonl`, day and time being
  those of its first event and the digits the first of its own SHA-256. One event a line, no window
  line. It has a `.sha256` and, once it is sealed, a `.seal` beside it, as any segment.
- Every event has `type`, `v` and `at`. Readers pass by a type that they do not know.
- `id` is 16 random hex digits. It makes the bytes of each event unique, and with them the key of
  its segment: two acts of the same words in one second are two. Events of older releases have none.
- `hold`: a legal hold was put on a call (`action` `add`) or taken off (`remove`). `objects` are the
  very versions that the act was about: every file and record of the call at that moment.
- A call is held where its newest `hold` event, in the order of the chain, says `add`. That order
  is: the number of the seal, the segment's place in the seal, the line.
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
"""What `by` and `reason` may take, in characters."""
MAX_SEGMENT_BYTES = 64 << 20
"""No segment of events is larger: the acts of one command."""


@dataclass(frozen=True, order=True)
class ObjectRef:
    """An object in one of its versions; None where the store has none."""

    key: str
    version_id: str | None


@dataclass(frozen=True)
class Hold:
    """A legal hold on a call, put on or taken off."""

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
        """Its bytes, newline included."""
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
class Act:
    """A hold on the ledger: the segment that tells of it, and the number of its seal."""

    hold: Hold
    segment: str
    seal: int


def by_call(acts: Iterable[Act]) -> dict[str, list[Act]]:
    """Acts by call id; calls in the order of their first acts."""
    found: dict[str, list[Act]] = {}
    for act in acts:
        found.setdefault(act.hold.call_id, []).append(act)
    return found


def standing(acts: Sequence[Act]) -> list[Act]:
    """Of the acts about one call, oldest first, those that it stands by: it may be held more than
    once, and one removal ends all of that."""
    found = list[Act]()
    for act in reversed(acts):
        if act.hold.action != acts[-1].hold.action:
            break
        found.append(act)
    return found[::-1]


def is_text(text: str) -> bool:
    """Whether `by` or `reason` may be that."""
    return 0 < len(text) <= MAX_TEXT and text.isprintable() and not text.isspace()


def random_id() -> str:
    """16 hex digits that no other event has."""
    return secrets.token_hex(8)


def segment(events: Iterable[Hold]) -> tuple[str, bytes]:
    """`(key, bytes)` of a segment of events, at least one."""
    held = list(events)
    data = b"".join(event.line for event in held)
    tag = hashlib.sha256(data).hexdigest()[:8]
    return layout.event_key(held[0].at.astimezone(UTC), tag), data


def parse_segment(data: bytes) -> list[Hold]:
    """The holds of a segment, in order; raises `FormatError`."""
    if not data.endswith(b"\n"):
        raise FormatError("a segment of events without a newline at its end")
    events = (parse(line + b"\n") for line in data[:-1].split(b"\n"))
    return [event for event in events if event is not None]


def companion(key: str, data: bytes) -> bytes:
    """The `sha256sum -c` file of a segment of events: one line."""
    return f"{hashlib.sha256(data).hexdigest()}  {key}\n".encode()


def parse(line: bytes) -> Hold | None:
    """An event; None for one of a type that is not known here. Raises `FormatError`."""
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


def _hold(document: Mapping[str, Any], at: datetime) -> Hold:
    call_id, by, reason = (document.get(name) for name in ("call_id", "by", "reason"))
    action, objects = document.get("action"), document.get("objects")
    if not (isinstance(call_id, str) and isinstance(by, str) and isinstance(reason, str)):
        raise FormatError("a hold with a missing or malformed field")
    if action not in ("add", "remove"):
        raise FormatError("a hold with a missing or malformed field")
    if not isinstance(objects, list):
        raise FormatError("a hold without its objects")
    refs = tuple(map(_object, objects))
    if any(one.key.split("/")[2] != layout.call_dir(call_id) for one in refs):
        raise FormatError("an object of another call")
    return Hold(action, call_id, by, reason, at, refs, document.get("id"))


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
    """As an event has them."""
    return tuple(sorted(objects, key=lambda one: (one.key, one.version_id or "")))
