"""One sealed segment: against its seal, its companion and its pointer, and line by line.

A segment is spooled once and read three times (tree, lines, companion), a line at a time: of a
window's records nothing is kept but `CallState`s, of events only who is held.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from archiver.audit.chain import Sealed
from archiver.audit.gate import Gate, Spooled
from archiver.errors import FormatError
from archiver.manifest import canonical, event, layout, merkle, record, seal
from archiver.manifest.event import Action, Hold, ObjectRef
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.model import DAY, Window, parse_time

MAX_SEGMENT_BYTES = 1 << 30
MAX_LINE_BYTES = 16 << 20
"""The window line is the long one: it may have to name every id of a window as pending."""
MAX_RECORD_BYTES = 1 << 20

_FILE_KEY = re.compile(
    r"recordings/dt=[0-9]{4}-[0-9]{2}-[0-9]{2}/(?P<call>[A-Za-z0-9_.-]+)/"
    r"(?P<kind>recording|transcript|epa)(-[0-9a-f]{16})?\.[a-z0-9]{1,8}"
)
_VERSION = re.compile("[!-~]{1,1024}")


@dataclass(frozen=True, slots=True)
class CallState:
    """What is kept of a record."""

    revision: int
    outcome: str


def take_newer(calls: dict[str, CallState], call_id: str, new: CallState) -> None:
    """Keep the record with the highest revision, whichever comes first."""
    old = calls.get(call_id)
    if old is None or new.revision >= old.revision:
        calls[call_id] = new


@dataclass
class Summary:
    """What is kept of a segment. `window` and `line` only where its last line is a window line."""

    sealed: Sealed
    name: SegmentName
    window: Window | None = None
    line: Mapping[str, Any] | None = None
    calls: dict[str, CallState] = field(default_factory=dict)
    records: int = 0
    as_sealed: bool = False
    """Whether its bytes are those that the seal tells of."""
    intact: bool = True
    """Whether every line could be read."""

    @property
    def is_whole(self) -> bool:
        return self.as_sealed and self.intact


@dataclass
class Events:
    """What is kept of a segment of events."""

    count: int = 0
    holds: list[tuple[str, Action]] = field(default_factory=list)
    """The calls that were put on hold, or taken off, in order."""
    whole: bool = True
    """Whether it is as it was sealed, and every line could be read."""


OnRecord = Callable[[bytes, Record], None]
"""Called with each record's line, newline included, and what it says."""


def segment_name(key: str) -> SegmentName | None:
    """The name of a window's segment, where `key` is exactly what the layout makes of it."""
    try:
        parsed = layout.parse_segment_key(key)
    except (ValueError, OverflowError):
        return None
    if parsed is None or parsed[1] != "jsonl" or parsed[0].jsonl != key:
        return None
    return parsed[0]


def is_events(key: str) -> bool:
    """Whether it is the key of a segment of events."""
    parsed = layout.parse_event_key(key)
    return parsed is not None and parsed[1] == "jsonl"


