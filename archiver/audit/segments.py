"""Checks one segment against its seal, its seal pointer and its checksum list, and line by line.

A segment is downloaded once and read once, some lines at a time: each line goes into the Merkle
tree and is parsed in the same pass. Of events only call id and action are kept.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import IO, Any

from archiver.audit.chain import SealedEntry
from archiver.audit.findings import Finding, counted
from archiver.audit.safe_reader import ReportingReader
from archiver.audit.segment_lines import (
    BLOCK_BYTES,
    MAX_SEGMENT_BYTES,
    SegmentRecord,
    blocks_of,
    is_held_object,
    lines_of,
    load_window_line,
    read_record,
    read_records,
    record_key_in,
    segment_name,
    sound_files,
)
from archiver.core.errors import FormatError, NewerFormat
from archiver.core.model import Window
from archiver.manifest import event, layout, merkle, seal
from archiver.manifest.event import Action
from archiver.manifest.layout import SegmentName

_WITHOUT_NEWLINE = itemgetter(slice(None, -1))

OnRecords = Callable[[Sequence[SegmentRecord]], None]
"""Called with the records of a segment, some at a time."""


class ChecksumList:
    """The expected content of a segment's checksum list: a row for the segment, then the rows of
    its records, then those of their files.

    Keeps running digests of the rows, not the rows, because there may be very many.
    """

    def __init__(self, segment_sha256: str, key: str) -> None:
        self._head = f"{segment_sha256}  {key}\n".encode()
        self._records, self._files = hashlib.sha256(), hashlib.sha256()
        self._sizes = [0, 0]

    def add(self, records: Sequence[SegmentRecord]) -> None:
        """Add the rows of the next records and of their files."""
        sha256 = hashlib.sha256
        rows = [f"{sha256(line).hexdigest()}  {r.key}\n" for line, r, _ in records]
        files = [f"{f.sha256}  {f.key}\n" for _, r, _ in records for f in r.files]
        for at, (part, texts) in enumerate([(self._records, rows), (self._files, files)]):
            data = "".join(texts).encode("utf-8", "surrogatepass")
            part.update(data)
            self._sizes[at] += len(data)

    def equals(self, file: IO[bytes], records_known: bool) -> bool:
        """Compare with a file at its start. If not all records are known, compare only the first
        row."""
        if file.read(len(self._head)) != self._head:
            return False
        for part, size in zip((self._records, self._files), self._sizes, strict=True):
            found, left = hashlib.sha256(), size if records_known else 0
            while left and (chunk := file.read(min(left, BLOCK_BYTES))):
                left -= len(chunk)
                found.update(chunk)
            if records_known and found.digest() != part.digest():
                return False
        return not (records_known and file.read(1))


@dataclass
class CheckedSegment:
    """The result of checking a segment."""

    is_there: bool = False
    """Whether it exists, and the store returned it."""
    as_sealed: bool = False
    """Whether its size and SHA-256 are those in the seal."""
    intact: bool = False
    """Whether every line could be read."""
    count: int = 0
    """Number of lines; 0 if one is too long or cut off."""
    newer_lines: int = 0
    """Number of lines that a newer release wrote."""
    window: Window | None = None
    line: Mapping[str, Any] | None = None
    """The window line; None if the last line is none, or if it is a segment of events."""
    last_key: str = ""
    """The key of the last record that was read."""
    unread_keys: list[str] = field(default_factory=list)
    """The `record` keys in lines that are not valid records."""
    holds: list[tuple[str, Action]] = field(default_factory=list)
    """`(call id, action)` of each `hold` event, in order."""

    @property
    def is_whole(self) -> bool:
        return self.as_sealed and self.intact


class SegmentCheck:
    """Checks segments, and reports what is wrong. Threads share it."""

    def __init__(self, reader: ReportingReader, newest_seal: int) -> None:
        self._reader = reader
        self._report = reader.findings.add
        self._newest_seal = newest_seal
        # Several threads download at a time. Parsing holds the interpreter lock, and threads that
        # compete for it need a fifth more time, so only one parses at a time.
        self._parsing = threading.Lock()
        # Cached, because `windows` and `leftovers` read the same unsealed segment: an object that
        # cannot be read is reported once.
        self.unsealed = lru_cache(1024)(self._read_unsealed)

    def window_segment(
        self, sealed: SealedEntry, name: SegmentName, on_records: OnRecords
    ) -> CheckedSegment:
        """Check the segment of a window: records in order, then the window line. Calls `on_records`
        with the records."""
        found, checksums = CheckedSegment(), ChecksumList(sealed.entry.sha256, name.jsonl)

        def lines(file: IO[bytes]) -> Iterator[bytes]:
            # The last line so far waits, because it may be the window line.
            number, waiting = 1, list[bytes]()
            for block in blocks_of(file):
                if ready := [*waiting, *block[:-1]]:
                    records = self._read_records(found, name.jsonl, ready, number)
                    checksums.add(records)
                    on_records(records)
                    number += len(ready)
                waiting = block[-1:]
                yield from block
            last = waiting[0] if waiting else b""
            try:
                found.line, found.window = load_window_line(last)
            except FormatError as error:
                self._unread(found, name.jsonl, last, error, "last line")
            else:
                if not _is_named(name, found.window, found.line):
                    self._report("window_mismatch", name.jsonl)

        self._check(sealed, found, checksums, lines, window_lines=1)
        return found

    def event_segment(self, sealed: SealedEntry) -> CheckedSegment:
        """Check a segment of events, and collect its `hold` events."""
        found, key = CheckedSegment(), sealed.entry.key

        def lines(file: IO[bytes]) -> Iterator[bytes]:
            for number, line in enumerate(lines_of(file), 1):
                yield line
                try:
                    hold = event.parse(line)
                    if hold is None:
                        continue
                    if not all(is_held_object(hold.call_id, one) for one in hold.objects):
                        raise FormatError("an object of another call")
                    found.holds.append((hold.call_id, hold.action))
                except NewerFormat:
                    found.intact, found.newer_lines = False, found.newer_lines + 1
                except FormatError as error:
                    found.intact = False
                    self._report("event_invalid", key, f"line {number}: {error}")

        self._check(sealed, found, ChecksumList(sealed.entry.sha256, key), lines, window_lines=0)
        return found

    def _check(
        self,
        sealed: SealedEntry,
        found: CheckedSegment,
        checksums: ChecksumList,
        lines: Callable[[IO[bytes]], Iterable[bytes]],
        window_lines: int,
    ) -> None:
        """Check a segment. `lines` yields the lines of a file, checks them, and adds their rows to
        `checksums`.

        1. Its seal pointer names its seal.
        2. Its bytes, its lines, its Merkle root and its number of records are those in the seal.
        3. Its checksum list matches the lines. If a record could not be read, only the first row of
           the list is compared.
        """
        entry, key = sealed.entry, sealed.entry.key
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, "segment_missing")
        # 1. The seal pointer. A writer may be about to write those of the newest seal.
        pointer, late = layout.seal_pointer_key(key), sealed.seq == self._newest_seal
        data = self._reader.read(pointer, seal.POINTER_BYTES, "pointer_missing", late=late)
        if data is not None and data != seal.seal_pointer(sealed.seq):
            self._report("pointer_mismatch", pointer, f"not {sealed.seq}")
        if spooled is None:
            return
        # 2. The seal.
        same = (spooled.bytes, spooled.sha256) == (entry.bytes, entry.sha256)
        if not same:
            self._report("segment_mismatch", key, f"{spooled.bytes} bytes, {spooled.sha256}")
        found.is_there, found.as_sealed, found.intact = True, same, True
        try:
            with spooled.file, self._parsing:
                leaves = map(_WITHOUT_NEWLINE, lines(spooled.file))
                root, found.count = merkle.root_and_size(leaves)
        except FormatError as error:
            found.intact = False
            self._report("segment_invalid", key, str(error))
        else:
            if same and root.hex() != entry.root:
                self._report("segment_root", key)
            if same and found.count - window_lines != entry.records:
                self._report("segment_records", key, f"it has {found.count - window_lines}")
        if found.newer_lines:
            self._report("newer_format", key, counted(found.newer_lines, "line"))
        # 3. The checksum list.
        self._check_checksums(key, checksums, known=not window_lines or found.is_whole)

    def _check_checksums(
        self,
        segment_key: str,
        expected: ChecksumList,
        known: bool = True,
        missing: str | None = "companion_missing",
        detail: str = "",
    ) -> None:
        key = layout.checksum_list_key(segment_key)
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, missing, hashed=False)
        if spooled is not None:
            with spooled.file:
                if not expected.equals(spooled.file, known):
                    self._report("companion_mismatch", key, detail)

    def _read_records(
        self, found: CheckedSegment, key: str, lines: Sequence[bytes], first: int
    ) -> list[SegmentRecord]:
        """Parse the next records, and report invalid lines. `first` is the number of the first
        line, counted from 1."""
        read, records = read_records(lines), list[SegmentRecord]()
        for at, line in enumerate(lines):
            try:
                # If the fast way failed for the block, it is tried for each line by itself.
                fast = read[at : at + 1] if read is not None else read_records([line])
                one = fast[0] if fast else read_record(line)
            except FormatError as error:
                self._unread(found, key, line, error, f"line {first + at}")
                continue
            files = sound_files(one, self._report)
            if one.key <= found.last_key:
                found.intact = False
                self._report("segment_invalid", key, f"line {first + at}: out of order")
            found.last_key = one.key
            records.append(SegmentRecord(line, one, files))
        return records

    def _unread(
        self, found: CheckedSegment, key: str, line: bytes, error: FormatError, where: str
    ) -> None:
        """Record that a line could not be read. Lines of a newer release are only counted, and
        reported together."""
        found.intact = False
        if (record := record_key_in(line)) is not None:
            found.unread_keys.append(record)
        if isinstance(error, NewerFormat):
            found.newer_lines += 1
        else:
            self._report("segment_invalid", key, f"{where}: {error}")

    # --- segments that no seal names

    def is_foreign(self, name: SegmentName) -> bool:
        """Whether the key of a revision that no seal names is taken by an object that is not a
        segment of this archive."""
        found = self.unsealed(name.jsonl)
        return isinstance(found, Finding) or (
            found is None and any(self._reader.is_there(key) for key in (name.sha256, name.seal))
        )

    def check_unsealed_checksums(self, key: str, expected: ChecksumList) -> None:
        """Check the checksum list of a segment that no seal names, if it exists already."""
        self._check_checksums(key, expected, missing=None, detail="no seal names its segment")

    def _read_unsealed(self, key: str) -> ChecksumList | Finding | None:
        """Read the object at the key of a segment that no seal names. Returns its expected checksum
        list if it is a valid segment, else the damage; None if it does not exist. Reports only an
        object that cannot be read: a damaged one may not be ours, and the caller decides."""
        is_there = self._reader.is_there(key)
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, None) if is_there else None
        if is_there is False:
            return None
        if spooled is None:
            return Finding("unreadable", key)
        name, checksums = segment_name(key), ChecksumList(spooled.sha256, key)
        before, waiting = "", b""
        with spooled.file:
            try:
                for line in lines_of(spooled.file):
                    if name is None:
                        event.parse(line)
                    elif waiting:
                        one = read_record(waiting)
                        if one.key <= before:
                            raise FormatError("records that are out of order, or repeat")
                        before = one.key
                        checksums.add([SegmentRecord(waiting, one, [])])
                    waiting = line
                if name is not None:
                    document, window = load_window_line(waiting)
                    if not _is_named(name, window, document):
                        raise FormatError("a segment of another window or revision")
            except NewerFormat as error:
                return Finding("newer_format", key, str(error))
            except FormatError as error:
                code = "segment_invalid" if name is not None else "event_invalid"
                return Finding(code, key, f"no seal names it; {error}")
        return checksums


def _is_named(name: SegmentName, window: Window, line: Mapping[str, Any]) -> bool:
    """Whether a window line has the window start and the revision that the key names."""
    return window.start == name.start and line["revision"] == name.revision
