"""Listing a window so that it can be relied on.

- A window is listed until two passes in a row agree on the ids, at most `MAX_PASSES` times: pages
  shift while one lists, and one pass alone may skip a call. Where the source's own total says that
  there is more than a pass has seen, a third pass must agree too.
- What one pass has seen and the passes that agreed have not is kept apart (`seen_once`): it was
  listed, so it must not be dropped in silence.
- A page that cannot be had is left out, and the listing is not complete then (`error`): the calls
  of the other pages are archived, and the window is not closed. No further pass is made, for each
  bad page costs all its tries. Entries that are no calls are counted (`Listing.unreadable`).
- A call belongs to the window that holds its own time (start, else creation). Sources differ in
  which time their filter reads, whether its end is inclusive, whether it reads more than the date.
  So a call that is listed here with a time outside is left to the window of that time, *if the
  source lists it there* (`other_windows`), and kept here otherwise. None is dropped, none counted
  twice. A time over a day after the listing is no time: such a call stays here
  (`model.placing_time`).
- Of a listed call only `LISTED_FIELDS` are kept: a window may have 100,000 of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog

from archiver.core.clock import Clock
from archiver.core.errors import ListingError
from archiver.core.model import Call, Window, placing_time, window_of
from archiver.manifest.segment import Listing
from archiver.observability.metrics import UNREADABLE_ENTRIES
from archiver.source.api import Filter, Page

log = structlog.get_logger()

MAX_PASSES = 6
LISTED_FIELDS = (
    "campaignId", "createdAt", "direction", "durationSeconds", "endTime", "startTime", "state"
)  # fmt: skip
MAX_FIELD_CHARACTERS = 1024


class Pages(Protocol):
    """One pass over the listing of a window (`api.py`)."""

    def pages(self, window: Window, filters: Filter) -> Iterator[Page]: ...


@dataclass(frozen=True)
class WindowListing:
    """What the source lists of a window, by id, and how the listing went."""

    window: Window
    calls: Mapping[str, Call]
    """The window's calls; all that were seen where the listing is not `stable`."""
    listing: Listing
    stable: bool
    """Whether two passes agreed, and no page was missing: else the window must stay open."""
    seen_once: Mapping[str, Call] = field(default_factory=dict)
    """Calls that the passes which agreed did not show, and another pass did."""
    other_windows: Mapping[Window, Mapping[str, Call]] = field(default_factory=dict)
    """Calls of other windows that were seen on the way, by their own window."""
    error: ListingError | None = None
    """Which page is missing, and why, in one line; None where the listing is `complete`."""

    @property
    def complete(self) -> bool:
        return self.error is None


@dataclass
class _Pass:
    """What one pass over a listing shows."""

    ids: set[str] = field(default_factory=set)
    pages: int = 0
    total: int | None = None
    discarded: int = 0
    unreadable: int = 0
    error: ListingError | None = None
    """Why the first page that is missing could not be had."""

    @property
    def listed(self) -> int:
        """How many entries were seen, of whatever kind."""
        return len(self.ids) + self.discarded + self.unreadable

    @property
    def is_short(self) -> bool:
        """Whether the source's total speaks of more than was seen."""
        return self.total is not None and self.total > self.listed


