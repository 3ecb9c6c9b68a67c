"""Listing a window so that it can be relied on.

- A window is listed until two passes in a row agree on the ids, at most `MAX_PASSES` times: pages
  shift while one lists, and one pass alone may step over a call. Where the source's own total
  says that there is more than a pass has seen, a third pass must agree too.
- What one pass has seen and the passes that agreed have not is kept apart (`glimpsed`): it was
  listed, so it must not fall silent.
- A call belongs to the window that holds its own time (start, else creation). Sources differ in
  which time their filter reads, whether its end is inclusive, whether it reads more than the
  date. So a call that is listed here with a time outside is left to the window of that time,
  *if the source lists it there* (`strays`), and kept here otherwise. None is dropped, none counted
  twice.
- Of a listed call only `LISTED_FIELDS` are kept: a window may have 100,000 of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import structlog

from archiver.clock import Clock
from archiver.manifest.segment import Listing
from archiver.model import Call, Window, window_of
from archiver.source.client import Filter, Page

log = structlog.get_logger()

MAX_PASSES = 6
LISTED_FIELDS = (
    "campaignId",
    "createdAt",
    "direction",
    "durationSeconds",
    "endTime",
    "startTime",
    "state",
)
MAX_FIELD_CHARACTERS = 1024
_SHARED = {"campaignId", "direction", "state"}
"""Fields whose few values many calls share."""


class Pages(Protocol):
    """One pass over the listing of a window (`source/client.py`)."""

    def pages(self, window: Window, filters: Filter) -> Iterator[Page]: ...


@dataclass(frozen=True)
class Listed:
    """What the source lists of a window, by id, and how the listing went.

    `stable` is False where no two passes agreed: then the window must not be closed on it, and
    `calls` is all that was seen. `strays` are calls of other windows, by their own window, that
    were seen on the way. `complete` is False where a page could not be had, and `error` says why:
    then `calls` is what the other pages show.
    """

    window: Window
    calls: Mapping[str, Call]
    listing: Listing
    stable: bool
    glimpsed: Mapping[str, Call] = field(default_factory=dict)
    strays: Mapping[Window, Mapping[str, Call]] = field(default_factory=dict)
    complete: bool = True
    error: str | None = None


@dataclass
class _Pass:
    ids: set[str] = field(default_factory=set)
    pages: int = 0
    total: int | None = None
    discarded: int = 0

    @property
    def is_short(self) -> bool:
        """Whether the source's total speaks of more than was seen."""
        return self.total is not None and self.total > len(self.ids) + self.discarded


class Lister:
    """Lists windows. Threads share it."""

    def __init__(
        self, source: Pages, filters: Filter, clock: Clock, window_length: timedelta
    ) -> None:
        self._source = source
        self._filters = filters
        self._clock = clock
        self._length = window_length

    def list(self, window: Window, seen: dict[str, Call] | None = None) -> Listed:
        """The calls of a window. `seen` gets every call as it comes, so that those are known that
        came before an error. Raises `SourceRefused` or `SourceError`."""
        seen = {} if seen is None else seen
        began = self._clock.now()
        found = self._pass(window, seen)
        passes = agreeing = 1
        while agreeing < (3 if found.is_short else 2) and passes < MAX_PASSES:
            again = self._pass(window, seen)
            passes += 1
            agreeing = agreeing + 1 if again.ids == found.ids else 1
            found = again
        stable = agreeing > 1
        self._warn(window, found, passes, stable)
        own, strays = self._sort(window, seen)
        listing = Listing(
            listed_at=began,
            pages=found.pages,
            passes=passes,
            source_total=found.total,
            filter=self._filters.document(),
        )
        # Where no two agreed, what one pass alone has seen is kept: it was listed, after all.
        gone = {i: own.pop(i) for i in sorted(own.keys() - found.ids)} if stable else {}
        return Listed(window, own, listing, stable, gone, strays)

    def glance(self, window: Window) -> dict[Window, dict[str, Call]]:
        """The calls that one pass over a window shows, by the windows of their own time."""
        seen: dict[str, Call] = {}
        self._pass(window, seen)
        found: dict[Window, dict[str, Call]] = {}
        for call in seen.values():
            found.setdefault(self._home(call, window), {})[call.id] = call
        return found

    def _pass(self, window: Window, seen: dict[str, Call]) -> _Pass:
        """One pass; its calls go into `seen`, the newest word on each."""
        result = _Pass()
        totals: dict[str, int] = {}
        for page in self._source.pages(window, self._filters):
            result.pages += 1
            for call in page.calls:
                if not self._filters.admits(call):
                    result.discarded += 1
                    continue
                before = seen.get(call.id)
                kept = _slim(call, before.id if before else call.id)
                seen[kept.id] = kept
                result.ids.add(kept.id)
            if page.total is not None:
                totals[page.filter_state] = page.total
        result.total = sum(totals.values()) if totals else None
        return result

    def _warn(self, window: Window, found: _Pass, passes: int, stable: bool) -> None:
        shown = str(window)
        if not stable:
            log.warning("window.unstable", window=shown, passes=passes)
        if found.discarded:
            log.warning("source.filter_ignored", window=shown, discarded=found.discarded)
        listed = len(found.ids) + found.discarded
        if found.total is not None and found.total != listed:
            log.warning("source.total_disagrees", window=shown, total=found.total, listed=listed)

    def _sort(
        self, window: Window, calls: Mapping[str, Call]
    ) -> tuple[dict[str, Call], dict[Window, dict[str, Call]]]:
        """The calls that are this window's; and all that the source was seen to list in another
        one, the one of their own time, when that was looked at for the calls in question."""
        own: dict[str, Call] = {}
        asked: dict[Window, dict[str, Call]] = {}
        beside: dict[Window, dict[str, Call]] = {}
        for call in calls.values():
            home = self._home(call, window)
            if home != window and home not in asked:
                shown = self.glance(home)
                asked[home] = shown.get(home, {})
                for other, found in shown.items():
                    beside[other] = {**found, **beside.get(other, {})}
            if home == window or call.id not in asked[home]:
                own[call.id] = call
        for call_id, call in beside.pop(window, {}).items():
            own.setdefault(call_id, call)  # seen on the way, and by no pass of its own window
        return own, beside

    def _home(self, call: Call, window: Window) -> Window:
        return window if call.own_time is None else window_of(call.own_time, self._length)


def _slim(call: Call, call_id: str) -> Call:
    """What a window needs of a listed call."""
    document: dict[str, Any] = {}
    for name in LISTED_FIELDS:
        value = call.document.get(name)
        if isinstance(value, str) and len(value) <= MAX_FIELD_CHARACTERS:
            document[name] = sys.intern(value) if name in _SHARED else value
        elif isinstance(value, int | float):
            document[name] = value
    return Call(call_id, document)
