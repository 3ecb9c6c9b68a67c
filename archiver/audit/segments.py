"""One segment: checked against its seal, its seal pointer and its checksum list, and line by line.

A segment is spooled once and gone through twice (Merkle tree, lines), some lines at a time. Of a
window's records only `CallState`s are kept, of events only who is held.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import IO, Any, NamedTuple

from archiver.audit.chain import Sealed
from archiver.audit.safe_reader import ReportingReader, Spooled
from archiver.audit.segment_lines import (
    BLOCK_BYTES,
    SegmentRecord,
    blocks_of,
    is_held_object,
    lines_of,
    read_record,
    read_records,
    read_window,
    record_key_in,
    segment_name,
    sound_files,
)
from archiver.core.errors import FormatError, NewerFormat
from archiver.core.model import Window
from archiver.manifest import canonical, event, layout, merkle, seal
from archiver.manifest.event import Action, Hold
from archiver.manifest.layout import SegmentName

MAX_SEGMENT_BYTES = 1 << 30
KEPT_BYTES = 8 << 20
"""Lines of a segment up to this size stay in memory while it is checked."""
ROWS_AT_ONCE = 1000
"""Rows of a checksum list that are hashed at a time."""
_WITHOUT_NEWLINE = itemgetter(slice(None, -1))

TakeRecords = Callable[[Sequence[SegmentRecord]], None]
"""What is done with the records of a segment, some at a time."""


class _Blocks:
    """The lines of a segment, some at a time, as often as they are wanted. Most segments are small,
    and their lines are kept: to find them again takes as long as to hash them."""

    def __init__(self, spooled: Spooled) -> None:
        self._spooled = spooled
        self._kept: list[list[bytes]] = []

    def __iter__(self) -> Iterator[list[bytes]]:
        """Raises `FormatError` for a line too long, or cut off."""
        if not self._kept:
            self._spooled.file.seek(0)
            blocks = blocks_of(self._spooled.file)
            if self._spooled.bytes > KEPT_BYTES:
                return blocks
            self._kept = list(blocks)
        return iter(self._kept)


class CallState(NamedTuple):
    """What is kept of a record."""

    revision: int
    outcome: str


def keep_newer(calls: dict[str, CallState], call_id: str, new: CallState) -> None:
    """Keep the record with the highest revision, whichever comes first."""
    old = calls.get(call_id)
    if old is None or new.revision >= old.revision:
        calls[call_id] = new


# --- the checksum list


class ChecksumList:
    """What the `.sha256` beside a segment must hold.

    The rows of records and files are kept as digests, because the files' rows come after all
    records, and both may be many.
    """

    def __init__(self, segment_sha256: str, key: str) -> None:
        self._head = f"{segment_sha256}  {key}\n".encode()
        self._records, self._files = _Rows(), _Rows()

    def add(self, records: Iterable[SegmentRecord]) -> None:
        """The next records."""
        sha256 = hashlib.sha256
        self._records.add([f"{sha256(line).hexdigest()}  {r.key}\n" for line, r, _ in records])
        self._files.add([f"{f.sha256}  {f.key}\n" for _, r, _ in records for f in r.files])

    def equals(self, file: IO[bytes], records_known: bool) -> bool:
        """Compare with a file at its start; only the first row where the records are not known."""
        if file.read(len(self._head)) != self._head:
            return False
        return not records_known or (
            self._records.come_next(file) and self._files.come_next(file) and not file.read(1)
        )


class _Rows:
    """Rows as their number of bytes and their SHA-256."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._bytes = 0
        self._sha256 = hashlib.sha256()

    def add(self, rows: Iterable[str]) -> None:
        self._rows += rows
        if len(self._rows) >= ROWS_AT_ONCE:
            self._hash()

    def come_next(self, file: IO[bytes]) -> bool:
        """Whether a file goes on with these rows; it is read as far as they go."""
        self._hash()
        left, sha256 = self._bytes, hashlib.sha256()
        while left and (chunk := file.read(min(left, BLOCK_BYTES))):
            left -= len(chunk)
            sha256.update(chunk)
        return sha256.digest() == self._sha256.digest()

    def _hash(self) -> None:
        data = "".join(self._rows).encode("utf-8", "surrogatepass")
        self._rows.clear()
        self._bytes += len(data)
        self._sha256.update(data)


