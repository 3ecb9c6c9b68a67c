"""Writes the next segment of a window, then its checksum list (`.sha256`). The caller seals it.

A crash between the two writes leaves a segment without a checksum list. The next process that
processes the window calls `complete`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime
from functools import partial
from typing import IO

import structlog

from archiver.core.errors import KeyTaken
from archiver.core.model import Window
from archiver.manifest import seal, segment
from archiver.manifest.layout import SegmentName
from archiver.manifest.segment import Balance, Listing, RecordWithFiles
from archiver.pipeline.bucket_state import (
    IN_MEMORY_BYTES,
    MAX_SEGMENT_BYTES,
    LatestRecord,
    SegmentIndex,
    UnsealedSegment,
    WindowState,
    records_in,
    spool,
)
from archiver.store.bucket import Bucket

log = structlog.get_logger()


class SegmentWriter:
    """Writes segments and their checksum lists. Thread-safe while no two threads process one
    window."""

    def __init__(self, store: Bucket, segments: SegmentIndex) -> None:
        self._store = store
        self._segments = segments

    def write(
        self,
        name: SegmentName,
        window: Window,
        records: Sequence[LatestRecord],
        balance: Balance,
        listing: Listing,
        retain_until: datetime | None,
    ) -> UnsealedSegment:
        """Write a segment with these records and its checksum list, both locked until
        `retain_until`. Raises `KeyTaken` if a concurrent writer has written this revision."""
        lines = segment.lines(window, name.revision, records, balance, listing)
        with spool(lines) as file:
            entry = seal.segment_entry(name.jsonl, file)
            # A crash before this write leaves nothing of the segment. A crash after it leaves a
            # segment that the next process reads back, completes and seals unchanged.
            self._put(name.jsonl, file, "application/x-ndjson", retain_until)
        self._segments.add(name, sealed=False)
        written = UnsealedSegment(entry, retain_until)
        self._write_sha256(written, sorted(records, key=lambda one: one.key))
        return written

    def complete(self, found: UnsealedSegment) -> None:
        """Write the checksum list of a segment that was found unsealed, unless it has one."""
        with spool() as file:
            self._store.read_into(found.name.jsonl, file, MAX_SEGMENT_BYTES)
            self._write_sha256(found, records_in(file))

    def _write_sha256(self, written: UnsealedSegment, records: Iterable[RecordWithFiles]) -> None:
        name, digest = written.name, written.entry.sha256
        with spool() as files, spool(segment.checksum_list(digest, name, records, files)) as file:
            try:
                self._put(name.sha256, file, "text/plain", written.retain_until)
            except KeyTaken:  # by other bytes: `verify` reports it; no seal needs it
                log.error("segment.checksum_list_conflict", key=name.sha256)

    def _put(
        self, key: str, file: IO[bytes], content_type: str, retain_until: datetime | None
    ) -> None:
        """Create an object from what `spool` yields. A file on disk is mapped, because a segment
        may be larger than the memory that this process may use."""
        put = partial(self._store.put_once, content_type=content_type, retain_until=retain_until)
        if file.seek(0, os.SEEK_END) <= IN_MEMORY_BYTES:
            file.seek(0)
            put(key, file.read())
            return
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            put(key, data)


def balance_of(
    listed: Set[str], latest: Mapping[str, LatestRecord], pending: Set[str], state: WindowState
) -> Balance:
    """Put each id of a window under its outcome, pending or vanished. A pending id counts as
    listed, even if the source hides it. An id with a record that is no longer listed has vanished.
    """
    known = latest.keys() | state.records.keys() | state.pending | state.vanished
    return Balance(
        outcomes={call_id: one.outcome for call_id, one in latest.items() if call_id in listed},
        pending=sorted(pending),
        vanished=sorted(known - listed - pending),
    )
