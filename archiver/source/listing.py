"""Lists a window so that the result can be relied on.

- A window is listed until two passes in a row agree on the ids, at most `MAX_PASSES` times: pages
  shift during a listing, so one pass may miss a call. If the source's own total is higher than what
  a pass has seen, a third pass must agree too.
- Calls that only another pass has seen are returned separately (`seen_once`). They were listed, so
  they must not be dropped.
- A page that cannot be fetched is skipped, and the listing is incomplete (`error`): the calls of
  the other pages are archived, and the window is not closed. There is no further pass, because each
  bad page costs all its tries. Entries that are not calls are counted (`Listing.unreadable`).
- A call belongs to the window of its own time (start, else creation). Sources differ in the time
  that their filter uses, in whether its end is inclusive, and in whether it uses more than the
  date. So a call with a time outside this window is left to the window of that time, *if the source
  lists it there* (`other_windows`), and kept here otherwise. No call is dropped or counted twice. A
  time over a day after the listing is ignored: such a call stays here (`model.placing_time`).
- Of a listed call only `LISTED_FIELDS` are kept: a window may have 100,000 calls.
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
"""A longer value is dropped."""


class Pages(Protocol):
    """Yields one pass over the listing of a window (`api.py`)."""

    def pages(self, window: Window, filters: Filter) -> Iterator[Page]: ...


@dataclass(frozen=True)
class WindowListing:
    """The calls that the source lists for a window, by id, and how the listing went."""

    window: Window
    calls: Mapping[str, Call]
    """The window's calls; all that were seen, if the listing is not `stable`."""
    listing: Listing
    stable: bool
    """Whether enough passes agreed and no page was missing. If not, the window must stay open."""
    seen_once: Mapping[str, Call] = field(default_factory=dict)
    """Calls that another pass has seen, and the passes that agreed have not."""
    other_windows: Mapping[Window, Mapping[str, Call]] = field(default_factory=dict)
    """Calls of other windows that were seen on the way, by their own window."""
    error: ListingError | None = None
    """The first missing page and the reason, in one line; None if the listing is `complete`."""

    @property
    def complete(self) -> bool:
        return self.error is None


@dataclass
class _Pass:
    """The result of one pass over a listing."""

    ids: set[str] = field(default_factory=set)
    pages: int = 0
    total: int | None = None
    discarded: int = 0
    unreadable: int = 0
    error: ListingError | None = None
    """Why the first missing page could not be fetched."""

    @property
    def listed(self) -> int:
        """How many entries were seen, of any kind."""
        return len(self.ids) + self.discarded + self.unreadable

    @property
    def is_short(self) -> bool:
        """Whether the source's total is higher than what was seen."""
        return self.total is not None and self.total > self.listed


@dataclass(eq=False, repr=False)
class Lister:
    """Lists windows. Thread-safe."""

    source: Pages
    filters: Filter
    clock: Clock
    window_length: timedelta

    def list(
        self,
        window: Window,
        seen: dict[str, Call] | None = None,
        of_others: dict[str, Call] | None = None,
    ) -> WindowListing:
        """List the calls of a window.

        `seen` receives every call as it comes, and `of_others` the calls in the listings of other
        windows, so that after an error the caller knows what came before it. Raises `SourceRefused`
        or `SourceError` if the source is out or refuses all listings; a failure of this listing
        alone is in `WindowListing.error`.

        1. Pass over the listing until enough passes agree.
        2. Leave the calls of other windows to those windows.
        3. If passes agreed, separate the calls that only another pass has seen. If none agreed,
           these stay among the calls, because they were listed.
        """
        seen = {} if seen is None else seen
        began = self.clock.now()
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
            filter=self.filters.document(),
            unreadable=found.unreadable,
        )
        gone = {i: own.pop(i) for i in sorted(own.keys() - found.ids)} if stable else {}  # 3
        return WindowListing(window, own, listing, stable, gone, other_windows, found.error)

    def list_once(
        self, window: Window, seen: dict[str, Call] | None = None
    ) -> dict[Window, dict[str, Call]]:
        """List a window with one pass. Returns its calls by the windows of their own times. Pages
        that cannot be fetched are skipped. `seen` and the errors are as in `list`."""
        seen = {} if seen is None else seen
        began = self.clock.now()
        self._pass(window, seen)
        found: dict[Window, dict[str, Call]] = {}
        for call in seen.values():
            found.setdefault(self._own_window(call, window, began), {})[call.id] = call
        return found

    def _pass(self, window: Window, seen: dict[str, Call]) -> _Pass:
        """One pass. Adds its calls to `seen`; a call's later entry replaces an earlier one."""
        result = _Pass()
        totals: dict[str, int] = {}
        for page in self.source.pages(window, self.filters):
            if page.error is not None:
                result.error = result.error or page.error
                continue
            result.pages += 1
            result.unreadable += page.unreadable
            for call in page.calls:
                if not self.filters.admits(call):
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
        """Split the calls into those of this window and those of other windows, by their own
        window.

        A call goes to another window if the listing of that window shows it. That listing is
        fetched once, when a call has a time in that window. `of_others` receives its calls.
        """
        own: dict[str, Call] = {}
        listed_there: dict[Window, dict[str, Call]] = {}
        other_windows: dict[Window, dict[str, Call]] = {}
        for call in calls.values():
            home = self._own_window(call, window, listed_at)
            if home != window and home not in listed_there:
                # If that listing is incomplete, a call may be kept here and be listed there later.
                # Then it is counted twice, which `verify` reports, and not dropped.
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
            own.setdefault(call_id, call)  # listed in another window, and not in this one, its own
        return own, other_windows

    def _own_window(self, call: Call, window: Window, listed_at: datetime) -> Window:
        return window_of(placing_time(call, window, listed_at), self.window_length)


def _slim(call: Call) -> Call:
    """Keep the fields of a listed call that a window needs."""
    document: dict[str, Any] = {}
    for name in LISTED_FIELDS:
        value = call.document.get(name)
        is_short = isinstance(value, str) and len(value) <= MAX_FIELD_CHARACTERS
        if is_short or isinstance(value, int | float):
            document[name] = value
    return Call(call.id, document)
