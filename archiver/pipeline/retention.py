"""Extends locks: a longer retention takes hold when a window is worked at again.

Touched is a window that the loop closes or lists again, or that a backfill works at. Where its
records promise less than today's policy, their locks are extended in place, and those of all that
they name; then the seals that cover the window, and its segments, to the latest date that the
window has. Nothing is shortened, and nothing is written: a record goes on promising what it did,
and its objects are kept for longer than that.

- The segments come last. So once they are locked for long enough all else is, and the next touch
  costs no more than a HEAD of each; a crash leaves them short, and the next touch does it again.
- Where all records promise what the policy gives, nothing is asked of the store at all. A window
  without calls promises nothing: there its segments are checked.
- A seal covers many windows, which are touched one after the other, and by several threads. So it
  is extended once, to the latest date that today's policy gives any of them.
- Seals of windows that nobody touches stay as they are: they are locked for as long as what they
  cover. What the archive as a whole needs (seal 0, the public key, the verifier's page and script)
  is extended daily, counted from now, so that the key outlives the seals that it checks.
- So are the events of legal holds, and the seals that cover them: counted from now while one of
  their calls is held, because that outlasts any retention, and else from when they happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial

import structlog

from archiver.core.clock import Clock
from archiver.core.concurrency import Workers
from archiver.core.errors import FormatError, Reach, StoreError
from archiver.core.model import DAY, Retention, Window
from archiver.manifest import layout, seal
from archiver.manifest.layout import SegmentName
from archiver.pipeline.bucket_state import LatestRecord, SegmentIndex, WindowState
from archiver.pipeline.hold_enforcement import HeldCalls, HoldEvent
from archiver.pipeline.lock_dates import (
    covering_date,
    is_behind_policy,
    latest_date,
    policy_date,
)
from archiver.pipeline.ports import Store
from archiver.store.types import Head

log = structlog.get_logger()

REMEMBERED_SEALS = 10_000


Counts = Counter[str]
"""How many objects were `extended`; are in a `weaker` mode than today's, which the store does not
change; are `gone`: not there, or cannot be read or locked, and `verify` says which."""
GONE = Counts(gone=1)


class RetentionKeeper:
    """Extends locks. An object that is gone, or whose lock the store refuses to extend, is counted,
    with an error in the log. Threads share it, each at a window of its own."""

    def __init__(
        self,
        store: Store,
        segments: SegmentIndex,
        workers: Workers,
        retention: Retention,
        clock: Clock,
        held: HeldCalls,
    ) -> None:
        self._store = store
        self._segments = segments
        self._workers = workers
        self._retention = retention
        self._clock = clock
        self._held = held
        self._checked_at: float | None = None
        """When what the archive as a whole needs was extended last."""
        self._seals: dict[int, datetime] = {}
        """Seals that were extended, and until when they are locked at least."""

    def keep_window(
        self, window: Window, state: WindowState, unnamed: Sequence[LatestRecord]
    ) -> datetime | None:
        """Extend what a window has, where it is locked for less than today's policy: what its
        segments name, and the records that they do not name yet. To be done before a segment names
        those. Returns the latest date of all of it, None without a lock.

        Raises `StoreError` that is about more than one object.
        """
        retention = self._retention
        until = latest_date(retention.until(window.end), state.lock_until)
        if until is None:
            return None
        behind = []
        for one in unnamed:
            found = one.record()
            until = latest_date(until, covering_date(found, window, retention))
            if is_behind_policy(found, window, retention):
                behind.append(one)
        short = self._short_segments(window, state)
        named = state.records.values() if short and state.behind_policy else ()
        counts = _sum(self._workers.map(partial(self._keep_call, window), [*named, *behind]))
        counts += _sum(self._keep_segment(name, state.lock_until, window) for name in short)
        extended, weaker, name = counts["extended"], counts["weaker"], str(window)
        if extended or weaker:
            log.info("window.locks_extended", window=name, objects=extended, mode_stays=weaker)
        if counts["gone"]:
            log.error("window.objects_gone", window=name, objects=counts["gone"])
        return until

    def keep_archive(self, key_id: str) -> None:
        """Extend what the archive as a whole needs, where that is locked for noticeably less than
        today's policy gives from now, and the events of legal holds: at the first call, and daily.
        Raises `StoreError`."""
        now = self._clock.monotonic()
        recently = self._checked_at is not None and now < self._checked_at + DAY.total_seconds()
        until = self._retention.until(self._clock.now())
        if until is None or recently:
            return
        for key in (
            layout.seal_key(0),
            layout.signature_key(0),
            layout.public_key_key(key_id),
            layout.VERIFY_PAGE,
            layout.VERIFY_SCRIPT,
        ):
            head = self._head(key)
            if head is not None and self._is_short(head, until - DAY):
                self._extend(key, head.version_id, until)
        counts = _sum(self._workers.map(self._keep_event, self._held.events()))
        if counts["extended"]:
            log.info("holds.locks_extended", objects=counts["extended"])
        if counts["gone"]:
            log.error("holds.objects_gone", objects=counts["gone"])
        self._checked_at = now

    def _keep_event(self, event: HoldEvent) -> Counts:
        now = self._clock.now()
        until = self._retention.until(now if event.holds else event.at)
        if until is None or until <= now:
            return Counts()
        head = self._head(event.key)
        if head is None:
            return GONE
        if not self._is_short(head, until - DAY if event.holds else until):
            return Counts()
        # The segment comes last, as a window's does.
        keys = (layout.pointer_key(event.key), layout.companion_key(event.key), event.key)
        counts = self._extend_seal(event.seal, until, timedelta(0))
        return counts + _sum(self._extend(key, None, until) for key in keys)

    # --- a window

    def _keep_call(self, window: Window, latest: LatestRecord) -> Counts:
        """Extend all revisions of a call and their files, the newest first."""
        counts = Counts()
        for found in latest.revisions(self._store):
            if found is None:
                counts += GONE
            elif is_behind_policy(found, window, self._retention):
                until = policy_date(found, window, self._retention)
                objects = [*found.files, {"key": found.key, "version_id": None}]
                counts += _sum(self._extend(o["key"], o["version_id"], until) for o in objects)
        return counts

    def _short_segments(self, window: Window, state: WindowState) -> Iterable[SegmentName]:
        """The window's segments, where one of them is locked for less than the window's latest
        date; none where its records show already that this is not so."""
        until = state.lock_until
        if not state.revision or until is None or until <= self._clock.now():
            return []
        if state.records and not state.behind_policy:
            return []
        names = [name for name, _ in self._segments.of(window.start)]
        heads = (self._head(name.jsonl) for name in names)
        return names if any(head and self._is_short(head, until) for head in heads) else []

    def _keep_segment(self, name: SegmentName, until: datetime | None, window: Window) -> Counts:
        """Extend a segment, its `.sha256`, its pointer and its seal. One without a pointer is not
        sealed yet: its seal will be locked by today's policy."""
        try:
            pointer = self._store.read(name.seal, max_bytes=seal.POINTER_BYTES)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            pointer = b""  # the store refuses it: as good as a damaged one
        number = seal.parse_pointer(pointer) if pointer is not None else None
        counts = Counts()
        if number is not None:
            counts += self._extend_seal(number, until, window.end - window.start)
            counts += self._extend(name.seal, None, until)
        elif pointer is not None:
            counts += GONE
        return counts + _sum(self._extend(key, None, until) for key in (name.sha256, name.jsonl))

    # --- single objects

    def _extend_seal(self, number: int, until: datetime | None, length: timedelta) -> Counts:
        """Lock a seal and its signature until then, or for as long as the policy gives the windows
        that it covers, which have this length."""
        known = self._seals.get(number)
        if until is None or (known is not None and known >= until):
            return Counts()
        latest = latest_date(until, self._policy_of_seal(number, length)) or until
        keys = (layout.seal_key(number), layout.signature_key(number))
        counts = _sum(self._extend(key, None, latest) for key in keys)
        if len(self._seals) >= REMEMBERED_SEALS:
            self._seals.clear()
        self._seals[number] = latest
        return counts

    def _policy_of_seal(self, number: int, length: timedelta) -> datetime | None:
        """The latest date of the windows of a seal; None where it cannot be read."""
        try:
            found = seal.parse_seal(self._store.read(layout.seal_key(number)) or b"")
        except (FormatError, StoreError) as error:
            if error.reach is not Reach.ITEM:
                raise
            return None
        names = (layout.parse_segment_key(entry.key) for entry in found.segments)
        latest = max((name[0].start for name in names if name), default=None)
        return self._retention.until(latest + length) if latest else None

    def _extend(self, key: str, version_id: str | None, until: datetime | None) -> Counts:
        """Lock an object until then, if it is not locked for longer."""
        try:
            lock = self._store.extend(key, version_id, until)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("lock.not_extended", key=key, error=str(error))
            return GONE
        weaker = self._retention.mode == "COMPLIANCE" and lock.mode == "GOVERNANCE"
        return Counts(extended=int(lock.extended), weaker=int(weaker))

    def _head(self, key: str) -> Head | None:
        """What the store says of an object; None, with an error in the log, where it refuses."""
        try:
            return self._store.head(key)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("lock.unknown", key=key, error=str(error))
            return None

    def _is_short(self, head: Head, until: datetime) -> bool:
        """Whether an object is locked for less than until then, or in a weaker mode."""
        modes = {self._retention.mode, "COMPLIANCE"}
        return head.lock_mode not in modes or head.lock_until is None or head.lock_until < until


def _sum(counts: Iterable[Counts]) -> Counts:
    return sum(counts, Counts())
