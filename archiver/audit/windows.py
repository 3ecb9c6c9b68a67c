"""What the revisions of one window say together, and what all windows say of time.

State after revision n: the newest record of each call over revisions 1 to n; the ids that revision
n calls pending; and of all ids that were ever told, those that it calls vanished are not listed.
So `listed` is all that was told so far but the vanished, and each of it is recorded or pending.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from archiver.audit.chain import Advance
from archiver.audit.reading import CallState, Summary, take_all
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import OUTCOMES
from archiver.manifest.segment import ids_sha256
from archiver.model import Window, format_time, parse_time

Report = Callable[[str, str, str], None]
MAX_PASSED = 100
"""Revisions in a row whose keys are looked at, where they are in no seal."""


@dataclass
class WindowState:
    """The state of a window, revision after revision. One thread folds one window."""

    report: Report
    chain_is_whole: bool = True
    """Else a missing revision is a missing seal's, and that was said."""
    is_taken: Callable[[SegmentName], bool] = lambda _: False
    """Whether a revision's key holds what is not ours, so that a writer had to pass it over."""
    calls: dict[str, CallState] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    """What the newest revision calls pending."""
    listed: Set[str] = frozenset()
    """What the newest revision counts; empty where it cannot be recomputed."""
    unreadable: int = 0
    """Entries that the newest listing could not tell as calls."""
    listed_at: datetime | None = None
    """When the newest listing began; None where its line could not be read."""
    _told: set[str] = field(default_factory=set)
    """Every id that was ever pending: it must not fall silent."""
    _revision: int = 0
    _window: Window | None = None
    _sound: bool = True
    """Whether all revisions so far could be read: else nothing can be recomputed."""

    def lose(self, name: SegmentName) -> None:
        """A revision could not be read, and that was said."""
        self._revision += 1
        if name.revision != self._revision:
            self._gap(name)
        self._sound, self.listed = False, frozenset()
        self.listed_at, self.unreadable = None, 0

    def fold(self, summary: Summary) -> None:
        """Take in the next revision, and check what it says of itself and of those before."""
        self._revision += 1
        if summary.name.revision != self._revision:
            self._gap(summary.name)
        self.listed_at, self.unreadable = None, 0
        take_all(self.calls, summary.calls.items())
        self._sound = self._sound and summary.intact
        self.listed = frozenset()
        self._line(summary)

    def _gap(self, name: SegmentName) -> None:
        """Revisions before this one are in no seal. Where each of their keys is taken by what is
        not ours, a writer had to pass them over, and nothing is missing: a first revision carries
        all calls of its window, whatever its number."""
        missing = range(self._revision, name.revision)
        shown = ", ".join(map(str, missing[:3])) + ("…" if len(missing) > 3 else "")
        if all(self.is_taken(SegmentName(name.start, number)) for number in missing[:MAX_PASSED]):
            detail = f"revision {shown} is not ours: its key was taken, so the next one was used"
            self.report("revision_skipped", name.jsonl, detail)
        else:
            if self.chain_is_whole:
                self.report("window_revision", name.jsonl, f"revision {shown} is in no seal")
            self._sound = False
        self._revision = name.revision

    @property
    def ids(self) -> Set[str]:
        """Every id that any revision has told of: recorded, or pending."""
        return self.calls.keys() | self._told

    def _line(self, summary: Summary) -> None:
        line, key = summary.line, summary.name.jsonl
        if line is None:
            return
        if self._window is not None and summary.window != self._window:
            self.report("window_mismatch", key, "another length than the revision before")
        self._window = summary.window
        self.listed_at = parse_time(line.get("listed_at"))
        self.unreadable = line.get("unreadable", 0)
        self.pending = set(line["pending"])
        if line["listed"] != sum(line[name] for name in OUTCOMES) + len(self.pending):
            self.report("window_balance", key, "")
        self._told |= self.pending
        if self._sound:
            self._recompute(summary)

    def _recompute(self, summary: Summary) -> None:
        line, key = summary.line or {}, summary.name.jsonl
        listed = (self.calls.keys() | self._told) - set(line["vanished"])
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


@dataclass(frozen=True, order=True)
class Span:
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
    were sealed by then. Only between `start` and `end`, where they are given."""
    spans = sorted(spans)
    for before, after in pairwise(spans):
        if before.end is not None and before.end > after.start:
            report("window_overlap", after.key, f"with {before.key}")
    starts = [span.start for span in spans]
    for advance in advances:
        low = max(advance.start, start or advance.start)
        high = min(advance.end, end or advance.end)
        _check_advance(spans, starts, low, high, advance.seq, report)


def _check_advance(
    spans: Sequence[Span],
    starts: Sequence[datetime],
    low: datetime,
    high: datetime,
    seq: int,
    report: Report,
) -> None:
    """Walk `[low, high)` from window to window."""
    index = max(0, bisect_right(starts, low) - 1)
    while low < high:
        covering = spans[index] if index < len(spans) else None
        if covering is not None and covering.start <= low:
            following = spans[index + 1].start if index + 1 < len(spans) else high
            if covering.seq > seq and (covering.end or following) > low:
                report("watermark_ahead", covering.key, f"seal {seq} passed it")
            low = max(low, covering.end or following)
            index += 1
            continue
        until = min(high, covering.start) if covering is not None else high
        report("window_gap", "", f"{format_time(low)} to {format_time(until)}, seal {seq}")
        low = until