class SegmentCheck:
    """Reads segments. Threads share it."""

    def __init__(self, gate: Gate, newest_seal: int) -> None:
        self._gate = gate
        self._report = gate.findings.add
        self._newest_seal = newest_seal

    def window_segment(
        self, sealed: Sealed, name: SegmentName, on_record: OnRecord
    ) -> Summary | None:
        """Check the segment of a window; None where it is not there or not to be had."""
        spooled = self._gate.spool(name.jsonl, MAX_SEGMENT_BYTES, "segment_missing")
        self._pointer(sealed)
        if spooled is None:
            return None
        with spooled.file:
            summary = Summary(sealed, name, as_sealed=_is_as_sealed(sealed, spooled))
            lines = self._against_seal(sealed, spooled, window_lines=1)
            companion = _Companion(sealed.entry.sha256, name.jsonl)
            if lines is not None:
                self._lines(spooled, lines, summary, companion, on_record)
            else:
                summary.intact = False
            records = summary.records if summary.is_whole else None
            self._companion(name.jsonl, companion, records)
            return summary

    def event_segment(self, sealed: Sealed) -> Events:
        """Check a segment of events, and say which calls they hold."""
        key, found = sealed.entry.key, Events()
        spooled = self._gate.spool(key, MAX_SEGMENT_BYTES, "segment_missing")
        self._pointer(sealed)
        if spooled is None:
            return Events(whole=False)
        with spooled.file:
            self._companion(key, _Companion(sealed.entry.sha256, key), 0)
            found.whole = _is_as_sealed(sealed, spooled)
            lines = self._against_seal(sealed, spooled, window_lines=0)
            if lines is None:
                return Events(whole=False)
            found.count = lines
            for number, hold in self._events(spooled, key, found):
                if all(is_held_object(hold.call_id, one) for one in hold.objects):
                    found.holds.append((hold.call_id, hold.action))
                else:
                    found.whole = False
                    self._report("event_invalid", key, f"line {number}: an object of another call")
            return found

    def _events(self, spooled: Spooled, key: str, found: Events) -> Iterator[tuple[int, Hold]]:
        """The holds among the events, each with the number of its line."""
        spooled.file.seek(0)
        for number, line in enumerate(lines_of(spooled.file), 1):
            try:
                if (hold := event.parse(line)) is not None:
                    yield number, hold
            except FormatError as error:
                found.whole = False
                self._report("event_invalid", key, f"line {number}: {error}")

    # --- against the seal

    def _against_seal(self, sealed: Sealed, spooled: Spooled, window_lines: int) -> int | None:
        """Compare with the seal's entry; the number of lines, None where lines cannot be told."""
        entry, key = sealed.entry, sealed.entry.key
        same = _is_as_sealed(sealed, spooled)
        if not same:
            self._report("segment_mismatch", key, f"{spooled.bytes} bytes, {spooled.sha256}")
        count = 0

        def leaves() -> Iterator[bytes]:
            nonlocal count
            for line in lines_of(spooled.file):
                count += 1
                yield line[:-1]

        try:
            root = merkle.root(leaves()).hex()
        except FormatError as error:
            self._report("segment_invalid", key, str(error))
            return None
        if same and root != entry.root:
            self._report("segment_root", key)
        if same and count - window_lines != entry.records:
            self._report("segment_records", key, f"it has {count - window_lines}")
        return count

    def _pointer(self, sealed: Sealed) -> None:
        key, late = layout.pointer_key(sealed.entry.key), sealed.seq == self._newest_seal
        data = self._gate.read(key, seal.POINTER_BYTES, "pointer_missing", late=late)
        if data is not None and data != seal.pointer(sealed.seq):
            self._report("pointer_mismatch", key, f"not {sealed.seq}")

    # --- line by line

    def _lines(
        self,
        spooled: Spooled,
        count: int,
        summary: Summary,
        companion: _Companion,
        on_record: OnRecord,
    ) -> None:
        before = ""
        spooled.file.seek(0)
        for number, line in enumerate(lines_of(spooled.file), 1):
            if number == count:
                self._window_line(line, summary)
                break
            found = self._record(line, number, summary)
            if found is None:
                continue
            if found.key <= before:
                self._invalid(summary, number, "out of order")
            before = found.key
            summary.records += 1
            state = CallState(found.revision, found.outcome)
            take_newer(summary.calls, found.call_id, state)
            companion.add(line, found)
            on_record(line, found)

    def _record(self, line: bytes, number: int, summary: Summary) -> Record | None:
        try:
            found = parse_record(line)
        except FormatError as error:
            self._invalid(summary, number, str(error))
            return None
        self._files(found)
        return found

    def _files(self, found: Record) -> None:
        """What the record itself shows to be wrong with its files."""
        files = found.document["files"]
        if found.outcome == "archived" and all(file["kind"] != "recording" for file in files):
            self._report("record_incomplete", found.key)
        for file in files:
            if not is_file_key(found, file):
                self._report("file_key", found.key, f"file of kind {file['kind'][:16]}")
            if not is_file_entry(file):
                self._report("segment_invalid", found.key, "a file with a malformed field")

    def _window_line(self, line: bytes, summary: Summary) -> None:
        """The last line: a window line of the window and revision that the key names."""
        try:
            document = canonical.load_object(line)
            summary.window = read_window(document)
            if canonical.dump(document) != line:
                raise FormatError("a window line that is not in canonical form")
        except FormatError as error:
            self._invalid(summary, 0, str(error))
            return
        summary.line = document
        window, name = summary.window, summary.name
        if window.start != name.start or document["revision"] != name.revision:
            self._report("window_mismatch", name.jsonl)

    def _invalid(self, summary: Summary, number: int, reason: str) -> None:
        summary.intact = False
        where = f"line {number}" if number else "last line"
        self._report("segment_invalid", summary.name.jsonl, f"{where}: {reason}")

    def _companion(self, segment_key: str, expected: _Companion, records: int | None) -> None:
        key = layout.companion_key(segment_key)
        spooled = self._gate.spool(key, MAX_SEGMENT_BYTES, "companion_missing")
        if spooled is None:
            return
        with spooled.file:
            if not expected.equals(spooled.file, records):
                self._report("companion_mismatch", key)


