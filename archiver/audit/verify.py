"""The audit: what the seals promise, against what the bucket holds.

Shares the formats with the writer, never its code paths: it takes nothing from the pipeline or the
source, and reads through the `Reader` port alone. Levels, each with all of the one before:

- `manifest`: the chain, and every segment: hashes, roots, balances, revisions, no gap in time;
  sightings; what is not ours or cannot be read, be it a record that no segment names.
- `objects`: every record equals its line; every file is there in its version, size, lock, hold;
  what covers records is locked as they are; what nothing names is counted.
- `bytes`: every file's SHA-256, or those of a random sample.

The chain and all events are always read whole; a range restricts which windows are looked into.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from time import sleep
from typing import Literal, Protocol

from archiver.audit import leftovers
from archiver.audit.chain import ChainCheck, ChainView, KnownHead, Sealed
from archiver.audit.findings import Findings
from archiver.audit.hold_check import HoldCheck
from archiver.audit.leftovers import Orphans, SightingCheck
from archiver.audit.objects import ObjectCheck, Sample, WindowFiles, promise_of
from archiver.audit.safe_reader import Reader, ReportingReader
from archiver.audit.segment_lines import SegmentRecord, binds_covers, is_events, segment_name
from archiver.audit.segments import SegmentCheck
from archiver.audit.verification_report import Counts, Report
from archiver.audit.windows import CountedCalls, Span, WindowState, check_spans
from archiver.core.concurrency import Backlog, ordered
from archiver.core.errors import FormatError, UsageError
from archiver.core.model import format_time
from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import FileRef
from archiver.manifest.signing import PublicKey

Level = Literal["manifest", "objects", "bytes"]

WINDOWS_AT_ONCE = 4
"""Windows read at a time: each may keep a segment in memory and the states of its calls."""


@dataclass(frozen=True)
class Options:
    """What to verify, and what the auditor knows from outside the bucket."""

    level: Level = "objects"
    start: datetime | None = None
    end: datetime | None = None
    sample: int | None = None
    """At level `bytes`: hash so many files, chosen at random, instead of all."""
    public_key: PublicKey | None = None
    head: KnownHead | None = None
    workers: int = 8
    max_findings: int = 1000


class Progress(Protocol):
    """Somebody who watches. `hashed` is called from many threads."""

    def windows(self, done: int, total: int) -> None: ...

    def hashed(self, size: int) -> None: ...


def read_public_key(pem: bytes) -> PublicKey:
    """The key for `Options.public_key`; raises `UsageError`."""
    try:
        return PublicKey.from_pem(pem)
    except FormatError as error:
        raise UsageError(f"--public-key: {error}; keygen prints the right one") from None


def verify(
    reader: Reader,
    options: Options,
    *,
    progress: Progress | None = None,
    now: datetime | None = None,
    pause: Callable[[float], None] = sleep,
) -> Report:
    """Audit the archive behind `reader`.

    Raises `StoreError` where the store itself cannot be used; whatever is wrong with what it
    holds is in the report. `now` decides which retentions must still hold.
    """
    audit = _Audit(reader, options, progress, now or datetime.now(UTC), pause)
    try:
        return audit.run()
    finally:
        audit.close()


@dataclass(frozen=True)
class _Window:
    """The sealed segments of one window, by revision."""

    start: datetime
    segments: Sequence[tuple[SegmentName, Sealed]]


@dataclass
class _WindowResult:
    """What comes of reading a window; a file that several of its records name counts once."""

    files: WindowFiles = field(default_factory=WindowFiles)
    counts: Counts = field(default_factory=lambda: Counts(windows=1))
    named: set[int] = field(default_factory=set)
    """Hashes of the keys of its records, and of those that they name."""
    covered: dict[str, datetime] = field(default_factory=dict)
    """The latest date that the records of a segment promise, by the segment's key."""
    is_whole: bool = True
    """Whether all of its segments are as they were sealed."""
    end: datetime | None = None
    listed_at: datetime | None = None
    counted: list[int] = field(default_factory=list)
    """Hashes of the calls that its newest revision counts."""
    ids: list[int] = field(default_factory=list)
    """Hashes of all calls that it ever named; empty where there are no sightings."""

    def count(self, records: int, files: Iterable[FileRef]) -> None:
        self.counts.records += records
        for file in files:
            self.counts.files += 1
            self.counts.bytes += file.bytes


