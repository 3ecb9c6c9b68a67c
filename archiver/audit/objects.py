"""Checks records and files, their locks and their legal holds against the bucket.

At level `objects` every record is read, and a HEAD is sent for every file, in the version that its
record names. At level `bytes` files are read and hashed too, all of them or a random sample. A
record gets a HEAD only if it promises a lock, its call is held, or the bucket has Object Lock, for
without it no legal hold can exist. At the end, other objects that the events of held calls name are
checked.

A hold may be set or removed while the audit runs. So mismatches of holds are kept until the end,
and those of calls that a newer seal has an event about are dropped.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from archiver.audit.chain import MAX_SEAL_BYTES, ChainView
from archiver.audit.safe_reader import ReportingReader
from archiver.audit.segment_lines import (
    MAX_RECORD_BYTES,
    MAX_SEGMENT_BYTES,
    RecordLine,
    SegmentRecord,
    is_event_segment,
    is_held_object,
    lines_of,
)
from archiver.audit.segments import CheckedSegment
from archiver.core.concurrency import Backlog
from archiver.core.errors import FormatError
from archiver.core.model import format_time, parse_time
from archiver.manifest import event, layout, seal
from archiver.manifest.event import HoldEvent, ObjectRef
from archiver.manifest.record import File
from archiver.store.types import ObjectHead

MODES = ("GOVERNANCE", "COMPLIANCE")
"""Modes of Object Lock, weakest first."""
MAX_HOLDS_KEPT = 10_000
"""Limit of hold mismatches that are kept until the end. Further ones are reported at once."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A retention that records promise: a mode, as its index in `MODES`, and a date."""

    strength: int
    until: datetime

    def is_kept_by(self, head: ObjectHead) -> bool:
        return (
            head.lock_mode in MODES[self.strength :]
            and head.lock_until is not None
            and head.lock_until >= self.until
        )

    def and_also(self, other: Promise) -> Promise:
        """Return the weakest promise that includes both."""
        return Promise(max(self.strength, other.strength), max(self.until, other.until))


def promise_of(found: RecordLine, now: datetime) -> Promise | None:
    """Return a record's promise; None if it has none, or its date is not after `now`."""
    retention = found.retention
    if not isinstance(retention, dict):
        return None
    mode, until = retention.get("mode"), parse_time(retention.get("until"))
    if mode not in MODES or until is None or until <= now:
        return None
    return Promise(MODES.index(mode), until)


class WindowFiles:
    """The files that the records of a window name, and the combined promise for each file. A later
    revision of a record may name the same file with another promise. For one thread.

    Keeps hashes instead of keys: a window may have very many files.
    """

    def __init__(self) -> None:
        self._promises: dict[int, Promise | None] = {}

    def add(
        self, files: Iterable[File], promise: Promise | None
    ) -> tuple[list[File], list[tuple[File, Promise | None]]]:
        """Add the files of a record; without a promise, of many. Returns the files that no record
        named before; and the files for which this record promises more than earlier ones, each with
        the earlier promise."""
        new, again = list[File](), list[tuple[File, Promise | None]]()
        for file in files:
            mark = hash((file.key, file.version_id, file.bytes, file.sha256))
            if mark not in self._promises:
                self._promises[mark] = promise
                new.append(file)
                continue
            before = self._promises[mark]
            both = before.and_also(promise) if before and promise else before or promise
            if both != before:
                self._promises[mark] = both
                again.append((file, before))
        return new, again


class Sample:
    """A random sample of a stream of unknown length (reservoir sampling). Threads share it.

    The choice is unpredictable. Otherwise somebody could damage just the files that are not read.
    """

    def __init__(self, size: int, rng: random.Random | None = None) -> None:
        self._size = size
        self._seen = 0
        self._rng = rng or random.SystemRandom()
        self._lock = threading.Lock()
        self.chosen: list[File] = []

    def offer(self, file: File) -> None:
        with self._lock:
            self._seen += 1
            if len(self.chosen) < self._size:
                self.chosen.append(file)
            elif (place := self._rng.randrange(self._seen)) < self._size:
                self.chosen[place] = file


