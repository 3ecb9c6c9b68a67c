"""The segment: the records of one window as one JSONL file (docs/manifest-format.md).

Rules:
- One record a line, its exact bytes, sorted by `record` (the key), then one `window` line.
- `listed = archived + no_recording + failed + |pending|`, over what this listing listed and over
  those calls of earlier listings that have no record yet.
- Revision 1 carries every call of the window; a later one what has changed since, and in
  `vanished` the recorded ids that an earlier listing had and this one has not.
- `unreadable` says how many entries of the listing could not be told as calls. It stands outside of
  the balance, and is left out where it is 0.
- `listed_sha256` is the SHA-256 of the listed ids, sorted by code point, a newline after each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, Protocol

from archiver.core.errors import FormatError
from archiver.core.model import Window, format_second, format_time, parse_time
from archiver.manifest import canonical, layout
from archiver.manifest.record import OUTCOMES, Record, parse, refuse_newer


def ids_sha256(ids: Iterable[str]) -> str:
    """Hex SHA-256 of the sorted ids, each followed by a newline."""
    rows = "".join([f"{call_id}\n" for call_id in sorted(ids)])
    return hashlib.sha256(rows.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Listing:
    """What a listing of a window found out about itself, as the window line tells it."""

    listed_at: datetime
    pages: int
    passes: int
    source_total: int | None
    filter: Mapping[str, Any]
    unreadable: int = 0
    """Entries that could not be told as calls."""


@dataclass(frozen=True)
class Balance:
    """Where each listed call of a window stands."""

    outcomes: Mapping[str, str]
    """call id → outcome of its newest record"""
    pending: Sequence[str] = ()
    vanished: Sequence[str] = ()


class Line(Protocol):
    """A record's bytes, newline included, and its key."""

    @property
    def key(self) -> str: ...

    @property
    def data(self) -> bytes: ...


class Summed(Line, Protocol):
    """The same, and the record's files."""

    @property
    def files(self) -> Sequence[Mapping[str, Any]]: ...


def lines(
    window: Window, revision: int, records: Iterable[Line], balance: Balance, listing: Listing
) -> Iterator[bytes]:
    """The segment, line by line; `records` are those that this revision carries, in any order.

    Their bytes are asked for one by one: a window may have 100,000.
    """
    for found in sorted(records, key=lambda record: record.key):
        yield found.data
    yield canonical.dump(_line(window, revision, balance, listing))


def _line(window: Window, revision: int, balance: Balance, listing: Listing) -> dict[str, Any]:
    counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
    for outcome in balance.outcomes.values():
        counts[outcome] += 1
    ids = [*balance.outcomes, *balance.pending]
    optional = {"unreadable": listing.unreadable} if listing.unreadable else {}
    return {
        **counts,
        **optional,
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


def companion(
    sha256: str, name: layout.SegmentName, records: Iterable[Summed], files: IO[bytes]
) -> Iterator[bytes]:
    """The `sha256sum -c` file of a segment with that digest, piece by piece: it, then its records
    in their order, then their files. These have to wait: they are put into `files` meanwhile, which
    is empty."""
    yield f"{sha256}  {name.jsonl}\n".encode()
    for found in records:
        yield f"{hashlib.sha256(found.data).hexdigest()}  {found.key}\n".encode()
        for file in found.files:
            files.write(f"{file['sha256']}  {file['key']}\n".encode())
    files.seek(0)
    yield from files


def records_of(lines: Iterable[bytes]) -> Iterator[Record]:
    """The records of a segment, each parsed as it is asked for: all lines but the last one.

    Raises `FormatError`.
    """
    before, waiting = "", None
    for line in lines:
        if waiting is not None:
            found = parse(waiting)
            if found.key <= before:
                raise FormatError("a segment whose records are not sorted, or repeat")
            before = found.key
            yield found
        waiting = line


@dataclass(frozen=True)
class Segment:
    """What a segment's window line says; the name and the window are the segment's own."""

    name: layout.SegmentName
    window: Window
    line: Mapping[str, Any]

    @property
    def revision(self) -> int:
        return self.name.revision

    @property
    def pending(self) -> list[str]:
        return list(self.line["pending"])

    @property
    def vanished(self) -> list[str]:
        return list(self.line["vanished"])

    @property
    def listed_at(self) -> datetime | None:
        return parse_time(self.line.get("listed_at"))


def parse_tail(data: bytes) -> Segment:
    """A segment by its end: its window line is read, and not one of its records. Raises
    `FormatError`."""
    if not data.endswith(b"\n"):
        raise FormatError("a segment without its last newline")
    line = canonical.load_object(data[data.rfind(b"\n", 0, -1) + 1 :])
    refuse_newer(line)
    if line.get("type") != "window" or line.get("v") != 1:
        raise FormatError("a segment without a window line of version 1")
    start, end = parse_time(line.get("from")), parse_time(line.get("to"))
    revision = line.get("revision")
    if start is None or end is None or not isinstance(revision, int):
        raise FormatError("a window line without from, to or revision")
    if not all(isinstance(line.get(name), int) for name in ("listed", *OUTCOMES)):
        raise FormatError("a window line without its counts")
    for ids in (line.get("pending"), line.get("vanished")):
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise FormatError("a window line without pending or vanished")
    return Segment(layout.SegmentName(start, revision), Window(start, end), line)