# --- segments


@dataclass
class WindowSegment:
    """What is kept of a window's segment. `window` and `line` only where its last line is a window
    line."""

    name: SegmentName
    as_sealed: bool
    """Whether its bytes are those that the seal names."""
    window: Window | None = None
    line: Mapping[str, Any] | None = None
    calls: dict[str, CallState] = field(default_factory=dict)
    intact: bool = True
    """Whether every line could be read."""
    newer_lines: int = 0
    """Lines that a newer release wrote."""
    unread_keys: list[str] = field(default_factory=list)
    """The keys of the records in lines that could not be read, as far as the lines say them."""
    last_key: str = ""
    """The key of the last record that was read."""

    def add_unread(self, line: bytes) -> None:
        self.intact = False
        if (key := record_key_in(line)) is not None:
            self.unread_keys.append(key)

    @property
    def is_whole(self) -> bool:
        return self.as_sealed and self.intact


@dataclass
class EventSegment:
    """What is kept of a segment of events."""

    count: int = 0
    holds: list[tuple[str, Action]] = field(default_factory=list)
    """The calls that were put on hold, or taken off, in order."""
    is_whole: bool = True
    """Whether it is as it was sealed, and every line could be read."""


@dataclass(frozen=True)
class Unsealed:
    """What lies at the key of a segment that no seal names. `code` is what is wrong with it; None
    where it is a segment of ours, or where there is nothing."""

    is_there: bool = True
    code: str | None = None
    detail: str = ""
    checksums: ChecksumList | None = None
    """What its `.sha256` must hold."""


