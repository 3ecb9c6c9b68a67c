"""Parses segments line by line, and checks the keys that they name. Reads local files only.

- A line ends with a newline and has at most `MAX_LINE_BYTES`; a record has at most 1 MiB.
- A record names files of its own call only. A record with outcome `archived` names a recording.
- The last line of a window's segment is its window line.

Most lines have exactly the fields that this release writes; `read_records` parses many of them at a
time. `read_record` parses any other line, for example one with an unknown field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from itertools import chain
from typing import IO, Any, Literal, NamedTuple

import msgspec

from archiver.core.errors import FormatError
from archiver.core.model import DAY, Window, parse_time
from archiver.manifest import canonical, layout, record
from archiver.manifest.event import ObjectRef
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import FILE_KINDS, File, Outcome, Record

MAX_SEGMENT_BYTES = 1 << 30
MAX_RECORD_BYTES = 1 << 20
MAX_LINE_BYTES = 16 << 20
"""Far more than a record, because a window line may name every id of its window as pending."""
BLOCK_BYTES = 256 << 10
"""Size of the blocks in which a file is read."""

Report = Callable[[str, str, str], None]
"""Reports a finding: code, key, detail."""

_DAY_AND_CALL = r"recordings/dt=[0-9]{4}-[0-9]{2}-[0-9]{2}/(?P<call>[A-Za-z0-9_.-]+)/"
FILE_KEY = re.compile(_DAY_AND_CALL + r"(?P<name>[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254})")
"""The key of a file of any kind."""
_VERSION = re.compile("[!-~]{1,1024}")


_KEYS = {
    # A recording may have any extension; that of a document is fixed: `json` or `bad`.
    kind: re.compile(
        f"{_DAY_AND_CALL}{row.stem}(-[0-9a-f]{{16}})?"
        + (r"\.[a-z0-9]{1,8}" if kind == "recording" else re.escape(row.suffix))
    )
    for kind, row in FILE_KINDS.items()
}


# --- keys


def segment_name(key: str) -> SegmentName | None:
    """Return the name of a window's segment; None for any other key."""
    parsed = layout.parse_segment_key(key)
    return parsed[0] if parsed is not None and parsed[1] == "jsonl" else None


def is_event_segment(key: str) -> bool:
    parsed = layout.parse_event_key(key)
    return parsed is not None and parsed[1] == "jsonl"


def is_held_object(call_id: str, one: ObjectRef) -> bool:
    """Whether an object is a file or a record of the call, so that a hold on it may name it."""
    file, own = FILE_KEY.fullmatch(one.key), layout.parse_record_key(one.key)
    named = file["call"] if file is not None else own[1] if own is not None else None
    return named == layout.call_dir(call_id)


# --- lines


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, newline included, in bounded memory; the file may be large or
    hostile. Raises `FormatError` for a line that is too long or has no newline."""
    return chain.from_iterable(blocks_of(file))


def blocks_of(file: IO[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines of a file, some at a time: reading each line from the file by itself takes
    longer than hashing it.

    Never yields an empty list. A line longer than a block is read in pieces that grow with it, so
    that the time stays linear.
    """
    rest = b""
    while len(rest) <= MAX_LINE_BYTES and (block := file.read(max(BLOCK_BYTES, len(rest)))):
        lines = BytesIO(rest + block).readlines()
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if lines and len(lines[0]) > MAX_LINE_BYTES + 1:
            raise FormatError("a line too long, or cut off")
        if lines:
            yield lines
    if rest:
        raise FormatError("a line too long, or cut off")


# --- records


class RecordLine(msgspec.Struct, kw_only=True, gc=False):
    """A record with exactly the fields that this release writes. Fields that the audit uses have a
    type; the others may have any."""

    call_id: str
    files: list[File]
    key: str = msgspec.field(name="record")
    outcome: Outcome
    revision: int
    type: Literal["call"]
    v: Literal[1]
    archived_at: Any = msgspec.UNSET
    attempts: Any = msgspec.UNSET
    audio: Any = msgspec.UNSET
    campaign_id: Any = msgspec.UNSET
    direction: Any = msgspec.UNSET
    duration_seconds: Any = msgspec.UNSET
    ended_at: Any = msgspec.UNSET
    findings: Any = msgspec.UNSET
    reason: Any = msgspec.UNSET
    retention: Any = msgspec.UNSET
    source: Any = msgspec.UNSET
    started_at: Any = msgspec.UNSET
    state: Any = msgspec.UNSET
    status: Any = msgspec.UNSET
    unavailable: Any = msgspec.UNSET


