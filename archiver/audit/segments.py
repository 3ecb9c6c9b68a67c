"""One sealed segment: against its seal, its companion and its pointer, and line by line.

A segment is spooled once and gone through twice (tree, lines), some lines at a time: of a window's
records nothing is kept but `CallState`s, of events only who is held.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any

from archiver.audit.chain import Sealed
from archiver.audit.companion import Companion
from archiver.audit.gate import Gate, Spooled
from archiver.audit.lines import blocks_of, lines_of
from archiver.audit.reading import Reading, Records, Summary, lines_in_words
from archiver.audit.told import FILE_KEY, of_record, parse_record
from archiver.errors import FormatError, NewerFormat
from archiver.manifest import canonical, event, layout, merkle, record, seal
from archiver.manifest.event import Action, Hold, ObjectRef
from archiver.manifest.layout import SegmentName
from archiver.model import DAY, Window, parse_time

MAX_SEGMENT_BYTES = 1 << 30
KEPT_BYTES = 8 << 20
"""Lines of a segment up to this size stay in memory while it is checked."""
_WITHOUT_NEWLINE = itemgetter(slice(None, -1))


@dataclass
class Events:
    """What is kept of a segment of events."""

    count: int = 0
    holds: list[tuple[str, Action]] = field(default_factory=list)
    """The calls that were put on hold, or taken off, in order."""
    whole: bool = True
    """Whether it is as it was sealed, and every line could be read."""


@dataclass(frozen=True)
class Unsealed:
    """What lies at the key of a segment that no seal names. `code` is what is wrong with it; None
    where it is a segment of ours, or where there is nothing."""

    is_there: bool = True
    code: str | None = None
    detail: str = ""
    companion: Companion | None = None
    """What its `.sha256` must hold."""


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
        # Where files are hashed, threads fetch side by side. At what holds the interpreter they
        # would only hinder each other: taking it away from one another costs a fifth more.
        self._at_work = threading.Lock()
        self._unsealed: dict[str, Unsealed] = {}
        self._unsealed_lock = threading.Lock()

    def window_segment(self, sealed: Sealed, name: SegmentName, records: Records) -> Summary | None:
        """Check the segment of a window; None where it is not there or not to be had."""
        spooled = self._gate.spool(name.jsonl, MAX_SEGMENT_BYTES, "segment_missing")
        self._pointer(sealed)
        if spooled is None:
            return None
        with spooled.file:
            summary = Summary(sealed, name, as_sealed=_is_as_sealed(sealed, spooled))
            companion = Companion(sealed.entry.sha256, name.jsonl)
            reading = Reading(summary, companion, records, self._report)
            with self._at_work:
                blocks = _Blocks(spooled)
                lines = self._against_seal(sealed, spooled, blocks, window_lines=1)
                if lines is not None:
                    self._lines(blocks, lines, reading)
            reading.finish()
            summary.intact = summary.intact and lines is not None
            self._companion(name.jsonl, companion, summary.is_whole)
            return summary

    def event_segment(self, sealed: Sealed) -> Events:
        """Check a segment of events, and say which calls they hold."""
        key, found = sealed.entry.key, Events()
        spooled = self._gate.spool(key, MAX_SEGMENT_BYTES, "segment_missing")
        self._pointer(sealed)
        if spooled is None:
            return Events(whole=False)
        with spooled.file:
            self._companion(key, Companion(sealed.entry.sha256, key), records_known=True)
            found.whole = _is_as_sealed(sealed, spooled)
            lines = self._against_seal(sealed, spooled, _Blocks(spooled), window_lines=0)
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
        newer = 0
        for number, line in enumerate(lines_of(spooled.file), 1):
            try:
                if (hold := event.parse(line)) is not None:
                    yield number, hold
            except NewerFormat:
                newer += 1
            except FormatError as error:
                found.whole = False
                self._report("event_invalid", key, f"line {number}: {error}")
        if newer:
            found.whole = False
            self._report("newer_format", key, lines_in_words(newer))

    # --- what no seal names

    def unsealed(self, key: str) -> Unsealed:
        """What lies at the key of a segment that no seal names. Read once; nothing is reported but
        that it cannot be read."""
        with self._unsealed_lock:
            if key not in self._unsealed:
                self._unsealed[key] = self._read_unsealed(key)
            return self._unsealed[key]

    def is_taken(self, name: SegmentName) -> bool:
        """Whether a revision that no seal names has its key taken by what is not ours."""
        verdict = self.unsealed(name.jsonl)
        if verdict.code is not None or not verdict.is_there:
            beside = (name.sha256, name.seal)
            return verdict.is_there or any(self._gate.is_there(key) for key in beside)
        return False

    def _read_unsealed(self, key: str) -> Unsealed:
        is_there = self._gate.is_there(key)
        if not is_there:
            return Unsealed(is_there=False) if is_there is not None else Unsealed(code="unreadable")
        spooled = self._gate.spool(key, MAX_SEGMENT_BYTES, None)
        if spooled is None:
            return Unsealed(code="unreadable")
        with spooled.file:
            try:
                companion = Companion(spooled.sha256, key)
                if (name := segment_name(key)) is not None:
                    _read_window_segment(spooled, name, companion)
                else:
                    for line in lines_of(spooled.file):
                        event.parse(line)
            except NewerFormat as error:
                return Unsealed(code="newer_format", detail=str(error))
            except FormatError as error:
                code = "segment_invalid" if segment_name(key) is not None else "event_invalid"
                return Unsealed(code=code, detail=f"no seal names it; {error}")
            return Unsealed(companion=companion)

    def check_unsealed_companion(self, key: str, expected: Companion) -> None:
        """Compare the `.sha256` beside a segment that no seal names, where it is there by now."""
        beside = layout.companion_key(key)
        spooled = self._gate.spool(beside, MAX_SEGMENT_BYTES, None, hashed=False)
        if spooled is not None:
            with spooled.file:
                if not expected.equals(spooled.file, records_known=True):
                    self._report("companion_mismatch", beside, "no seal names its segment")

    # --- against the seal

    def _against_seal(
        self, sealed: Sealed, spooled: Spooled, blocks: Iterable[list[bytes]], window_lines: int
    ) -> int | None:
        """Compare with the seal's entry; the number of lines, None where lines cannot be told."""
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

    def _pointer(self, sealed: Sealed) -> None:
        key, late = layout.pointer_key(sealed.entry.key), sealed.seq == self._newest_seal
        data = self._gate.read(key, seal.POINTER_BYTES, "pointer_missing", late=late)
        if data is not None and data != seal.pointer(sealed.seq):
            self._report("pointer_mismatch", key, f"not {sealed.seq}")

    # --- line by line

    def _lines(self, blocks: Iterable[list[bytes]], count: int, reading: Reading) -> None:
        """All lines but the last one are records."""
        number = 0
        for lines in blocks:
            reading.take(lines[: count - 1 - number], number + 1)
            number += len(lines)
            if number == count:
                self._window_line(lines[-1], reading)

    def _window_line(self, line: bytes, reading: Reading) -> None:
        """The last line: a window line of the window and revision that the key names."""
        summary = reading.summary
        try:
            document = canonical.load_object(line)
            summary.window = read_window(document)
            if canonical.dump(document) != line:
                raise FormatError("a window line that is not in canonical form")
        except NewerFormat:
            reading.newer(line)
            return
        except FormatError as error:
            reading.invalid("last line", str(error))
            return
        summary.line = document
        window, name = summary.window, summary.name
        if window.start != name.start or document["revision"] != name.revision:
            self._report("window_mismatch", name.jsonl)

    def _companion(self, segment_key: str, expected: Companion, records_known: bool) -> None:
        key = layout.companion_key(segment_key)
        spooled = self._gate.spool(key, MAX_SEGMENT_BYTES, "companion_missing", hashed=False)
        if spooled is None:
            return
        with spooled.file:
            if not expected.equals(spooled.file, records_known):
                self._report("companion_mismatch", key)


