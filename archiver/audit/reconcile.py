"""Lists the source again and compares it with the archive: what one has and the other lacks.

- The source's side of a window is its listing: the calls that two passes agreed on, and those that
  one pass has seen. The archive's side is what the window's sealed segments say, all revisions
  together.
- A call is looked for beyond its window before it counts as missing: in the windows beside it and
  in those of its own times, because a source may list it elsewhere now; then as a record object
  that no sealed segment names yet.
- A call of the archive that its window's listing lacks is reported only where no other window of
  the range lists it. Where its window was listed with another filter than now, the source may
  still have it and not have been asked for it.
- One bad item never stops the rest. A window that cannot be listed, an entry that is no call, a
  segment or a record that cannot be read is reported, and all else is compared. A window whose own
  segments cannot be read is not judged.

Nothing is written. Memory holds the few windows that are listed ahead, the few whose segments were
read last, and what is to be reported.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal, Protocol, get_args

from archiver.audit.safe_reader import ItemReader, Reader
from archiver.audit.sealed_segments import SealedSegments
from archiver.audit.segment_lines import MAX_RECORD_BYTES, lines_of, parse_record, read_window
from archiver.audit.tables import printable
from archiver.core.concurrency import ordered
from archiver.core.errors import ArchiverError, FormatError, Reach, UsageError
from archiver.core.model import Call, Window, format_time, parse_time, window_of, windows_between
from archiver.manifest import canonical, layout
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Outcome, Record
from archiver.manifest.seal import check_window_length
from archiver.manifest.segment import Listing

LISTED_AT_ONCE = 4
WINDOWS_KEPT = 4
DAYS_KEPT = 3
ASKED_ONE_BY_ONE = 100
"""So many calls of a day are looked for one by one; for more, the whole day is listed."""
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)

Class = Literal["missing", "pending", "failed", "differs", "unsealed", "gone"]
CLASSES: tuple[Class, ...] = get_args(Class)
LACKING: tuple[Class, ...] = ("missing", "pending", "failed")
"""The archive lacks the recording of these."""
COUNTS = {
    "source": "source",
    "archived": "archived",
    "no_recording": "no recording",
    "failed": "failed",
    "pending": "pending",
    "missing": "missing",
    "unsealed": "unsealed",
    "gone": "gone",
    "differs": "differ",
}
"""What is counted, and the title of its column."""
SHOWN = 20
"""Calls of a class that the text shows; `--json` has all of them."""
FILTER_CHARACTERS = 200
"""What the text shows of a filter."""


class WindowListing(Protocol):
    """What the source lists of a window (`source/listing.py`)."""

    @property
    def window(self) -> Window: ...

    @property
    def calls(self) -> Mapping[str, Call]:
        """What it lists of the window, by id."""

    @property
    def seen_once(self) -> Mapping[str, Call]:
        """Calls that one pass has seen and the passes that agreed have not."""

    @property
    def other_windows(self) -> Mapping[Window, Mapping[str, Call]]:
        """Calls of other windows, which list them too."""

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

    def list(self, window: Window) -> WindowListing: ...


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
    span = Window(first, first + count * options.length)
    result = Result(span, genesis.archive if genesis else None)

    def list_window(window: Window) -> WindowListing | tuple[Window, str]:
        """What the source lists; or the window and why it cannot, while it answers others."""
        try:
            return lister.list(window)
        except ArchiverError as error:
            if error.reach not in (Reach.ITEM, Reach.WINDOW):
                raise
            return window, str(error)

    pool = ThreadPoolExecutor(LISTED_AT_ONCE, thread_name_prefix="list")
    try:
        with closing(ArchiveLookup(reader, segments, options)) as lookup:
            comparison = _Comparison(result)
            for done, listed in enumerate(ordered(pool, list_window, windows, LISTED_AT_ONCE), 1):
                if isinstance(listed, tuple):
                    result.unlisted.append(listed)
                else:
                    calls = {**listed.seen_once, **listed.calls}
                    view = lookup.look(listed.window, calls) if genesis else WindowView()
                    comparison.compare(listed, calls, view)
                if progress is not None:
                    progress.windows(done, count)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    comparison.finish()
    return result


class _Comparison:
    """Compares the windows in order, because a later one may list what an earlier one lacks."""

    def __init__(self, result: Result) -> None:
        self._result = result
        self._unlisted: dict[str, Difference] = {}
        """Calls of the archive that no window has listed so far."""
        self._listed_before: AbstractSet[str] = frozenset()
        """The calls that the window before lists."""

    def compare(self, listed: WindowListing, calls: Mapping[str, Call], view: WindowView) -> None:
        """Compare the calls that the source lists in a window with what the archive has.

        1. Note what the listing says of itself, and what of the archive could not be read.
        2. Classify each call that is listed; where the window's segments cannot be read, none.
        3. Keep what the archive has and the listing lacks. Of a listing that is not complete
           nothing is kept: it may stand on the page that could not be had.
        """
        window, result = listed.window, self._result
        before, self._listed_before = self._listed_before, calls.keys()
        row = result.row(window)
        # 1. The listing, the archive's damages.
        row["source"] += len(calls)
        if not listed.stable:
            result.unstable.append(window)
        if not listed.complete:
            result.incomplete.append((window, str(listed.error or "a page could not be had")))
        if listed.listing.unreadable:
            result.unreadable_entries.append((window, listed.listing.unreadable))
        for problem in view.damages:
            result.unreadable.setdefault(problem, window)
        # 2. What is listed.
        for call_id in calls:
            self._unlisted.pop(call_id, None)
        if not view.is_known:
            return
        asked = listed.listing.filter
        result.filter = filter_text(asked)
        other_filters = view.filters - {result.filter}
        result.other_filters.update(other_filters)
        for call in calls.values():
            record = view.records.get(call.id)
            if record is not None and record.has_result:
                row[record.outcome] += 1
            if (difference := _difference(call, record, window, view)) is not None:
                result.add(difference)
        # 3. What is not listed.
        if not listed.complete:
            return
        elsewhere = {call_id for others in listed.other_windows.values() for call_id in others}
        for call_id in view.ids - calls.keys() - elsewhere - before:
            filter_now = asked if other_filters else {}
            self._unlisted[call_id] = _not_listed(call_id, window, view, filter_now)

    def finish(self) -> None:
        """Report the calls that no window has listed."""
        for difference in self._unlisted.values():
            self._result.add(difference)
        self._result.sort()


def _difference(
    call: Call, record: LatestRecord | None, window: Window, view: WindowView
) -> Difference | None:
    """What is to be said of a call that the source lists; None where all is well."""
    if record is None and call.id in view.pending:
        return Difference("pending", call.id, window, {"listed": True})
    if record is None:
        return Difference("missing", call.id, window, {"window_sealed": view.revision > 0})
    fields: dict[str, Any] = {"record": record.key}
    if record.outcome == "failed":
        fields |= {"reason": record.reason, "sealed": record.is_sealed}
        return Difference("failed", call.id, window, fields)
    if not record.is_sealed:
        return Difference("unsealed", call.id, window, fields | {"outcome": record.outcome})
    values = {
        "duration_seconds": (record.duration_seconds, call.duration_seconds),
        "state": (record.state, call.state),
    }
    differing = {
        field: {"archive": ours, "source": theirs}
        for field, (ours, theirs) in values.items()
        if theirs is not None and theirs != ours
    }
    if not differing:
        return None
    return Difference("differs", call.id, window, fields | {"differences": differing})


def _not_listed(
    call_id: str, window: Window, view: WindowView, filter_now: Mapping[str, Any]
) -> Difference:
    """What is to be said of a call that the archive has and the source does not list now, being
    asked with this filter."""
    record = view.records.get(call_id)
    if record is None and call_id in view.pending:
        return Difference("pending", call_id, window, {"listed": False})
    fields = {
        "asked_for": asks_for(filter_now, record.filtered if record else {}),
        "outcome": record.outcome if record else None,
        "record": record.key if record else None,
    }
    return Difference("gone", call_id, window, fields)


def filter_text(document: object) -> str:
    """The same ASCII text for the same filter, in whatever order it names its states. JSON."""
    states = document.get("state") if isinstance(document, dict) else None
    if isinstance(states, list) and all(isinstance(state, str) for state in states):
        document = {**document, "state": sorted(set(states))}  # type: ignore[dict-item]
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def asks_for(filter_now: Mapping[str, Any], call: Mapping[str, str | None]) -> bool:
    """Whether a filter certainly asks for a call, of which `call` has the `state`, `campaign_id`
    and `direction`: what is not known of it, the source may not have known either."""
    for name, wanted in filter_now.items():
        value, among = call.get(name), wanted if isinstance(wanted, list) else [wanted]
        if value is None or value.casefold() not in {str(one).casefold() for one in among}:
            return False
    return True


# --- what the archive knows


@dataclass(frozen=True, slots=True)
class LatestRecord:
    """What is kept of a call's latest record. `is_sealed`: a sealed segment has it."""

    outcome: Outcome
    revision: int
    key: str
    reason: str | None
    state: str | None
    campaign_id: str | None
    direction: str | None
    duration_seconds: int | float | None
    is_sealed: bool

    @classmethod
    def of(cls, record: Record, *, is_sealed: bool) -> LatestRecord:
        def text(name: str) -> str | None:
            value = record.document.get(name)
            return sys.intern(value) if isinstance(value, str) else None  # many calls share it

        seconds = record.document.get("duration_seconds")
        return cls(
            record.outcome,
            record.revision,
            record.key,
            text("reason"),
            text("state"),
            text("campaign_id"),
            text("direction"),
            seconds if isinstance(seconds, int | float) else None,
            is_sealed,
        )

    @property
    def has_result(self) -> bool:
        """Whether nobody need look further for the call."""
        return self.outcome != "failed" and self.is_sealed

    @property
    def filtered(self) -> dict[str, str | None]:
        """The fields that a listing's filter may be about."""
        return {name: getattr(self, name) for name in ("state", "campaign_id", "direction")}


