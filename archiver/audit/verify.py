"""The audit: compares the bucket with what the seals state.

It shares the formats with the writer, and never its code paths: it imports nothing from the
pipeline or the source, and reads through the `Reader` port only. Each level includes the one
before:

- `manifest`: the chain; every segment: hashes, Merkle roots, balances, revisions, gaps in time;
  sightings; foreign objects, and objects at the key of a record that are no records.
- `objects`: every record equals its line; every file exists with its version, size, lock and hold;
  segments and seals are locked as long as their records; orphans.
- `bytes`: the SHA-256 of every file, or of a random sample.

The chain and all events are always read completely. A range only limits the windows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import sleep
from typing import Literal, Protocol

from archiver.audit import leftovers
from archiver.audit.chain import ChainView, KnownHead, SealedEntry, check_chain
from archiver.audit.findings import Counts, Findings, Report, counted
from archiver.audit.objects import ObjectCheck, Sample, WindowFiles, promise_of
from archiver.audit.safe_reader import Reader, ReportingReader
from archiver.audit.segment_lines import (
    SegmentRecord,
    is_event_segment,
    must_lock_segment,
    segment_name,
)
from archiver.audit.segments import SegmentCheck
from archiver.audit.windows import AuditedWindow, CountedCalls, Span, check_spans
from archiver.core.concurrency import Backlog, ordered
from archiver.core.errors import FormatError, UsageError
from archiver.core.model import format_time
from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import File
from archiver.manifest.signing import PublicKey

Level = Literal["manifest", "objects", "bytes"]

WINDOWS_AT_ONCE = 4
"""Windows read at a time. Few, because each keeps the state of its calls in memory."""


@dataclass(frozen=True)
class Options:
    """What to verify; and the key and head that the auditor knows from outside the bucket."""

    level: Level = "objects"
    start: datetime | None = None
    end: datetime | None = None
    sample: int | None = None
    """At level `bytes`: the number of files to hash, chosen at random; None for all."""
    public_key: PublicKey | None = None
    head: KnownHead | None = None
    workers: int = 8
    max_findings: int = 1000


class Progress(Protocol):
    """Receives progress. `hashed` is called with sizes in bytes, from many threads."""

    def windows(self, done: int, total: int) -> None: ...

    def hashed(self, size: int) -> None: ...


def read_public_key(pem: bytes) -> PublicKey:
    """Parse the key for `Options.public_key`. Raises `UsageError`."""
    try:
        return PublicKey.from_pem(pem)
    except FormatError as error:
        raise UsageError(f"--public-key: {error}; keygen prints the right one") from None


Revisions = Sequence[tuple[SegmentName, SealedEntry]]
"""The sealed segments of one window, in order."""


@dataclass
class _Window:
    """The result of reading a window."""

    revisions: Revisions
    counts: Counts = field(default_factory=lambda: Counts(windows=1))
    files: WindowFiles = field(default_factory=WindowFiles)
    """Counts a file once that several records of the window name."""
    named: set[int] = field(default_factory=set)
    """Hashes of the keys of its records and of their files."""
    days: set[str] = field(default_factory=set)
    """The `dt=…` of its records and files."""
    covered: dict[str, datetime] = field(default_factory=dict)
    """Segment key → the latest lock date that its records promise."""
    is_whole: bool = True
    """Whether all of its segments are as they were sealed and could be read."""
    end: datetime | None = None
    listed_at: datetime | None = None
    counted: list[int] = field(default_factory=list)
    """Hashes of the calls that its newest revision counts."""
    ids: list[int] = field(default_factory=list)
    """Hashes of all calls that any revision named; empty if the archive has no sightings, which
    alone need them."""

    def count(self, records: int, files: Iterable[File]) -> None:
        self.counts.records += records
        for file in files:
            self.counts.files += 1
            self.counts.bytes += file.bytes


def verify(
    reader: Reader,
    options: Options,
    *,
    progress: Progress | None = None,
    now: datetime | None = None,
    pause: Callable[[float], None] = sleep,
) -> Report:
    """Audit the archive behind `reader`.

    Raises `StoreError` if the store cannot be used. Everything else that is wrong is in the report.
    Locks that records promise until `now` or earlier are not checked.

    1. Read the chain.
    2. List the sightings, and read all events: whether a call is held does not depend on the range.
    3. Read the windows in range, and start the checks of their records and files.
    4. Check the locks of segments and seals, wait for all objects, and hash the sample.
    5. Compare the windows with each other: calls that two of them count, gaps in time.
    6. Check what no seal names: segments, versions, foreign objects, orphans, sightings.
    7. Report mismatches of holds, after all objects were checked.
    """
    findings, counts, notes = Findings(options.max_findings), Counts(), list[str]()
    reporting = ReportingReader(reader, findings, pause)
    workers = max(1, options.workers)
    ahead = 4 * workers
    with ExitStack() as stack:
        # Two pools: a window's task waits for object tasks, and in one pool waiting windows could
        # take all threads, so that no object is ever checked. Callbacks run in reverse order: first
        # no new windows, then no new objects, then wait for windows that have begun.
        object_pool = ThreadPoolExecutor(workers)
        window_pool = ThreadPoolExecutor(min(WINDOWS_AT_ONCE, workers))
        stack.callback(window_pool.shutdown, wait=True)
        stack.callback(object_pool.shutdown, wait=True, cancel_futures=True)
        stack.callback(window_pool.shutdown, wait=False, cancel_futures=True)
        # 1. The chain.
        chain = check_chain(reporting, object_pool, ahead, options.public_key, options.head)
        counts.seals = chain.seals
        objects = ObjectCheck(
            reporting,
            Backlog(object_pool, ahead),
            chain,
            hash_files=options.level == "bytes",
            sample=Sample(max(0, options.sample))
            if options.sample is not None and options.level == "bytes"
            else None,
            on_hashed=progress.hashed if progress is not None else lambda _: None,
        )
        if chain.last >= 0:
            audit = _Audit(reporting, options, chain, objects, now or datetime.now(UTC))
            # 2. Sightings and events.
            sightings = audit.sightings
            windows, events = audit.select()
            segments = audit.segments
            for found in ordered(object_pool, segments.event_segment, events, ahead):
                counts.add(Counts(segments=1, events=found.count))
                objects.add_events(found)
            # 3. Windows, records, files.
            named, ids = leftovers.StringSet(), leftovers.StringSet()
            listed_at, all_read = dict[datetime, datetime](), chain.is_whole
            days, covered = set[str](), dict[str, datetime]()
            spans, counted = list[Span](), CountedCalls()
            read = ordered(window_pool, audit.read_window, windows, 2 * WINDOWS_AT_ONCE)
            for done, window in enumerate(read, 1):
                counts.add(window.counts)
                name, first = window.revisions[0][0], min(one.seq for _, one in window.revisions)
                spans.append(Span(name.start, window.end, first, name.jsonl))
                counted.add(name.jsonl, window.counted)
                named.add_hashes(window.named)
                ids.add_hashes(window.ids)
                if window.listed_at is not None:
                    listed_at[name.start] = window.listed_at
                all_read = all_read and window.is_whole
                days |= window.days
                covered |= window.covered
                if progress is not None:
                    progress.windows(done, len(windows))
            # 4. The objects that cover records; the remaining objects.
            seals = dict[int, datetime]()
            for segment, until in covered.items():
                for make in (str, layout.checksum_list_key, layout.seal_pointer_key):
                    objects.add_covering(make(segment), until)
                seq = chain.segments[segment].seq
                seals[seq] = max(until, seals.get(seq, until))
            for seq, until in seals.items():
                objects.add_covering(layout.seal_key(seq), until)
                objects.add_covering(layout.signature_key(seq), until)
            objects.finish([sealed.entry.key for sealed in events] if audit.checks_objects else [])
            counts.files_hashed, counts.bytes_hashed = objects.files_hashed, objects.bytes_hashed
            # 5. The windows compared with each other.
            counted.check(findings.add)
            if chain.is_whole:
                check_spans(spans, chain.advances, findings.add, options.start, options.end)
            # 6. The objects that no seal names.
            leftovers.check_unsealed_segments(reporting, chain, segments)
            orphans = leftovers.Orphans(named if audit.is_everything else None)
            prefixes = ["manifest/"]
            if audit.checks_objects:
                for root in (layout.RECORDS, layout.RECORDINGS):
                    in_range = [f"{root}{day}/" for day in sorted(days)]
                    prefixes += [root] if audit.is_everything else in_range
            notes.append(leftovers.check_versions(reporting, prefixes, orphans) or "")
            if audit.is_everything and not audit.checks_objects:
                for listed in reporting.list(layout.RECORDS):
                    orphans.add(listed.key)
            is_complete = all_read and audit.checks_objects
            notes.append(
                orphans.report(reporting, object_pool, ahead, is_complete=is_complete) or ""
            )
            if audit.is_everything and audit.checks_objects and not all_read:
                notes.append(
                    "seals or segments are damaged, or of a newer release: what nothing names was "
                    "not looked for"
                )
            # Any window may name an id, so lost ids can be told only if all windows were read.
            unknown = ""
            if not audit.is_everything:
                unknown = "a range was given: sightings were not held against the windows"
            elif not all_read or layout.RECORDS in reporting.unlistable:
                unknown = (
                    "not all of the manifest and the records could be read: sightings were not "
                    "held against the windows"
                )
            notes.append(unknown if sightings else "")
            known = None if unknown else lambda one: one in ids or orphans.has_record(one)
            leftovers.check_sightings(reporting, object_pool, sightings, listed_at, known)
            # 7. The holds.
            objects.report_holds()
    if chain.key is None:
        notes.append("no key: seal 0 has none and none was given: no signature was checked")
    elif options.public_key is None:
        notes.append("no --public-key: signatures were checked with the key in seal 0")
    if options.head is None:
        notes.append("no --head: whether the newest seals were cut off cannot be told")
    if chain.last >= 0 and not chain.is_whole:
        notes.append("seals are missing or unreadable: gaps in time were not looked for")
    if options.level != "manifest" and chain.last >= 0 and not objects.holds_known:
        notes.append(
            "seals or events are damaged, or of a newer release: legal holds were not looked at"
        )
    return Report(
        scope={
            "level": options.level,
            "from": format_time(options.start) if options.start else None,
            "to": format_time(options.end) if options.end else None,
            "sample": options.sample,
        },
        archive=chain.archive,
        key_id=chain.key.key_id if chain.key else None,
        key_given=options.public_key is not None,
        head=chain.head,
        counts=counts,
        findings=findings.kept(),
        totals=findings.counts(),
        notes=[note for note in notes if note],
    )


@dataclass
class _Audit:
    """Selects and reads the windows in range, for the steps of `verify`."""

    reader: ReportingReader
    options: Options
    chain: ChainView
    objects: ObjectCheck
    now: datetime

    def __post_init__(self) -> None:
        start, end = self.options.start, self.options.end
        self.segments = SegmentCheck(self.reader, self.chain.last)
        self.checks_objects = self.options.level != "manifest"
        self.is_everything = start is None and end is None
        """Whether no range was given. Windows outside a range may name objects of any day, so
        orphans are searched only without one."""
        self.sightings = [
            listed.key
            for listed in self.reader.list(layout.SIGHTINGS)
            if (moment := layout.parse_sighting_key(listed.key)) is not None
            and (start is None or moment.date() >= start.date())
            and (end is None or moment < end)
        ]
        """The keys of the sightings of windows that are or may be in range."""

    def select(self) -> tuple[list[Revisions], list[SealedEntry]]:
        """Return the windows in range, and all segments of events in the order of the chain. Report
        keys that are neither."""
        names: dict[datetime, list[tuple[SegmentName, SealedEntry]]] = {}
        events = []
        for key, sealed in self.chain.segments.items():
            if (name := segment_name(key)) is not None:
                names.setdefault(name.start, []).append((name, sealed))
            elif is_event_segment(key):
                events.append(sealed)
            else:
                self.reader.findings.add("segment_key", key, f"in seal {sealed.seq}")
        start, end = self.options.start, self.options.end
        starts, first = sorted(names), 0
        if start is not None:
            first = bisect_right(starts, start)
            # The previous window may reach into the range, unless it is of another day: windows
            # never cross midnight.
            if first and starts[first - 1].date() == start.date():
                first -= 1
        in_range = (one for one in starts[first:] if end is None or one < end)
        return [sorted(names[one]) for one in in_range], events

    def read_window(self, revisions: Revisions) -> _Window:
        """Read all revisions of a window. Threads share it."""
        report, window = self.reader.findings.add, _Window(revisions)
        state = AuditedWindow(report, self.chain.is_whole, self.segments.is_foreign)
        for name, sealed in revisions:

            def take(records: Sequence[SegmentRecord], segment: str = name.jsonl) -> None:
                state.add_records(records)
                if self.checks_objects:
                    self._check_records(window, segment, records)
                    return
                new, _ = window.files.add((f for one in records for f in one.files), None)
                window.count(len(records), new)
                if self.is_everything:
                    window.named.update([hash(one.record.key) for one in records])

            found = self.segments.window_segment(sealed, name, take)
            state.add(name, found)
            window.is_whole = window.is_whole and found.is_whole
            window.named.update(map(hash, found.unread_keys))
            window.counts.segments += found.is_there
            if found.window is not None:
                window.end = found.window.end
        window.counts.calls = Counter(call.outcome for call in state.calls.values())
        window.counts.pending = len(state.pending)
        if state.unreadable:
            entries = counted(state.unreadable, "entry", "entries")
            detail = f"{entries} of the window from {format_time(name.start)}"
            report("listing_unreadable", name.jsonl, detail)
        window.listed_at, window.counted = state.listed_at, list(map(hash, state.listed))
        if self.sightings:
            window.ids = list(map(hash, state.ids))
        return window

    def _check_records(
        self, window: _Window, segment: str, records: Sequence[SegmentRecord]
    ) -> None:
        """Count records of a segment, and start the checks of them and their files."""
        for found in records:
            record, promise = found.record, promise_of(found.record, self.now)
            new, again = window.files.add(found.files, promise)
            window.count(1, new)
            window.days.update(key.split("/")[1] for key in (record.key, *(f.key for f in new)))
            self.objects.add(found, promise, new, again)
            if promise is not None and must_lock_segment(record):
                until = max(promise.until, window.covered.get(segment, promise.until))
                window.covered[segment] = until
            if self.is_everything:
                window.named.update(map(hash, [record.key, *(f.key for f in record.files)]))
