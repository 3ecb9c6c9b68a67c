"""What a record tells an auditor: all that is kept of a line once it was read.

There are two ways to it. `glance.py` recognises the form that the archiver itself writes; any other
line is parsed, and what is wrong with it is reported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from archiver.errors import FormatError
from archiver.manifest import layout, record
from archiver.manifest.record import Record
from archiver.model import DAY, parse_time

MAX_RECORD_BYTES = 1 << 20

FILE_KEY = re.compile(
    r"recordings/dt=[0-9]{4}-[0-9]{2}-[0-9]{2}/(?P<call>[A-Za-z0-9_.-]+)/"
    r"(?P<name>[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254})"
)
"""A file of a call, of whatever kind."""
_VERSION = re.compile("[!-~]{1,1024}")

Report = Callable[[str, str, str], None]
"""Code, key, detail."""


class FileRef(NamedTuple):
    """A file as a record names it."""

    key: str
    version_id: str | None
    bytes: int
    sha256: str


class Told(NamedTuple):
    """A record. A tuple, because an audit makes one for each of millions of records."""

    key: str
    call_id: str
    outcome: str
    revision: int
    named: Sequence[FileRef]
    """Every file that it names, in its order."""
    files: Sequence[FileRef]
    """Those that a store can be asked for: what is malformed was reported."""
    retention: object
    """As it stands there: an object with `mode` and `until`, null, or anything else."""
    binds_covers: bool = True
    """Whether what covers the record must be locked for as long as the record promises."""


def parse_record(line: bytes) -> Record:
    """A record; raises `FormatError` for what is none."""
    if len(line) > MAX_RECORD_BYTES:
        raise FormatError("a record over 1 MiB")
    try:
        return record.parse(line)
    except ValueError:
        raise FormatError("a record with a malformed key") from None


def of_record(found: Record, report: Report) -> Told:
    """What a record tells; what it shows itself to be wrong with its files is reported."""
    files, named, sound = found.document["files"], [], []
    if found.outcome == "archived" and all(file["kind"] != "recording" for file in files):
        report("record_incomplete", found.key, "")
    for file in files:
        one = FileRef(file["key"], file.get("version_id"), file["bytes"], file["sha256"])
        named.append(one)
        in_place, well_formed = is_file_key(found, file), _is_well_formed(one)
        if not in_place:
            report("file_key", found.key, f"file of kind {file['kind'][:16]}")
        if not well_formed:
            report("segment_invalid", found.key, "a file with a malformed field")
        if in_place and well_formed:
            sound.append(one)
    return Told(
        found.key,
        found.call_id,
        found.outcome,
        found.revision,
        named,
        sound,
        found.document.get("retention"),
        _binds_covers(found.document),
    )


def _binds_covers(document: Mapping[str, Any]) -> bool:
    """Whether a record's promise binds the segment and the seal that cover it: not where the lock
    counts from an end over a day after the record was written. Releases before the finding
    `time_implausible` believed every end, and a lock that is too long cannot be taken back."""
    findings = document.get("findings")
    if isinstance(findings, list) and "time_implausible" in findings:
        return True  # it counts from the window's end
    ended = parse_time(document.get("ended_at") or document.get("started_at"))
    written = parse_time(document.get("archived_at"))
    if ended is None or written is None:
        return True
    return ended - written <= DAY


def is_file_key(found: Record, file: Mapping[str, Any]) -> bool:
    """Whether a record's file lies where files of its call and kind do. A kind that this release
    does not know may have any name."""
    match = FILE_KEY.fullmatch(file["key"])
    if match is None or match["call"] != layout.call_dir(found.call_id):
        return False
    kind = record.FILE_KINDS.get(file["kind"])
    name = rf"{kind.stem}(-[0-9a-f]{{16}})?\.[a-z0-9]{{1,8}}" if kind else ".*"
    return re.fullmatch(name, match["name"]) is not None


def _is_well_formed(file: FileRef) -> bool:
    """Whether size, SHA-256 and version are such that a store can be asked for them."""
    return (
        type(file.bytes) is int
        and file.bytes >= 0
        and re.fullmatch("[0-9a-f]{64}", file.sha256) is not None
        and (file.version_id is None or _VERSION.fullmatch(file.version_id) is not None)
    )