@dataclass
class WindowView:
    """What the archive knows of the calls of a window."""

    revision: int = 0
    """The newest sealed revision; 0 where none is sealed."""
    records: dict[str, LatestRecord] = field(default_factory=dict)
    """By call id."""
    pending: AbstractSet[str] = frozenset()
    ids: AbstractSet[str] = frozenset()
    """Every id that the window's own segments name."""
    filters: set[str] = field(default_factory=set)
    """What its listings asked for, as `filter_text`."""
    is_known: bool = True
    """False where the window's own segments could not all be read."""
    damages: dict[str, None] = field(default_factory=dict)
    """What could not be read on the way, one line each."""

    def add(self, call_id: str, new: LatestRecord) -> None:
        """Keep the newer of two records; of two of one revision, the one with a result."""
        old = self.records.get(call_id)
        if old is None or (new.revision, new.has_result) > (old.revision, old.has_result):
            self.records[call_id] = new

    def unresolved(self, calls: Mapping[str, Call]) -> dict[str, Call]:
        """Those of the calls that have no result in a sealed segment so far."""
        return {
            call_id: call
            for call_id, call in calls.items()
            if not ((record := self.records.get(call_id)) and record.has_result)
        }


class ArchiveLookup:
    """Looks up calls in the archive. One thread uses it; close it after use."""

    def __init__(self, reader: Reader, segments: SealedSegments, options: Options) -> None:
        self._reader = reader
        self._segments = segments
        self._length = options.length
        self._ahead = 2 * options.workers
        self._executor = ThreadPoolExecutor(options.workers, thread_name_prefix="records")
        # Neighbours are asked for again.
        self._sealed = lru_cache(WINDOWS_KEPT)(self._read_window)
        self._names = lru_cache(DAYS_KEPT)(self._list_day)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def look(self, window: Window, calls: Mapping[str, Call]) -> WindowView:
        """What is known of `calls`, which the source lists in `window`, and of all that the window
        itself names. What is damaged is in the view; raises `UsageError` and `StoreError`.

        1. The window's own sealed segments. A call that has its result there is not looked for
           any further.
        2. The sealed segments of the windows beside it, and of those of the call's own times.
        3. Record objects: the record's own time says in which window it may be sealed, if it is.
        """
        # 1. Its own segments.
        try:
            sealed = self._sealed(window)
        except FormatError as error:
            return WindowView(is_known=False, damages={str(error): None})
        view = replace(
            sealed, records=dict(sealed.records), pending=set(sealed.pending), damages={}
        )
        wanted = {call_id: Call(call_id, {}) for call_id in sealed.pending} | dict(calls)
        # 2. Other windows.
        others = self._other_windows(window, view.unresolved(wanted))
        for other, ids in sorted(others.items()):
            there = self._sealed_or_damaged(other, view)
            for call_id in ids & there.records.keys():
                view.add(call_id, there.records[call_id])
            view.pending |= ids & there.pending
        # 3. Record objects.
        for call_id, record in self._record_objects(window, view.unresolved(wanted), view).items():
            home = self._window_of(parse_time(record.document.get("started_at")))
            there = self._sealed_or_damaged(home, view) if home else WindowView()
            known = there.records.get(call_id)
            is_sealed = known is not None and known.key == record.key
            view.add(call_id, LatestRecord.of(record, is_sealed=is_sealed))
        return view

    def _other_windows(self, window: Window, calls: Mapping[str, Call]) -> dict[Window, set[str]]:
        """The other windows to look into, each with the calls that may be there."""
        others: dict[Window, set[str]] = {}
        if calls:
            others[Window(window.end, window.end + self._length)] = set(calls)
            if window.start > FIRST_MOMENT:
                others[Window(window.start - self._length, window.start)] = set(calls)
        for call_id, call in calls.items():
            for moment in (call.own_time, call.created_at):
                home = self._window_of(moment)
                if home is not None and home != window:
                    others.setdefault(home, set()).add(call_id)
        return others

    def _window_of(self, moment: datetime | None) -> Window | None:
        """None also for a moment whose window would reach beyond the calendar."""
        try:
            return window_of(moment, self._length) if moment is not None else None
        except OverflowError:
            return None

    # --- sealed segments

    def _sealed_or_damaged(self, window: Window, view: WindowView) -> WindowView:
        """What another window's sealed segments say: nothing, where they are damaged."""
        try:
            return self._sealed(window)
        except FormatError as error:
            view.damages[str(error)] = None
            return WindowView()

    def _list_day(self, day: date) -> Mapping[datetime, list[SegmentName]]:
        groups = groupby(self._segments.names(day), key=lambda name: name.start)
        return {start: list(names) for start, names in groups}

    def _read_window(self, window: Window) -> WindowView:
        """Read the sealed revisions of a window, oldest first. Raises `FormatError` where one is
        not as it was sealed, and `UsageError` where the archive has a window of another length."""
        view, vanished = WindowView(), frozenset[str]()
        for name in self._names(window.start.date()).get(window.start, ()):
            sealed = self._segments.entry(name)
            if sealed is None:
                continue
            if name.revision != view.revision + 1:
                raise FormatError(f"a revision before {name.jsonl} is missing: run archiver verify")
            view.revision, last = name.revision, b""
            entry, _ = sealed
            with self._segments.open(entry) as file:
                try:
                    for number, line in enumerate(lines_of(file)):
                        if number < entry.records:
                            record = parse_record(line)
                            known = view.records.get(record.call_id)
                            if known is None or record.revision >= known.revision:
                                latest = LatestRecord.of(record, is_sealed=True)
                                view.records[record.call_id] = latest
                        last = line
                    window_line = canonical.load_object(last)
                    found = read_window(window_line)
                except FormatError as error:
                    raise FormatError(f"{entry.key}: {error}; run archiver verify") from None
            if found != window:
                raise UsageError(
                    f"the archive has a window {found} where ARCHIVER_WINDOW makes {window}: set "
                    "ARCHIVER_WINDOW to the length that the archive has"
                )
            view.pending = frozenset(window_line["pending"])
            vanished = frozenset(window_line["vanished"])
            view.filters.add(filter_text(window_line.get("filter")))
        view.ids = view.records.keys() | view.pending | vanished
        return view

    # --- record objects

    def _record_objects(
        self, window: Window, calls: Mapping[str, Call], view: WindowView
    ) -> dict[str, Record]:
        """The latest record object of each call that has one newer than the view's, sealed or not.

        A record that is damaged or cannot be read is noted, and the one before it counts. What this
        costs: a LIST for each call and each day where its record may lie, or for many calls of one
        day one LIST of that day; and a GET for each record. Raises `StoreError`.
        """
        by_day: dict[date, dict[str, str]] = {}
        for wanted, call in calls.items():
            for moment in (call.own_time, call.created_at, window.start):
                if moment is not None:
                    by_day.setdefault(moment.date(), {})[layout.call_dir(wanted)] = wanted
        found: dict[str, list[tuple[int, str]]] = {}
        for day, ids in by_day.items():
            for call_id, revision, key in self._list_records(day, ids, view):
                known = view.records.get(call_id)
                if known is None or revision > known.revision:
                    found.setdefault(call_id, []).append((revision, key))

        def read_latest(keys: list[tuple[int, str]]) -> Record | None:
            for _, key in sorted(keys, reverse=True):
                try:
                    return self._read_record(key)
                except FormatError as error:
                    view.damages[str(error)] = None
            return None

        records = ordered(self._executor, read_latest, found.values(), self._ahead)
        return {
            call_id: record
            for call_id, record in zip(found, records, strict=True)
            if record is not None
        }

    def _list_records(
        self, day: date, ids: Mapping[str, str], view: WindowView
    ) -> Iterator[tuple[str, int, str]]:
        """Call id, revision and key of each record that these calls have on a day; `ids` are by
        the calls' directories."""

        def list_keys(prefix: str) -> list[str]:
            keys: list[str] = []
            try:
                keys.extend(item.key for item in self._reader.list(prefix))
            except FormatError as error:
                view.damages[str(error)] = None
            return keys

        prefix = layout.record_prefix(day)
        prefixes = [prefix]
        if len(ids) <= ASKED_ONE_BY_ONE:
            prefixes = [f"{prefix}{call_dir}/" for call_dir in ids]
        for keys in ordered(self._executor, list_keys, prefixes, self._ahead):
            for key in keys:
                parsed = layout.parse_record_key(key)
                if parsed is not None and parsed[1] in ids:
                    yield ids[parsed[1]], parsed[2], key

    def _read_record(self, key: str) -> Record:
        data = self._reader.read(key, None, MAX_RECORD_BYTES)
        try:
            return parse_record(data or b"")
        except FormatError as error:
            raise FormatError(f"{key}: {error}; run archiver verify") from None