class SegmentCheck:
    """Reads segments. Threads share it."""

    def __init__(self, reader: ReportingReader, newest_seal: int) -> None:
        self._reader = reader
        self._report = reader.findings.add
        self._newest_seal = newest_seal
        # Where files are hashed, threads fetch side by side. Parsing holds the interpreter, and
        # threads that take it from one another need a fifth more time, so one parses at a time.
        self._parsing = threading.Lock()
        self._unsealed: dict[str, Unsealed] = {}
        self._unsealed_lock = threading.Lock()

    # --- sealed segments

    def window_segment(
        self, sealed: Sealed, name: SegmentName, take: TakeRecords
    ) -> WindowSegment | None:
        """Check the segment of a window; None where it is not there or not to be had.

        1. Its seal pointer names its seal.
        2. Its bytes, Merkle root and number of records are those of the seal.
        3. Its lines are records in order, then the window line; `take` is called with the records.
        4. Its checksum list is the one of these lines, as far as they are known.
        """
        spooled = self._reader.spool(name.jsonl, MAX_SEGMENT_BYTES, "segment_missing")
        # 1. The seal pointer.
        self._check_pointer(sealed)
        if spooled is None:
            return None
        with spooled.file:
            found = WindowSegment(name, _is_as_sealed(sealed, spooled))
            checksums = ChecksumList(sealed.entry.sha256, name.jsonl)
            with self._parsing:
                # 2. The seal.
                blocks = _Blocks(spooled)
                count = self._check_against_seal(sealed, spooled, blocks, window_lines=1)
                # 3. The lines.
                if count is None:
                    found.intact = False
                else:
                    self._check_lines(found, blocks, count, checksums, take)
            # 4. The checksum list.
            self._check_checksums(name.jsonl, checksums, found.is_whole)
            return found

    def event_segment(self, sealed: Sealed) -> EventSegment:
        """Check a segment of events, and collect which calls they hold or release."""
        key, found = sealed.entry.key, EventSegment()
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, "segment_missing")
        self._check_pointer(sealed)
        if spooled is None:
            return EventSegment(is_whole=False)
        with spooled.file:
            self._check_checksums(key, ChecksumList(sealed.entry.sha256, key), True)
            found.is_whole = _is_as_sealed(sealed, spooled)
            count = self._check_against_seal(sealed, spooled, _Blocks(spooled), window_lines=0)
            if count is None:
                return EventSegment(is_whole=False)
            found.count = count
            for number, hold in self._holds(spooled, key, found):
                if all(is_held_object(hold.call_id, one) for one in hold.objects):
                    found.holds.append((hold.call_id, hold.action))
                else:
                    found.is_whole = False
                    self._report("event_invalid", key, f"line {number}: an object of another call")
            return found

    def _check_pointer(self, sealed: Sealed) -> None:
        key, late = layout.pointer_key(sealed.entry.key), sealed.seq == self._newest_seal
        data = self._reader.read(key, seal.POINTER_BYTES, "pointer_missing", late=late)
        if data is not None and data != seal.pointer(sealed.seq):
            self._report("pointer_mismatch", key, f"not {sealed.seq}")

    def _check_against_seal(
        self, sealed: Sealed, spooled: Spooled, blocks: Iterable[list[bytes]], window_lines: int
    ) -> int | None:
        """Compare with the seal's entry. Returns the number of lines; None where one is too long or
        cut off."""
        entry, key = sealed.entry, sealed.entry.key
        same = _is_as_sealed(sealed, spooled)
        if not same:
            self._report("segment_mismatch", key, f"{spooled.bytes} bytes, {spooled.sha256}")
        try:
            entries = map(_WITHOUT_NEWLINE, chain.from_iterable(blocks))
            root, count = merkle.root_and_size(entries)
        except FormatError as error:
            self._report("segment_invalid", key, str(error))
            return None
        if same and root.hex() != entry.root:
            self._report("segment_root", key)
        if same and count - window_lines != entry.records:
            self._report("segment_records", key, f"it has {count - window_lines}")
        return count

    def _check_checksums(self, segment_key: str, expected: ChecksumList, known: bool) -> None:
        key = layout.companion_key(segment_key)
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, "companion_missing", hashed=False)
        if spooled is not None:
            with spooled.file:
                if not expected.equals(spooled.file, known):
                    self._report("companion_mismatch", key)

    def _check_lines(
        self,
        found: WindowSegment,
        blocks: Iterable[Sequence[bytes]],
        count: int,
        checksums: ChecksumList,
        take: TakeRecords,
    ) -> None:
        """All lines but the last one are records."""
        number = 0
        for lines in blocks:
            if record_lines := lines[: count - 1 - number]:
                records = self._check_records(found, record_lines, number + 1)
                checksums.add(records)
                take(records)
            number += len(lines)
            if number == count:
                self._check_window_line(found, lines[-1])
        if found.newer_lines:
            self._report("newer_format", found.name.jsonl, _lines_in_words(found.newer_lines))

    def _check_records(
        self, found: WindowSegment, lines: Sequence[bytes], first: int
    ) -> list[SegmentRecord]:
        """The next records; `first` is the number of the first line, counted from 1."""
        read, records = read_records(lines), list[SegmentRecord]()
        for at, line in enumerate(lines):
            where = f"line {first + at}"
            try:
                # Of a block with one odd line, the others are read in the fast way too.
                fast = read[at : at + 1] if read is not None else read_records([line])
                one = fast[0] if fast else read_record(line)
            except NewerFormat:
                found.newer_lines += 1
                found.add_unread(line)
                continue
            except FormatError as error:
                self._invalid(found, where, str(error))
                found.add_unread(line)
                continue
            files = sound_files(one, self._report)
            if one.key <= found.last_key:
                self._invalid(found, where, "out of order")
            found.last_key = one.key
            keep_newer(found.calls, one.call_id, CallState(one.revision, one.outcome))
            records.append(SegmentRecord(line, one, files))
        return records

    def _check_window_line(self, found: WindowSegment, line: bytes) -> None:
        """The last line: a window line of the window and revision that the key names."""
        try:
            document, is_canonical = canonical.load_line(line)
            found.window = read_window(document)
            if not is_canonical:
                raise FormatError("a window line that is not in canonical form")
        except NewerFormat:
            found.newer_lines += 1
            found.add_unread(line)
        except FormatError as error:
            self._invalid(found, "last line", str(error))
        else:
            found.line = document
            if not _is_named(found.name, found.window, document):
                self._report("window_mismatch", found.name.jsonl)

    def _invalid(self, found: WindowSegment, where: str, reason: str) -> None:
        found.intact = False
        self._report("segment_invalid", found.name.jsonl, f"{where}: {reason}")

    def _holds(self, spooled: Spooled, key: str, found: EventSegment) -> Iterator[tuple[int, Hold]]:
        """The holds among the events, each with the number of its line."""
        spooled.file.seek(0)
        newer = 0
        for number, line in enumerate(lines_of(spooled.file), 1):
            try:
                if (hold := event.parse(line)) is not None:
                    yield number, hold
            except NewerFormat:
                newer += 1
            except FormatError as error:
                found.is_whole = False
                self._report("event_invalid", key, f"line {number}: {error}")
        if newer:
            found.is_whole = False
            self._report("newer_format", key, _lines_in_words(newer))

    # --- segments that no seal names

    def unsealed(self, key: str) -> Unsealed:
        """What lies at the key of a segment that no seal names. Read once; nothing is reported but
        that it cannot be read."""
        with self._unsealed_lock:
            if key not in self._unsealed:
                self._unsealed[key] = self._read_unsealed(key)
            return self._unsealed[key]

    def is_taken(self, name: SegmentName) -> bool:
        """Whether a revision that no seal names has its key taken by what is not ours."""
        found = self.unsealed(name.jsonl)
        if found.code is not None or not found.is_there:
            beside = (name.sha256, name.seal)
            return found.is_there or any(self._reader.is_there(key) for key in beside)
        return False

    def check_unsealed_checksums(self, key: str, expected: ChecksumList) -> None:
        """Compare the `.sha256` beside a segment that no seal names, where it is there by now."""
        beside = layout.companion_key(key)
        spooled = self._reader.spool(beside, MAX_SEGMENT_BYTES, None, hashed=False)
        if spooled is not None:
            with spooled.file:
                if not expected.equals(spooled.file, records_known=True):
                    self._report("companion_mismatch", beside, "no seal names its segment")

    def _read_unsealed(self, key: str) -> Unsealed:
        is_there = self._reader.is_there(key)
        if not is_there:
            return Unsealed(is_there=False) if is_there is not None else Unsealed(code="unreadable")
        spooled = self._reader.spool(key, MAX_SEGMENT_BYTES, None)
        if spooled is None:
            return Unsealed(code="unreadable")
        name, checksums = segment_name(key), ChecksumList(spooled.sha256, key)
        with spooled.file:
            try:
                if name is not None:
                    _read_unsealed_window(spooled, name, checksums)
                else:
                    for line in lines_of(spooled.file):
                        event.parse(line)
            except NewerFormat as error:
                return Unsealed(code="newer_format", detail=str(error))
            except FormatError as error:
                code = "segment_invalid" if name is not None else "event_invalid"
                return Unsealed(code=code, detail=f"no seal names it; {error}")
        return Unsealed(checksums=checksums)


