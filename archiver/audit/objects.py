"""Records and files: what a segment's lines say, against what the bucket holds.

At level `objects` every record is read and every file asked for by HEAD, in the very version that
its record names; at level `bytes` files are read and hashed too, all of them or a random sample.
A record is asked for by HEAD only where it promises a lock, or its call is on legal hold.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from archiver.audit.gate import Gate
from archiver.audit.held import HoldCheck
from archiver.audit.parallel import Backlog
from archiver.audit.reader import Head
from archiver.audit.told import MAX_RECORD_BYTES, FileRef, Told
from archiver.manifest.event import ObjectRef
from archiver.model import format_time, parse_time

MODES = ("GOVERNANCE", "COMPLIANCE")
"""Weakest first."""


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


class Hashed:
    """How many files, and bytes, were read and hashed. Threads share it."""

    def __init__(self, watch: Callable[[int], None]) -> None:
        self._lock = threading.Lock()
        self._watch = watch
        self.files = 0
        self.bytes = 0

    def add(self, size: int) -> None:
        with self._lock:
            self.files += 1
            self.bytes += size
        self._watch(size)


class ObjectCheck:
    """Checks records and their files, a task each. Threads share it."""

    def __init__(
        self,
        gate: Gate,
        backlog: Backlog,
        hashed: Hashed,
        holds: HoldCheck,
        *,
        hash_files: bool,
        sample: Sample | None,
    ) -> None:
        """With a `sample`, files are offered to it, and hashed in `finish` if they were chosen."""
        self._gate = gate
        self._report = gate.findings.add
        self._backlog = backlog
        self._hashed = hashed
        self._holds = holds
        self._hash_files = hash_files
        self._sample = sample

    def add(self, line: bytes, found: Told, named: Named) -> None:
        """Have a record and what it names checked; waits while too much is under way."""
        promise, call_id, add = named.promise, found.call_id, self._backlog.add
        add(lambda: self._record(found.key, line, promise, call_id))
        for file in named.files:
            add(lambda file=file: self._file(file, promise, call_id))  # type: ignore[misc]
        for file, kept in named.again:
            add(lambda file=file, kept=kept: self._again(file, kept, promise))  # type: ignore[misc]

    def add_covering(self, key: str, until: datetime) -> None:
        """Have an object of the manifest checked that covers records that are promised a lock until
        then. Its mode is that of the day it was written. Where it is missing, that is said
        elsewhere."""

        def check() -> None:
            head = self._gate.head(key, None, None)
            if head is not None:
                self._lock(key, head, Promise(0, until))

        self._backlog.add(check)

    def finish(self, events: Iterable[str]) -> None:
        """Wait for all tasks, look at what else the `events` (keys) name, and hash the sample."""
        self._backlog.drain()
        for call_id, one in self._holds.rest(events):
            self._backlog.add(
                lambda call_id=call_id, one=one: self._holds.look_at(call_id, one)  # type: ignore[misc]
            )
        for file in self._sample.chosen if self._sample else ():
            self._backlog.add(lambda file=file: self._hash(file))  # type: ignore[misc]
        self._backlog.drain()

    def _record(self, key: str, line: bytes, promise: Promise | None, call_id: str) -> None:
        data = self._gate.read(key, MAX_RECORD_BYTES, "record_missing")
        if data is None:
            return
        if data != line:
            self._report("record_mismatch", key, hashlib.sha256(data).hexdigest())
        if promise is None and not self._holds.concern(call_id):
            return
        head = self._gate.head(key, None, "record_missing")
        self._holds.look(call_id, ObjectRef(key, None), head)
        if head is not None and promise is not None:
            self._lock(key, head, promise)

    def _file(self, file: FileRef, promise: Promise | None, call_id: str) -> None:
        head = self._gate.head(file.key, file.version_id, "file_missing")
        self._holds.look(call_id, ObjectRef(file.key, file.version_id), head)
        if head is None:
            return
        if promise is not None:
            self._lock(file.key, head, promise)
        if head.size != file.bytes:
            self._report("file_size", file.key, f"{head.size} bytes")
        elif head.sha256 is not None and head.sha256 != file.sha256:
            self._report("file_checksum", file.key, head.sha256)
        elif self._sample is not None:
            self._sample.offer(file)
        elif self._hash_files:
            self._hash(file)

    def _again(self, file: FileRef, before: Promise | None, promise: Promise | None) -> None:
        """A file that was checked already, against a further promise: what breaks an earlier one,
        or is missing, was said."""
        head = self._gate.head(file.key, file.version_id, None)
        if head is None or promise is None or not (before is None or before.is_kept_by(head)):
            return
        self._lock(file.key, head, promise)

    def _hash(self, file: FileRef) -> None:
        digest = self._gate.sha256(file.key, file.version_id, file.bytes, "file_missing")
        if digest is None:
            return
        self._hashed.add(file.bytes)
        if digest != file.sha256:
            self._report("file_hash", file.key, digest)

    def _lock(self, key: str, head: Head, promise: Promise) -> None:
        if head.lock_mode is None or head.lock_until is None:
            self._report("retention_missing", key)
        elif not promise.is_kept_by(head):
            detail = f"{head.lock_mode} until {format_time(head.lock_until)}"
            self._report("retention_weaker", key, detail)


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


def _promise(retention: object, now: datetime) -> Promise | None:
    """What must still hold `now`; None where nothing was promised, or it is over."""
    if not isinstance(retention, dict):
        return None
    mode, until = retention.get("mode"), parse_time(retention.get("until"))
    if mode not in MODES or until is None or until <= now:
        return None
    return Promise(MODES.index(mode), until)


@dataclass
class Named:
    """What a record names and promises: `files` that no record of the window named before, and
    `again` those of which it promises more than was promised before, with what that was."""

    promise: Promise | None
    files: list[FileRef] = field(default_factory=list)
    again: list[tuple[FileRef, Promise | None]] = field(default_factory=list)


class WindowFiles:
    """The files that the records of a window name, and what all of them together promise of each:
    a later revision carries files over, and has a promise of its own. One thread uses it.

    Hashes are kept, not keys: a window may have very many.
    """

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._promises: dict[int, Promise | None] = {}

    def take(self, found: Told) -> Named:
        """Malformed files are left out, because that was reported."""
        named = Named(_promise(found.retention, self._now))
        for file in found.files:
            self._take(file, named)
        return named

    def _take(self, file: FileRef, named: Named) -> None:
        mark, promise = hash(file), named.promise
        if mark not in self._promises:
            self._promises[mark] = promise
            named.files.append(file)
            return
        before = self._promises[mark]
        both = before.and_also(promise) if before and promise else before or promise
        if both != before:
            self._promises[mark] = both
            named.again.append((file, before))
