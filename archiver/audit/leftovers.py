"""Checks the objects of the bucket that no seal names.

- Segments that no seal names, and their checksum lists and seal pointers. They wait for their seal,
  or their seal is gone. A writer may have sealed them after the chain was read, so the bucket is
  asked again before a finding says that something is missing.
- Versions: a key with several versions or a delete marker was overwritten or deleted.
- Foreign objects: objects whose keys the layout does not allow.
- Orphans: records that no sealed segment names, and files that no sealed record names. Open
  windows have such records, and so has a call whose record was amended before any segment named it.
  Orphan records are few and are read: a reader of the bucket expects a record at such a key. An
  orphan is an `info`, reported only if every sealed segment could be read.
- Sightings: ids that were listed in a window and had no record then. Once a later listing of that
  window is sealed, each id has a record, in this window or in another one, or is in `pending`. An
  id with an orphan record is not lost either: its window may be sealed later.
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
from archiver.core.errors import FormatError, StoreError
from archiver.manifest import layout, seal, sighting
from archiver.manifest.sighting import Sighting

MAX_SEGMENTS_READ = 1000
"""Limit of unsealed segments that are read; the others are only reported. An intact archive has one
for each window that is being sealed at the moment."""
MAX_RECORDS_READ = 4096
"""Limit of orphan records that are read."""
SIGHTINGS_READ_AT_ONCE = 4
"""Few, for the sake of memory: a sighting may have a million ids."""
MAX_SUSPECTS = 100_000
"""Limit of keys whose versions are collected before they are judged. Each further version is
reported as `overwritten` at once."""
SHOWN = 10
"""Keys that are reported for each of these codes; the others are only counted."""
ID_CHARACTERS = 64
"""A finding shows at most so many characters of an id."""
RESERVED = "manifest/log/"
"""The prefix where a later release will keep a transparency log."""
LISTED_ELSEWHERE = (layout.SEALS, layout.SEGMENTS, layout.EVENTS, layout.KEYS)
"""Prefixes whose keys `check_chain` and `check_unsealed_segments` check one by one."""
_CALL_DIR = re.compile(r"[A-Za-z0-9_-]{1,128}|id\.[0-9a-f]{64}")


class StringSet:
    """A set of strings, stored as hashes of 8 bytes each: a million calls have four million keys.

    Fill it first, then test. A false positive has a probability of one in many billions, and nobody
    can construct one, because Python's string hash has a random key in each process.
    """

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


def check_unsealed_segments(
    reader: ReportingReader, chain: ChainView, segments: SegmentCheck
) -> None:
    """List the segments and the public keys, and report objects that no seal explains."""
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
            elif reader.is_there(layout.seal_pointer_key(segment)) is False:
                # A segment without a pointer: it waits for its seal, or it is not a segment.
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
    """Report a seal pointer whose segment no seal names.

    A pointer is written after its seal. So the seal is gone, which is reported here; or it could
    not be read, which was reported; or it was written after the chain was read.
    """
    data = reader.read(key, seal.POINTER_BYTES, "pointer_missing")
    if data is None:
        return
    if (seq := seal.parse_seal_pointer(data)) is not None:
        is_newer = seq > chain.last and reader.is_there(layout.seal_key(seq))
        is_unread = seq <= chain.last and seq not in chain.read
        if is_newer or is_unread:
            return
    reader.findings.add("pointer_dangling", key)


# --- versions


def check_versions(
    reader: ReportingReader, prefixes: Sequence[str], orphans: Orphans
) -> str | None:
    """Report each key below `prefixes` that has several versions or a delete marker, and add each
    existing key to `orphans`.

    The finding for a key depends on all its versions, so it is decided at the end. Returns a note
    for the auditor if the store keeps no versions (it lists one version `null` for each key, or
    none) or does not list them.
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
    """Keeps the first `limit` keys, and counts all."""

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
    """Finds foreign objects and orphans. Call `add` once with each key that exists.

    `named` has the keys of all sealed records and of the files that they name. It is None if a
    range was given: segments outside it were not read, so orphans cannot be told, and only foreign
    objects are reported. For one thread.
    """

    def __init__(self, named: StringSet | None) -> None:
        self._named = named
        self.clear()

    def clear(self) -> None:
        """Remove all keys that were added."""
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
        """Whether a call has an orphan record. Call it after `report`, which reads the records."""
        return layout.call_dir(call_id) in self._with_record

    def report(
        self, reader: ReportingReader, executor: Executor, ahead: int, *, is_complete: bool
    ) -> str | None:
        """Read the orphan records and report all findings. Orphans are reported only if all sealed
        segments were read (`is_complete`). Returns a note if there are too many records to read."""
        self._foreign.report(reader.findings, "foreign_object")
        self._reserved.report(reader.findings, "unexpected_object")

        def is_sound(key: str) -> bool:
            """Whether the object is a record of this key; reports it if not."""

            def parse(data: bytes) -> bool:
                if parse_record(data).key != key:
                    raise FormatError("the record of another key")
                return True

            data = reader.read(key, MAX_RECORD_BYTES, None)
            return data is not None and reader.parsed(key, data, parse, "record_unreadable") is True

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
    """Whether a key lies below a prefix of the archive and the layout does not allow it."""
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
    """Read sightings, and report unreadable ones and lost ids.

    `listed_at` maps the start of each sealed window to the time at which its newest listing began.
    `is_accounted_for` returns whether a sealed segment names a call or the call has an orphan
    record; it is None if that is not known, and then no id is reported.
    """

    def check(key: str) -> None:
        def parse(data: bytes) -> Sighting:
            found = sighting.parse(data)
            if found.window.start != layout.parse_sighting_key(key):
                raise FormatError("a sighting of another window")
            return found

        data = reader.read(key, sighting.MAX_BYTES, None)
        if data is None or not (found := reader.parsed(key, data, parse, "sighting_unreadable")):
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
