"""Checks one segment against its seal, its seal pointer and its checksum list, and line by line.

A segment is downloaded once and read once, some lines at a time: each line goes into the Merkle
tree and is parsed in the same pass. Of a window's records only a `CallState` each is kept, of
events only call id and action.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import IO, Any, NamedTuple

from archiver.audit.chain import SealedEntry
from archiver.audit.findings import counted
from archiver.audit.safe_reader import ReportingReader, Spooled
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


class CallState(NamedTuple):
    """The fields of a record that are kept."""

    revision: int
    outcome: str


def keep_newer(calls: dict[str, CallState], call_id: str, new: CallState) -> None:
    """Keep the record with the highest revision, in whatever order they come."""
    old = calls.get(call_id)
    if old is None or new.revision >= old.revision:
        calls[call_id] = new


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
class WindowSegment:
    """The result of checking a window's segment. `window` and `line` are None if its last line is
    not a valid window line."""

    name: SegmentName
    as_sealed: bool
    """Whether its size and SHA-256 are those in the seal."""
    window: Window | None = None
    line: Mapping[str, Any] | None = None
    calls: dict[str, CallState] = field(default_factory=dict)
    intact: bool = True
    """Whether every line could be read."""
    newer_lines: int = 0
    """Number of lines that a newer release wrote."""
    unread_keys: list[str] = field(default_factory=list)
    """The `record` keys in lines that are not valid records."""
    last_key: str = ""
    """The key of the last record that was read."""


@dataclass
class EventSegment:
    """The result of checking a segment of events."""

    count: int = 0
    holds: list[tuple[str, Action]] = field(default_factory=list)
    """`(call id, action)` of each `hold` event, in order."""
    is_whole: bool = True
    """Whether it is as it was sealed and every line could be read."""


class UnreportedFinding(NamedTuple):
    """Code and detail of a finding that is not reported yet."""

    code: str
    detail: str = ""


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
    ) -> WindowSegment | None:
        """Check the segment of a window. Returns None if it is missing or cannot be read.

        1. Its seal pointer names its seal.
        2. Its lines are records in order, then the window line. Calls `on_records` with them.
        3. Its bytes, Merkle root and number of records are those in the seal.
        4. Its checksum list matches the lines. If a line could not be read, only the first row of
           the list is compared.
        """
        spooled = self._reader.spool(name.jsonl, MAX_SEGMENT_BYTES, "segment_missing")
        # 1. The seal pointer.
        self._check_pointer(sealed)
        if spooled is None:
            return None
        with spooled.file:
            found = WindowSegment(name, _is_as_sealed(sealed, spooled))
            checksums = ChecksumList(sealed.entry.sha256, name.jsonl)

            def lines() -> Iterator[bytes]:
                # 2. The lines. The last line so far waits, because it may be the window line.
                number, waiting = 1, list[bytes]()
                for block in blocks_of(spooled.file):
                    if ready := [*waiting, *block[:-1]]:
                        records = self._read_records(found, ready, number)
                        checksums.add(records)
                        on_records(records)
                        number += len(ready)
                    waiting = block[-1:]
                    yield from block
                self._read_window_line(found, waiting[0] if waiting else b"")

            with self._parsing:
                # 3. The seal.
                count = self._check_against_seal(sealed, spooled, lines(), window_lines=1)
            found.intact = found.intact and count is not None
            if found.newer_lines:
                self._report("newer_format", name.jsonl, counted(found.newer_lines, "line"))
            # 4. The checksum list.
            self._check_checksums(name.jsonl, checksums, found.as_sealed and found.intact)
            return found

    def event_segment(self, sealed: SealedEntry) -> EventSegment:
        """Check a segment of events in the same way, and collect its `hold` events."""
        key, newer = sealed.entry.key, 0
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, "segment_missing")
        self._check_pointer(sealed)
        if spooled is None:
            return EventSegment(is_whole=False)
        with spooled.file:
            found = EventSegment(is_whole=_is_as_sealed(sealed, spooled))

            def lines() -> Iterator[bytes]:
                nonlocal newer
                for number, line in enumerate(lines_of(spooled.file), 1):
                    yield line
                    try:
                        hold = event.parse(line)
                        if hold is None:
                            continue
                        if not all(is_held_object(hold.call_id, one) for one in hold.objects):
                            raise FormatError("an object of another call")
                        found.holds.append((hold.call_id, hold.action))
                    except NewerFormat:
                        newer += 1
                    except FormatError as error:
                        found.is_whole = False
                        self._report("event_invalid", key, f"line {number}: {error}")

            self._check_checksums(key, ChecksumList(sealed.entry.sha256, key), True)
            count = self._check_against_seal(sealed, spooled, lines(), window_lines=0)
            if newer:
                self._report("newer_format", key, counted(newer, "line"))
            found.count = count or 0
            found.is_whole = found.is_whole and count is not None and not newer
            return found

    def _check_pointer(self, sealed: SealedEntry) -> None:
        key, late = layout.seal_pointer_key(sealed.entry.key), sealed.seq == self._newest_seal
        data = self._reader.read(key, seal.POINTER_BYTES, "pointer_missing", late=late)
        if data is not None and data != seal.seal_pointer(sealed.seq):
            self._report("pointer_mismatch", key, f"not {sealed.seq}")

    def _check_against_seal(
        self, sealed: SealedEntry, spooled: Spooled, lines: Iterable[bytes], window_lines: int
    ) -> int | None:
        """Compare with the seal's entry. Returns the number of lines; None if a line is too long or
        cut off."""
        entry, key = sealed.entry, sealed.entry.key
        same = _is_as_sealed(sealed, spooled)
        if not same:
            self._report("segment_mismatch", key, f"{spooled.bytes} bytes, {spooled.sha256}")
        try:
            root, count = merkle.root_and_size(map(_WITHOUT_NEWLINE, lines))
        except FormatError as error:
            self._report("segment_invalid", key, str(error))
            return None
        if same and root.hex() != entry.root:
            self._report("segment_root", key)
        if same and count - window_lines != entry.records:
            self._report("segment_records", key, f"it has {count - window_lines}")
        return count

    def _check_checksums(self, segment_key: str, expected: ChecksumList, known: bool) -> None:
        key = layout.checksum_list_key(segment_key)
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, "companion_missing", hashed=False)
        if spooled is not None:
            with spooled.file:
                if not expected.equals(spooled.file, known):
                    self._report("companion_mismatch", key)

    def _read_records(
        self, found: WindowSegment, lines: Sequence[bytes], first: int
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
                self._unread(found, line, error, f"line {first + at}")
                continue
            files = sound_files(one, self._report)
            if one.key <= found.last_key:
                found.intact = False
                self._report(
                    "segment_invalid", found.name.jsonl, f"line {first + at}: out of order"
                )
            found.last_key = one.key
            keep_newer(found.calls, one.call_id, CallState(one.revision, one.outcome))
            records.append(SegmentRecord(line, one, files))
        return records

    def _read_window_line(self, found: WindowSegment, line: bytes) -> None:
        """Parse the last line, and check that it has the window and revision of the key."""
        try:
            found.line, found.window = load_window_line(line)
        except FormatError as error:
            self._unread(found, line, error, "last line")
        else:
            if not _is_named(found.name, found.window, found.line):
                self._report("window_mismatch", found.name.jsonl)

    def _unread(self, found: WindowSegment, line: bytes, error: FormatError, where: str) -> None:
        """Record that a line could not be read. Lines of a newer release are only counted, and
        reported together."""
        found.intact = False
        if (key := record_key_in(line)) is not None:
            found.unread_keys.append(key)
        if isinstance(error, NewerFormat):
            found.newer_lines += 1
        else:
            self._report("segment_invalid", found.name.jsonl, f"{where}: {error}")

    # --- segments that no seal names

    def is_foreign(self, name: SegmentName) -> bool:
        """Whether the key of a revision that no seal names is taken by an object that is not a
        segment of this archive."""
        found = self.unsealed(name.jsonl)
        if isinstance(found, UnreportedFinding):
            return True
        return found is None and any(self._reader.is_there(key) for key in (name.sha256, name.seal))

    def check_unsealed_checksums(self, key: str, expected: ChecksumList) -> None:
        """Check the checksum list of a segment that no seal names, if it exists already."""
        beside = layout.checksum_list_key(key)
        spooled = self._reader.spool(beside, MAX_SEGMENT_BYTES, None, hashed=False)
        if spooled is not None:
            with spooled.file:
                if not expected.equals(spooled.file, records_known=True):
                    self._report("companion_mismatch", beside, "no seal names its segment")

    def _read_unsealed(self, key: str) -> ChecksumList | UnreportedFinding | None:
        """Read the object at the key of a segment that no seal names. Returns its expected checksum
        list if it is a valid segment, else the damage; None if it does not exist. Reports only an
        object that cannot be read: a damaged one may not be ours, and the caller decides."""
        is_there = self._reader.is_there(key)
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, None) if is_there else None
        if is_there is False:
            return None
        if spooled is None:
            return UnreportedFinding("unreadable")
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
                return UnreportedFinding("newer_format", str(error))
            except FormatError as error:
                code = "segment_invalid" if name is not None else "event_invalid"
                return UnreportedFinding(code, f"no seal names it; {error}")
        return checksums


def _is_named(name: SegmentName, window: Window, line: Mapping[str, Any]) -> bool:
    """Whether a window line has the window start and the revision that the key names."""
    return window.start == name.start and line["revision"] == name.revision


def _is_as_sealed(sealed: SealedEntry, spooled: Spooled) -> bool:
    return (spooled.bytes, spooled.sha256) == (sealed.entry.bytes, sealed.entry.sha256)
