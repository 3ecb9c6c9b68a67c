"""Checks the revisions of a window against each other, and all windows for gaps and double calls.

The state of a window after revision n is the newest record of each call in revisions 1 to n, and
the ids in `pending` of revision n. The listed ids are all ids that revisions 1 to n name, without
those in `vanished` of revision n. Each listed id has a record or is pending.
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
from archiver.audit.segment_lines import Report, SegmentRecord
from archiver.audit.segments import CheckedSegment
from archiver.core.model import Window, format_time, parse_time
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import OUTCOMES
from archiver.manifest.segment import ids_sha256

MAX_SKIPPED = 100
"""Limit of unsealed revisions in a row whose keys are read."""


class CallState(NamedTuple):
    """The fields of a record that are kept."""

    revision: int
    outcome: str


@dataclass
class AuditedWindow:
    """The state of one window. For one thread, which adds its revisions in order: the records of
    each, then the revision."""

    report: Report
    chain_is_whole: bool
    """If not, a missing revision may be in a missing seal, which was reported."""
    is_foreign: Callable[[SegmentName], bool]
    """Whether a foreign object has a revision's key, so that the writer had to skip it."""
    calls: dict[str, CallState] = field(default_factory=dict)
    """The newest record of each call."""
    pending: set[str] = field(default_factory=set)
    """The ids in `pending` of the newest revision."""
    listed: Set[str] = frozenset()
    """The ids that the newest revision counts; empty if they cannot be recomputed."""
    unreadable: int = 0
    """Number of unreadable entries of the newest listing."""
    listed_at: datetime | None = None
    """Start of the newest listing; None if its window line could not be read."""
    _ever_pending: set[str] = field(default_factory=set)
    """All ids that were ever pending. Each must have a record later, or be pending or vanished."""
    _revision: int = 0
    _window: Window | None = None
    _all_read: bool = True
    """Whether all revisions so far could be read. If not, counts cannot be recomputed."""

    @property
    def ids(self) -> Set[str]:
        """All ids that any revision named, with a record or as pending."""
        return self.calls.keys() | self._ever_pending

    def add_records(self, records: Iterable[SegmentRecord]) -> None:
        """Add records of the next revision, in any order."""
        for _, one, _ in records:
            old = self.calls.get(one.call_id)
            if old is None or one.revision >= old.revision:
                self.calls[one.call_id] = CallState(one.revision, one.outcome)

    def add(self, name: SegmentName, found: CheckedSegment) -> None:
        """Add the next revision, and check it against the earlier ones.

        1. Earlier revisions exist, or foreign objects have their keys.
        2. Its window line is of the same window, and its counts add up.
        3. It counts all calls that were ever named, except the vanished ones.
        """
        self.listed, self.listed_at, self.unreadable = frozenset(), None, 0
        # 1. The earlier revisions.
        self._revision += 1
        if name.revision != self._revision:
            self._check_gap(name)
        self._all_read = self._all_read and found.intact
        # 2. The window line.
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
        # 3. The counted calls.
        if self._all_read:
            self._check_counts(name.jsonl, line)

    def _check_gap(self, name: SegmentName) -> None:
        """Report a gap before this revision. If a foreign object has each key in the gap, the
        writer had to skip them and nothing is missing: the first revision that a writer seals has
        all calls of the window, whatever its number."""
        missing = range(self._revision, name.revision)
        shown = ", ".join(map(str, missing[:3])) + ("…" if len(missing) > 3 else "")
        if all(
            self.is_foreign(SegmentName(name.start, number)) for number in missing[:MAX_SKIPPED]
        ):
            detail = f"revision {shown} is not ours: its key was taken, so the next one was used"
            self.report("revision_skipped", name.jsonl, detail)
        else:
            if self.chain_is_whole:
                self.report("window_revision", name.jsonl, f"revision {shown} is in no seal")
            self._all_read = False
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
    """A sealed window: its start; its end, None if that could not be read; the number of the first
    seal that names a revision of it; and the key of its first revision."""

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
    """Report overlapping windows, and times that the watermark passed without a window sealed by
    then. `spans` are in order. Gaps are reported only between `start` and `end`, if given."""
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
    """Finds calls that two windows count. The balance of each window is right, but the sum over all
    windows has such a call twice. For one thread.

    Keeps a hash of 8 bytes for each call. With a million calls, two have the same hash in one of
    tens of millions of audits; that causes a false warning.
    """

    def __init__(self) -> None:
        self._windows: list[tuple[str, array[int]]] = []

    def add(self, window: str, calls: Iterable[int]) -> None:
        """Add the hashes of the calls that a window counts, each once. `window` is the key that a
        finding shows."""
        self._windows.append((window, array("q", calls)))

    def check(self, report: Report) -> None:
        """Report each pair of windows that count the same calls."""
        ordered = sorted(chain.from_iterable(calls for _, calls in self._windows))
        twice = {call for call, next_one in pairwise(ordered) if call == next_one}
        last: dict[int, str] = {}
        for window, calls in self._windows if twice else ():
            shared = twice.intersection(calls)
            for earlier, count in sorted(Counter(last[i] for i in shared if i in last).items()):
                detail = f"{counted(count, 'call')}, which {earlier} counts too"
                report("call_in_two_windows", window, detail)
            last |= dict.fromkeys(shared, window)