class _Companion:
    """What a `.sha256` must hold, as three running digests: segment, then records, then files.

    Kept as digests because the files' lines come after all records', and both may be many.
    """

    def __init__(self, segment_sha256: str, key: str) -> None:
        self._head = f"{segment_sha256}  {key}\n".encode()
        self._records = hashlib.sha256()
        self._files = hashlib.sha256()

    def add(self, line: bytes, found: Record) -> None:
        self._records.update(f"{hashlib.sha256(line).hexdigest()}  {found.key}\n".encode())
        for file in found.document["files"]:
            row = f"{file['sha256']}  {file['key']}\n"
            self._files.update(row.encode("utf-8", "surrogatepass"))

    def equals(self, file: IO[bytes], records: int | None) -> bool:
        """Compare; only the first line where None says that the records are not known."""
        try:
            lines = lines_of(file)
            if next(lines, b"") != self._head:
                return False
            if records is None:
                return True
            digests = hashlib.sha256(), hashlib.sha256()
            for number, line in enumerate(lines):
                digests[number >= records].update(line)
        except FormatError:
            return False
        wanted = (self._records.digest(), self._files.digest())
        return (digests[0].digest(), digests[1].digest()) == wanted


def is_file_key(found: Record, file: Mapping[str, Any]) -> bool:
    """Whether a record's file lies where files of its call and kind do."""
    match = _FILE_KEY.fullmatch(file["key"])
    return (
        match is not None
        and match["call"] == layout.call_dir(found.call_id)
        and match["kind"] == file["kind"]
    )


def parse_record(line: bytes) -> Record:
    """A record; raises `FormatError` for what is none."""
    if len(line) > MAX_RECORD_BYTES:
        raise FormatError("a record over 1 MiB")
    try:
        return record.parse(line)
    except ValueError:
        raise FormatError("a record with a malformed key") from None


def is_file_entry(file: Mapping[str, Any]) -> bool:
    """Whether size, SHA-256 and version are such that a store can be asked for them."""
    size, version_id = file["bytes"], file.get("version_id")
    return (
        type(size) is int
        and size >= 0
        and re.fullmatch("[0-9a-f]{64}", file["sha256"]) is not None
        and (version_id is None or _VERSION.fullmatch(version_id) is not None)
    )


def is_held_object(call_id: str, one: ObjectRef) -> bool:
    """Whether a hold on a call may name this: a file or a record of the call."""
    file, own = _FILE_KEY.fullmatch(one.key), layout.parse_record_key(one.key)
    named = file["call"] if file is not None else own[1] if own is not None else None
    return named == layout.call_dir(call_id)


def _is_as_sealed(sealed: Sealed, spooled: Spooled) -> bool:
    return (spooled.bytes, spooled.sha256) == (sealed.entry.bytes, sealed.entry.sha256)


def read_window(document: Mapping[str, Any]) -> Window:
    """The window of a window line whose fields all have their type; raises `FormatError`."""
    if document.get("type") != "window" or document.get("v") != 1:
        raise FormatError("no window line of version 1")
    start, end = parse_time(document.get("from")), parse_time(document.get("to"))
    if start is None or end is None or not start < end or end - start > DAY:
        raise FormatError("a window line without a window")
    numbers = [document.get(name) for name in ("revision", "listed", *record.OUTCOMES)]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise FormatError("a window line without its counts")
    for name in ("pending", "vanished"):
        ids = document.get(name)
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise FormatError(f"a window line without {name}")
        if ids != sorted(set(ids)):
            raise FormatError(f"a window line whose {name} is not sorted, or repeats")
    return Window(start, end)


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """Its lines, newline included; raises `FormatError` for one too long or without its newline."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if not line.endswith(b"\n"):
            raise FormatError("a line too long, or cut off")
        yield line
