"""The segment: the records of one window as one JSONL file (docs/manifest-format.md).

Rules:
- One record a line, its exact bytes, sorted by `record` (the key), then one `window` line.
- `listed = archived + no_recording + failed + |pending|`, over what this listing listed.
- Revision 1 carries every call of the window; a later one what has changed since, and in
  `vanished` the ids that an earlier listing had and this one has not.
- `listed_sha256` is the SHA-256 of the listed ids, sorted by code point, a newline after each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from archiver.errors import FormatError
from archiver.manifest import canonical, layout
from archiver.manifest.record import OUTCOMES, Record, parse
from archiver.model import Window, format_second, format_time, parse_time


def ids_sha256(ids: Iterable[str]) -> str:
    """Hex SHA-256 of the sorted ids, each followed by a newline."""
    digest = hashlib.sha256()
    for call_id in sorted(ids):
        digest.update(call_id.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True)
class Listing:
    """What a listing of a window found out about itself, as the window line tells it."""

    listed_at: datetime
    pages: int
    passes: int
    source_total: int | None
    filter: Mapping[str, Any]


@dataclass(frozen=True)
class Balance:
    """Where each listed call of a window stands."""

    outcomes: Mapping[str, str]
    """call id → outcome of its newest record"""
    pending: Sequence[str] = ()
    vanished: Sequence[str] = ()


def build(
    window: Window, revision: int, records: Iterable[Record], balance: Balance, listing: Listing
) -> bytes:
    """The segment's bytes; `records` are those that this revision carries, in any order."""
    counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
    for outcome in balance.outcomes.values():
        counts[outcome] += 1
    ids = [*balance.outcomes, *balance.pending]
    line: dict[str, Any] = {
        **counts,
        "filter": dict(listing.filter),
        "from": format_time(window.start),
        "listed": len(ids),
        "listed_at": format_second(listing.listed_at),
        "listed_sha256": ids_sha256(ids),
        "pages": listing.pages,
        "passes": listing.passes,
        "pending": sorted(balance.pending),
        "revision": revision,
        "source_total": listing.source_total,
        "to": format_time(window.end),
        "type": "window",
        "v": 1,
        "vanished": sorted(balance.vanished),
    }
    lines = [record.data for record in sorted(records, key=lambda record: record.key)]
    return b"".join([*lines, canonical.dump(line)])


@dataclass(frozen=True)
class Segment:
    """A segment as it stands in the bucket."""

    data: bytes
    name: layout.SegmentName
    window: Window
    line: Mapping[str, Any]
    records: Sequence[Record] = field(repr=False)

    @property
    def revision(self) -> int:
        return self.name.revision

    @property
    def pending(self) -> list[str]:
        return list(self.line["pending"])

    @property
    def vanished(self) -> list[str]:
        return list(self.line["vanished"])

    def lines(self) -> list[bytes]:
        """Its lines, newline excluded: the leaves of the Merkle tree."""
        return self.data.split(b"\n")[:-1]

    def sha256_file(self) -> bytes:
        """The `sha256sum -c` companion: the segment, then its records, then their files."""
        rows = [(hashlib.sha256(self.data).hexdigest(), self.name.jsonl)]
        rows += [(hashlib.sha256(record.data).hexdigest(), record.key) for record in self.records]
        for record in self.records:
            rows += [(file["sha256"], file["key"]) for file in record.document["files"]]
        return "".join(f"{digest}  {key}\n" for digest, key in rows).encode()


def parse_segment(data: bytes) -> Segment:
    """Raises `FormatError` where `data` is no segment whose lines keep the rules above."""
    if not data.endswith(b"\n"):
        raise FormatError("a segment without its last newline")
    *record_lines, last = data.split(b"\n")[:-1]
    line = canonical.load_object(last)
    window, name = _window_line(line)
    records = [parse(raw + b"\n") for raw in record_lines]
    keys = [record.key for record in records]
    if keys != sorted(set(keys)):
        raise FormatError("a segment whose records are not sorted, or repeat")
    return Segment(data, name, window, line, records)


def _window_line(line: Mapping[str, Any]) -> tuple[Window, layout.SegmentName]:
    if line.get("type") != "window" or line.get("v") != 1:
        raise FormatError("a segment without a window line of version 1")
    start, end = parse_time(line.get("from")), parse_time(line.get("to"))
    revision = line.get("revision")
    if start is None or end is None or not isinstance(revision, int):
        raise FormatError("a window line without from, to or revision")
    counts = [line.get(name) for name in ("listed", *OUTCOMES)]
    lists = [line.get(name) for name in ("pending", "vanished")]
    if not all(isinstance(count, int) for count in counts):
        raise FormatError("a window line without its counts")
    if not all(isinstance(ids, list) for ids in lists):
        raise FormatError("a window line without pending or vanished")
    return Window(start, end), layout.SegmentName(start, revision)