class Lister:
    """Lists windows. Threads share it."""

    def __init__(
        self, source: Pages, filters: Filter, clock: Clock, window_length: timedelta
    ) -> None:
        self._source = source
        self._filters = filters
        self._clock = clock
        self._length = window_length

    def list(
        self,
        window: Window,
        seen: dict[str, Call] | None = None,
        of_others: dict[str, Call] | None = None,
    ) -> WindowListing:
        """The calls of a window. `seen` gets every call as it comes, and `of_others` those that the
        listings of other windows show on the way, so that calls are known that came before an
        error. Raises `SourceRefused` or `SourceError` where the source is out or refuses all
        listings; what is wrong with this one alone stands in `WindowListing.error`.

        1. Pass over the listing until enough passes agree.
        2. Leave the calls of other windows to these.
        3. Where passes agreed, set apart what only another one has seen. Where none did, it is kept
           among the calls: it was listed, after all.
        """
        seen = {} if seen is None else seen
        began = self._clock.now()
        found, passes, agreeing = self._pass(window, seen), 1, 1  # 1
        while (
            found.error is None and agreeing < (3 if found.is_short else 2) and passes < MAX_PASSES
        ):
            again = self._pass(window, seen)
            passes += 1
            agreeing = agreeing + 1 if again.ids == found.ids else 1
            found = again
        stable = agreeing > 1 and found.error is None
        UNREADABLE_ENTRIES.inc(found.unreadable)
        self._warn(window, found, passes, stable)
        others = {} if of_others is None else of_others
        own, other_windows = self._place(window, seen, others, began)  # 2
        listing = Listing(
            listed_at=began,
            pages=found.pages,
            passes=passes,
            source_total=found.total,
            filter=self._filters.document(),
            unreadable=found.unreadable,
        )
        gone = {i: own.pop(i) for i in sorted(own.keys() - found.ids)} if stable else {}  # 3
        return WindowListing(window, own, listing, stable, gone, other_windows, found.error)

    def list_once(
        self, window: Window, seen: dict[str, Call] | None = None
    ) -> dict[Window, dict[str, Call]]:
        """List a window once: the calls that one pass shows, by the windows of their own time.
        Pages that cannot be had are left out. `seen` and errors are as in `list`."""
        seen = {} if seen is None else seen
        began = self._clock.now()
        self._pass(window, seen)
        found: dict[Window, dict[str, Call]] = {}
        for call in seen.values():
            found.setdefault(self._own_window(call, window, began), {})[call.id] = call
        return found

    def _pass(self, window: Window, seen: dict[str, Call]) -> _Pass:
        """One pass; its calls go into `seen`, a later entry for the same call replacing an earlier
        one."""
        result = _Pass()
        totals: dict[str, int] = {}
        for page in self._source.pages(window, self._filters):
            if page.error is not None:
                result.error = result.error or page.error
                continue
            result.pages += 1
            result.unreadable += page.unreadable
            for call in page.calls:
                if not self._filters.admits(call):
                    result.discarded += 1
                    continue
                seen[call.id] = _slim(call)
                result.ids.add(call.id)
            if page.total is not None:
                totals[page.filter_state] = page.total
        result.total = sum(totals.values()) if totals else None
        if result.unreadable:
            log.warning("source.entries_unreadable", window=str(window), count=result.unreadable)
        return result

    def _warn(self, window: Window, found: _Pass, passes: int, stable: bool) -> None:
        shown = str(window)
        if found.discarded:
            log.warning("source.filter_ignored", window=shown, discarded=found.discarded)
        if found.error is not None:
            log.error("listing.incomplete", window=shown, error=str(found.error))
            return
        if not stable:
            log.warning("window.unstable", window=shown, passes=passes)
        total, listed = found.total, found.listed
        if total is not None and total != listed:
            log.warning("source.total_disagrees", window=shown, total=total, listed=listed)

    def _place(
        self,
        window: Window,
        calls: Mapping[str, Call],
        of_others: dict[str, Call],
        listed_at: datetime,
    ) -> tuple[dict[str, Call], dict[Window, dict[str, Call]]]:
        """The calls that are this window's; and those of other windows, by their own one, that the
        listings of these windows show. Such a listing is asked for, once, where a call has a time
        of that window. `of_others` gets what these listings show, as it comes."""
        own: dict[str, Call] = {}
        listed_there: dict[Window, dict[str, Call]] = {}
        other_windows: dict[Window, dict[str, Call]] = {}
        for call in calls.values():
            home = self._own_window(call, window, listed_at)
            if home != window and home not in listed_there:
                # Where that listing is not complete, a call may be kept here and listed there
                # later: counted twice, which `verify` reports, and not dropped.
                seen: dict[str, Call] = {}
                try:
                    shown = self.list_once(home, seen)
                finally:
                    of_others.update(seen)
                listed_there[home] = shown.get(home, {})
                for other, found in shown.items():
                    other_windows[other] = {**found, **other_windows.get(other, {})}
            if home == window or call.id not in listed_there[home]:
                own[call.id] = call
        for call_id, call in other_windows.pop(window, {}).items():
            own.setdefault(call_id, call)  # seen on the way, and by no pass of its own window
        return own, other_windows

    def _own_window(self, call: Call, window: Window, listed_at: datetime) -> Window:
        return window_of(placing_time(call, window, listed_at), self._length)


def _slim(call: Call) -> Call:
    """What a window needs of a listed call."""
    document: dict[str, Any] = {}
    for name in LISTED_FIELDS:
        value = call.document.get(name)
        is_short = isinstance(value, str) and len(value) <= MAX_FIELD_CHARACTERS
        if is_short or isinstance(value, int | float):
            document[name] = value
    return Call(call.id, document)
