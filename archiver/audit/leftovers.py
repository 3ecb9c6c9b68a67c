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

Of each key and id its hash is kept, some 80 bytes: a million calls with three files and a record
take 320 MB. By chance an orphan counts as named once in many billions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime

from archiver.audit.chain import ChainView
from archiver.audit.findings import Findings
from archiver.audit.safe_reader import ReportingReader, lists_no_versions
from archiver.audit.segment_lines import (
    FILE_KEY,
    MAX_RECORD_BYTES,
    is_events,
    parse_record,
    segment_name,
)
from archiver.audit.segments import SegmentCheck
from archiver.core.concurrency import ordered
from archiver.core.errors import FormatError, NewerFormat, StoreError
from archiver.core.model import Window
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
"""Looked through key by key by `ChainCheck` and `check_manifest`."""
_CALL_DIR = re.compile(r"[A-Za-z0-9_-]{1,128}|id\.[0-9a-f]{64}")


# --- segments that no seal names


def check_manifest(reader: ReportingReader, chain: ChainView, segments: SegmentCheck) -> None:
    """List the manifest's segments and keys, and report what no seal explains."""
    add, unsealed = reader.findings.add, 0
    for prefix in (layout.SEGMENTS, layout.EVENTS):
        for key in (listed.key for listed in reader.list(prefix)):
            stem, _, extension = key.rpartition(".")
            segment = f"{stem}.jsonl"
            is_segment = segment_name(segment) is not None or is_events(segment)
            if not is_segment or extension not in ("jsonl", "sha256", "seal"):
                add("unexpected_object", key)
            elif segment in chain.segments:
                continue
            elif key == layout.pointer_key(segment):
                _check_pointer(reader, chain, key)
            elif key != segment:
                if reader.is_there(segment) is False:
                    add("segment_missing", segment, "its .sha256 is there")
            elif reader.is_there(layout.pointer_key(segment)) is False:
                unsealed += 1
                if unsealed > MAX_SEGMENTS_READ:
                    add("unsealed_segment", key, "not read: there are very many")
                else:
                    _check_unsealed(reader, segments, key)
    known = {layout.VERIFY_PAGE, layout.VERIFY_SCRIPT, chain.key_object}
    for key in (listed.key for listed in reader.list(layout.KEYS)):
        if key not in known and chain.key_object is not None:
            add("unexpected_object", key)


def _check_unsealed(reader: ReportingReader, segments: SegmentCheck, key: str) -> None:
    """A segment that waits for its seal, or something else at its key."""
    found = segments.unsealed(key)
    if found.checksums is not None:
        reader.findings.add("unsealed_segment", key)
        segments.check_unsealed_checksums(key, found.checksums)
    elif found.code is not None and found.code != "unreadable":
        reader.findings.add(found.code, key, found.detail)


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
    """Look through all versions below `prefixes`, and have `orphans` see each key that is there.

    Returns a note for the auditor where the store does not list versions.
    """
    problem, is_listed = "cannot list", False
    try:
        is_listed, has_versions = _list_versions(reader, prefixes, orphans)
        if has_versions:
            return None
        problem = "keeps no"
    except StoreError as error:
        if not lists_no_versions(error):
            raise
    if not is_listed:
        orphans.clear()
        for prefix in prefixes:
            for listed in reader.list(prefix):
                orphans.look(listed.key)
    return f"the store {problem} versions: overwriting leaves no trace there"


