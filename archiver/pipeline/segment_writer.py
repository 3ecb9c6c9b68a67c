"""Writes the next segment of a window, and its `.sha256`. Sealing is the caller's.

Order: segment → `.sha256`. A crash between the two leaves a segment without a `.sha256`; the
next process that works at the window calls `complete`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime

import structlog

from archiver.core.errors import KeyTaken
from archiver.core.model import Window
from archiver.manifest import seal, segment
from archiver.manifest.layout import SegmentName
from archiver.manifest.segment import Balance, Listing, Summed
from archiver.pipeline.bucket_state import (
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
    """Threads share it, each at a window of its own."""

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
        """Make a segment with these records and its `.sha256` durable, locked until then. Raises
        `KeyTaken` where a concurrent writer has written this revision."""
        lines = segment.lines(window, name.revision, records, balance, listing)
        with spool(lines) as file:
            entry = seal.describe(name.jsonl, file)
            # A crash before this write leaves nothing of the segment; after it, the next writer of
            # the window reads the segment back and seals it as it is.
            self._store.put_once(
                name.jsonl, file, content_type="application/x-ndjson", retain_until=retain_until
            )
        self._segments.add(name, sealed=False)
        written = UnsealedSegment(entry, retain_until)
        self._write_sha256(written, sorted(records, key=lambda one: one.key))
        return written

    def complete(self, found: UnsealedSegment) -> None:
        """Write the `.sha256` of a segment that was found unsealed, if it has none."""
        with spool() as file:
            self._store.read_into(found.name.jsonl, file, MAX_SEGMENT_BYTES)
            self._write_sha256(found, records_in(file))

    def _write_sha256(self, written: UnsealedSegment, records: Iterable[Summed]) -> None:
        name, digest = written.name, written.entry.sha256
        with spool() as files, spool(segment.companion(digest, name, records, files)) as file:
            try:
                self._store.put_once(
                    name.sha256, file, content_type="text/plain", retain_until=written.retain_until
                )
            except KeyTaken:  # foreign bytes: `verify` finds them; segment and seal stand without
                log.error("segment.companion_foreign", key=name.sha256)


def balance_of(
    listed: Set[str], latest: Mapping[str, LatestRecord], pending: Set[str], state: WindowState
) -> Balance:
    """Where each id of a window stands. An id without a record counts as listed until it has one;
    an id with a record that is not listed any more has vanished."""
    known = latest.keys() | state.records.keys() | state.pending | state.vanished
    return Balance(
        outcomes={call_id: one.outcome for call_id, one in latest.items() if call_id in listed},
        pending=sorted(pending),
        vanished=sorted(known - listed - pending),
    )
