"""Lists the source again and compares the listings with the archive, window by window.

- The source's side of a window is its listing: the calls that two passes agreed on, and those that
  only one pass returned. The archive's side is all sealed revisions of the window together.
- Before a call counts as missing, it is searched in the neighbouring windows and in the windows of
  its own times, because the source may have listed it there before; then as a record that no sealed
  segment names yet.
- A call of the archive that the listing of its window lacks is reported only if no other window of
  the range lists it. If its window was listed with another filter then, the source may still have
  the call, and the present filter excludes it.
- One bad item never stops the rest. A window that cannot be listed, an entry that is no call, and a
  segment or record that cannot be read are reported, and everything else is compared. A window
  whose own segments cannot be read is not compared.

Nothing is written. Memory holds a few windows that are listed ahead, the few windows whose segments
were read last, and the differences.
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
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol, get_args

from archiver.audit.chain import SealedSegments
from archiver.audit.findings import counted
from archiver.audit.safe_reader import Damages, ItemReader, Reader, naming
from archiver.audit.segment_lines import (
    lines_of,
    load_window_line,
    parse_record,
)
from archiver.audit.tables import printable
from archiver.core.concurrency import ordered
from archiver.core.errors import ArchiverError, FormatError, Reach, UsageError
from archiver.core.model import Call, Window, format_time, parse_time, window_of, windows_between
from archiver.manifest import layout
from archiver.manifest.record import Outcome, Record
from archiver.manifest.seal import check_window_length
from archiver.manifest.segment import Listing

LISTED_AT_ONCE = 4
WINDOWS_KEPT = 4
DAYS_KEPT = 3
ASKED_ONE_BY_ONE = 100
"""Up to so many calls of a day are searched with a LIST each; for more, the whole day is listed."""
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)

DifferenceKind = Literal["missing", "pending", "failed", "differs", "unsealed", "gone"]
CLASSES: tuple[DifferenceKind, ...] = get_args(DifferenceKind)
LACKING: tuple[DifferenceKind, ...] = ("missing", "pending", "failed")
"""The classes of calls whose recording the archive lacks."""
COUNTS = (
    "source", "archived", "no_recording", "failed", "pending", "missing", "unsealed", "gone",
    "differs",
)  # fmt: skip
TITLES = {"no_recording": "no recording", "differs": "differ"}
"""Titles of the table's columns, where they differ from the name of the count."""
SHOWN = 20
"""Rows of each kind that the text shows; `--json` has all of them."""
FILTER_CHARACTERS = 200
"""The text shows at most so many characters of a filter."""


class ListedWindow(Protocol):
    """A window's listing: a part of `source.listing.WindowListing`."""

    @property
    def window(self) -> Window: ...
    @property
    def calls(self) -> Mapping[str, Call]: ...
    @property
    def seen_once(self) -> Mapping[str, Call]: ...
    @property
    def other_windows(self) -> Mapping[Window, Mapping[str, Call]]: ...
    @property
    def listing(self) -> Listing: ...
    @property
    def stable(self) -> bool: ...
    @property
    def complete(self) -> bool: ...
    @property
    def error(self) -> Exception | None: ...


class WindowLister(Protocol):
    """Lists windows. Threads share it. Raises `ListingError` if the listing of one window fails,
    and `SourceRefused` or `SourceError` if the source refuses everything or is unreachable."""

    def list(self, window: Window) -> ListedWindow: ...


