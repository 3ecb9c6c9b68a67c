"""How the archive says that the calls of a window stand: what its sealed segments tell, all
revisions taken together.

A few windows are kept, because neighbours are asked again. One thread uses it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from itertools import groupby
from typing import IO, Any

from archiver.audit import filters
from archiver.audit.lines import lines_of
from archiver.audit.sealed import SealedSegments
from archiver.audit.segments import read_window
from archiver.audit.told import parse_record
from archiver.errors import FormatError, UsageError
from archiver.manifest import canonical
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Outcome, Record
from archiver.manifest.seal import SegmentEntry
from archiver.model import Window

WINDOWS_KEPT = 4
DAYS_KEPT = 3


@dataclass(frozen=True, slots=True)
class Standing:
    """What is kept of a call's newest record. `is_sealed`: a sealed segment tells it."""

    outcome: Outcome
    revision: int
    key: str
    reason: str | None
    state: str | None
    campaign_id: str | None
    direction: str | None
    duration_seconds: int | float | None
    is_sealed: bool

    @property
    def is_settled(self) -> bool:
        """Whether the call has its result: nobody need look further."""
        return self.outcome != "failed" and self.is_sealed

    @property
    def filtered(self) -> dict[str, str | None]:
        """The fields that a listing's filter may be about."""
        return {
            "state": self.state,
            "campaign_id": self.campaign_id,
            "direction": self.direction,
        }


def standing_of(found: Record, *, is_sealed: bool) -> Standing:
    document = found.document
    duration = document.get("duration_seconds")
    return Standing(
        found.outcome,
        found.revision,
        found.key,
        _text(document.get("reason")),
        _text(document.get("state")),
        _text(document.get("campaign_id")),
        _text(document.get("direction")),
        duration if isinstance(duration, int | float) else None,
        is_sealed,
    )


@dataclass
class WindowStanding:
    """A window after its newest sealed revision; `revision` 0 where none is sealed."""

    revision: int = 0
    calls: dict[str, Standing] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    vanished: frozenset[str] = frozenset()
    filters: set[str] = field(default_factory=set)
    """What its listings asked for, as `filters.as_text`."""

    def take(self, call_id: str, new: Standing) -> None:
        old = self.calls.get(call_id)
        if old is None or new.revision >= old.revision:
            self.calls[call_id] = new


class Standings:
    """Reads them from the sealed segments, a line at a time."""

    def __init__(self, segments: SealedSegments) -> None:
        self._segments = segments
        self._windows = lru_cache(WINDOWS_KEPT)(self._load)
        self._days = lru_cache(DAYS_KEPT)(self._names)

    def of(self, window: Window) -> WindowStanding:
        """Raises `FormatError` where a segment is not as it was sealed, and `UsageError` where the
        archive has a window of another length there."""
        return self._windows(window)

    def _names(self, day: date) -> Mapping[datetime, list[SegmentName]]:
        groups = groupby(self._segments.names(day), key=lambda name: name.start)
        return {start: list(names) for start, names in groups}

    def _load(self, window: Window) -> WindowStanding:
        standing = WindowStanding()
        for name in self._days(window.start.date()).get(window.start, ()):
            sealed = self._segments.entry(name)
            if sealed is None:
                continue
            if name.revision != standing.revision + 1:
                raise FormatError(f"a revision before {name.jsonl} is missing: run archiver verify")
            standing.revision = name.revision
            self._fold(standing, sealed[0], window)
        return standing

    def _fold(self, standing: WindowStanding, entry: SegmentEntry, window: Window) -> None:
        with self._segments.open(entry) as file:
            try:
                line = _read(standing, entry, file)
                found = read_window(line)
            except FormatError as error:
                raise FormatError(f"{entry.key}: {error}; run archiver verify") from None
        if found != window:
            raise UsageError(
                f"the archive has a window {found} where ARCHIVER_WINDOW makes {window}: set "
                "ARCHIVER_WINDOW to the length that the archive has"
            )
        standing.pending = frozenset(line["pending"])
        standing.vanished = frozenset(line["vanished"])
        standing.filters.add(filters.as_text(line.get("filter")))


def _read(standing: WindowStanding, entry: SegmentEntry, file: IO[bytes]) -> dict[str, Any]:
    """Take in the records; the window line."""
    last = b""
    for number, line in enumerate(lines_of(file)):
        if number < entry.records:
            found = parse_record(line)
            standing.take(found.call_id, standing_of(found, is_sealed=True))
        last = line
    return canonical.load_object(last)


def _text(value: object) -> str | None:
    """A text; one that many calls share is kept once."""
    return sys.intern(value) if isinstance(value, str) else None