@dataclass
class ObjectCheck:
    """Checks each record and each file in a task of its own. Add all events first; then threads
    share it."""

    reader: ReportingReader
    backlog: Backlog
    chain: ChainView
    hash_files: bool
    sample: Sample | None
    """Files are offered to it instead of being hashed, and `finish` hashes the chosen ones."""
    on_hashed: Callable[[int], None]
    """Called with the size of each hashed file, from many threads."""
    files_hashed: int = 0
    bytes_hashed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _held: set[str] = field(default_factory=set)
    _checked: set[int] = field(default_factory=set)
    """Hashes of the objects of held calls that were checked."""
    _disagreements: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """Mismatches of legal holds: code and key → call id and detail."""

    def __post_init__(self) -> None:
        self._report = self.reader.findings.add
        self.holds_known = self.chain.is_whole
        """Whether all events could be read. Otherwise it is not known which calls are held."""

    def add_events(self, events: CheckedSegment) -> None:
        """Add a segment of events. Call it in the order of the chain."""
        self.holds_known = self.holds_known and events.is_whole
        for call_id, action in events.holds:
            (self._held.add if action == "add" else self._held.discard)(call_id)

    def add(
        self,
        found: SegmentRecord,
        promise: Promise | None,
        new: Iterable[File],
        again: Iterable[tuple[File, Promise | None]],
    ) -> None:
        """Start the checks of a record and its files, as `WindowFiles.add` returns them. Waits
        while too many tasks are queued."""
        self.backlog.add(partial(self._check_record, found, promise))
        for file in new:
            self.backlog.add(partial(self._check_file, file, promise, found.record.call_id))
        for file, before in again:
            self.backlog.add(partial(self._check_promise, file, promise, before))

    def add_covering(self, key: str, until: datetime) -> None:
        """Start the check that an object of the manifest is locked until `until`, as long as the
        records that it covers. Its mode is not compared: it was the setting of its day. A missing
        object is reported elsewhere."""
        self.backlog.add(partial(self._check_promise, ObjectRef(key, None), Promise(0, until)))

    def finish(self, events: Iterable[str]) -> None:
        """Wait for all tasks, check other objects that events name, and hash the sample. `events`
        are the keys of segments."""
        self.backlog.drain()
        # The objects that an event of a held call names, and that were not checked: they belong to
        # windows outside the range, or to windows that are not sealed yet.
        for key in events if self.holds_known and self._held else ():
            for hold in self._holds_in(key):
                if hold.action == "add" and hold.call_id in self._held:
                    for one in hold.objects:
                        if self._is_new(one, None) and is_held_object(hold.call_id, one):
                            self.backlog.add(partial(self._check_hold, hold.call_id, one))
        for file in self.sample.chosen if self.sample else ():
            self.backlog.add(partial(self._hash, file))
        self.backlog.drain()

    def _check_record(self, found: SegmentRecord, promise: Promise | None) -> None:
        key, call_id = found.record.key, found.record.call_id
        data = self.reader.read(key, MAX_RECORD_BYTES, "record_missing")
        if data is None:
            return
        if data != found.line:
            self._report("record_mismatch", key, hashlib.sha256(data).hexdigest())
        may_be_held = self.holds_known and (self.chain.object_lock or call_id in self._held)
        if promise is None and not may_be_held:
            return
        head = self.reader.head(key, None, "record_missing")
        self._compare_hold(call_id, ObjectRef(key, None), head)
        if head is not None and promise is not None:
            self._check_lock(key, head, promise)

    def _check_file(self, file: File, promise: Promise | None, call_id: str) -> None:
        head = self.reader.head(file.key, file.version_id, "file_missing")
        self._compare_hold(call_id, ObjectRef(file.key, file.version_id), head)
        if head is None:
            return
        if promise is not None:
            self._check_lock(file.key, head, promise)
        if head.size != file.bytes:
            self._report("file_size", file.key, f"{head.size} bytes")
        elif head.sha256 is not None and head.sha256 != file.sha256:
            self._report("file_checksum", file.key, head.sha256)
        elif self.sample is not None:
            self.sample.offer(file)
        elif self.hash_files:
            self._hash(file)

    def _hash(self, file: File) -> None:
        digest = self.reader.sha256(file.key, file.version_id, file.bytes, "file_missing")
        if digest is None:
            return
        with self._lock:
            self.files_hashed += 1
            self.bytes_hashed += file.bytes
        self.on_hashed(file.bytes)
        if digest != file.sha256:
            self._report("file_hash", file.key, digest)

    # --- locks

    def _check_promise(
        self, one: File | ObjectRef, promise: Promise | None, before: Promise | None = None
    ) -> None:
        """Check the lock of an object. Reports nothing if it is missing or breaks `before`, an
        earlier promise: that was reported."""
        head = self.reader.head(one.key, one.version_id, None)
        if head is not None and promise and (before is None or before.is_kept_by(head)):
            self._check_lock(one.key, head, promise)

    def _check_lock(self, key: str, head: ObjectHead, promise: Promise) -> None:
        if head.lock_mode is None or head.lock_until is None:
            self._report("retention_missing", key)
        elif not promise.is_kept_by(head):
            detail = f"{head.lock_mode} until {format_time(head.lock_until)}"
            self._report("retention_weaker", key, detail)

    # --- legal holds

    def _compare_hold(self, call_id: str, asked: ObjectRef, head: ObjectHead | None) -> None:
        """Compare an object's legal hold with the events. `head` is None if the object is missing,
        which was reported."""
        if not self.holds_known:
            return
        is_held = call_id in self._held
        if is_held:
            self._is_new(asked, head)
        if head is not None and head.held != is_held:
            self._disagree("hold_missing" if is_held else "hold_unrecorded", asked.key, call_id)

    def _check_hold(self, call_id: str, one: ObjectRef) -> None:
        head = self.reader.head(one.key, one.version_id, None)
        if head is None or not head.held:
            detail = "" if head is not None else "the object is not there"
            self._disagree("hold_missing", one.key, call_id, detail)

    def report_holds(self) -> None:
        """Report the mismatches, except for calls whose hold changed after the chain was read."""
        changed, number = set[str](), self.chain.last + 1
        while self._disagreements and (
            data := self.reader.read(layout.seal_key(number), MAX_SEAL_BYTES, None)
        ):
            try:
                entries = seal.parse_seal(data).segments
            except FormatError:
                break
            for entry in entries:
                if is_event_segment(entry.key):
                    changed.update(hold.call_id for hold in self._holds_in(entry.key))
            number += 1
        for (code, key), (call_id, detail) in self._disagreements.items():
            if call_id not in changed:
                self._report(code, key, detail)

    def _is_new(self, asked: ObjectRef, head: ObjectHead | None) -> bool:
        """Remember that an object was checked, in the version found. Returns whether it was not
        checked before."""
        version_id = asked.version_id or (head.version_id if head is not None else None)
        mark = hash(ObjectRef(asked.key, version_id))
        with self._lock:
            is_new = mark not in self._checked
            self._checked.add(mark)
            return is_new

    def _disagree(self, code: str, key: str, call_id: str, detail: str = "") -> None:
        with self._lock:
            kept = self._disagreements
            if (code, key) in kept or len(kept) < MAX_HOLDS_KEPT:
                kept[code, key] = (call_id, detail)
                return
        self._report(code, key, detail)

    def _holds_in(self, key: str) -> Iterator[HoldEvent]:
        """Yield the hold events of a segment up to the first damaged line. Damage was reported."""
        spooled = self.reader.spool(key, MAX_SEGMENT_BYTES, None)
        if spooled is None:
            return
        with spooled.file:
            try:
                for line in lines_of(spooled.file):
                    if (hold := event.parse(line)) is not None:
                        yield hold
            except FormatError:
                return
