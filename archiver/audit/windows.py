"""What the revisions of one window say together, and what all windows say of time and of calls.

State after revision n: the newest record of each call over revisions 1 to n; the ids that revision
n calls pending. Of all ids that any revision named, those that revision n calls vanished are not
listed. So `listed` is all that was ever named but the vanished, and each of it has a record or is
pending.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, pairwise
from typing import Any, NamedTuple

from archiver.audit.chain import Advance
from archiver.audit.findings import counted
from archiver.audit.segment_lines import Report
from archiver.audit.segments import CallState, WindowSegment, keep_newer
from archiver.core.model import Window, format_time, parse_time
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import OUTCOMES
from archiver.manifest.segment import ids_sha256

MAX_SKIPPED = 100
"""Revisions in a row whose keys are looked at, where they are in no seal."""


@dataclass
class WindowState:
    """The state of a window, revision after revision. One thread adds the revisions of one window,
    in order."""

    report: Report
    chain_is_whole: bool
    """Else a missing revision is a missing seal's, and that was said."""
    is_taken: Callable[[SegmentName], bool]
    """Whether a revision's key holds what is not ours, so that a writer had to skip it."""
    calls: dict[str, CallState] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    """What the newest revision calls pending."""
    listed: Set[str] = frozenset()
    """What the newest revision counts; empty where it cannot be recomputed."""
    unreadable: int = 0
    """Entries of the newest listing that were unreadable."""
    listed_at: datetime | None = None
    """When the newest listing began; None where its line could not be read."""
    _ever_pending: set[str] = field(default_factory=set)
    """These ids must not fall silent."""
    _revision: int = 0
    _window: Window | None = None
    _sound: bool = True
    """Whether all revisions so far could be read: else nothing can be recomputed."""

    @property
    def ids(self) -> Set[str]:
        """Every id that any revision has named: recorded, or pending."""
        return self.calls.keys() | self._ever_pending

    def add(self, name: SegmentName, found: WindowSegment | None) -> None:
        """Add the next revision, and check what it says of itself and of those before. `found` is
        None where it could not be read, and that was said.

        1. The revisions before it are there, or their keys are taken.
        2. Its records are newer than those before.
        3. Its window line is of the same window, and adds up.
        4. It counts all calls that were ever named, but the vanished.
        """
        self.listed, self.listed_at, self.unreadable = frozenset(), None, 0
        # 1. The revisions before.
        self._revision += 1
        if name.revision != self._revision:
            self._check_gap(name)
        if found is None:
            self._sound = False
            return
        # 2. The records.
        for call_id, state in found.calls.items():
            keep_newer(self.calls, call_id, state)
        self._sound = self._sound and found.intact
        # 3. The window line.
        line = found.line
        if line is None:
            return
        if self._window is not None and found.window != self._window:
            self.report("window_mismatch", name.jsonl, "another length than the revision before")
        self._window = found.window
        self.listed_at = parse_time(line.get("listed_at"))
        self.unreadable = line.get("unreadable", 0)
        self.pending = set(line["pending"])
        if line["listed"] != sum(line[outcome] for outcome in OUTCOMES) + len(self.pending):
            self.report("window_balance", name.jsonl, "")
        self._ever_pending |= self.pending
        # 4. What it counts.
        if self._sound:
            self._check_counts(name.jsonl, line)

    def _check_gap(self, name: SegmentName) -> None:
        """Revisions before this one are in no seal. Where each of their keys is taken by what is
        not ours, a writer had to skip them, and nothing is missing: a first revision carries all
        calls of its window, whatever its number."""
        missing = range(self._revision, name.revision)
        shown = ", ".join(map(str, missing[:3])) + ("…" if len(missing) > 3 else "")
        if all(self.is_taken(SegmentName(name.start, number)) for number in missing[:MAX_SKIPPED]):
            detail = f"revision {shown} is not ours: its key was taken, so the next one was used"
            self.report("revision_skipped", name.jsonl, detail)
        else:
            if self.chain_is_whole:
                self.report("window_revision", name.jsonl, f"revision {shown} is in no seal")
            self._sound = False
        self._revision = name.revision

    def _check_counts(self, key: str, line: Mapping[str, Any]) -> None:
        listed = self.ids - set(line["vanished"])
        lost = listed - self.calls.keys() - self.pending
        if lost:
            self.report("call_lost", key, f"{len(lost)} calls")
        counts = Counter(self.calls[i].outcome for i in listed - self.pending - lost)
        for name in OUTCOMES:
            if line[name] != counts[name]:
                self.report("window_counts", key, f"{counts[name]} calls are {name}")
        if line.get("listed_sha256") != ids_sha256(listed - lost):
            self.report("listed_mismatch", key, "")
        self.listed = listed


# --- all windows


class Span(NamedTuple):
    """A window that is sealed: where it starts, where it ends if that could be read, and the seal
    of its first revision."""

    start: datetime
    end: datetime | None
    seq: int
    key: str


def check_spans(
    spans: Sequence[Span],
    advances: Sequence[Advance],
    report: Report,
    start: datetime | None,
    end: datetime | None,
) -> None:
    """Windows must not overlap, and each advance of the watermark must be covered by windows that
    were sealed by then. `spans` are in order. Only between `start` and `end`, where given."""
    for before, after in pairwise(spans):
        if before.end is not None and before.end > after.start:
            report("window_overlap", after.key, f"with {before.key}")
    starts = [span.start for span in spans]
    for seq, *moved in advances:
        low, high = max(moved[0], start or moved[0]), min(moved[1], end or moved[1])
        index = max(0, bisect_right(starts, low) - 1)
        while low < high:  # from window to window
            span = spans[index] if index < len(spans) else None
            if span is None or span.start > low:
                until = min(high, span.start) if span is not None else high
                gap = f"{format_time(low)} to {format_time(until)}"
                report("window_gap", "", f"{gap}, seal {seq}")
                low = until
                continue
            following = spans[index + 1].start if index + 1 < len(spans) else high
            if span.seq > seq and (span.end or following) > low:
                report("watermark_ahead", span.key, f"seal {seq} passed it")
            low = max(low, span.end or following)
            index += 1


class CountedCalls:
    """Finds calls that two windows count: each balance is right by itself, and their sum is one too
    many. One thread uses it.

    A hash of each call is kept, 8 bytes. By chance two of a million calls have the same hash once
    in tens of millions of audits, and then a person looks for nothing.
    """

    def __init__(self) -> None:
        self._windows: list[tuple[str, array[int]]] = []

    def add(self, window: str, calls: Iterable[int]) -> None:
        """Hashes of the calls that a window counts, each once; `window` is the key to show."""
        self._windows.append((window, array("q", calls)))

    def check(self, report: Report) -> None:
        """A finding for each two windows that count the same calls."""
        ordered = sorted(chain.from_iterable(calls for _, calls in self._windows))
        twice = {call for call, next_one in pairwise(ordered) if call == next_one}
        last: dict[int, str] = {}
        for window, calls in self._windows if twice else ():
            shared = twice.intersection(calls)
            for earlier, count in sorted(Counter(last[i] for i in shared if i in last).items()):
                detail = f"{counted(count, 'call')}, which {earlier} counts too"
                report("call_in_two_windows", window, detail)
            last |= dict.fromkeys(shared, window)
