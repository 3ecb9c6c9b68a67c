"""Calls that two windows count: each balance is right by itself, and their sum is one too many.

A hash of each call is kept, and which window counts it: 12 bytes. A million calls take 12 MB, and
the few that are sorted at a time little more. By chance two of a million calls have the same hash
once in tens of millions of audits, and then a person looks for nothing.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise

PARTS = 256


def hashes(ids: Iterable[str]) -> array[int]:
    """8 bytes for each id; another process makes others."""
    return array("q", map(hash, ids))


class CountedCalls:
    """Collects what windows count. One thread uses it."""

    def __init__(self) -> None:
        self._windows: list[str] = []
        self._hashes = [array("q") for _ in range(PARTS)]
        self._places = [array("I") for _ in range(PARTS)]

    def add(self, window: str, calls: Iterable[int]) -> None:
        """The `hashes` of what a window counts, each once; `window` is what it is called by."""
        place = len(self._windows)
        self._windows.append(window)
        for each in calls:
            part = each % PARTS
            self._hashes[part].append(each)
            self._places[part].append(place)

    def check(self, report: Callable[[str, str, str], None]) -> None:
        """A finding for each two windows that count the same calls."""
        shared: Counter[tuple[int, int]] = Counter()
        for calls, places in zip(self._hashes, self._places, strict=True):
            if len(set(calls)) == len(calls):
                continue
            for (one, first), (other, second) in pairwise(sorted(zip(calls, places, strict=True))):
                if one == other:
                    shared[second, first] += 1
        for (later, earlier), count in sorted(shared.items()):
            what = "1 call" if count == 1 else f"{count:,} calls"
            detail = f"{what}, which {self._windows[earlier]} counts too"
            report("call_in_two_windows", self._windows[later], detail)
