"""Records and files: what a segment's lines say, against what the bucket holds.

At level `objects` every record is read and every file asked for by HEAD, in the very version that
its record names; at level `bytes` files are read and hashed too, all of them or a random sample.
A record is asked for by HEAD only where it promises a lock, or its call is on legal hold.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from archiver.audit.hold_check import HoldCheck
from archiver.audit.safe_reader import Head, ReportingReader
from archiver.audit.segment_lines import MAX_RECORD_BYTES, RecordLine, SegmentRecord
from archiver.core.concurrency import Backlog
from archiver.core.model import format_time, parse_time
from archiver.manifest.event import ObjectRef
from archiver.manifest.record import FileRef

MODES = ("GOVERNANCE", "COMPLIANCE")
"""Weakest first."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A retention that records promise: how strong (a place in `MODES`), and until when."""

    strength: int
    until: datetime

    def is_kept_by(self, head: Head) -> bool:
        return (
            head.lock_mode in MODES[self.strength :]
            and head.lock_until is not None
            and head.lock_until >= self.until
        )

    def and_also(self, other: Promise) -> Promise:
        """What keeps both."""
        return Promise(max(self.strength, other.strength), max(self.until, other.until))


def promise_of(found: RecordLine, now: datetime) -> Promise | None:
    """What must still hold `now`; None where nothing was promised, or it is over."""
    retention = found.retention
    if not isinstance(retention, dict):
        return None
    mode, until = retention.get("mode"), parse_time(retention.get("until"))
    if mode not in MODES or until is None or until <= now:
        return None
    return Promise(MODES.index(mode), until)


