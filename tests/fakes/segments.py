"""A whole segment in memory, as tests look at one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from archiver.core.model import Window
from archiver.manifest import segment
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.manifest.segment import Balance, Listing, RecordBytes


class Segment(NamedTuple):
    """A segment as it stands in the bucket, parsed."""

    data: bytes
    name: SegmentName
    window: Window
    line: Mapping[str, Any]
    records: list[Record]

    def sha256_file(self) -> bytes:
        digest = hashlib.sha256(self.data).hexdigest()
        return b"".join(segment.checksum_list(digest, self.name, self.records, io.BytesIO()))


def build_segment(
    window: Window,
    revision: int,
    records: Iterable[RecordBytes],
    balance: Balance,
    listing: Listing,
) -> Segment:
    return parse_segment(b"".join(segment.lines(window, revision, records, balance, listing)))


def parse_segment(data: bytes) -> Segment:
    """Raises `FormatError`."""
    tail = segment.parse_window_line(data)
    records = list(segment.records_of(io.BytesIO(data)))
    return Segment(data, tail.name, tail.window, tail.line, records)
