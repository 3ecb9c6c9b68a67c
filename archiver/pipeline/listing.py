"""Listing a window so that it can be relied on.

- A window is listed until two passes in a row agree on the ids, at most `MAX_PASSES` times: pages
  shift while one lists, and one pass alone may step over a call.
- A call belongs to the window that holds its own time (start, else creation). Sources differ in
  which time their filter reads, whether its end is inclusive, whether it reads more than the
  date. So a call that is listed here with a time outside is left to the window of that time,
  *if the source lists it there*, and kept here otherwise. None is dropped, none counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from archiver.clock import Clock
from archiver.manifest.segment import Listing
from archiver.model import Call, Window, window_of
from archiver.pipeline.ports import Source
from archiver.source.client import Filter

log = structlog.get_logger()

MAX_PASSES = 6


@dataclass(frozen=True)
class Listed:
    """What the source lists of a window: `calls` by id, and how the listing went.

    `stable` is False where no two passes agreed: then the window must not be closed on it.
    """

    window: Window
    calls: Mapping[str, Call]
    listing: Listing
    stable: bool


@dataclass
class _Pass:
    calls: dict[str, Call] = field(default_factory=dict)
    pages: int = 0
    total: int | None = None


class Lister:
    """Lists windows. Threads share it."""

    def __init__(
        self, source: Source, filters: Filter, clock: Clock, window_length: timedelta
    ) -> None:
        self._source = source
        self._filters = filters
        self._clock = clock
        self._length = window_length

    def list(self, window: Window) -> Listed:
        """The calls of a window. Raises `SourceRefused` or `SourceError`."""
        last = seen = self._pass(window)
        passes, stable = 1, False
        while not stable and passes < MAX_PASSES:
            again = self._pass(window)
            passes += 1
            stable = last.calls.keys() == again.calls.keys()
            last, seen = again, _union(again, seen)
        # Where no two agreed, what one pass alone has seen is kept: it was listed, after all.
        found = last if stable else seen
        if not stable:
            log.warning("window.unstable", window=str(window), passes=passes)
        calls = self._own(window, found.calls)
        listing = Listing(
            listed_at=self._clock.now(),
            pages=found.pages,
            passes=passes,
            source_total=found.total,
            filter=self._filters.document(),
        )
        return Listed(window, calls, listing, stable)

    def _pass(self, window: Window) -> _Pass:
        result = _Pass()
        totals: dict[str, int] = {}
        discarded = 0
        for page in self._source.pages(window, self._filters):
            result.pages += 1
            for call in page.calls:
                if self._filters.admits(call):
                    result.calls[call.id] = call
                else:
                    discarded += 1
            if page.total is not None:
                totals[page.filter_state] = page.total
        result.total = sum(totals.values()) if totals else None
        if discarded:
            log.warning("source.filter_ignored", window=str(window), discarded=discarded)
        return result

    def _own(self, window: Window, calls: Mapping[str, Call]) -> dict[str, Call]:
        """The calls less those that the source lists in the window of their own time."""
        elsewhere: dict[Window, frozenset[str]] = {}
        own: dict[str, Call] = {}
        for call in calls.values():
            home = window if call.own_time is None else window_of(call.own_time, self._length)
            if home != window:
                if home not in elsewhere:
                    elsewhere[home] = frozenset(self._pass(home).calls)
                if call.id in elsewhere[home]:
                    continue
            own[call.id] = call
        return own


def _union(newer: _Pass, older: _Pass) -> _Pass:
    return _Pass({**older.calls, **newer.calls}, newer.pages, newer.total)
