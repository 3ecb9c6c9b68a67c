"""What stands in a segment, line by line, and which keys it may name. Reads files, and no store.

- A line ends with a newline and has at most `MAX_LINE_BYTES`; a record has at most 1 MiB.
- A record names files of its own call alone. One that says `archived` names a recording.
- The last line of a window's segment is its window line.

Most lines are as this release writes them: `read_records` reads many at a time. Any other line, for
instance one with an unknown field, is read by itself (`read_record`).
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
from archiver.manifest.record import FILE_KINDS, FileRef, Outcome, Record

MAX_SEGMENT_BYTES = 1 << 30
MAX_RECORD_BYTES = 1 << 20
MAX_LINE_BYTES = 16 << 20
"""The window line is the long one: it may have to name every id of a window as pending."""
BLOCK_BYTES = 256 << 10
"""What is read at a time to find lines in."""

Report = Callable[[str, str, str], None]
"""Code, key, detail."""

_DAY_AND_CALL = r"recordings/dt=[0-9]{4}-[0-9]{2}-[0-9]{2}/(?P<call>[A-Za-z0-9_.-]+)/"
FILE_KEY = re.compile(_DAY_AND_CALL + r"(?P<name>[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254})")
"""A file of a call, of whatever kind."""
_VERSION = re.compile("[!-~]{1,1024}")


_KEYS = {
    # A recording's extension says what it is; a document's says that it is JSON, or `bad`.
    kind: re.compile(
        f"{_DAY_AND_CALL}{row.stem}(-[0-9a-f]{{16}})?"
        + (r"\.[a-z0-9]{1,8}" if kind == "recording" else re.escape(row.suffix))
    )
    for kind, row in FILE_KINDS.items()
}


# --- keys


def segment_name(key: str) -> SegmentName | None:
    """The name of a window's segment; None for any other key."""
    parsed = layout.parse_segment_key(key)
    return parsed[0] if parsed is not None and parsed[1] == "jsonl" else None


def is_event_segment(key: str) -> bool:
    parsed = layout.parse_event_key(key)
    return parsed is not None and parsed[1] == "jsonl"


def is_held_object(call_id: str, one: ObjectRef) -> bool:
    """Whether a hold on a call may name this: a file or a record of the call."""
    file, own = FILE_KEY.fullmatch(one.key), layout.parse_record_key(one.key)
    named = file["call"] if file is not None else own[1] if own is not None else None
    return named == layout.call_dir(call_id)


# --- lines


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file that may be large or hostile, newline included, in bounded memory; raises
    `FormatError` for one too long or without its newline."""
    return chain.from_iterable(blocks_of(file))


def blocks_of(file: IO[bytes]) -> Iterator[list[bytes]]:
    """The same, some lines at a time: asking a file for each of them takes longer than hashing it.

    Never an empty list. A line longer than a block is read in pieces that grow with it, so that it
    is not copied again and again.
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
    """A record, with the fields that this release writes. What an audit relies on has a type; the
    rest may be anything."""

    call_id: str
    files: list[FileRef]
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
    files: list[FileRef]
    """Those that a store can be asked for."""


def read_records(lines: Sequence[bytes]) -> list[RecordLine] | None:
    """The records in lines, in a tenth of the time that `read_record` takes. None where one is to
    be read by itself, because it has an unknown field or a fault."""
    if max(map(len, lines)) > MAX_RECORD_BYTES:
        return None
    found = canonical.decode_lines(lines, _DECODER)
    if found is None or not all(map(_has_its_key, found)):
        return None
    return found if record.have_digests([file for line in found for file in line.files]) else None


def read_record(line: bytes) -> RecordLine:
    """Any record; raises `FormatError` for what is none."""
    found = parse_record(line)
    return msgspec.convert({**found.document, "revision": found.revision, "v": 1}, RecordLine)


def parse_record(line: bytes) -> Record:
    """A record with its whole document; raises `FormatError` for what is none."""
    if len(line) > MAX_RECORD_BYTES:
        raise FormatError("a record over 1 MiB")
    return record.parse(line)


def _has_its_key(found: RecordLine) -> bool:
    parsed = layout.parse_record_key(found.key)
    return parsed is not None and parsed[1:] == (layout.call_dir(found.call_id), found.revision)


def sound_files(found: RecordLine, report: Report) -> list[FileRef]:
    """The files that a store can be asked for; what is wrong with the others is reported."""
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


def binds_covers(found: RecordLine) -> bool:
    """Whether what covers a record, its segment and seal, must be locked for as long as the record
    promises: not where the lock counts from an end over a day after the record was written.
    Releases before the finding `time_implausible` believed every end, and a lock that is too long
    cannot be taken back."""
    if isinstance(found.findings, list) and "time_implausible" in found.findings:
        return True  # it counts from the window's end
    ended = parse_time(found.ended_at or found.started_at)
    written = parse_time(found.archived_at)
    return ended is None or written is None or ended - written <= DAY


def record_key_in(line: bytes) -> str | None:
    """The key of the record in a line that cannot be read, where the line says it all the same."""
    try:
        key = canonical.load_object(line).get("record")
    except FormatError:
        return None
    return key if isinstance(key, str) and layout.parse_record_key(key) is not None else None


# --- the window line


def load_window_line(line: bytes) -> tuple[dict[str, Any], Window]:
    """A window line whose fields all have their type, and its window; raises `FormatError`."""
    document, is_canonical = canonical.load_line(line)
    record.refuse_newer(document)
    if document.get("type") != "window" or document.get("v") != 1:
        raise FormatError("no window line of version 1")
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
