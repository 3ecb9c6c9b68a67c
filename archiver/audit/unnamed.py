"""Objects that no sealed record names, and records that no sealed segment tells: information.

A try that did not get as far as its record leaves such files, a window that is still open has such
records, and a record that was amended before any segment told of it stays alone.

Of each key that is named 8 bytes are kept, its hash: a million calls with three files and a record
take 32 MB. By chance an object that is not named counts as one that is, once in many billions.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from archiver.audit.findings import Findings
from archiver.manifest import layout

PARTS = 256
SHOWN = 10
"""Keys that are told of each code; the others are counted."""
_CODES = {layout.RECORDS: "untold_record", layout.RECORDINGS: "unnamed_object"}


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
        if not self._sorted:
            self._parts = [array("q", sorted(set(part))) for part in self._parts]
            self._sorted = True
        mark = hash(key)
        part = self._parts[mark % PARTS]
        place = bisect_left(part, mark)
        return place < len(part) and part[place] == mark


class Unnamed:
    """Sorts out what is named by nothing. `look` is called with each key that is there, once."""

    def __init__(self, named: NamedKeys) -> None:
        self._named = named
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._first: dict[str, list[str]] = {code: [] for code in _CODES.values()}
        self._counts: Counter[str] = Counter()

    def look(self, key: str) -> None:
        code = _CODES.get(key[: key.find("/") + 1])
        if code is None or key in self._named:
            return
        self._counts[code] += 1
        if len(self._first[code]) < SHOWN:
            self._first[code].append(key)

    def report(self, findings: Findings) -> None:
        for code, count in self._counts.items():
            for key in self._first[code]:
                findings.add(code, key)
            findings.count(code, count - len(self._first[code]))
