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

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal, Protocol

from archiver.audit import strays, versions
from archiver.audit.chain import ChainCheck, ChainView, KnownHead, Sealed
from archiver.audit.counted import CountedCalls, hashes
from archiver.audit.findings import Findings
from archiver.audit.gate import Gate
from archiver.audit.glance import Batch
from archiver.audit.held import HoldCheck
from archiver.audit.objects import (
    Hashed,
    ObjectCheck,
    Sample,
    WindowFiles,
)
from archiver.audit.parallel import Backlog, ordered
from archiver.audit.reader import Reader
from archiver.audit.result import Counts, Report
from archiver.audit.segments import SegmentCheck, is_events, segment_name
from archiver.audit.sightings import Sightings
from archiver.audit.tally import Counting, Tally
from archiver.audit.told import Told
from archiver.audit.unnamed import NamedKeys, Unnamed
from archiver.audit.windows import Span, WindowState, check_spans
from archiver.errors import FormatError, UsageError
from archiver.hub import Hub, sleep
from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from archiver.manifest.signing import PublicKey
from archiver.model import format_time

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


class NoProgress:
    """Nobody watches."""

    def windows(self, done: int, total: int) -> None:
        pass

    def hashed(self, size: int) -> None:
        pass


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
    audit = _Audit(reader, options, progress or NoProgress(), now or datetime.now(UTC), pause)
    try:
        return audit.run()
    finally:
        audit.close()


@dataclass(frozen=True)
class _Window:
    """The sealed segments of one window, by revision."""

    start: datetime
    segments: Sequence[tuple[SegmentName, Sealed]]


@dataclass(frozen=True)
class _Read:
    """What came of a window."""

    tally: Tally
    span: Span
    counted: array[int]
    """The calls that its newest revision counts, as `hashes`."""
    ids: array[int]
    """All calls that it ever told of, as `hashes`; empty where nobody asks."""
    listed_at: datetime | None


class _Looking:
    """Has each record looked at."""

    def __init__(self, take: Callable[[bytes, Told], None]) -> None:
        self.take = take

    def take_batch(self, lines: Sequence[bytes], found: Batch) -> None:
        for line, told in zip(lines, found.told(), strict=True):
            self.take(line, told)


