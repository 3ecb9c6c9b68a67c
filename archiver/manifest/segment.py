"""The segment: the records of one window as one JSONL file (docs/manifest-format.md).

Rules:
- One record a line, its exact bytes, sorted by `record` (the key); then one `window` line.
- `listed = archived + no_recording + failed + |pending|`. These count the calls of this listing,
  and the calls of earlier listings that have no record yet.
- Revision 1 has every call of the window. A later revision has what changed since, and in
  `vanished` the calls with a record that an earlier listing had and this one has not.
- `unreadable` is the number of entries of the listing that could not be read as calls. It is not
  part of the balance, and is absent if it is 0.
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
from archiver.manifest.record import OUTCOMES, Record, check_type, parse


def ids_sha256(ids: Iterable[str]) -> str:
    """Hex SHA-256 of the sorted ids, each followed by a newline."""
    rows = "".join([f"{call_id}\n" for call_id in sorted(ids)])
    return hashlib.sha256(rows.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Listing:
    """How a window was listed, as the window line reports it."""

    listed_at: datetime
    pages: int
    passes: int
    source_total: int | None
    filter: Mapping[str, Any]
    unreadable: int = 0
    """Number of entries that could not be read as calls."""


@dataclass(frozen=True)
class Balance:
    """The state of each listed call of a window."""

    outcomes: Mapping[str, str]
    """call id → outcome of its newest record"""
    pending: Sequence[str] = ()
    vanished: Sequence[str] = ()


class RecordBytes(Protocol):
    """A record's key, and its bytes with the newline."""

    @property
    def key(self) -> str: ...

    @property
    def data(self) -> bytes: ...


class RecordWithFiles(RecordBytes, Protocol):
    """A `RecordBytes` and the files that its record names."""

    @property
    def files(self) -> Sequence[Mapping[str, Any]]: ...


def lines(
    window: Window,
    revision: int,
    records: Iterable[RecordBytes],
    balance: Balance,
    listing: Listing,
) -> Iterator[bytes]:
    """Yield the segment line by line. `records` are those of this revision, in any order.

    Reads the `data` of one record at a time: a window may have 100,000 records.
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


def checksum_list(
    sha256: str, name: layout.SegmentName, records: Iterable[RecordWithFiles], files: IO[bytes]
) -> Iterator[bytes]:
    """Yield the checksum list of a segment, in the form of `sha256sum -c`: the segment with its
    digest `sha256`, its records in their order, then their files. `files` is an empty temporary
    file that buffers the rows of the files until all records are written."""
    yield f"{sha256}  {name.jsonl}\n".encode()
    for found in records:
        yield f"{hashlib.sha256(found.data).hexdigest()}  {found.key}\n".encode()
        for file in found.files:
            files.write(f"{file['sha256']}  {file['key']}\n".encode())
    files.seek(0)
    yield from files


def records_of(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the records of a segment: all lines but the last. Each is parsed when it is needed.

    Raises `FormatError`, also where records are out of order or repeat.
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
    """A segment's window line, and the name and window that it states."""

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


def parse_window_line(data: bytes) -> Segment:
    """Parse only the window line, the last line of `data`, and none of the records. Raises
    `FormatError`."""
    if not data.endswith(b"\n"):
        raise FormatError("a segment without its last newline")
    line = canonical.load_object(data[data.rfind(b"\n", 0, -1) + 1 :])
    check_type(line, "window", "a segment without a window line of version 1")
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