# --- the result


@dataclass(frozen=True)
class Difference:
    """A call that is not simply archived, and the window that it belongs to. `fields` are:

    missing   window_sealed: whether the window has a sealed segment
    pending   listed: whether the source lists it still
    failed    reason, record; sealed: whether a sealed segment has the record
    differs   differences: field → {archive, source}; record
    unsealed  outcome, record: there is a record, and no sealed segment that has it
    gone      outcome, record: both None where no record was ever made; asked_for: False where its
              window was listed with another filter, and this one need not ask for it
    """

    name: Class
    call_id: str
    window: Window
    fields: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        return {
            "call_id": self.call_id,
            "window": format_time(self.window.start),
            **self.fields,
        }


@dataclass
class Result:
    """A reconciliation. `span` is the range, whole windows; `archive` None where there is none.

    Of each window `source = archived + no_recording + failed + pending + missing + unsealed`, but
    for pending calls that the source does not list (`listed` false), and for windows whose own
    segments cannot be read, of which only `source` is counted. `gone` calls are beyond that sum,
    and those that `differ` are among the archived and no_recording ones.
    """

    span: Window
    archive: str | None
    days: dict[str, Counter[str]] = field(default_factory=dict)
    differences: dict[Class, list[Difference]] = field(default_factory=dict)
    unstable: list[Window] = field(default_factory=list)
    """Windows whose listing kept changing: what is said of them is not certain."""
    unlisted: list[tuple[Window, str]] = field(default_factory=list)
    """Windows that the source does not list, and why: nothing is known of them."""
    incomplete: list[tuple[Window, str]] = field(default_factory=list)
    """Windows of which a page could not be had, and why."""
    unreadable_entries: list[tuple[Window, int]] = field(default_factory=list)
    """Windows with entries that are no calls, and how many."""
    unreadable: dict[str, Window] = field(default_factory=dict)
    """Objects of the archive that are damaged or cannot be read, a line each, with the window that
    needed them first."""
    filter: str = "null"
    """What the source was asked for (`filter_text`)."""
    other_filters: Counter[str] = field(default_factory=Counter)
    """What it was asked for when the archive listed, where that differs: in how many windows."""

    def row(self, window: Window) -> Counter[str]:
        """The counts of the day that the window starts on."""
        return self.days.setdefault(window.start.date().isoformat(), Counter())

    def add(self, difference: Difference) -> None:
        self.differences.setdefault(difference.name, []).append(difference)
        self.row(difference.window)[difference.name] += 1

    def sort(self) -> None:
        for found in self.differences.values():
            found.sort(key=lambda one: (one.window, one.call_id))

    @property
    def total(self) -> Counter[str]:
        return sum(self.days.values(), Counter())

    @property
    def lacking(self) -> int:
        """Calls whose recording the archive lacks."""
        return sum(len(self.differences.get(name, ())) for name in LACKING)

    @property
    def perhaps_not_asked_for(self) -> int:
        """Calls that are gone, or were not asked for: nobody can tell."""
        return sum(not one.fields["asked_for"] for one in self.differences.get("gone", ()))

    @property
    def ok(self) -> bool:
        return self.archive is not None and not (
            self.lacking
            or self.perhaps_not_asked_for
            or self.unstable
            or self.unlisted
            or self.incomplete
            or self.unreadable_entries
            or self.unreadable
        )

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def document(self) -> dict[str, Any]:
        """The form of `--json` (docs/auditor-guide.md)."""

        def counts(row: Mapping[str, int]) -> dict[str, int]:
            return {name: row.get(name, 0) for name in COUNTS}

        def problems(rows: Iterable[tuple[Window, str]]) -> list[dict[str, str]]:
            return [{"problem": text, "window": format_time(w.start)} for w, text in rows]

        return {
            "type": "reconcile",
            "v": 1,
            "ok": self.ok,
            "archive": self.archive,
            "from": format_time(self.span.start),
            "to": format_time(self.span.end),
            "days": [{"day": day, **counts(row)} for day, row in sorted(self.days.items())],
            "total": counts(self.total),
            "unstable": [format_time(window.start) for window in self.unstable],
            "unlisted": problems(self.unlisted),
            "incomplete": problems(self.incomplete),
            "unreadable_entries": [
                {"entries": count, "window": format_time(window.start)}
                for window, count in self.unreadable_entries
            ],
            "unreadable_objects": problems((w, text) for text, w in self.unreadable.items()),
            "filter": json.loads(self.filter),
            "other_filters": [
                {"filter": json.loads(text), "windows": count}
                for text, count in sorted(self.other_filters.items())
            ],
            **{n: [one.document() for one in self.differences.get(n, ())] for n in CLASSES},
        }


