"""Finds and reads the segments that count: those that a seal names.

That a segment is sealed is not taken from its `.seal` pointer alone: the seal that the pointer
names is read, and the segment's bytes must be those that it tells of. Signatures are `verify`'s
business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import IO

from archiver.audit.chain import MAX_SEAL_BYTES
from archiver.audit.safe_reader import TRIES, Reader, TooLarge, spool
from archiver.audit.segment_lines import segment_name
from archiver.audit.segments import MAX_SEGMENT_BYTES
from archiver.core.errors import ArchiverError, FormatError
from archiver.manifest import layout, seal
from archiver.manifest.layout import SegmentName
from archiver.manifest.seal import POINTER_BYTES, Seal, SegmentEntry, parse_pointer

SEALS_KEPT = 256
"""Seals in memory at a time: neighbouring segments stand in neighbouring seals."""


def record_days(folders: Iterable[str]) -> list[date]:
    """The days among the folders below `records/`, newest first. A source's clock may be anywhere,
    so may a day."""
    days = {day for name in folders if (day := layout.parse_day_dir(name)) is not None}
    return sorted(days, reverse=True)


def record_day(key: str) -> date | None:
    """The day of a record's key; None for any other key."""
    parsed = layout.parse_record_key(key)
    return parsed[0] if parsed else None


class SealedSegments:
    """One thread uses it. All of it raises `FormatError`, which says to run `archiver verify`,
    where something is not as it was sealed."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._seals: dict[int, Seal] = {}
        self._newest: Seal | None = None

    def names(self, day: date) -> list[SegmentName]:
        """The segments of a day's windows, sealed or not, in order."""
        return sorted(self._list(layout.segment_prefix(day)))

    def all_names(self) -> Iterator[SegmentName]:
        return self._list(layout.SEGMENTS)

    def _list(self, prefix: str) -> Iterator[SegmentName]:
        for item in self._reader.list(prefix):
            if (name := segment_name(item.key)) is not None:
                yield name

    def entry(self, name: SegmentName) -> tuple[SegmentEntry, int] | None:
        """What a segment's seal says of it, and the seal's number; None while it has none."""
        key = layout.pointer_key(name.jsonl)
        pointer = self._reader.read(key, None, POINTER_BYTES)
        if pointer is None:
            # A seal is completed before the next is made: only the newest can lack its pointers.
            return _entry_in(self.newest(), name.jsonl)
        number = parse_pointer(pointer)
        found = _entry_in(self._seal(number), name.jsonl) if number is not None else None
        if found is None:
            raise FormatError(f"{key} names no seal that covers it: run archiver verify")
        return found

    @contextmanager
    def open(self, entry: SegmentEntry) -> Iterator[IO[bytes]]:
        """A segment's bytes; raises `FormatError` unless they are those that the seal tells of. A
        stream that breaks is begun anew."""
        damage = FormatError(f"{entry.key} is not as it was sealed: run archiver verify")
        for attempt in range(1, TRIES + 1):
            try:
                spooled = spool(self._reader, entry.key, min(entry.bytes, MAX_SEGMENT_BYTES))
                break
            except TooLarge:
                raise damage from None
            except ArchiverError as error:
                if attempt == TRIES or not error.retryable:
                    raise
        if spooled is None:
            raise damage
        with spooled.file:
            if spooled.sha256 != entry.sha256:
                raise damage
            yield spooled.file

    def genesis(self) -> Seal | None:
        """Seal 0; None where nothing was sealed yet."""
        if self._is_there(0):
            return self._seal(0)
        if next(iter(self._reader.list(layout.SEALS)), None) is not None:
            raise FormatError(f"{layout.seal_key(0)} is missing: run archiver verify")
        return None

    def newest(self) -> Seal:
        """The head of the chain. Asks for seal numbers in steps that double, then halve. Raises
        `FormatError` where there is no seal 0."""
        if self._newest is None:
            if not self._is_there(0):
                raise FormatError("there is no archive here: no seal 0")
            low, high = 0, 1
            while self._is_there(high):
                low, high = high, high * 2
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._is_there(middle) else (low, middle)
            self._newest = self._seal(low)
        return self._newest

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


def _entry_in(sealed: Seal, key: str) -> tuple[SegmentEntry, int] | None:
    entry = next((entry for entry in sealed.segments if entry.key == key), None)
    return (entry, sealed.seq) if entry is not None else None
