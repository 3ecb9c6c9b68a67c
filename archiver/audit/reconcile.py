"""The source, listed again, against the archive: what either has and the other lacks.

- The source's side of a window is its listing: the calls that two passes agreed on, and those that
  a pass has seen. The archive's side is what its sealed segments tell, all revisions together.
- A call is looked for beyond its window before it is called missing: in the windows beside it and
  in those of its own times, for a source may list it elsewhere now; then as a record object that
  no sealed segment tells of yet.
- What the archive tells of and the listing lacks is reported only where no other window of the
  range lists it. Where its window was listed with another filter than this listing's, it may be
  there and not asked for.

- What is bad harms only itself: a window that cannot be listed, an entry that is no call, a segment
  or a record that cannot be read is reported, and all else is compared. A window whose segments
  cannot be read is not judged.

Nothing is written. In memory are the few windows that are listed ahead, the few whose segments were
read last, and what is to be reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from archiver.audit import filters
from archiver.audit.control import ItemReader
from archiver.audit.differences import Difference, Name, Result
from archiver.audit.lookup import Lookup, View
from archiver.audit.parallel import ordered
from archiver.audit.reader import Reader
from archiver.audit.recorded import RecordObjects
from archiver.audit.sealed import SealedSegments
from archiver.audit.standing import Standing, Standings
from archiver.errors import ArchiverError, Reach
from archiver.manifest.seal import check_window_length
from archiver.manifest.segment import Listing
from archiver.model import Call, Window, window_of, windows_between

LISTED_AT_ONCE = 4


class Listed(Protocol):
    """What the source lists of a window (`source/listing.py`)."""

    @property
    def window(self) -> Window: ...

    @property
    def calls(self) -> Mapping[str, Call]:
        """What it lists of the window, by id."""

    @property
    def glimpsed(self) -> Mapping[str, Call]:
        """What one pass has seen and those that agreed have not."""

    @property
    def strays(self) -> Mapping[Window, Mapping[str, Call]]:
        """What is listed here and belongs to another window, which lists it too."""

    @property
    def listing(self) -> Listing:
        """Among others, what was asked for: `filter`."""

    @property
    def stable(self) -> bool:
        """Whether two passes agreed."""

    @property
    def complete(self) -> bool:
        """Whether every page could be had; else `error` says why not."""

    @property
    def error(self) -> str | Exception | None: ...


class Lister(Protocol):
    """Lists windows; threads share it. Raises `ListingError` where one window's listing fails, and
    `SourceRefused` or `SourceError` where the source refuses everything or is out."""

    def list(self, window: Window) -> Listed: ...


class Progress(Protocol):
    def windows(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Options:
    """The range, which grows outward to whole windows of `length`, and how many requests to the
    store may be under way at a time."""

    start: datetime
    end: datetime
    length: timedelta
    workers: int = 8


def reconcile(
    lister: Lister, reader: Reader, options: Options, progress: Progress | None = None
) -> Result:
    """Compare, window by window.

    Raises `SourceError` and `StoreError` where the source or the store is out, or refuses
    everything, `FormatError` where seal 0 cannot be read, and `UsageError` where the archive has
    windows of another length.
    """
    reader = ItemReader(reader)
    segments = SealedSegments(reader)
    genesis = segments.genesis()
    if genesis is not None:
        check_window_length(genesis, options.length)
    first = window_of(options.start, options.length).start
    count = -((first - options.end) // options.length)
    windows = windows_between(options.start, options.end, options.length)
    result = Result(
        Window(first, first + count * options.length), genesis.archive if genesis else None
    )
    pool = ThreadPoolExecutor(LISTED_AT_ONCE, thread_name_prefix="list")
    try:
        with closing(RecordObjects(reader, options.workers)) as records:
            lookup = Lookup(Standings(segments), records, options.length) if genesis else None
            comparison = _Comparison(lookup, result)
            listings = ordered(pool, partial(_list, lister), windows, LISTED_AT_ONCE)
            for done, listed in enumerate(listings, 1):
                if isinstance(listed, _Unlisted):
                    result.unlisted.append((listed.window, listed.problem))
                else:
                    comparison.take(listed)
                if progress is not None:
                    progress.windows(done, count)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    comparison.finish()
    return result


@dataclass(frozen=True)
class _Unlisted:
    """A window whose listing fails, while the source answers others."""

    window: Window
    problem: str


def _list(lister: Lister, window: Window) -> Listed | _Unlisted:
    try:
        return lister.list(window)
    except ArchiverError as error:
        if error.reach not in (Reach.ITEM, Reach.WINDOW):
            raise
        return _Unlisted(window, str(error))


class _Comparison:
    """Takes the listings in the order of their windows. Without a lookup, nothing is known."""

    def __init__(self, lookup: Lookup | None, result: Result) -> None:
        self._lookup = lookup
        self._result = result
        self._unlisted: dict[str, Difference] = {}
        """Told of by the archive and listed nowhere so far: later windows may list it."""
        self._listed_before: AbstractSet[str] = frozenset()

    def take(self, listed: Listed) -> None:
        window, calls = listed.window, {**listed.glimpsed, **listed.calls}
        view = self._lookup.look(window, calls) if self._lookup else View()
        row = self._result.row(window)
        row["source"] += len(calls)
        self._tell(listed)
        for problem in view.damages:
            self._result.unreadable.setdefault(problem, window)
        if not view.is_known:
            for call_id in calls:
                self._unlisted.pop(call_id, None)
            self._listed_before = calls.keys()
            return
        asked = listed.listing.filter
        self._result.filter = filters.as_text(asked)
        others = view.filters - {self._result.filter}
        self._result.other_filters.update(others)
        for call in calls.values():
            self._unlisted.pop(call.id, None)
            found = view.found.get(call.id)
            if found is not None and found.is_settled:
                row[found.outcome] += 1
            if (difference := _difference(call, found, window, view)) is not None:
                self._result.add(difference)
        if not listed.complete:
            self._listed_before = calls.keys()
            return  # what is not listed may stand on the page that could not be had
        strays = {call_id for others in listed.strays.values() for call_id in others}
        for call_id in view.told - calls.keys() - strays - self._listed_before:
            self._unlisted[call_id] = _unlisted(call_id, window, view, asked if others else {})
        self._listed_before = calls.keys()

    def _tell(self, listed: Listed) -> None:
        """What the listing says of itself."""
        window, result = listed.window, self._result
        if not listed.stable:
            result.unstable.append(window)
        if not listed.complete:
            result.incomplete.append((window, str(listed.error or "a page could not be had")))
        if listed.listing.unreadable:
            result.unreadable_entries.append((window, listed.listing.unreadable))

    def finish(self) -> None:
        """No window is left that could list what was not listed."""
        for difference in self._unlisted.values():
            self._result.add(difference)
        self._result.sort()


def _difference(
    call: Call, found: Standing | None, window: Window, view: View
) -> Difference | None:
    """What is to be said of a call that the source lists; None where all is well."""

    def told(name: Name, **fields: Any) -> Difference:
        return Difference(name, call.id, window, fields)

    if found is None:
        if call.id in view.pending:
            return told("pending", listed=True)
        return told("missing", window_sealed=view.is_sealed)
    if found.outcome == "failed":
        return told("failed", reason=found.reason, record=found.key, sealed=found.is_sealed)
    if not found.is_sealed:
        return told("unsealed", outcome=found.outcome, record=found.key)
    values = {
        "duration_seconds": (found.duration_seconds, call.duration_seconds),
        "state": (found.state, call.state),
    }
    differing = {
        field: {"archive": ours, "source": theirs}
        for field, (ours, theirs) in values.items()
        if theirs is not None and theirs != ours
    }
    return told("differs", differences=differing, record=found.key) if differing else None


def _unlisted(call_id: str, window: Window, view: View, asked: Mapping[str, Any]) -> Difference:
    """What is to be said of a call that the archive tells of and the source does not list, being
    `asked` for what the filter has."""
    found = view.found.get(call_id)
    if found is None and call_id in view.pending:
        return Difference("pending", call_id, window, {"listed": False})
    outcome, key = (found.outcome, found.key) if found else (None, None)
    asked_for = filters.asks_for(asked, found.filtered if found else {})
    told = {"outcome": outcome, "record": key, "asked_for": asked_for}
    return Difference("gone", call_id, window, told)