def as_json(result: Result) -> str:
    """`Result.document` as one line of JSON, keys sorted; ASCII, because the ids are another's."""
    return json.dumps(result.document(), sort_keys=True, separators=(",", ":")) + "\n"


def as_text(result: Result) -> str:
    """Table, calls, notes and verdict, in this order; ends with a newline."""
    lines = [*_table(result), *_rows(result), *_notes(result), _verdict(result)]
    return "\n".join(lines) + "\n"


def _table(result: Result) -> Iterator[str]:
    rows = [*sorted(result.days.items()), ("total", result.total)]
    widths = {
        name: max(len(title), *(len(f"{row[name]:,}") for _, row in rows))
        for name, title in COUNTS.items()
    }
    yield "  ".join([f"{'day':10}", *(title.rjust(widths[n]) for n, title in COUNTS.items())])
    for day, row in rows:
        yield "  ".join([f"{day:10}", *(f"{row[name]:{widths[name]},}" for name in COUNTS)])


def _rows(result: Result) -> Iterator[str]:
    """The calls of each class, then the windows and objects that something is wrong with; of each
    kind at most `SHOWN`."""
    kinds: dict[str, list[tuple[Window, str]]] = {
        name: [(one.window, printable(one.call_id) + _detail(one, result)) for one in found]
        for name in CLASSES
        if (found := result.differences.get(name))
    }
    kinds["unstable"] = [(window, "its listing kept changing") for window in result.unstable]
    kinds["unlisted"] = [(window, printable(text)) for window, text in result.unlisted]
    kinds["partial"] = [(window, printable(text)) for window, text in result.incomplete]
    kinds["entries"] = [
        (window, f"{_entries(count)} could not be read")
        for window, count in result.unreadable_entries
    ]
    kinds["damaged"] = [(window, printable(text)) for text, window in result.unreadable.items()]
    for name, rows in kinds.items():
        if rows:
            yield ""
        for window, text in rows[:SHOWN]:
            yield f"{name:8}  {format_time(window.start)}  {text}"
        if len(rows) > SHOWN:
            yield f"{name:8}  … and {len(rows) - SHOWN:,} more (--json lists all)"
    yield ""


