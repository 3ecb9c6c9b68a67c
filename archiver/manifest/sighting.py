"""The sighting: ids that were listed and had no record then (docs/manifest-format.md).

Rules:
- A sighting lies at `manifest/sightings/dt=<day>/<HHMM>-<16 hex>.json`. Day and time are those of
  the start of its window; the digits are random.
- It is created once, is not sealed and has no lock: it only tells a later process what was listed
  before. Its ids are sorted and do not repeat.
- Once a listing of the window that began at `at` or later is sealed, each id of the sighting has a
  record, in this window or another one, or is in `pending`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from archiver.core.errors import FormatError
from archiver.core.model import Window, format_second, format_time, parse_time
from archiver.manifest import canonical
from archiver.manifest.record import check_type

MAX_BYTES = 256 << 20
"""Maximum size of a sighting: room for a million of the longest ids that a key may have."""


@dataclass(frozen=True)
class Sighting:
    """Ids that were listed in a window and had no record at the time `at`."""

    window: Window
    at: datetime
    ids: frozenset[str]


def build(window: Window, at: datetime, ids: Iterable[str]) -> bytes:
    """The bytes of a sighting."""
    return canonical.dump(
        {
            "at": format_second(at),
            "from": format_time(window.start),
            "ids": sorted(set(ids)),
            "to": format_time(window.end),
            "type": "sighting",
            "v": 1,
        }
    )


def parse(data: bytes) -> Sighting:
    """Parse a sighting. Raises `FormatError`."""
    document = canonical.load_object(data)
    check_type(document, "sighting", "no sighting of version 1")
    start, end = parse_time(document.get("from")), parse_time(document.get("to"))
    at, ids = parse_time(document.get("at")), document.get("ids")
    if start is None or end is None or at is None or not start < end:
        raise FormatError("a sighting without from, to or at")
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise FormatError("a sighting without ids")
    return Sighting(Window(start, end), at, frozenset(ids))