class _Audit:
    """One run. Two pools, so that a window that waits for its objects never holds one up."""

    def __init__(
        self,
        reader: Reader,
        options: Options,
        progress: Progress | None,
        now: datetime,
        pause: Callable[[float], None],
    ) -> None:
        self._options = options
        self._progress = progress
        self._now = now
        self._findings = Findings(options.max_findings)
        self._reader = ReportingReader(reader, self._findings, pause)
        workers = max(1, options.workers)
        self._object_pool = ThreadPoolExecutor(workers)
        self._window_pool = ThreadPoolExecutor(min(WINDOWS_AT_ONCE, workers))
        self._ahead = 4 * workers
        self._holds = HoldCheck(self._reader)
        self._sightings = SightingCheck(self._reader)
        is_sample = options.sample is not None and options.level == "bytes"
        self._objects = ObjectCheck(
            self._reader,
            Backlog(self._object_pool, self._ahead),
            self._holds,
            hash_files=options.level == "bytes",
            sample=Sample(max(0, options.sample or 0)) if is_sample else None,
            on_hashed=progress.hashed if progress is not None else lambda _: None,
        )
        self._counts = Counts()
        self._notes: list[str] = []
        self._named = set[int]()
        """Hashes of the keys of all sealed records, and of those that they name."""
        self._sealed_ids = set[int]()
        """Hashes of all calls that sealed segments name, where there are sightings."""
        self._listed_at: dict[datetime, datetime] = {}
        """When the newest listing of each window began, by the window's start."""
        self._all_read = True
        """Whether all segments of windows could be read: else much seems to be an orphan."""
        self._days: set[str] = set()
        """The `dt=…` of records and files seen: where to look for versions in a range."""

    def close(self) -> None:
        """End the pools. What has begun is waited for."""
        self._window_pool.shutdown(wait=False, cancel_futures=True)
        self._object_pool.shutdown(wait=True, cancel_futures=True)
        self._window_pool.shutdown(wait=True)

    @property
    def _looks_at_objects(self) -> bool:
        return self._options.level != "manifest"

    @property
    def _is_everything(self) -> bool:
        """Windows out of range may name objects of any day, so with a range nobody knows what
        nothing names."""
        return self._options.start is None and self._options.end is None

    def run(self) -> Report:
        """Verify the archive.

        1. Read the chain.
        2. Read the sightings, then all events: who is held does not depend on a range.
        3. Read the windows in range; their records and files are checked beside.
        4. Compare the windows with each other: calls that two of them count, gaps in time.
        5. Look for what stands in no seal: in the manifest, among versions, orphans, lost calls.
        6. Report what disagrees about holds, now that nobody is looked at any more.
        """
        options, findings = self._options, self._findings
        # 1. The chain.
        check = ChainCheck(self._reader, self._object_pool, self._ahead)
        chain = check.check(options.public_key, options.head)
        self._counts.seals = chain.seals
        if chain.last >= 0:
            # 2. Sightings and events.
            self._sightings.read(self._object_pool, self._may_be_in_range)
            segments = SegmentCheck(self._reader, chain.last)
            windows, events = self._select(chain)
            self._holds.known, self._holds.possible = chain.whole, chain.object_lock
            read = ordered(self._object_pool, segments.event_segment, events, self._ahead)
            for found in read:
                self._counts.add(Counts(segments=1, events=found.count))
                self._holds.add(found)
            # 3. Windows, records, files.
            counted, spans = self._read_windows(windows, chain, segments)
            named = [sealed.entry.key for sealed in events] if self._looks_at_objects else []
            self._objects.finish(named)
            self._counts.files_hashed = self._objects.files_hashed
            self._counts.bytes_hashed = self._objects.bytes_hashed
            # 4. Windows among each other.
            counted.check(findings.add)
            if chain.whole:
                check_spans(spans, chain.advances, findings.add, options.start, options.end)
            # 5. What stands in no seal.
            leftovers.check_manifest(self._reader, chain, segments)
            self._check_bucket(is_whole=chain.whole and self._all_read)
            # 6. Holds.
            self._holds.finish(chain.last)
        return self._report(chain)

    # --- which windows

    def _select(self, chain: ChainView) -> tuple[list[_Window], list[Sealed]]:
        """The windows in range, and all segments of events in the order of the chain; keys that are
        neither are reported."""
        names: dict[datetime, list[tuple[SegmentName, Sealed]]] = {}
        events = []
        for key, sealed in chain.segments.items():
            if (name := segment_name(key)) is not None:
                names.setdefault(name.start, []).append((name, sealed))
            elif is_events(key):
                events.append(sealed)
            else:
                self._findings.add("segment_key", key, f"in seal {sealed.seq}")
        starts = self._in_range(sorted(names))
        return [_Window(start, sorted(names[start])) for start in starts], events

    def _in_range(self, starts: Sequence[datetime]) -> Sequence[datetime]:
        """The windows that begin in the range, and the one that may reach into it: a window is
        aligned to midnight, so it does not reach into the next day."""
        start, end = self._options.start, self._options.end
        first = 0
        if start is not None:
            first = bisect_right(starts, start)
            if first and starts[first - 1].date() == start.date():
                first -= 1
        return [moment for moment in starts[first:] if end is None or moment < end]

    def _may_be_in_range(self, start: datetime) -> bool:
        """Whether a window that starts then is looked into, or may be."""
        options = self._options
        return (options.start is None or start.date() >= options.start.date()) and (
            options.end is None or start < options.end
        )

    # --- windows

    def _read_windows(
        self, windows: Sequence[_Window], chain: ChainView, segments: SegmentCheck
    ) -> tuple[CountedCalls, list[Span]]:
        """Read the windows, and have checked their records and files, and what covers them."""
        counted, spans, seals = CountedCalls(), list[Span](), dict[int, datetime]()
        read = partial(self._read_window, chain=chain, segments=segments)
        results = ordered(self._window_pool, read, windows, 2 * WINDOWS_AT_ONCE)
        for done, (window, found) in enumerate(zip(windows, results, strict=True), 1):
            self._counts.add(found.counts)
            key = window.segments[0][0].jsonl
            seq = min(sealed.seq for _, sealed in window.segments)
            spans.append(Span(window.start, found.end, seq, key))
            counted.add(key, found.counted)
            self._sealed_ids.update(found.ids)
            if found.listed_at is not None:
                self._listed_at[window.start] = found.listed_at
            self._named |= found.named
            self._all_read = self._all_read and found.is_whole
            for segment, until in found.covered.items():
                for covering in (
                    segment,
                    layout.companion_key(segment),
                    layout.pointer_key(segment),
                ):
                    self._objects.add_covering(covering, until)
                seq = chain.segments[segment].seq
                seals[seq] = max(until, seals.get(seq, until))
            if self._progress is not None:
                self._progress.windows(done, len(windows))
        for seq, until in seals.items():
            for covering in (layout.seal_key(seq), layout.signature_key(seq)):
                self._objects.add_covering(covering, until)
        return counted, spans

    def _read_window(
        self, window: _Window, chain: ChainView, segments: SegmentCheck
    ) -> _WindowResult:
        """Read all revisions of a window, in order."""
        state = WindowState(self._findings.add, chain.whole, segments.is_taken)
        result = _WindowResult()
        for name, sealed in window.segments:
            take = partial(self._count_records, result)
            if self._looks_at_objects:
                take = partial(self._take_records, result, name.jsonl)
            found = segments.window_segment(sealed, name, take)
            state.add(name, found)
            if found is None:
                result.is_whole = False
                continue
            result.is_whole = result.is_whole and found.is_whole
            result.named.update(map(hash, found.unread_keys))
            result.counts.segments += 1
            if found.window is not None:
                result.end = found.window.end
        result.counts.calls = Counter(call.outcome for call in state.calls.values())
        result.counts.pending = len(state.pending)
        if state.unreadable:
            entries = f"{state.unreadable:,} entries" if state.unreadable != 1 else "1 entry"
            detail = f"{entries} of the window from {format_time(window.start)}"
            self._findings.add("listing_unreadable", window.segments[-1][0].jsonl, detail)
        result.counted, result.listed_at = list(map(hash, state.listed)), state.listed_at
        if self._sightings:
            result.ids = list(map(hash, state.ids))
        return result

    def _count_records(self, result: _WindowResult, records: Sequence[SegmentRecord]) -> None:
        """Count records of a segment, and look at nothing else."""
        files = result.files.count(file for one in records for file in one.files)
        result.count(len(records), files)
        if self._is_everything:
            result.named.update(hash(one.record.key) for one in records)

    def _take_records(
        self, result: _WindowResult, segment: str, records: Sequence[SegmentRecord]
    ) -> None:
        """Count records of a segment, and have them and their files checked."""
        for found in records:
            record, promise = found.record, promise_of(found.record, self._now)
            new, again = result.files.add(found.files, promise)
            result.count(1, new)
            self._days.update(key.split("/")[1] for key in (record.key, *(f.key for f in new)))
            self._objects.add(found, promise, new, again)
            if promise is not None and binds_covers(record):
                until = max(promise.until, result.covered.get(segment, promise.until))
                result.covered[segment] = until
            if self._is_everything:
                result.named.update(map(hash, [record.key, *(f.key for f in record.files)]))

    # --- all of the bucket

    def _check_bucket(self, *, is_whole: bool) -> None:
        """Look for versions, foreign objects and orphans, then hold the sightings against the
        windows. `is_whole`: the chain and all segments in range could be read."""
        orphans = Orphans(self._named if self._is_everything else None)
        prefixes = ["manifest/"]
        if self._looks_at_objects:
            for root in (layout.RECORDS, layout.RECORDINGS):
                days = [f"{root}{day}/" for day in sorted(self._days)]
                prefixes += [root] if self._is_everything else days
        self._note(leftovers.check_versions(self._reader, prefixes, orphans))
        if not self._looks_at_objects and self._is_everything:
            for listed in self._reader.list(layout.RECORDS):
                orphans.look(listed.key)
        is_complete = is_whole and self._looks_at_objects
        self._note(
            orphans.report(self._reader, self._object_pool, self._ahead, is_complete=is_complete)
        )
        if self._is_everything and self._looks_at_objects and not is_whole:
            self._note(
                "seals or segments are damaged, or of a newer release: what nothing names was not "
                "looked for"
            )
        # An id may stand in any window, so sightings count only where all windows could be read.
        if not self._sightings:
            return
        if not self._is_everything:
            self._note("a range was given: sightings were not held against the windows")
        elif not is_whole or layout.RECORDS in self._reader.unlistable:
            self._note(
                "not all of the manifest and the records could be read: sightings were not held "
                "against the windows"
            )
        else:
            self._sightings.check(self._listed_at, self._sealed_ids, orphans.has_record)

    # --- the result

    def _note(self, text: str | None) -> None:
        if text is not None:
            self._notes.append(text)

    def _report(self, chain: ChainView) -> Report:
        options = self._options
        if chain.key is None:
            self._note("no key: seal 0 has none and none was given: no signature was checked")
        elif options.public_key is None:
            self._note("no --public-key: signatures were checked with the key in seal 0")
        if options.head is None:
            self._note("no --head: whether the newest seals were cut off cannot be told")
        if chain.last >= 0 and not chain.whole:
            self._note("seals are missing or unreadable: gaps in time were not looked for")
        if self._looks_at_objects and chain.last >= 0 and not self._holds.known:
            self._note(
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
            counts=self._counts,
            findings=self._findings.kept(),
            totals=self._findings.counts(),
            notes=self._notes,
        )