class ReconcileProgress(Protocol):
    def windows(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class ReconcileOptions:
    """The range, which is extended to whole windows of `length`; and the number of concurrent
    requests to the store."""

    start: datetime
    end: datetime
    length: timedelta
    workers: int = 8


def reconcile(
    lister: WindowLister,
    reader: Reader,
    options: ReconcileOptions,
    progress: ReconcileProgress | None = None,
) -> Result:
    """Compare the source with the archive, window by window, in order.

    Raises `SourceError` or `StoreError` if the source or the store is unreachable or refuses
    everything, `FormatError` if seal 0 cannot be read, and `UsageError` if the archive has windows
    of another length.

    1. List a window (a few are listed ahead), and look its calls up in the archive.
    2. Count the calls, and note problems of the listing and unreadable objects of the archive.
    3. Classify each listed call, unless the window's segments cannot be read.
    4. Keep the calls that the archive has and the listing lacks, unless the listing is incomplete:
       they may be on the missing page. A later window may still list them.
    5. At the end, report the kept calls that no other window lists.
    """
    items = ItemReader(reader)
    segments = SealedSegments(items)
    genesis = segments.genesis()
    if genesis is not None:
        check_window_length(genesis, options.length)
    first = window_of(options.start, options.length).start
    count = -((first - options.end) // options.length)  # rounded up
    windows = windows_between(options.start, options.end, options.length)
    span = Window(first, first + count * options.length)
    result = Result(span, genesis.archive if genesis else None)
    not_listed: dict[str, Difference] = {}
    """Calls of the archive that no window has listed so far."""
    before: AbstractSet[str] = frozenset()
    """The calls that the previous window lists."""

    def list_window(window: Window) -> ListedWindow | tuple[Window, str]:
        """Return the listing; or the window and the error, if the error concerns only this
        window."""
        try:
            return lister.list(window)
        except ArchiverError as error:
            if error.reach not in (Reach.ITEM, Reach.WINDOW):
                raise
            return window, str(error)

    pool = ThreadPoolExecutor(LISTED_AT_ONCE, thread_name_prefix="list")
    try:
        with closing(ArchiveLookup(items, segments, options)) as lookup:
            for done, listed in enumerate(ordered(pool, list_window, windows, LISTED_AT_ONCE), 1):
                if progress is not None:
                    progress.windows(done, count)
                # 1. The source and the archive.
                if isinstance(listed, tuple):
                    result.unlisted.append(listed)
                    continue
                window, calls = listed.window, {**listed.seen_once, **listed.calls}
                view = lookup.look_up(window, calls) if genesis else WindowView()
                # 2. The counts and the problems.
                row = result.row(window)
                row["source"] += len(calls)
                if not listed.stable:
                    result.unstable.append(window)
                if not listed.complete:
                    why = str(listed.error or "a page could not be had")
                    result.incomplete.append((window, why))
                if listed.listing.unreadable:
                    result.unreadable_entries.append((window, listed.listing.unreadable))
                for problem in view.damages:
                    result.unreadable.setdefault(problem, window)
                # 3. The listed calls.
                listed_before, before = before, calls.keys()
                for call_id in calls:
                    not_listed.pop(call_id, None)
                if not view.is_known:
                    continue
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
                # 4. The calls that are not listed.
                if not listed.complete:
                    continue
                # The source returned these calls here, but they belong to other windows.
                elsewhere = {
                    call_id for others in listed.other_windows.values() for call_id in others
                }
                for call_id in view.ids - calls.keys() - elsewhere - listed_before:
                    filter_now = asked if other_filters else {}
                    not_listed[call_id] = _not_listed(call_id, window, view, filter_now)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    # 5. The calls that no window lists.
    for difference in not_listed.values():
        result.add(difference)
    for found in result.differences.values():
        found.sort(key=lambda one: (one.window, one.call_id))
    return result


def _difference(
    call: Call, record: ArchivedRecord | None, window: Window, view: WindowView
) -> Difference | None:
    """Classify a call that the source lists; None if the archive agrees with the source."""
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
    """Classify a call that the archive has and the source does not list. `filter_now` is the
    present filter; it is empty if all earlier listings had the same one."""
    record = view.records.get(call_id)
    if record is None and call_id in view.pending:
        return Difference("pending", call_id, window, {"listed": False})
    fields = {
        "asked_for": asks_for(filter_now, record._asdict() if record else {}),
        "outcome": record.outcome if record else None,
        "record": record.key if record else None,
    }
    return Difference("gone", call_id, window, fields)


def filter_text(document: object) -> str:
    """Return a filter as ASCII JSON, with sorted states, so that equal filters have equal texts."""
    states = document.get("state") if isinstance(document, dict) else None
    if isinstance(states, list) and all(isinstance(state, str) for state in states):
        document = {**document, "state": sorted(set(states))}  # type: ignore[dict-item]
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def asks_for(filter_now: Mapping[str, Any], call: Mapping[str, Any]) -> bool:
    """Whether a filter certainly matches a call with this `state`, `campaign_id` and `direction`.
    A field that is not known does not match: the source may not have known it either."""
    for name, wanted in filter_now.items():
        value, among = call.get(name), wanted if isinstance(wanted, list) else [wanted]
        if value is None or value.casefold() not in {str(one).casefold() for one in among}:
            return False
    return True


# --- the archive's side


class ArchivedRecord(NamedTuple):
    """The fields of a call's latest record that are compared. `is_sealed`: a sealed segment names
    the record."""

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
    def of(cls, record: Record, *, is_sealed: bool) -> ArchivedRecord:
        def text(name: str) -> str | None:
            value = record.document.get(name)
            return sys.intern(value) if isinstance(value, str) else None  # saves memory

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
        """Whether the call needs no further search."""
        return self.outcome != "failed" and self.is_sealed


@dataclass
class WindowView:
    """The state of a window's calls in the archive."""

    revision: int = 0
    """The newest sealed revision; 0 if none is sealed."""
    records: dict[str, ArchivedRecord] = field(default_factory=dict)
    """By call id."""
    pending: AbstractSet[str] = frozenset()
    ids: AbstractSet[str] = frozenset()
    """Every id that the window's own segments name."""
    filters: set[str] = field(default_factory=set)
    """The filters of its listings, as `filter_text` returns them."""
    is_known: bool = True
    """Whether all of the window's own segments could be read."""
    damages: Damages = field(default_factory=Damages)

    def add(self, call_id: str, new: ArchivedRecord) -> None:
        """Keep the newer of two records; of two with the same revision, the one with a result."""
        old = self.records.get(call_id)
        if old is None or (new.revision, new.has_result) > (old.revision, old.has_result):
            self.records[call_id] = new

    def unresolved(self, calls: Mapping[str, Call]) -> dict[str, Call]:
        """Return the calls that have no result in a sealed segment so far."""
        return {
            call_id: call
            for call_id, call in calls.items()
            if not ((record := self.records.get(call_id)) and record.has_result)
        }


class ArchiveLookup:
    """Looks calls up in the archive. For one thread. Close it after use."""

    def __init__(
        self, reader: ItemReader, segments: SealedSegments, options: ReconcileOptions
    ) -> None:
        self._reader = reader
        self._segments = segments
        self._length = options.length
        self._ahead = 2 * options.workers
        self._executor = ThreadPoolExecutor(options.workers, thread_name_prefix="records")
        # Cached, because a window is read again as the neighbour of the next one.
        self._sealed = lru_cache(WINDOWS_KEPT)(self._read_window)
        self._segments_of = lru_cache(DAYS_KEPT)(segments.windows)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def look_up(self, window: Window, calls: Mapping[str, Call]) -> WindowView:
        """Return the state of `calls`, which the source lists in `window`, and of all calls that
        the window's segments name. `damages` names what is damaged. Raises `UsageError` and
        `StoreError`.

        1. Read the window's own sealed segments. A call with a result there needs no more search.
        2. Read the sealed segments of the neighbouring windows, and of those of a call's own times.
        3. Read record objects. The start time in a record names the window that may have sealed it.
        """
        # 1. Its own segments.
        try:
            sealed = self._sealed(window)
        except FormatError as error:
            return WindowView(is_known=False, damages=Damages({str(error): None}))
        view = replace(sealed, records=dict(sealed.records), damages=Damages())
        wanted = {call_id: Call(call_id, {}) for call_id in sealed.pending} | dict(calls)
        # 2. Other windows.
        others: dict[Window, set[str]] = {}
        if open_calls := view.unresolved(wanted):
            others[Window(window.end, window.end + self._length)] = set(open_calls)
            if window.start > FIRST_MOMENT:
                others[Window(window.start - self._length, window.start)] = set(open_calls)
        for call_id, call in open_calls.items():
            for moment in (call.own_time, call.created_at):
                home = self._window_of(moment)
                if home is not None and home != window:
                    others.setdefault(home, set()).add(call_id)
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
            view.add(call_id, ArchivedRecord.of(record, is_sealed=is_sealed))
        return view

    def _window_of(self, moment: datetime | None) -> Window | None:
        """Return the window of a moment; None also if it would reach beyond `datetime`'s range."""
        try:
            return window_of(moment, self._length) if moment is not None else None
        except OverflowError:
            return None

    # --- sealed segments

    def _sealed_or_damaged(self, window: Window, view: WindowView) -> WindowView:
        """Return the state of another window; an empty one if its segments are damaged, which is
        added to `view.damages`."""
        with view.damages:
            return self._sealed(window)
        return WindowView()

    def _read_window(self, window: Window) -> WindowView:
        """Read the sealed revisions of a window, oldest first. Raises `FormatError` if one is not
        as it was sealed, and `UsageError` if the archive has a window of another length there."""
        view, vanished = WindowView(), frozenset[str]()
        for name in self._segments_of(window.start.date()).get(window.start, ()):
            sealed = self._segments.entry(name)
            if sealed is None:
                continue
            if name.revision != view.revision + 1:
                raise FormatError(f"a revision before {name.jsonl} is missing: run archiver verify")
            view.revision, last, entry = name.revision, b"", sealed.entry
            with self._segments.open(entry) as file, naming(entry.key):
                for number, line in enumerate(lines_of(file)):
                    if number < entry.records:
                        record = parse_record(line)
                        known = view.records.get(record.call_id)
                        if known is None or record.revision >= known.revision:
                            latest = ArchivedRecord.of(record, is_sealed=True)
                            view.records[record.call_id] = latest
                    last = line
                window_line, found = load_window_line(last)
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
        """Return the latest record of each call that has one newer than the view's, sealed or not.

        A record that is damaged or cannot be read is added to `damages`, and the revision before it
        is returned. Takes a LIST for each call and each day that its record may be on, or one LIST
        of a whole day if many calls may be on it; and a GET for each record. Raises `StoreError`.
        """

        def list_keys(prefix: str) -> list[str]:
            keys: list[str] = []
            with view.damages:
                keys.extend(item.key for item in self._reader.list(prefix))
            return keys

        def read_latest(keys: list[tuple[int, str]]) -> Record | None:
            for _, key in sorted(keys, reverse=True):
                with view.damages:
                    return self._segments.record(key)
            return None

        by_day: dict[date, dict[str, str]] = {}
        """Day → directory of a call → its id."""
        for wanted, call in calls.items():
            for moment in (call.own_time, call.created_at, window.start):
                if moment is not None:
                    by_day.setdefault(moment.date(), {})[layout.call_dir(wanted)] = wanted
        found: dict[str, list[tuple[int, str]]] = {}
        for day, ids in by_day.items():
            prefixes = [layout.record_prefix(day)]
            if len(ids) <= ASKED_ONE_BY_ONE:
                prefixes = [f"{prefixes[0]}{call_dir}/" for call_dir in ids]
            listed = ordered(self._executor, list_keys, prefixes, self._ahead)
            for key in chain.from_iterable(listed):
                parsed = layout.parse_record_key(key)
                if parsed is None or parsed[1] not in ids:
                    continue
                call_id, revision = ids[parsed[1]], parsed[2]
                known = view.records.get(call_id)
                if known is None or revision > known.revision:
                    found.setdefault(call_id, []).append((revision, key))
        latest = list(ordered(self._executor, read_latest, found.values(), self._ahead))
        records = zip(found, latest, strict=True)
        return {call_id: record for call_id, record in records if record is not None}


# --- the result


@dataclass(frozen=True)
class Difference:
    """A call on which archive and source differ, or that is not archived and sealed; and its
    window. `fields`, by class:

    missing   window_sealed: whether the window has a sealed segment
    pending   listed: whether the source still lists it
    failed    reason, record; sealed: whether a sealed segment names the record
    differs   differences: field → {archive, source}; record
    unsealed  outcome, record: it has a record, and no sealed segment names that
    gone      outcome, record: both None if it never had a record; asked_for: False if its window
              was listed with another filter, and the present filter may not match the call
    """

    name: DifferenceKind
    call_id: str
    window: Window
    fields: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        return {"call_id": self.call_id, "window": format_time(self.window.start), **self.fields}


@dataclass
class Result:
    """The result. `span` is the range in whole windows; `archive` is None if there is no seal 0.

    In each window `source = archived + no_recording + failed + pending + missing + unsealed`, with
    two exceptions: `pending` includes calls that the source does not list (`listed` false), and a
    window whose own segments cannot be read counts as `source` only. `gone` calls are not part of
    the sum. Calls that `differ` are included in archived or no_recording.
    """

    span: Window
    archive: str | None
    days: dict[str, Counter[str]] = field(default_factory=dict)
    differences: dict[DifferenceKind, list[Difference]] = field(default_factory=dict)
    unstable: list[Window] = field(default_factory=list)
    """Windows whose listing kept changing, so that their differences are uncertain."""
    unlisted: list[tuple[Window, str]] = field(default_factory=list)
    """Windows that could not be listed and are not compared, each with the error."""
    incomplete: list[tuple[Window, str]] = field(default_factory=list)
    """Windows of which a page could not be fetched, each with the error."""
    unreadable_entries: list[tuple[Window, int]] = field(default_factory=list)
    """Windows with entries that could not be read as calls, each with their number."""
    unreadable: dict[str, Window] = field(default_factory=dict)
    """A line for each object of the archive that is damaged or cannot be read → the first window
    that needed it."""
    filter: str = "null"
    """The filter of this reconciliation (`filter_text`)."""
    other_filters: Counter[str] = field(default_factory=Counter)
    """Other filters that windows were archived with → number of windows."""

    def row(self, window: Window) -> Counter[str]:
        """Return the counts of the day on which the window starts."""
        return self.days.setdefault(window.start.date().isoformat(), Counter())

    def add(self, difference: Difference) -> None:
        self.differences.setdefault(difference.name, []).append(difference)
        self.row(difference.window)[difference.name] += 1

    @property
    def total(self) -> Counter[str]:
        return sum(self.days.values(), Counter())

    @property
    def ok(self) -> bool:
        """Whether the reconciliation found no problem; see `_complaints`."""
        return not list(_complaints(self))

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
    """`Result.document` as one line of JSON with sorted keys. ASCII, because ids come from the
    source and may contain any character, lone surrogates included."""
    return json.dumps(result.document(), sort_keys=True, separators=(",", ":")) + "\n"


def as_text(result: Result) -> str:
    """Return table, calls, notes and verdict, in this order. Ends with a newline."""
    lines = [*_table(result), *_rows(result), *_notes(result), _verdict(result)]
    return "\n".join(lines) + "\n"


def _table(result: Result) -> Iterator[str]:
    rows = [
        [day, *(f"{row[name]:,}" for name in COUNTS)]
        for day, row in [*sorted(result.days.items()), ("total", result.total)]
    ]
    titles = [f"{'day':10}", *(TITLES.get(name, name) for name in COUNTS)]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for day, *cells in [titles, *rows]:
        columns = zip(cells, widths[1:], strict=True)
        yield "  ".join([f"{day:{widths[0]}}", *(cell.rjust(width) for cell, width in columns)])


def _rows(result: Result) -> Iterator[str]:
    """Yield rows for the calls of each class, then for windows and objects with a problem; of each
    kind at most `SHOWN`."""
    kinds: dict[str, list[tuple[Window, str]]] = {}
    for kind in CLASSES:
        found = result.differences.get(kind, ())
        kinds[kind] = [(o.window, printable(o.call_id) + _detail(o, result)) for o in found]
    kinds["unstable"] = [(window, "its listing kept changing") for window in result.unstable]
    kinds["unlisted"] = [(window, printable(text)) for window, text in result.unlisted]
    kinds["partial"] = [(window, printable(text)) for window, text in result.incomplete]
    kinds["entries"] = [
        (window, f"{counted(count, 'entry', 'entries')} could not be read")
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
    """Return the text in brackets behind a call's id; empty if there is none."""
    fields, text = one.fields, ""
    match one.name:
        case "missing":
            if result.archive is not None and not fields["window_sealed"]:
                text = "its window is not sealed"
        case "pending":
            text = "" if fields["listed"] else "the source does not list it any more"
        case "failed":
            text = f"{fields['reason']}" + ("" if fields["sealed"] else ", not sealed")
        case "differs":
            text = "; ".join(
                f"{field}: {'nothing' if values['archive'] is None else values['archive']} in the "
                f"archive, {values['source']} at the source"
                for field, values in fields["differences"].items()
            )
        case "gone":
            text = fields["outcome"] or "it was never archived"
            text += "" if fields["asked_for"] else "; perhaps not asked for"
        case "unsealed":
            text = str(fields["outcome"])
    return f"  ({printable(text)})" if text else ""


def _notes(result: Result) -> Iterator[str]:
    def cut(text: str) -> str:
        return text if len(text) <= FILTER_CHARACTERS else text[:FILTER_CHARACTERS] + "…"

    others = sorted(result.other_filters.items())
    for text, count in others[:SHOWN]:
        were = "were" if count != 1 else "was"
        yield (
            f"note: {counted(count, 'window')} of the archive {were} listed with another filter: "
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
    """Yield the problems for which a reconciliation exits with 1."""
    total = result.total
    if result.archive is None:
        yield "there is no archive here yet (no seal 0)"
    if lacking := sum(len(result.differences.get(name, ())) for name in LACKING):
        counts = ", ".join(f"{total[name]:,} {name}" for name in LACKING if total[name])
        yield f"the archive lacks the recordings of {counted(lacking, 'call')} ({counts})"
    # Either the source no longer has these calls, or the filter excludes them. With another filter
    # nobody can tell.
    gone = result.differences.get("gone", ())
    if unasked := sum(not one.fields["asked_for"] for one in gone):
        were = "were" if unasked != 1 else "was"
        yield (
            f"{counted(unasked, 'call')} of the archive {were} perhaps not asked for: "
            "set ARCHIVER_STATES, ARCHIVER_CAMPAIGN_ID and ARCHIVER_DIRECTION as they were then"
        )
    for windows, problem in (
        (result.unstable, "the listing of {} kept changing"),
        (result.unlisted, "the source does not list {}"),
        (result.incomplete, "the source lists {} only in part"),
    ):
        if windows:
            yield problem.format(counted(len(windows), "window"))
    if result.unreadable_entries:
        count = sum(entries for _, entries in result.unreadable_entries)
        yield f"{counted(count, 'entry', 'entries')} of the listing could not be read as calls"
    if result.unreadable:
        objects = counted(len(result.unreadable), "object")
        yield f"{objects} of the archive could not be read: run archiver verify"
