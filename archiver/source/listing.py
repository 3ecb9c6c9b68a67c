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

A source whose filter reads the day only answers all windows of a day alike. Such a day is listed
once, and the listing is kept for its other windows (docs/adr/0019):
- *Proof*: a listing shows calls of several other windows of the same dates. The first page of one
  of these shows none but calls of this listing, and its total is their number.
- *Check*: before a window is answered from the kept listing, its own first and last page are
  fetched, and have to show the same ids and totals. Else the window is listed as any other. (Of
  dates that were proven by the listing of another day, only the first page is known.)
- *Age*: `listed_at` is when the kept listing began. It must not be before the moment that the
  caller names (the window had settled, an age had come), and `KEPT_SECONDS` old at most.
- A window that is not to be closed, and lies between others of the listing, is answered without
  the check, until `forget`: what such a listing lacks is found before the window is closed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Protocol

import msgspec
import structlog

from archiver.core.clock import Clock
from archiver.core.errors import ListingError
from archiver.core.model import Call, Window, is_too_late, placing_time, window_of
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
KEPT_SECONDS = 3600.0
KEPT_DAYS = 3
"""A window that ends at midnight asks for two dates, so a day has two listings."""
MAX_KEPT_CALLS = 200_000
"""A day with more calls is not kept. A call takes some 250 bytes."""
MIN_WINDOWS_OF_DAY_FILTER = 3
"""A listing with calls of so many windows comes from a filter that reads the day. One with fewer
may come from a filter with inclusive ends, which lists a call in two windows."""
MAX_DATE_LOCKS = 64

Dates = tuple[date, date]
"""The dates that the query of a window names."""


class Pages(Protocol):
    """Yields one pass over the listing of a window, or one page of it (`api.py`)."""

    def pages(self, window: Window, filters: Filter) -> Iterator[Page]: ...

    def page(self, window: Window, filters: Filter, state: str, number: int) -> Page: ...


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


_PageFingerprint = tuple[frozenset[str], int, int | None]
"""What tells a page from another: its ids, how many entries are unreadable, the total."""
_EndPages = dict[str, dict[int, _PageFingerprint]]
"""Pages at the ends of a listing, by state and number."""


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
    ends: _EndPages = field(default_factory=dict)
    """The first page of each state and the last one with calls, by their numbers."""

    @property
    def listed(self) -> int:
        """How many entries were seen, of any kind."""
        return len(self.ids) + self.discarded + self.unreadable

    @property
    def is_short(self) -> bool:
        """Whether the source's total is higher than what was seen."""
        return self.total is not None and self.total > self.listed


@dataclass(frozen=True)
class _DayListing:
    """A stable listing that holds for all windows of its dates."""

    listing: Listing
    ends: _EndPages
    calls: Mapping[Window | None, tuple[bytes, ...]]
    """Each call as JSON (id and fields), by the window of its own time; None if it has none."""

    def surrounds(self, window: Window) -> bool:
        """Whether the filter reads the day for certain, and the window lies between others whose
        calls the listing shows: the day of some sources is not ours."""
        starts = [home.start for home in self.calls if home is not None]
        is_of_day_filter = len(starts) >= MIN_WINDOWS_OF_DAY_FILTER
        return is_of_day_filter and min(starts) <= window.start <= max(starts)

    def of(self, window: Window | None) -> dict[str, Call]:
        pairs = map(msgspec.json.decode, self.calls.get(window, ()))
        return {call_id: Call(call_id, document) for call_id, document in pairs}


