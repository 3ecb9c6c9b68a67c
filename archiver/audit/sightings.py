"""Sightings against the sealed windows: what was listed once must not fall silent.

A sighting tells which ids a listing of a window showed that had no record then. Once a later
listing of that window is sealed, each of them has a record, in this window or in another one, or
stands in `pending`. An id whose record lies in the bucket and in no sealed segment yet is not lost
either: its window may be sealed later.

Of each id 8 bytes are kept, its hash: a million ids take 8 MB. The ids themselves are read again
only where some of a sighting are lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime

from archiver.audit.counted import hashes
from archiver.audit.gate import Gate
from archiver.audit.parallel import ordered
from archiver.audit.unnamed import NamedKeys
from archiver.errors import FormatError, NewerFormat
from archiver.manifest import layout, sighting
from archiver.model import Window

READ_AT_ONCE = 4
"""Sightings read at a time: one may have a million ids."""
MAX_SHOWN = 64
"""Characters of an id that a finding shows."""


@dataclass(frozen=True)
class _Sighted:
    """What is kept of a sighting."""

    key: str
    window: Window
    at: datetime
    marks: array[int]
    """Its ids, as `hashes`."""


class Sightings:
    """Reads them all, and finds lost ids. One thread uses it."""

    def __init__(self, gate: Gate, executor: Executor) -> None:
        self._gate = gate
        self._executor = executor
        self._sighted: list[_Sighted] = []

    def __bool__(self) -> bool:
        return bool(self._sighted)

    def read(self, is_wanted: Callable[[datetime], bool]) -> None:
        """Read those whose windows start at a wanted time; what cannot be read is reported."""
        keys = []
        for listed in self._gate.list(layout.SIGHTINGS):
            start = layout.parse_sighting_key(listed.key)
            if start is not None and is_wanted(start):
                keys.append(listed.key)
        read = ordered(self._executor, self._read, keys, READ_AT_ONCE)
        self._sighted = [one for one in read if one is not None]

    def check(
        self,
        listed_at: Mapping[datetime, datetime],
        ids: NamedKeys,
        has_record: Callable[[str], bool],
    ) -> None:
        """Report lost ids. `listed_at` says of each sealed window, by its start, when its newest
        listing began; `ids` are those that sealed segments tell of; `has_record` says whether a
        call has a record that no sealed segment tells of."""
        for one in self._sighted:
            newest = listed_at.get(one.window.start)
            if newest is None or newest < one.at or all(map(ids.has, one.marks)):
                continue
            found = self._parse(one.key)
            lost = sorted(
                call_id
                for call_id in (found.ids if found is not None else ())
                if call_id not in ids and not has_record(call_id)
            )
            if lost:
                calls = f"{len(lost):,} calls" if len(lost) != 1 else "1 call"
                detail = f"{calls} of the window {one.window}{_example(lost)}"
                self._gate.findings.add("sighting_lost", one.key, detail)

    def _read(self, key: str) -> _Sighted | None:
        found = self._parse(key)
        if found is None:
            return None
        return _Sighted(key, found.window, found.at, hashes(found.ids))

    def _parse(self, key: str) -> sighting.Sighting | None:
        """A sighting; None where it cannot be read, which is reported once."""
        data = self._gate.read(key, sighting.MAX_BYTES, None)
        if data is None:
            return None
        try:
            found = sighting.parse(data)
            if found.window.start != layout.parse_sighting_key(key):
                raise FormatError("a sighting of another window")
        except NewerFormat as error:
            self._gate.findings.add("newer_format", key, str(error))
        except FormatError as error:
            self._gate.findings.add("sighting_unreadable", key, str(error))
        else:
            return found
        return None


def _example(lost: Iterable[str]) -> str:
    """One of the ids, where it is safe to print."""
    for call_id in lost:
        if layout.call_dir(call_id) == call_id:
            return f", for instance {call_id[:MAX_SHOWN]}"
    return ""
