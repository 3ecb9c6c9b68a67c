"""What lies in the bucket and stands in no seal.

- Objects of segments that no seal names: segments that wait for their seal, and traces of what is
  gone. Writers may be at work, and a key that is listed may belong to a seal that is newer than our
  reading of the chain. So before anything is called a trace, the bucket is asked again.
- Versions: more than one of a key, or a delete marker, shows that somebody overwrote or deleted.
- Foreign objects: keys that no rule of the layout makes.
- Orphans: records that no sealed segment names, and files that no record names. Orphan records are
  read: each must be a record of this format, else whoever asks the bucket for the calls of that day
  cannot use it. They are few: a window that is still open has such records, and a record that was
  amended before any segment named it. That something is an orphan is information, and only
  reported where every sealed segment could be read.
- Sightings: ids that a listing of a window showed and that had no record then. Once a later
  listing of that window is sealed, each of them has a record, in this window or in another one, or
  stands in `pending`. An id with an orphan record is not lost either: its window may be sealed
  later.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import datetime

from archiver.audit.chain import ChainView
from archiver.audit.findings import Findings, counted
from archiver.audit.safe_reader import ReportingReader, lists_no_versions
from archiver.audit.segment_lines import (
    FILE_KEY,
    MAX_RECORD_BYTES,
    is_event_segment,
    parse_record,
    segment_name,
)
from archiver.audit.segments import ChecksumList, SegmentCheck
from archiver.core.concurrency import ordered
from archiver.core.errors import FormatError, NewerFormat, StoreError
from archiver.manifest import layout, seal, sighting

MAX_SEGMENTS_READ = 1000
"""Unsealed segments that are read; the others are only reported. In a sound archive there are as
many as windows that are being sealed just now."""
MAX_RECORDS_READ = 4096
"""Orphan records that are read."""
SIGHTINGS_READ_AT_ONCE = 4
"""One may have a million ids."""
MAX_SUSPECTS = 100_000
"""Keys of which all versions are looked at together; those beyond it are all `overwritten`."""
SHOWN = 10
"""Keys that are reported of each code which is no error; the others are counted."""
ID_CHARACTERS = 64
"""What a finding shows of an id."""
RESERVED = "manifest/log/"
"""Where a newer release keeps its transparency log."""
LISTED_ELSEWHERE = (layout.SEALS, layout.SEGMENTS, layout.EVENTS, layout.KEYS)
"""Listed key by key by `check_chain` and `check_manifest`."""
_CALL_DIR = re.compile(r"[A-Za-z0-9_-]{1,128}|id\.[0-9a-f]{64}")


class StringSet:
    """A set of strings as their hashes, 8 bytes each: a million calls have four million keys.
    Filled first, then asked. By chance a string counts as one of them once in many billions."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._is_sorted = True

    def add_hashes(self, hashes: Iterable[int]) -> None:
        self._hashes.extend(hashes)
        self._is_sorted = False

    def __contains__(self, text: str) -> bool:
        if not self._is_sorted:
            self._hashes, self._is_sorted = array("q", sorted(self._hashes)), True
        at = bisect_left(self._hashes, hash(text))
        return at < len(self._hashes) and self._hashes[at] == hash(text)


# --- segments that no seal names


def check_manifest(reader: ReportingReader, chain: ChainView, segments: SegmentCheck) -> None:
    """List the manifest's segments and keys, and report what no seal explains."""
    add, unsealed = reader.findings.add, 0
    for prefix in (layout.SEGMENTS, layout.EVENTS):
        for key in (listed.key for listed in reader.list(prefix)):
            stem, _, extension = key.rpartition(".")
            segment = f"{stem}.jsonl"
            is_segment = segment_name(segment) is not None or is_event_segment(segment)
            if not is_segment or extension not in ("jsonl", "sha256", "seal"):
                add("unexpected_object", key)
            elif segment in chain.segments:
                continue
            elif extension == "seal":
                _check_pointer(reader, chain, key)
            elif extension == "sha256":
                if reader.is_there(segment) is False:
                    add("segment_missing", segment, "its .sha256 is there")
            elif reader.is_there(layout.pointer_key(segment)) is False:
                # It waits for its seal, or is something else.
                unsealed += 1
                found = segments.unsealed(key) if unsealed <= MAX_SEGMENTS_READ else None
                if unsealed > MAX_SEGMENTS_READ:
                    add("unsealed_segment", key, "not read: there are very many")
                elif isinstance(found, ChecksumList):
                    add("unsealed_segment", key)
                    segments.check_unsealed_checksums(key, found)
                elif found is not None and found.code != "unreadable":
                    add(found.code, key, found.detail)
    known = {layout.VERIFY_PAGE, layout.VERIFY_SCRIPT, chain.key_object}
    for key in (listed.key for listed in reader.list(layout.KEYS)):
        if key not in known and chain.key_object is not None:
            add("unexpected_object", key)


