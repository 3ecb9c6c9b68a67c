"""What lies in the bucket and nothing sealed names: what is not ours, and what is left over.

- Records that no sealed segment names are read: each must be a record of this format, else whoever
  asks the bucket for the calls of that day cannot use it (`record_unreadable`, `newer_format`).
  They are few: a window that is still open has such records, and a record that was amended before
  any segment told of it. At most `MAX_READ` are read.
- Keys that no rule of the layout makes are told of (`foreign_object`).
- Where every sealed segment could be read, what is left over is information: files that no record
  names (a try left them), and records that no segment tells of.

Of each key that is named 8 bytes are kept, its hash: a million calls with three files and a record
take 32 MB. By chance an object that is not named counts as one that is, once in many billions.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from concurrent.futures import Executor

from archiver.audit.findings import Findings
from archiver.audit.gate import Gate
from archiver.audit.parallel import ordered
from archiver.audit.told import FILE_KEY, MAX_RECORD_BYTES, parse_record
from archiver.errors import FormatError, NewerFormat
from archiver.manifest import layout

PARTS = 256
SHOWN = 10
"""Keys that are told of each code which is no error; the others are counted."""
MAX_READ = 4096
"""Records that no segment names and that are read."""
_CALL_DIR = re.compile(r"[A-Za-z0-9_-]{1,128}|id\.[0-9a-f]{64}")
_MANIFEST = (layout.SEALS, layout.SEGMENTS, layout.EVENTS, layout.KEYS)
"""Looked through elsewhere, key by key."""
RESERVED = "manifest/log/"
"""Where a newer release keeps its transparency log."""


class NamedKeys:
    """The keys that sealed records have, and those that they name. One thread uses it."""

    def __init__(self) -> None:
        self._parts = [array("q") for _ in range(PARTS)]
        self._sorted = False

    def add(self, hashes: Iterable[int]) -> None:
        """Take in hashes of keys; the same one may come again."""
        for one in hashes:
            self._parts[one % PARTS].append(one)
        self._sorted = False

    def __contains__(self, key: str) -> bool:
        return self.has(hash(key))

    def has(self, mark: int) -> bool:
        """Whether a key with this hash is among them."""
        if not self._sorted:
            self._parts = [array("q", sorted(set(part))) for part in self._parts]
            self._sorted = True
        part = self._parts[mark % PARTS]
        place = bisect_left(part, mark)
        return place < len(part) and part[place] == mark


class _Some:
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


class Unnamed:
    """Sorts out what is named by nothing. `look` is called with each key that is there, once.

    `named` None: not known, because segments beyond the range were not read. Then only what is
    foreign is told of. One thread uses it.
    """

    def __init__(self, named: NamedKeys | None) -> None:
        self._named = named
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._foreign, self._reserved = _Some(SHOWN), _Some(SHOWN)
        self._files, self._records = _Some(SHOWN), _Some(MAX_READ)
        self._with_record = NamedKeys()

    def look(self, key: str) -> None:
        if key.startswith(RESERVED):
            self._reserved.add(key)
        elif _is_foreign(key):
            self._foreign.add(key)
        elif self._named is None or key in self._named:
            return
        elif key.startswith(layout.RECORDINGS):
            self._files.add(key)
        elif key.startswith(layout.RECORDS):
            self._records.add(key)
            if self._records.count > MAX_READ:
                self._with_record.add([hash(key.split("/")[2])])

    def has_record(self, call_id: str) -> bool:
        """Whether a call has a record that no segment names; to be asked after `report`."""
        return layout.call_dir(call_id) in self._with_record

    def report(self, gate: Gate, executor: Executor, ahead: int, *, leftovers: bool) -> str | None:
        """Read the records and report all; with `leftovers` also what is only left over. What an
        auditor must know where not all records could be read."""
        findings = gate.findings
        self._foreign.report(findings, "foreign_object")
        self._reserved.report(findings, "unexpected_object")
        sound = _Some(SHOWN)

        def read(key: str) -> bool:
            return _is_sound(gate, key)

        first = self._records.first
        for key, is_sound in zip(first, ordered(executor, read, first, ahead), strict=True):
            if is_sound:
                sound.add(key)
                self._with_record.add([hash(key.split("/")[2])])
        unread = self._records.count - len(first)
        sound.count += unread
        if leftovers:
            sound.report(findings, "untold_record")
            self._files.report(findings, "unnamed_object")
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
    return key.startswith("manifest/") and not key.startswith(_MANIFEST) and key != layout.PROBE


def _is_sound(gate: Gate, key: str) -> bool:
    """Whether a record that no segment names is one of this format; else that is reported."""
    data = gate.read(key, MAX_RECORD_BYTES, None)
    if data is None:
        return False
    try:
        if parse_record(data).key != key:
            raise FormatError("the record of another key")
    except NewerFormat as error:
        gate.findings.add("newer_format", key, str(error))
    except FormatError as error:
        gate.findings.add("record_unreadable", key, str(error))
    else:
        return True
    return False
