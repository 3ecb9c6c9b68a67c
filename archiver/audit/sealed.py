"""The segments that count: those that a seal tells of.

That a segment is sealed is not taken from its `.seal` pointer alone: the seal that the pointer
names is read, and the segment's bytes must be those that it tells of. Signatures are `verify`'s
business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import IO

from archiver.audit.chain import MAX_SEAL_BYTES
from archiver.audit.gate import TRIES, Spooled, TooLarge, spool
from archiver.audit.reader import Reader
from archiver.audit.segments import MAX_SEGMENT_BYTES, segment_name
from archiver.errors import ArchiverError, FormatError
from archiver.manifest import layout, seal
from archiver.manifest.layout import SegmentName
from archiver.manifest.seal import POINTER_BYTES, Seal, SegmentEntry, parse_pointer

SEALS_KEPT = 256
"""Seals in memory at a time: neighbouring segments stand in neighbouring seals."""


class SealedSegments:
    """Finds and reads them. One thread uses it. All of it raises `FormatError`, which says to run
    `archiver verify`, where something is not as it was sealed."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._seals: dict[int, Seal] = {}
        self._head: Seal | None = None

    def names(self, day: date) -> list[SegmentName]:
        """The segments of a day, sealed or not, in order."""
        return sorted(self._listed(layout.segment_prefix(day)))

    def all_names(self) -> Iterator[SegmentName]:
        return self._listed(layout.SEGMENTS)

    def entry(self, name: SegmentName) -> tuple[SegmentEntry, int] | None:
        """What a segment's seal says of it, and the seal's number; None while it has none."""
        found = self.place(name.jsonl)
        return (found[0], found[1].seq) if found else None

    def place(self, key: str) -> tuple[SegmentEntry, Seal] | None:
        """The same for any segment, of a window or of events, by its key; with the whole seal."""
        pointer_key = layout.pointer_key(key)
        pointer = self._reader.read(pointer_key, None, POINTER_BYTES)
        if pointer is None:
            # A seal is completed before the next is made: only the newest can lack its pointers.
            return _entry_in(self.newest(), key)
        number = parse_pointer(pointer)
        found = _entry_in(self._seal(number), key) if number is not None else None
        if found is None:
            raise FormatError(f"{pointer_key} names no seal that covers it: run archiver verify")
        return found

    @contextmanager
    def open(self, entry: SegmentEntry) -> Iterator[IO[bytes]]:
        """A segment's bytes; raises `FormatError` unless they are those that the seal tells of."""
        damage = FormatError(f"{entry.key} is not as it was sealed: run archiver verify")
        try:
            spooled = self._spool(entry)
        except TooLarge:
            raise damage from None
        if spooled is None:
            raise damage
        with spooled.file:
            if spooled.sha256 != entry.sha256:
                raise damage
            yield spooled.file

    def _spool(self, entry: SegmentEntry) -> Spooled | None:
        """A stream that breaks is begun anew."""
        for _ in range(TRIES - 1):
            try:
                return spool(self._reader, entry.key, min(entry.bytes, MAX_SEGMENT_BYTES))
            except ArchiverError as error:
                if not error.retryable:
                    raise
        return spool(self._reader, entry.key, min(entry.bytes, MAX_SEGMENT_BYTES))

    def genesis(self) -> Seal | None:
        """Seal 0; None where nothing was sealed yet."""
        if self._is_there(0):
            return self._seal(0)
        if next(iter(self._reader.list(layout.SEALS)), None) is not None:
            raise FormatError(f"{layout.seal_key(0)} is missing: run archiver verify")
        return None

    def newest(self) -> Seal:
        """The head of the chain: doubling, then halving. Raises `FormatError` in an empty one."""
        if self._head is None:
            if not self._is_there(0):
                raise FormatError("there is no archive here: no seal 0")
            low, high = 0, 1
            while self._is_there(high):
                low, high = high, high * 2
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._is_there(middle) else (low, middle)
            self._head = self._seal(low)
        return self._head

    def _listed(self, prefix: str) -> Iterator[SegmentName]:
        for item in self._reader.list(prefix):
            if (name := segment_name(item.key)) is not None:
                yield name

    def _seal(self, number: int) -> Seal:
        if number not in self._seals:
            key = layout.seal_key(number)
            data = self._reader.read(key, None, MAX_SEAL_BYTES)
            try:
                parsed = seal.parse_seal(data or b"")
            except FormatError as error:
                raise FormatError(f"{key}: {error}; run archiver verify") from None
            if len(self._seals) >= SEALS_KEPT:
                self._seals.pop(next(iter(self._seals)))
            self._seals[number] = parsed
        return self._seals[number]

    def _is_there(self, number: int) -> bool:
        return self._reader.head(layout.seal_key(number)) is not None


def _entry_in(sealed: Seal, key: str) -> tuple[SegmentEntry, Seal] | None:
    for entry in sealed.segments:
        if entry.key == key:
            return entry, sealed
    return None