class WindowFiles:
    """The files that the records of a window name, and what all of them together promise of each:
    a later revision carries files over, and has a promise of its own. One thread uses it.

    Hashes are kept, not keys: a window may have very many.
    """

    def __init__(self) -> None:
        self._promises: dict[int, Promise | None] = {}

    def count(self, files: Iterable[FileRef]) -> list[FileRef]:
        """Those that no record of the window named before, where nobody asks for promises."""
        new = {hash((f.key, f.version_id, f.bytes, f.sha256)): f for f in files}
        for mark in self._promises.keys() & new.keys():
            del new[mark]
        self._promises |= dict.fromkeys(new)
        return list(new.values())

    def add(
        self, files: Sequence[FileRef], promise: Promise | None
    ) -> tuple[list[FileRef], list[tuple[FileRef, Promise | None]]]:
        """The files of a record that promises that: those that no record named before; and those
        of which it promises more than was promised before, with what that was."""
        new, again = list[FileRef](), list[tuple[FileRef, Promise | None]]()
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

    The choice is not predictable, so that nobody can damage only what will not be read.
    """

    def __init__(self, size: int, rng: random.Random | None = None) -> None:
        self._size = size
        self._seen = 0
        self._rng = rng or random.SystemRandom()
        self._lock = threading.Lock()
        self.chosen: list[FileRef] = []

    def offer(self, file: FileRef) -> None:
        with self._lock:
            self._seen += 1
            if len(self.chosen) < self._size:
                self.chosen.append(file)
            elif (place := self._rng.randrange(self._seen)) < self._size:
                self.chosen[place] = file


class ObjectCheck:
    """Checks records and their files, a task each. Threads share it."""

    def __init__(
        self,
        reader: ReportingReader,
        backlog: Backlog,
        holds: HoldCheck,
        *,
        hash_files: bool,
        sample: Sample | None,
        on_hashed: Callable[[int], None],
    ) -> None:
        """With a `sample`, files are offered to it, and hashed in `finish` if they were chosen.
        `on_hashed` is called with the bytes of each file that was hashed, from many threads."""
        self._reader = reader
        self._report = reader.findings.add
        self._backlog = backlog
        self._holds = holds
        self._hash_files = hash_files
        self._sample = sample
        self._on_hashed = on_hashed
        self._lock = threading.Lock()
        self.files_hashed = 0
        self.bytes_hashed = 0

    def add(
        self,
        found: SegmentRecord,
        promise: Promise | None,
        new: Iterable[FileRef],
        again: Iterable[tuple[FileRef, Promise | None]],
    ) -> None:
        """Have a record and its files checked, as `WindowFiles.add` sorts them; waits while too
        much is under way."""
        self._backlog.add(partial(self._check_record, found, promise))
        for file in new:
            self._backlog.add(partial(self._check_file, file, promise, found.record.call_id))
        for file, before in again:
            self._backlog.add(partial(self._check_promise, file, before, promise))

    def add_covering(self, key: str, until: datetime) -> None:
        """Have an object of the manifest checked that covers records that are promised a lock until
        then. Its mode is that of the day it was written. Where it is missing, that is said
        elsewhere."""
        self._backlog.add(partial(self._check_covering, key, Promise(0, until)))

    def finish(self, events: Iterable[str]) -> None:
        """Wait for all tasks, look at what else the `events` (keys) name, and hash the sample."""
        self._backlog.drain()
        for call_id, one in self._holds.not_looked_at(events):
            self._backlog.add(partial(self._holds.look_up, call_id, one))
        for file in self._sample.chosen if self._sample else ():
            self._backlog.add(partial(self._hash, file))
        self._backlog.drain()

    def _check_record(self, found: SegmentRecord, promise: Promise | None) -> None:
        key, call_id = found.record.key, found.record.call_id
        data = self._reader.read(key, MAX_RECORD_BYTES, "record_missing")
        if data is None:
            return
        if data != found.line:
            self._report("record_mismatch", key, hashlib.sha256(data).hexdigest())
        if promise is None and not self._holds.concern(call_id):
            return
        head = self._reader.head(key, None, "record_missing")
        self._holds.look(call_id, ObjectRef(key, None), head)
        if head is not None and promise is not None:
            self._check_lock(key, head, promise)

    def _check_file(self, file: FileRef, promise: Promise | None, call_id: str) -> None:
        head = self._reader.head(file.key, file.version_id, "file_missing")
        self._holds.look(call_id, ObjectRef(file.key, file.version_id), head)
        if head is None:
            return
        if promise is not None:
            self._check_lock(file.key, head, promise)
        if head.size != file.bytes:
            self._report("file_size", file.key, f"{head.size} bytes")
        elif head.sha256 is not None and head.sha256 != file.sha256:
            self._report("file_checksum", file.key, head.sha256)
        elif self._sample is not None:
            self._sample.offer(file)
        elif self._hash_files:
            self._hash(file)

    def _check_promise(
        self, file: FileRef, before: Promise | None, promise: Promise | None
    ) -> None:
        """A file that was checked already, against a further promise: what breaks an earlier one,
        or is missing, was said."""
        head = self._reader.head(file.key, file.version_id, None)
        if head is None or promise is None or not (before is None or before.is_kept_by(head)):
            return
        self._check_lock(file.key, head, promise)

    def _check_covering(self, key: str, promise: Promise) -> None:
        head = self._reader.head(key, None, None)
        if head is not None:
            self._check_lock(key, head, promise)

    def _check_lock(self, key: str, head: Head, promise: Promise) -> None:
        if head.lock_mode is None or head.lock_until is None:
            self._report("retention_missing", key)
        elif not promise.is_kept_by(head):
            detail = f"{head.lock_mode} until {format_time(head.lock_until)}"
            self._report("retention_weaker", key, detail)

    def _hash(self, file: FileRef) -> None:
        digest = self._reader.sha256(file.key, file.version_id, file.bytes, "file_missing")
        if digest is None:
            return
        with self._lock:
            self.files_hashed += 1
            self.bytes_hashed += file.bytes
        self._on_hashed(file.bytes)
        if digest != file.sha256:
            self._report("file_hash", file.key, digest)