def _detail(one: Difference, result: Result) -> str:
    """What stands behind a call's id, in brackets; nothing where there is nothing to say."""
    fields, text = one.fields, ""
    match one.name:
        case "missing":
            if result.archive is not None and not fields["window_sealed"]:
                text = "its window is not sealed"
        case "pending":
            text = "" if fields["listed"] else "the source does not list it any more"
        case "failed":
            text = printable(str(fields["reason"])) + ("" if fields["sealed"] else ", not sealed")
        case "differs":
            changes = fields["differences"].items()
            text = "; ".join(f"{field}: {_both(values)}" for field, values in changes)
        case "gone":
            text = fields["outcome"] or "it was never archived"
            text += "" if fields["asked_for"] else "; perhaps not asked for"
        case "unsealed":
            text = str(fields["outcome"])
    return f"  ({text})" if text else ""


def _both(values: Mapping[str, Any]) -> str:
    ours = "nothing" if values["archive"] is None else printable(str(values["archive"]))
    return f"{ours} in the archive, {printable(str(values['source']))} at the source"


def _notes(result: Result) -> Iterator[str]:
    def cut(text: str) -> str:
        return text if len(text) <= FILTER_CHARACTERS else text[:FILTER_CHARACTERS] + "…"

    others = sorted(result.other_filters.items())
    for text, count in others[:SHOWN]:
        were = "were" if count != 1 else "was"
        yield (
            f"note: {_windows(count)} of the archive {were} listed with another filter: "
            f"{cut(text)}; this listing had {cut(result.filter)}"
        )
    if len(others) > SHOWN:
        yield f"note: {len(others) - SHOWN:,} more filters (--json lists all)"