@dataclass
class _DateLock:
    """Lets the windows of the same dates be listed one after the other."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    is_needless: bool = False
    """Whether a window was listed and the listing does not hold for the others."""


@dataclass(eq=False, repr=False)
class Lister:
    """Lists windows. Thread-safe."""

    source: Pages
    filters: Filter
    clock: Clock
    window_length: timedelta
    _kept: OrderedDict[Dates, _DayListing] = field(default_factory=OrderedDict, init=False)
    _date_locks: OrderedDict[Dates, _DateLock] = field(default_factory=OrderedDict, init=False)
    _mutex: threading.Lock = field(default_factory=threading.Lock, init=False)

    def forget(self) -> None:
        """Forget the kept listings: what is listed from now on is listed anew."""
        with self._mutex:
            self._kept.clear()
            self._date_locks.clear()

    def list(
        self,
        window: Window,
        seen: dict[str, Call] | None = None,
        of_others: dict[str, Call] | None = None,
        *,
        since: datetime | None = None,
        is_open: bool = False,
    ) -> WindowListing:
        """List the calls of a window.

        `seen` receives every call as it comes, and `of_others` the calls in the listings of other
        windows, so that after an error the caller knows what came before it. Raises `SourceRefused`
        or `SourceError` if the source is out or refuses all listings; a failure of this listing
        alone is in `WindowListing.error`.

        `since`: the earliest moment at which a kept listing may have begun. `is_open`: the window
        is not to be closed.

        1. Wait for the first window of the same dates, whose listing may hold for this one too. It
           costs nothing where it does not: the other windows are listed at the same time then.
        2. Answer from the kept listing, if the source answers for this window as it did there.
        3. Otherwise list the window.
        """
        seen = {} if seen is None else seen
        dates = _dates(window)
        with self._mutex:
            date_lock = self._date_locks.setdefault(dates, _DateLock())
            while len(self._date_locks) > MAX_DATE_LOCKS:
                self._date_locks.popitem(last=False)
        with nullcontext() if date_lock.is_needless else date_lock.lock:  # 1
            if not date_lock.is_needless:
                kept = self._kept_since(dates, since)  # 2
                if kept is not None and (
                    (is_open and kept.surrounds(window)) or self._is_same(window, kept, seen)
                ):
                    calls = kept.of(None) | kept.of(window)
                    seen.update(calls)
                    return WindowListing(window, calls, kept.listing, stable=True)
                with self._mutex:
                    self._kept.pop(dates, None)
                listed = self._list(window, seen, of_others)  # 3
                date_lock.is_needless = dates not in self._kept
                return listed
        return self._list(window, seen, of_others)

    def _kept_since(self, dates: Dates, since: datetime | None) -> _DayListing | None:
        with self._mutex:
            kept = self._kept.get(dates)
        if kept is None:
            return None
        began, now = kept.listing.listed_at, self.clock.now()
        is_young = timedelta(0) <= now - began <= timedelta(seconds=KEPT_SECONDS)
        return kept if is_young and (since is None or began >= since) else None

    def _is_same(self, window: Window, kept: _DayListing, seen: dict[str, Call]) -> bool:
        """Whether the first and the last page of the window are those of the kept listing. Adds
        their calls to `seen`."""
        for state, pages in kept.ends.items():
            for number, fingerprint in pages.items():
                page = self._page(window, state, number, seen)
                if page.error is not None or _fingerprint(page) != fingerprint:
                    return False
        return True

    def _page(self, window: Window, state: str, number: int, seen: dict[str, Call]) -> Page:
        """Fetch one page. Adds its calls to `seen`: they were listed, so they must not be dropped,
        whatever the page is fetched for."""
        page = self.source.page(window, self.filters, state, number)
        seen.update({call.id: _slim(call) for call in page.calls if self.filters.admits(call)})
        return page

    def _list(
        self, window: Window, seen: dict[str, Call], of_others: dict[str, Call] | None
    ) -> WindowListing:
        """List a window by requests.

        1. Pass over the listing until enough passes agree.
        2. Leave the calls of other windows to those windows. If it shows that all windows of its
           dates are answered alike, keep the listing for them.
        3. If passes agreed, separate the calls that only another pass has seen. If none agreed,
           these stay among the calls, because they were listed.
        """
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
        own, other_windows, proven = self._place(window, seen, found.ids, others, began)  # 2
        listing = Listing(
            listed_at=began,
            pages=found.pages,
            passes=passes,
            source_total=found.total,
            filter=self.filters.document(),
            unreadable=found.unreadable,
        )
        if stable and len(found.ids) <= MAX_KEPT_CALLS:
            for dates, ends in proven.items():
                within = self._ids_within(dates, window, seen, found.ids, began)
                known = found.ends if dates == _dates(window) else ends
                self._keep(dates, [seen[i] for i in within], known, listing)
        gone = {i: own.pop(i) for i in sorted(own.keys() - found.ids)} if stable else {}  # 3
        return WindowListing(window, own, listing, stable, gone, other_windows, found.error)

    def _keep(self, dates: Dates, calls: Iterable[Call], ends: _EndPages, listing: Listing) -> None:
        homes: dict[Window | None, tuple[bytes, ...]] = {}
        for home, group in self._by_window(calls, listing.listed_at).items():
            homes[home] = tuple(msgspec.json.encode((one.id, one.document)) for one in group)
        kept = _DayListing(listing, ends, homes)
        with self._mutex:
            self._kept[dates] = kept
            self._kept.move_to_end(dates)
            while len(self._kept) > KEPT_DAYS:
                self._kept.popitem(last=False)

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
        numbers: dict[str, int] = {}
        for page in self.source.pages(window, self.filters):
            number = numbers[page.filter_state] = numbers.get(page.filter_state, 0) + 1
            if page.error is not None:
                result.error = result.error or page.error
                continue
            ends = result.ends.setdefault(page.filter_state, {})
            if number == 1 or page.calls:
                fingerprint = _fingerprint(page)
                first = ends.get(1, fingerprint)
                result.ends[page.filter_state] = {1: first, number: fingerprint}
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
        ids: Set[str],
        of_others: dict[str, Call],
        listed_at: datetime,
    ) -> tuple[dict[str, Call], dict[Window, dict[str, Call]], dict[Dates, _EndPages]]:
        """Split the calls into those of this window and those of other windows, by their own
        window.

        A call goes to another window if the listing of that window shows it. That listing is
        fetched once, when a call has a time in that window. If calls have times in several windows
        of the same dates, the filter may read the day: one page of one of them can prove that (see
        `_proof`), and then this listing stands for all of them. `of_others` receives the calls of
        other listings. The last result has the dates that are proven so (`ids` are those of the
        latest pass), each with the pages that show it.
        """
        own: dict[str, Call] = {}
        listed_there: dict[Window, Mapping[str, Call]] = {}
        other_windows: dict[Window, dict[str, Call]] = {}
        homes: dict[Dates, set[Window]] = {}
        for call in calls.values():
            home = self._own_window(call, window, listed_at)
            if home != window:
                homes.setdefault(_dates(home), set()).add(home)
        proven: dict[Dates, _EndPages] = {}
        for dates, others in homes.items():
            kept = self._kept_since(dates, None) if dates != _dates(window) else None
            if kept is not None:
                # What a kept listing shows was listed there. What it lacks may have come since.
                listed_there |= {home: kept.of(home) for home in others}
            elif len(others) > 1:
                within = self._ids_within(dates, window, calls, ids, listed_at)
                shown_by_proof: dict[str, Call] = {}
                try:
                    ends = self._proof(min(others), within, shown_by_proof)
                finally:
                    of_others.update(shown_by_proof)
                for call in shown_by_proof.values():
                    if call.id not in calls:
                        home = self._own_window(call, min(others), listed_at)
                        other_windows.setdefault(home, {})[call.id] = call
                if ends:
                    proven[dates] = ends
                    # One mapping for all of them: a day may have 100,000 calls.
                    there = {i: calls[i] for i in within}
                    listed_there |= dict.fromkeys(others, there)
        asked: set[Window] = set()
        for call in calls.values():
            home = self._own_window(call, window, listed_at)
            is_there = call.id in listed_there.get(home, ())
            if home != window and not is_there and home not in asked:
                # If that listing is incomplete, a call may be kept here and be listed there later.
                # Then it is counted twice, which `verify` reports, and not dropped.
                asked.add(home)
                seen: dict[str, Call] = {}
                try:
                    shown = self.list_once(home, seen)
                finally:
                    of_others.update(seen)
                listed_there[home] = shown.get(home, {})
                is_there = call.id in listed_there[home]
                for other, found in shown.items():
                    other_windows[other] = {**found, **other_windows.get(other, {})}
            if home == window or not is_there:
                own[call.id] = call
            else:
                other_windows.setdefault(home, {}).setdefault(call.id, call)
        for call_id, call in other_windows.pop(window, {}).items():
            own.setdefault(call_id, call)  # listed in another window, and not in this one, its own
        return own, other_windows, proven

    def _proof(self, home: Window, ids: Set[str], seen: dict[str, Call]) -> _EndPages | None:
        """Fetch the first page of a window, for each state. Return them if the window is answered
        with these ids, though most are of other windows: the totals are their number, and the pages
        show none but them. Adds the pages' calls to `seen`."""
        ends: _EndPages = {}
        for state in self.filters.states:
            page = self._page(home, state, 1, seen)
            ids_there = {call.id for call in page.calls}
            if page.error is not None or page.total is None or not ids_there <= ids:
                return None
            ends[state] = {1: _fingerprint(page)}
        total = sum(found[2] or 0 for pages in ends.values() for found in pages.values())
        return ends if total == len(ids) else None

    def _ids_within(
        self,
        dates: Dates,
        window: Window,
        calls: Mapping[str, Call],
        ids: Set[str],
        listed_at: datetime,
    ) -> Set[str]:
        """The ids that a filter which reads the day shows for these dates, as far as the listing of
        the window tells."""
        if dates == _dates(window):
            return ids
        homes = ((i, self._plausible_window(calls[i], listed_at)) for i in ids)
        return {i for i, home in homes if home and dates[0] <= home.start.date() <= dates[1]}

    def _by_window(
        self, calls: Iterable[Call], listed_at: datetime
    ) -> dict[Window | None, deque[Call]]:
        groups: dict[Window | None, deque[Call]] = {}
        for call in calls:
            groups.setdefault(self._plausible_window(call, listed_at), deque()).append(call)
        return groups

    def _plausible_window(self, call: Call, listed_at: datetime) -> Window | None:
        """The window of the call's own time; None if it has none, or one that is too late."""
        own = call.own_time
        if own is None or is_too_late(own, listed_at):
            return None
        return window_of(own, self.window_length)

    def _own_window(self, call: Call, window: Window, listed_at: datetime) -> Window:
        return window_of(placing_time(call, window, listed_at), self.window_length)


def _dates(window: Window) -> Dates:
    return window.start.date(), window.end.date()


def _fingerprint(page: Page) -> _PageFingerprint:
    return frozenset(call.id for call in page.calls), page.unreadable, page.total


def _slim(call: Call) -> Call:
    """Keep the fields of a listed call that a window needs."""
    document: dict[str, Any] = {}
    for name in LISTED_FIELDS:
        value = call.document.get(name)
        is_short = isinstance(value, str) and len(value) <= MAX_FIELD_CHARACTERS
        if is_short or isinstance(value, int | float):
            document[name] = value
    return Call(call.id, document)
