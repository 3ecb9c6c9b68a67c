"""Keeping longer what is there: a later, longer policy takes hold when a window is worked at again.

What is touched: a window that the loop closes or lists again, or that a backfill works at. Where
its records promise less than today's policy gives, their locks are extended in place, and those of
all that they name; then the seals that cover the window, and its segments, to the latest date that
the window has. Nothing is shortened, and nothing is written: a record goes on promising what it
did, and its objects are kept for longer than that.

- The segments come last. So once they are locked for long enough all else is, and the next touch
  costs no more than a look at them; a crash leaves them short, and the next touch does it again.
- Where all records promise what the policy gives, nothing is asked of the store at all. A window
  without calls promises nothing: there its segments are looked at.
- Seals of windows that nobody touches stay as they are: they are locked for as long as what they
  cover. What the archive as a whole needs (seal 0, the public key, the verifier's page and script)
  is extended daily, counted from now, so that the key outlives the seals that it checks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import structlog

from archiver.clock import Clock
from archiver.errors import FormatError, StoreError
from archiver.manifest import layout, record
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.model import DAY, Retention, Window
from archiver.pipeline.history import History, Standing, max_date
from archiver.pipeline.index import SegmentIndex
from archiver.pipeline.pool import Workers
from archiver.pipeline.ports import Store
from archiver.pipeline.promise import covered_date, is_behind, policy_date
from archiver.store.objects import Head

log = structlog.get_logger()

MAX_POINTER_BYTES = 64


@dataclass
class _Done:
    """What came of it. Threads share it."""

    extended: int = 0
    weaker: int = 0
    """Objects in a weaker mode than today's, which the store does not change."""
    gone: int = 0
    """Objects that are not there, or cannot be read: `verify` says which."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, extended: bool = False, weaker: bool = False, gone: bool = False) -> None:
        with self._lock:
            self.extended += extended
            self.weaker += weaker
            self.gone += gone


class Keeper:
    """Extends locks. Threads share it, each at a window of its own."""

    def __init__(
        self,
        store: Store,
        segments: SegmentIndex,
        workers: Workers,
        retention: Retention,
        clock: Clock,
    ) -> None:
        self._store = store
        self._segments = segments
        self._workers = workers
        self._retention = retention
        self._clock = clock
        self._looked_at: float | None = None
        self._lock = threading.Lock()
        self.at_work = 0
        """Windows whose locks are being extended right now."""

    def keep(self, window: Window, history: History, new: Iterable[Standing]) -> datetime | None:
        """Extend what a window has, where it is locked for less than today's policy gives: what its
        segments tell, and what they do not tell yet (`new`). Done before that is told.

        The latest date of all of it, None without a lock. What is gone is left to `verify`, with an
        error in the log. Raises `StoreError` where the store refuses.
        """
        until = max_date(self._retention.until(window.end), history.keep_until)
        if until is None:
            return None
        late = []
        for one in new:
            found = one.record()
            until = max_date(until, covered_date(found, self._retention))
            if is_behind(found, window, self._retention):
                late.append(one)
        self._extend_all(window, history, late)
        return until

    def _extend_all(self, window: Window, history: History, late: list[Standing]) -> None:
        done, names = _Done(), self._short(window, history)
        told = history.records.values() if names and history.behind else ()
        with self._working():
            self._workers.map(partial(self._keep_call, window, done), [*told, *late])
            for name in names:
                self._keep_segment(name, history.keep_until, done)
        if done.extended or done.weaker:
            log.info(
                "window.kept_longer",
                window=str(window),
                objects=done.extended,
                mode_stays=done.weaker,
            )
        if done.gone:
            log.error("window.objects_gone", window=str(window), objects=done.gone)

    def keep_archive(self, key_id: str) -> None:
        """Extend what the archive as a whole needs, where that is locked for noticeably less than
        today's policy gives from now: at the first call, and daily. Raises `StoreError`."""
        now = self._clock.monotonic()
        recently = self._looked_at is not None and now < self._looked_at + DAY.total_seconds()
        until = self._retention.until(self._clock.now())
        if until is None or recently:
            return
        keys = [
            layout.seal_key(0),
            layout.signature_key(0),
            layout.public_key_key(key_id),
            layout.VERIFY_PAGE,
            layout.VERIFY_SCRIPT,
        ]
        for key in keys:
            head = self._store.head(key)
            if head is not None and self._is_short(head, until - DAY):
                self._store.extend(key, head.version_id, until)
        self._looked_at = now

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._lock:
            self.at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self.at_work -= 1

    # --- a window's records and files

    def _keep_call(self, window: Window, done: _Done, standing: Standing) -> None:
        """Extend all revisions of a call, the newest first."""
        newest = standing.record()
        self._keep_record(newest, window, done)
        for number in range(newest.revision - 1, 0, -1):
            key = layout.record_key(standing.day, newest.call_id, number)
            try:
                self._keep_record(record.parse(self._store.read(key) or b""), window, done)
            except FormatError:
                done.add(gone=True)

    def _keep_record(self, found: Record, window: Window, done: _Done) -> None:
        if not is_behind(found, window, self._retention):
            return
        until = policy_date(found, window, self._retention)
        for file in found.document["files"]:
            self._extend(file["key"], file["version_id"], until, done)
        self._extend(found.key, None, until, done)

    # --- its segments, and the seals that cover them

    def _short(self, window: Window, history: History) -> list[SegmentName]:
        """The window's segments, where one of them is locked for less than the window's latest
        date; none where its records say already that this is not so."""
        until = history.keep_until
        if not history.revision or until is None or until <= self._clock.now():
            return []
        if history.records and not history.behind:
            return []
        names = [name for name, _ in self._segments.of(window.start)]
        heads = (self._store.head(name.jsonl) for name in names)
        return names if any(head and self._is_short(head, until) for head in heads) else []

    def _keep_segment(self, name: SegmentName, until: datetime | None, done: _Done) -> None:
        for key in [*self._covering(name, done), name.sha256, name.jsonl]:
            self._extend(key, None, until, done)

    def _covering(self, name: SegmentName, done: _Done) -> Iterator[str]:
        """The seal that covers a segment, its signature, and the pointer to it; nothing of one that
        is not sealed yet: what it gets then has today's date."""
        data = self._store.read(name.seal, max_bytes=MAX_POINTER_BYTES)
        if data is None:
            return
        number = data.strip()
        if not (number.isdigit() and int(number) <= layout.MAX_SEQUENCE):
            done.add(gone=True)
            return
        yield from (layout.seal_key(int(number)), layout.signature_key(int(number)), name.seal)

    # --- one object

    def _extend(
        self, key: str, version_id: str | None, until: datetime | None, done: _Done
    ) -> None:
        try:
            lock = self._store.extend(key, version_id, until)
        except StoreError as error:
            if error.reason != "gone":
                raise
            done.add(gone=True)
            return
        weaker = self._retention.mode == "COMPLIANCE" and lock.mode == "GOVERNANCE"
        done.add(extended=lock.extended, weaker=weaker)

    def _is_short(self, head: Head, until: datetime) -> bool:
        modes = {self._retention.mode, "COMPLIANCE"}
        return head.lock_mode not in modes or head.lock_until is None or head.lock_until < until