def _check_pointer(reader: ReportingReader, chain: ChainView, key: str) -> None:
    """A pointer is written after its seal: without a seal that names the segment, the seal is gone,
    or it could not be read, or it is newer than our reading of the chain."""
    data = reader.read(key, seal.POINTER_BYTES, "pointer_missing")
    if data is None:
        return
    if (seq := seal.parse_pointer(data)) is not None:
        is_newer = seq > chain.last and reader.is_there(layout.seal_key(seq))
        is_unread = seq <= chain.last and seq not in chain.read
        if is_newer or is_unread:
            return
    reader.findings.add("pointer_dangling", key)


# --- versions


def check_versions(
    reader: ReportingReader, prefixes: Sequence[str], orphans: Orphans
) -> str | None:
    """Report each key below `prefixes` that has more than one version, or a delete marker, and add
    each key that is there to `orphans`.

    A version that is not the newest shows that something lies over it; what, is known once all
    versions of the key are. Returns a note for the auditor where the store does not list versions,
    or keeps none: then it lists a `null` of each key, or nothing.
    """
    suspects: dict[str, set[str]] = {}
    is_listed = has_versions = False
    problem = "keeps no"
    try:
        for version in (one for prefix in prefixes for one in reader.versions(prefix)):
            is_listed = True
            has_versions = has_versions or version.version_id not in ("", "null")
            if version.is_latest and not version.is_delete_marker:
                orphans.add(version.key)
            elif version.key != layout.PROBE:
                kind = "marker" if version.is_delete_marker else "version"
                if version.is_delete_marker and version.is_latest:
                    kind = "hidden"
                if version.key in suspects or len(suspects) < MAX_SUSPECTS:
                    suspects.setdefault(version.key, set()).add(kind)
                else:
                    reader.findings.add("overwritten", version.key)
    except StoreError as error:
        if not lists_no_versions(error):
            raise
        problem, is_listed, has_versions = "cannot list", False, False
        orphans.clear()
    for key, kinds in sorted(suspects.items()):
        code = "recreated" if "marker" in kinds else "overwritten"
        reader.findings.add("deleted" if "hidden" in kinds else code, key)
    if has_versions:
        return None
    if not is_listed:
        for listed in (one for prefix in prefixes for one in reader.list(prefix)):
            orphans.add(listed.key)
    return f"the store {problem} versions: overwriting leaves no trace there"


# --- foreign objects and orphans