class _Audit:
    """One run. Two pools, so that a window that waits for its objects never holds one up."""

    def __init__(
        self,
        reader: Reader,
        options: Options,
        progress: Progress,
        now: datetime,
        pause: Callable[[float], None],
    ) -> None:
        self._options = options
        self._progress = progress
        self._findings = Findings(options.max_findings)
        self._gate = Gate(reader, self._findings, pause)
        workers = max(1, options.workers)
        # Hashing wants cores. What is left without it is work for the interpreter, which threads
        # would only take from each other.
        pool = Hub if options.level == "manifest" else ThreadPoolExecutor
        self._object_pool: Executor = pool(workers)
        self._window_pool: Executor = pool(min(WINDOWS_AT_ONCE, workers))
        self._ahead = 4 * workers
        self._hashed = Hashed(progress.hashed)
        self._holds = HoldCheck(self._gate)
        self._sightings = Sightings(self._gate, self._object_pool)
        self._listed_at: dict[datetime, datetime] = {}
        """When the newest listing of each window began, by the window's start."""
        self._ids = NamedKeys()
        """All calls that sealed segments tell of, where there are sightings."""
        self._objects = ObjectCheck(
            self._gate,
            Backlog(self._object_pool, self._ahead),
            self._hashed,
            self._holds,
            hash_files=options.level == "bytes",
            sample=self._sample(),
        )
        self._now = now
        self._days: set[str] = set()
        """The `dt=…` of records and files seen: where to look for versions in a range."""
        self._named = NamedKeys()
        self._all_read = True
        """Whether all segments of windows could be read: else much has no name."""
        self._counts = Counts()
        self._notes: list[str] = []

    def close(self) -> None:
        """End the pools. What has begun is waited for."""
        self._window_pool.shutdown(wait=False, cancel_futures=True)
        self._object_pool.shutdown(wait=True, cancel_futures=True)
        self._window_pool.shutdown(wait=True)

    def run(self) -> Report:
        options = self._options
        check = ChainCheck(self._gate, self._object_pool, self._ahead)
        chain = check.check(options.public_key, options.head)
        self._counts.seals = chain.seals
        if chain.last >= 0:
            segments = SegmentCheck(self._gate, chain.last)
            self._sightings.read(self._is_in_range)
            self._segments(chain, segments)
            strays.check(self._gate, chain, segments)
            self._bucket(chain)
            self._holds.finish(chain.last)
        self._note(chain)
        return self._report(chain)

    # --- segments

    def _segments(self, chain: ChainView, check: SegmentCheck) -> None:
        windows, events = self._select(chain)
        self._events(chain, check, events)
        spans, counted, seals = [], CountedCalls(), dict[int, datetime]()
        for done, read in enumerate(
            ordered(
                self._window_pool,
                lambda window: self._window(window, check, chain.whole),
                windows,
                2 * WINDOWS_AT_ONCE,
            ),
            1,
        ):
            self._counts.add(read.tally.counts)
            spans.append(read.span)
            counted.add(read.span.key, read.counted)
            self._ids.add(read.ids)
            if read.listed_at is not None:
                self._listed_at[read.span.start] = read.listed_at
            self._named.add(read.tally.named)
            self._all_read = self._all_read and read.tally.whole
            for segment, until in read.tally.covered.items():
                self._covering(segment, until)
                seq = chain.segments[segment].seq
                seals[seq] = max(until, seals.get(seq, until))
            self._progress.windows(done, len(windows))
        for seq, until in seals.items():
            for key in (layout.seal_key(seq), layout.signature_key(seq)):
                self._objects.add_covering(key, until)
        counted.check(self._findings.add)
        looked = self._options.level != "manifest"
        self._objects.finish([sealed.entry.key for sealed in events] if looked else [])
        self._counts.files_hashed, self._counts.bytes_hashed = (
            self._hashed.files,
            self._hashed.bytes,
        )
        if chain.whole:
            options = self._options
            check_spans(spans, chain.advances, self._findings.add, options.start, options.end)

    def _events(self, chain: ChainView, check: SegmentCheck, events: Sequence[Sealed]) -> None:
        """Read the segments of events: who is held does not depend on a range."""
        self._holds.known, self._holds.possible = chain.whole, chain.object_lock
        for found in ordered(self._object_pool, check.event_segment, events, self._ahead):
            self._counts.add(Counts(segments=1, events=found.count))
            self._holds.take(found)

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
        starts = sorted(names)
        return [_Window(start, sorted(names[start])) for start in self._in_range(starts)], events

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

    def _window(self, window: _Window, check: SegmentCheck, chain_is_whole: bool) -> _Read:
        """Read all revisions of a window, in order."""
        state = WindowState(self._findings.add, chain_is_whole, check.is_taken)
        tally, end = Tally(WindowFiles(self._now)), None
        counting = Counting(tally, names=self._is_everything)
        for name, sealed in window.segments:
            looking = _Looking(partial(self._record, tally, name.jsonl))
            records = counting if self._options.level == "manifest" else looking
            summary = check.window_segment(sealed, name, records)
            tally.whole = tally.whole and summary is not None and summary.is_whole
            if summary is None:
                state.lose(name)
                continue
            tally.named.extend(hashes(summary.unread_keys))
            tally.counts.segments += 1
            state.fold(summary)
            end = summary.window.end if summary.window is not None else end
        tally.counts.calls = Counter(call.outcome for call in state.calls.values())
        tally.counts.pending = len(state.pending)
        if state.unreadable:
            entries = f"{state.unreadable:,} entries" if state.unreadable != 1 else "1 entry"
            detail = f"{entries} of the window from {format_time(window.start)}"
            self._findings.add("listing_unreadable", window.segments[-1][0].jsonl, detail)
        seq = min(sealed.seq for _, sealed in window.segments)
        span = Span(window.start, end, seq, window.segments[0][0].jsonl)
        ids = hashes(state.ids if self._sightings else ())
        return _Read(tally, span, hashes(state.listed), ids, state.listed_at)

    def _record(self, tally: Tally, segment: str, line: bytes, found: Told) -> None:
        """Count a record of a segment, and have it and its files checked."""
        named = tally.files.take(found)
        files = named.files
        tally.count(files)
        self._days.update(key.split("/")[1] for key in (found.key, *(f.key for f in files)))
        self._objects.add(line, found, named)
        if named.promise is not None and found.binds_covers:
            until = named.promise.until
            tally.covered[segment] = max(until, tally.covered.get(segment, until))
        if self._is_everything:
            tally.named.extend(hashes([found.key, *(file.key for file in found.named)]))

    def _covering(self, segment: str, until: datetime) -> None:
        """Have a segment's lock checked, and of what lies beside it."""
        for key in (segment, layout.companion_key(segment), layout.pointer_key(segment)):
            self._objects.add_covering(key, until)

    # --- all of the bucket

    def _bucket(self, chain: ChainView) -> None:
        """Look for versions, for what is not ours, and for what nothing names."""
        is_whole = chain.whole and self._all_read
        looks_at_objects = self._options.level != "manifest"
        unnamed = Unnamed(self._named if self._is_everything else None)
        note = versions.check(self._gate, list(self._version_prefixes()), unnamed)
        if note is not None:
            self._notes.append(note)
        if not looks_at_objects and self._is_everything:
            for listed in self._gate.list(layout.RECORDS):
                unnamed.look(listed.key)
        note = unnamed.report(
            self._gate, self._object_pool, self._ahead, leftovers=is_whole and looks_at_objects
        )
        if note is not None:
            self._notes.append(note)
        if self._is_everything and looks_at_objects and not is_whole:
            self._notes.append(
                "seals or segments are damaged, or of a newer release: what nothing names was not "
                "looked for"
            )
        self._check_sightings(is_whole, unnamed)

    def _check_sightings(self, is_whole: bool, unnamed: Unnamed) -> None:
        """Only where all windows could be read: an id may be told of by any of them."""
        if not self._sightings:
            return
        if not self._is_everything:
            self._notes.append("a range was given: sightings were not held against the windows")
        elif not is_whole or layout.RECORDS in self._gate.unlistable:
            self._notes.append(
                "not all of the manifest and the records could be read: sightings were not held "
                "against the windows"
            )
        else:
            self._sightings.check(self._listed_at, self._ids, unnamed.has_record)

    @property
    def _is_everything(self) -> bool:
        """Windows out of range may name objects of any day, so with a range it is not known what
        nothing names."""
        return self._options.start is None and self._options.end is None

    def _is_in_range(self, start: datetime) -> bool:
        """Whether a window that starts then is looked into, or may be."""
        options = self._options
        return (options.start is None or start.date() >= options.start.date()) and (
            options.end is None or start < options.end
        )

    def _version_prefixes(self) -> Iterator[str]:
        options = self._options
        yield "manifest/"
        if options.level == "manifest":
            return
        for root in (layout.RECORDS, layout.RECORDINGS):
            if options.start is None and options.end is None:
                yield root
            else:
                yield from (f"{root}{day}/" for day in sorted(self._days))

    # --- the result

    def _sample(self) -> Sample | None:
        options = self._options
        if options.sample is None or options.level != "bytes":
            return None
        return Sample(max(0, options.sample))

    def _note(self, chain: ChainView) -> None:
        options, notes = self._options, self._notes
        if chain.key is None:
            notes.append("no key: seal 0 has none and none was given: no signature was checked")
        elif options.public_key is None:
            notes.append("no --public-key: signatures were checked with the key in seal 0")
        if options.head is None:
            notes.append("no --head: whether the newest seals were cut off cannot be told")
        if chain.last >= 0 and not chain.whole:
            notes.append("seals are missing or unreadable: gaps in time were not looked for")
        if self._options.level != "manifest" and chain.last >= 0 and not self._holds.known:
            notes.append(
                "seals or events are damaged, or of a newer release: legal holds were not looked at"
            )

    def _report(self, chain: ChainView) -> Report:
        options = self._options
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