class _Blocks:
    """The lines of a segment, some at a time, as often as they are wanted. Most segments are small,
    and their lines are kept: to find them again takes as long as to hash them."""

    def __init__(self, spooled: Spooled) -> None:
        self._spooled = spooled
        self._kept: list[list[bytes]] = []

    def __iter__(self) -> Iterator[list[bytes]]:
        """Raises `FormatError` for a line too long, or cut off."""
        if not self._kept and self._spooled.bytes <= KEPT_BYTES:
            self._spooled.file.seek(0)
            self._kept = list(blocks_of(self._spooled.file))
        if self._kept:
            return iter(self._kept)
        self._spooled.file.seek(0)
        return blocks_of(self._spooled.file)


def is_held_object(call_id: str, one: ObjectRef) -> bool:
    """Whether a hold on a call may name this: a file or a record of the call."""
    file, own = FILE_KEY.fullmatch(one.key), layout.parse_record_key(one.key)
    named = file["call"] if file is not None else own[1] if own is not None else None
    return named == layout.call_dir(call_id)


def _read_window_segment(spooled: Spooled, name: SegmentName, companion: Companion) -> None:
    """Read a window's segment that no seal names, line by line, into its companion. Raises
    `FormatError` where it is none, or another one's."""
    before, waiting = "", None
    for line in lines_of(spooled.file):
        if waiting is not None:
            found = of_record(parse_record(waiting), lambda *_: None)
            if found.key <= before:
                raise FormatError("records that are out of order, or repeat")
            before = found.key
            companion.add(waiting, found)
        waiting = line
    document = canonical.load_object(waiting or b"")
    window = read_window(document)
    if canonical.dump(document) != waiting:
        raise FormatError("a window line that is not in canonical form")
    if window.start != name.start or document["revision"] != name.revision:
        raise FormatError("a segment of another window or revision")


def _is_as_sealed(sealed: Sealed, spooled: Spooled) -> bool:
    return (spooled.bytes, spooled.sha256) == (sealed.entry.bytes, sealed.entry.sha256)


def read_window(document: Mapping[str, Any]) -> Window:
    """The window of a window line whose fields all have their type; raises `FormatError`."""
    record.refuse_newer(document)
    if document.get("type") != "window" or document.get("v") != 1:
        raise FormatError("no window line of version 1")
    start, end = parse_time(document.get("from")), parse_time(document.get("to"))
    if start is None or end is None or not start < end or end - start > DAY:
        raise FormatError("a window line without a window")
    numbers = [document.get(name) for name in ("revision", "listed", *record.OUTCOMES)]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise FormatError("a window line without its counts")
    unreadable = document.get("unreadable", 0)
    if type(unreadable) is not int or unreadable < 0:
        raise FormatError("a window line whose unreadable is no count")
    for name in ("pending", "vanished"):
        ids = document.get(name)
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise FormatError(f"a window line without {name}")
        if ids != sorted(set(ids)):
            raise FormatError(f"a window line whose {name} is not sorted, or repeats")
    return Window(start, end)