def _read_unsealed_window(spooled: Spooled, name: SegmentName, checksums: ChecksumList) -> None:
    """Read a window's segment that no seal names, line by line, into its checksum list. Raises
    `FormatError` where it is none, or another one's."""
    before, waiting = "", b""
    for line in lines_of(spooled.file):
        if waiting:
            found = read_record(waiting)
            if found.key <= before:
                raise FormatError("records that are out of order, or repeat")
            before = found.key
            checksums.add([SegmentRecord(waiting, found, [])])
        waiting = line
    document, is_canonical = canonical.load_line(waiting)
    window = read_window(document)
    if not is_canonical:
        raise FormatError("a window line that is not in canonical form")
    if not _is_named(name, window, document):
        raise FormatError("a segment of another window or revision")


def _is_named(name: SegmentName, window: Window, line: Mapping[str, Any]) -> bool:
    """Whether a window line is of the window and revision that its segment's key names."""
    return window.start == name.start and line["revision"] == name.revision


def _is_as_sealed(sealed: Sealed, spooled: Spooled) -> bool:
    return (spooled.bytes, spooled.sha256) == (sealed.entry.bytes, sealed.entry.sha256)


def _lines_in_words(count: int) -> str:
    return f"{count:,} lines" if count != 1 else "1 line"