_DECODER = canonical.line_decoder(RecordLine)


class SegmentRecord(NamedTuple):
    """A record of a segment."""

    line: bytes
    record: RecordLine
    files: list[File]
    """Those of its files whose key and version are valid (`sound_files`)."""


def read_records(lines: Sequence[bytes]) -> list[RecordLine] | None:
    """Parse lines in a tenth of the time that `read_record` takes. Returns None if a line has an
    unknown field or is invalid; the caller parses the lines one by one then."""
    if max(map(len, lines)) > MAX_RECORD_BYTES:
        return None
    found = canonical.decode_lines(lines, _DECODER)
    if found is None or not all(map(_has_its_key, found)):
        return None
    return found if record.have_digests([file for line in found for file in line.files]) else None


def read_record(line: bytes) -> RecordLine:
    """Parse any record. Raises `FormatError`."""
    found = parse_record(line)
    return msgspec.convert({**found.document, "revision": found.revision, "v": 1}, RecordLine)


def parse_record(line: bytes) -> Record:
    """Parse any record, and keep its whole document. Raises `FormatError`."""
    if len(line) > MAX_RECORD_BYTES:
        raise FormatError("a record over 1 MiB")
    return record.parse(line)


def _has_its_key(found: RecordLine) -> bool:
    parsed = layout.parse_record_key(found.key)
    return parsed is not None and parsed[1:] == (layout.call_dir(found.call_id), found.revision)


def sound_files(found: RecordLine, report: Report) -> list[File]:
    """Return the files whose key and version are valid; report the others, and a record with
    outcome `archived` and without a recording."""
    if found.outcome == "archived" and all(file.kind != "recording" for file in found.files):
        report("record_incomplete", found.key, "")
    sound, call_dir = [], layout.call_dir(found.call_id)
    for file in found.files:
        # A kind that this release does not know may have any name.
        match = _KEYS.get(file.kind, FILE_KEY).fullmatch(file.key)
        is_own = match is not None and match["call"] == call_dir
        is_well_formed = file.version_id is None or _VERSION.fullmatch(file.version_id) is not None
        if not is_own:
            report("file_key", found.key, f"file of kind {file.kind[:16]}")
        if not is_well_formed:
            report("segment_invalid", found.key, "a file with a malformed field")
        if is_own and is_well_formed:
            sound.append(file)
    return sound


def must_lock_segment(found: RecordLine) -> bool:
    """Whether the segment and the seal of a record must be locked as long as the record promises.

    That is not required if the call's end lies over a day after the record was written. Releases
    before the finding `time_implausible` computed the lock from any end that the source sent, and
    a lock that is too long cannot be shortened.
    """
    if isinstance(found.findings, list) and "time_implausible" in found.findings:
        return True  # it counts from the window's end
    ended = parse_time(found.ended_at or found.started_at)
    written = parse_time(found.archived_at)
    return ended is None or written is None or ended - written <= DAY


def record_key_in(line: bytes) -> str | None:
    """Return the `record` key in a line that is not a valid record; None if it has none."""
    try:
        key = canonical.load_object(line).get("record")
    except FormatError:
        return None
    return key if isinstance(key, str) and layout.parse_record_key(key) is not None else None


# --- the window line


def load_window_line(line: bytes) -> tuple[dict[str, Any], Window]:
    """Parse a window line strictly. Returns the line and its window. Raises `FormatError`."""
    document, is_canonical = canonical.load_line(line)
    record.check_type(document, "window", "no window line of version 1")
    start, end = parse_time(document.get("from")), parse_time(document.get("to"))
    if start is None or end is None or not start < end or end - start > DAY:
        raise FormatError("a window line without a window")
    counts = [document.get(name) for name in ("revision", "listed", *record.OUTCOMES)]
    for count in (*counts, document.get("unreadable", 0)):
        if type(count) is not int or count < 0:
            raise FormatError("a window line without its counts")
    for name in ("pending", "vanished"):
        ids = document.get(name)
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise FormatError(f"a window line without {name}")
        if ids != sorted(set(ids)):
            raise FormatError(f"a window line whose {name} is not sorted, or repeats")
    if not is_canonical:
        raise FormatError("a window line that is not in canonical form")
    return document, Window(start, end)