def _verdict(result: Result) -> str:
    total = result.total
    parts = list(_complaints(result))
    if result.ok:
        text = f"the archive has a result for each of the {total['source']:,} calls listed"
        unsealed = f", {total['unsealed']:,} of them not sealed yet" if total["unsealed"] else ""
        parts = [text + unsealed]
    beyond = [f"{total['gone']:,} gone"] if total["gone"] else []
    if total["differs"]:
        beyond.append(f"{total['differs']:,} differ" + ("s" if total["differs"] == 1 else ""))
    if beyond:
        parts.append(", ".join(beyond))
    return ("OK: " if result.ok else "NOT OK: ") + "; ".join(parts)


def _complaints(result: Result) -> Iterator[str]:
    total = result.total
    if result.archive is None:
        yield "there is no archive here yet (no seal 0)"
    if result.lacking:
        counts = ", ".join(f"{total[name]:,} {name}" for name in LACKING if total[name])
        yield f"the archive lacks the recordings of {_calls(result.lacking)} ({counts})"
    if result.perhaps_not_asked_for:
        were = "were" if result.perhaps_not_asked_for != 1 else "was"
        yield (
            f"{_calls(result.perhaps_not_asked_for)} of the archive {were} perhaps not asked for: "
            "set ARCHIVER_STATES, ARCHIVER_CAMPAIGN_ID and ARCHIVER_DIRECTION as they were then"
        )
    if result.unstable:
        yield f"the listing of {_windows(len(result.unstable))} kept changing"
    if result.unlisted:
        yield f"the source does not list {_windows(len(result.unlisted))}"
    if result.incomplete:
        yield f"the source lists {_windows(len(result.incomplete))} only in part"
    if result.unreadable_entries:
        count = sum(entries for _, entries in result.unreadable_entries)
        yield f"{_entries(count)} of the listing could not be read as calls"
    if result.unreadable:
        count = len(result.unreadable)
        objects = f"{count:,} objects" if count != 1 else "1 object"
        yield f"{objects} of the archive could not be read: run archiver verify"


def _entries(count: int) -> str:
    return f"{count:,} " + ("entries" if count != 1 else "entry")


def _calls(count: int) -> str:
    return f"{count:,} call" + ("s" if count != 1 else "")


def _windows(count: int) -> str:
    return f"{count:,} window" + ("s" if count != 1 else "")