def _list_versions(
    reader: ReportingReader, prefixes: Sequence[str], orphans: Orphans
) -> tuple[bool, bool]:
    """Report each key that has more than one version, or a delete marker.

    A version that is not the newest shows that something lies over it; what, is known once all
    versions of the key are. Returns whether anything was listed, and whether the store keeps
    versions: one that keeps none lists a `null` of each key, or nothing.
    """
    suspects: dict[str, set[str]] = {}
    is_listed = has_versions = False
    for prefix in prefixes:
        for version in reader.versions(prefix):
            is_listed = True
            has_versions = has_versions or version.version_id not in ("", "null")
            if version.is_latest and not version.is_delete_marker:
                orphans.look(version.key)
            elif version.key != layout.PROBE:
                kind = "marker" if version.is_delete_marker else "version"
                if version.is_delete_marker and version.is_latest:
                    kind = "hidden"
                if version.key in suspects or len(suspects) < MAX_SUSPECTS:
                    suspects.setdefault(version.key, set()).add(kind)
                else:
                    reader.findings.add("overwritten", version.key)
    for key, kinds in sorted(suspects.items()):
        code = "recreated" if "marker" in kinds else "overwritten"
        reader.findings.add("deleted" if "hidden" in kinds else code, key)
    return is_listed, has_versions


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
    """Sorts out what nothing names. `look` is called with each key that is there, once.

    `named` are hashes of the keys of all sealed records and of those that they name; None where not
    all of them are known, because segments beyond the range were not read: then only what is
    foreign is reported. One thread uses it.
    """

    def __init__(self, named: AbstractSet[int] | None) -> None:
        self._named = named
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._foreign, self._reserved = _FirstKeys(SHOWN), _FirstKeys(SHOWN)
        self._files, self._records = _FirstKeys(SHOWN), _FirstKeys(MAX_RECORDS_READ)
        self._with_record = set[str]()

    def look(self, key: str) -> None:
        if key.startswith(RESERVED):
            self._reserved.add(key)
        elif _is_foreign(key):
            self._foreign.add(key)
        elif self._named is None or hash(key) in self._named:
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
        sound, first = _FirstKeys(SHOWN), self._records.first
        are_sound = ordered(executor, lambda key: _is_sound(reader, key), first, ahead)
        for key, is_sound in zip(first, are_sound, strict=True):
            if is_sound:
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


def _is_sound(reader: ReportingReader, key: str) -> bool:
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


# --- sightings


@dataclass(frozen=True)
class _Sighting:
    """What is kept of a sighting."""

    key: str
    window: Window
    at: datetime
    id_hashes: frozenset[int]


class SightingCheck:
    """Reads all sightings first, and finds lost ids when the windows were read. One thread uses it.

    The ids themselves are read again only where some of a sighting are lost.
    """

    def __init__(self, reader: ReportingReader) -> None:
        self._reader = reader
        self._sightings: list[_Sighting] = []

    def __bool__(self) -> bool:
        return bool(self._sightings)

    def read(self, executor: Executor, is_wanted: Callable[[datetime], bool]) -> None:
        """Read those whose windows start at a wanted time; what cannot be read is reported."""
        keys = []
        for listed in self._reader.list(layout.SIGHTINGS):
            start = layout.parse_sighting_key(listed.key)
            if start is not None and is_wanted(start):
                keys.append(listed.key)

        def read(key: str) -> _Sighting | None:
            parsed = self._parse(key)
            if parsed is None:
                return None
            return _Sighting(key, parsed.window, parsed.at, frozenset(map(hash, parsed.ids)))

        found = ordered(executor, read, keys, SIGHTINGS_READ_AT_ONCE)
        self._sightings = [one for one in found if one is not None]

    def check(
        self,
        listed_at: Mapping[datetime, datetime],
        sealed_ids: AbstractSet[int],
        has_record: Callable[[str], bool],
    ) -> None:
        """Report lost ids. `listed_at` says of each sealed window, by its start, when its newest
        listing began; `sealed_ids` are hashes of the ids that sealed segments name; `has_record`
        says whether a call has an orphan record."""
        for one in self._sightings:
            newest = listed_at.get(one.window.start)
            if newest is None or newest < one.at or one.id_hashes <= sealed_ids:
                continue
            parsed = self._parse(one.key)
            ids = parsed.ids if parsed is not None else ()
            lost = sorted(i for i in ids if hash(i) not in sealed_ids and not has_record(i))
            if lost:
                calls = f"{len(lost):,} calls" if len(lost) != 1 else "1 call"
                printable = (i for i in lost if layout.call_dir(i) == i)
                example = next(printable, "")[:ID_CHARACTERS]
                detail = f"{calls} of the window {one.window}"
                detail += f", for instance {example}" if example else ""
                self._reader.findings.add("sighting_lost", one.key, detail)

    def _parse(self, key: str) -> sighting.Sighting | None:
        """A sighting; None where it cannot be read, which is reported once."""
        data = self._reader.read(key, sighting.MAX_BYTES, None)
        if data is None:
            return None
        try:
            parsed = sighting.parse(data)
            if parsed.window.start != layout.parse_sighting_key(key):
                raise FormatError("a sighting of another window")
        except NewerFormat as error:
            self._reader.findings.add("newer_format", key, str(error))
        except FormatError as error:
            self._reader.findings.add("sighting_unreadable", key, str(error))
        else:
            return parsed
        return None