class _FirstKeys:
    """Keys of which the first are kept and the others counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.first: list[str] = []
        self.count = 0

    def add(self, key: str) -> None:
        self.count += 1
        if len(self.first) < self._limit:
            self.first.append(key)

    def report(self, findings: Findings, code: str) -> None:
        for key in self.first:
            findings.add(code, key)
        findings.count(code, self.count - len(self.first))


class Orphans:
    """Sorts out what nothing names. `add` is called with each key that is there, once.

    `named` are the keys of all sealed records and those that they name; None where not all of them
    are known, because segments beyond the range were not read: then only what is foreign is
    reported. One thread uses it.
    """

    def __init__(self, named: StringSet | None) -> None:
        self._named = named
        self.clear()

    def clear(self) -> None:
        """Forget what was added."""
        self._foreign, self._reserved = _FirstKeys(SHOWN), _FirstKeys(SHOWN)
        self._files, self._records = _FirstKeys(SHOWN), _FirstKeys(MAX_RECORDS_READ)
        self._with_record = set[str]()

    def add(self, key: str) -> None:
        if self._named is not None and key in self._named:
            return
        if key.startswith(RESERVED):
            self._reserved.add(key)
        elif _is_foreign(key):
            self._foreign.add(key)
        elif self._named is None:
            return
        elif key.startswith(layout.RECORDINGS):
            self._files.add(key)
        elif key.startswith(layout.RECORDS):
            self._records.add(key)
            if self._records.count > MAX_RECORDS_READ:
                self._with_record.add(key.split("/")[2])

    def has_record(self, call_id: str) -> bool:
        """Whether a call has an orphan record; to be asked after `report`."""
        return layout.call_dir(call_id) in self._with_record

    def report(
        self, reader: ReportingReader, executor: Executor, ahead: int, *, is_complete: bool
    ) -> str | None:
        """Read the orphan records and report all; orphans only where the reading of the sealed
        segments `is_complete`. Returns a note where not all records could be read."""
        self._foreign.report(reader.findings, "foreign_object")
        self._reserved.report(reader.findings, "unexpected_object")

        def is_sound(key: str) -> bool:
            """Whether an orphan record is one of this format; else that is reported."""
            data = reader.read(key, MAX_RECORD_BYTES, None)
            if data is None:
                return False
            try:
                if parse_record(data).key != key:
                    raise FormatError("the record of another key")
            except NewerFormat as error:
                reader.findings.add("newer_format", key, str(error))
            except FormatError as error:
                reader.findings.add("record_unreadable", key, str(error))
            else:
                return True
            return False

        sound, first = _FirstKeys(SHOWN), self._records.first
        for key, is_ours in zip(first, ordered(executor, is_sound, first, ahead), strict=True):
            if is_ours:
                sound.add(key)
                self._with_record.add(key.split("/")[2])
        unread = self._records.count - len(first)
        sound.count += unread
        if is_complete:
            sound.report(reader.findings, "untold_record")
            self._files.report(reader.findings, "unnamed_object")
        if not unread:
            return None
        return f"{unread:,} records that no sealed segment names were not read"


def _is_foreign(key: str) -> bool:
    """Whether no rule of the layout makes a key below one of the archive's own prefixes."""
    if key.startswith(layout.RECORDS):
        return layout.parse_record_key(key) is None
    if key.startswith(layout.RECORDINGS):
        match = FILE_KEY.fullmatch(key)
        return match is None or _CALL_DIR.fullmatch(match["call"]) is None
    if key.startswith(layout.SIGHTINGS):
        return layout.parse_sighting_key(key) is None
    is_manifest = key.startswith("manifest/") and not key.startswith(LISTED_ELSEWHERE)
    return is_manifest and key != layout.PROBE


# --- sightings


def check_sightings(
    reader: ReportingReader,
    executor: Executor,
    keys: Iterable[str],
    listed_at: Mapping[datetime, datetime],
    is_accounted_for: Callable[[str], bool] | None,
) -> None:
    """Read sightings, and report what cannot be read, and ids that are lost.

    `listed_at` says of each sealed window, by its start, when its newest listing began;
    `is_accounted_for` whether a call stands in a sealed segment or has an orphan record, None where
    that is not known.
    """

    def check(key: str) -> None:
        data = reader.read(key, sighting.MAX_BYTES, None)
        if data is None:
            return
        try:
            found = sighting.parse(data)
            if found.window.start != layout.parse_sighting_key(key):
                raise FormatError("a sighting of another window")
        except NewerFormat as error:
            reader.findings.add("newer_format", key, str(error))
            return
        except FormatError as error:
            reader.findings.add("sighting_unreadable", key, str(error))
            return
        newest = listed_at.get(found.window.start)
        if is_accounted_for is None or newest is None or newest < found.at:
            return
        if lost := sorted(one for one in found.ids if not is_accounted_for(one)):
            detail = f"{counted(len(lost), 'call')} of the window {found.window}"
            printable = (one for one in lost if layout.call_dir(one) == one)
            if example := next(printable, "")[:ID_CHARACTERS]:
                detail += f", for instance {example}"
            reader.findings.add("sighting_lost", key, detail)

    for _ in ordered(executor, check, keys, SIGHTINGS_READ_AT_ONCE):
        pass
