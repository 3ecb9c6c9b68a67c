"""Lock dates, and extending locks to a longer retention.

Until when a call is locked:

- The policy counts from the call's end (`model.lock_start`). A record states end and start. If it
  states neither, its lock counts from some moment of the window, or from the window's end.
- If a record has the finding `time_implausible`, its lock counts from the window's end. The same
  holds for a record without that finding whose end lies over a day after it was written: releases
  before that finding trusted every end. The promise of such a record binds its own objects, and not
  the segments and seals that cover it.

`RetentionKeeper` extends the locks of a window when the loop closes or lists it again, or when a
backfill processes it. If its records promise less than today's policy, it extends the locks of the
records and of all that they name; then those of the seals that cover the window, and of its
segments, to the latest date in the window. Locks are never shortened, and nothing is rewritten: a
record keeps its promise, and its objects are kept for longer than that.

- The segments come last. Once they are locked for long enough, everything else is, so the next run
  costs one HEAD of each. A crash leaves them short, and the next run repeats the work.
- If all records promise what the policy requires, no request is sent. A window without calls has no
  promises, so its segments are checked.
- A seal covers many windows, which several threads process one after the other. So it is extended
  once, to the latest date that today's policy requires for any of them.
- Seals of windows that nobody processes stay as they are: they are locked as long as what they
  cover. What the whole archive needs (seal 0, the public key, the verifier's page and script) is
  extended daily, counted from now, so that the key outlives the seals that it verifies.
- So are the events of legal holds, and the seals that cover them: counted from now while one of
  their calls is held, because a hold outlasts any retention, and else from the time of the event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from archiver.core.clock import Clock
from archiver.core.concurrency import Workers
from archiver.core.errors import FormatError, Reach, StoreError
from archiver.core.model import DAY, Retention, Window, format_time, is_too_late, parse_time
from archiver.manifest import layout, seal
from archiver.manifest.layout import SegmentName
from archiver.manifest.record import Record
from archiver.store.bucket import Bucket
from archiver.store.types import ObjectHead

if TYPE_CHECKING:  # these modules import this one
    from archiver.pipeline.bucket_state import LatestRecord, SegmentIndex, WindowState
    from archiver.pipeline.hold_enforcement import EventSegment, HeldCalls

log = structlog.get_logger()

REMEMBERED_SEALS = 10_000
Counts = Counter[str]
"""Numbers of objects. `extended`: their lock was extended. `weaker`: their mode is weaker than
today's, and the store does not change it. `gone`: missing, unreadable or refused; `verify` says
which."""


# --- until when a call is locked


def latest_date(*dates: datetime | None) -> datetime | None:
    """The latest of these dates; None if all are None."""
    return max((date for date in dates if date is not None), default=None)


def covering_date(found: Record, window: Window, retention: Retention) -> datetime | None:
    """The date until which the segments and seals that cover a record are locked: that of today's
    policy for its call, or the date that the record promises if it is later. None without a lock.
    """
    start = _lock_start(found, window)
    binds = retention.mode is not None and not _has_impossible_end(found)
    return latest_date(
        retention.until(start) if start else None, _promised(found) if binds else None
    )


def is_behind_policy(found: Record, window: Window, retention: Retention) -> bool:
    """Whether a record promises less than today's policy: no lock, a weaker mode, an earlier
    date."""
    least = _lock_start(found, window) or window.start
    return promises_less(found, retention, retention.until(least))


def promises_less(found: Record, retention: Retention, until: datetime | None) -> bool:
    """Whether a record promises less than a lock in the policy's mode until this date."""
    if until is None:
        return False
    promised = _promised(found)
    if promised is None:
        return True
    is_weaker = found.document["retention"].get("mode") != "COMPLIANCE"
    return promised < until or (is_weaker and retention.mode == "COMPLIANCE")


def promise(
    retention: Retention, until: datetime | None, lock_modes: set[str]
) -> dict[str, Any] | None:
    """The `retention` field of a new record. `lock_modes` are the modes in which its files are
    locked: an older file may be in the weaker mode, which the store may not change."""
    if until is None:
        return None
    mode = "GOVERNANCE" if "GOVERNANCE" in lock_modes else retention.mode
    return {"mode": mode, "until": format_time(until)}


def _lock_start(found: Record, window: Window) -> datetime | None:
    """The moment from which a record's lock counts; None if the record states no time."""
    bounded = _is_implausible(found) or _has_impossible_end(found)
    return window.end if bounded else _end(found)


def _end(found: Record) -> datetime | None:
    return parse_time(found.document.get("ended_at") or found.document.get("started_at"))


def _is_implausible(found: Record) -> bool:
    findings = found.document.get("findings")
    return isinstance(findings, list) and "time_implausible" in findings


def _has_impossible_end(found: Record) -> bool:
    """Whether an earlier release used an end for the lock that was over a day ahead."""
    end, written_at = _end(found), parse_time(found.document.get("archived_at"))
    if end is None or written_at is None or _is_implausible(found):
        return False
    return is_too_late(end, written_at)


def _promised(found: Record) -> datetime | None:
    retention = found.document.get("retention")
    return parse_time(retention.get("until")) if isinstance(retention, dict) else None


# --- extending locks


@dataclass(eq=False, repr=False)
class RetentionKeeper:
    """Extends locks. An object that is missing, or whose lock the store refuses to extend, is
    counted and logged as an error. Thread-safe while no two threads process the same window."""

    store: Bucket
    segments: SegmentIndex
    workers: Workers
    retention: Retention
    clock: Clock
    held: HeldCalls
    _checked_at: float | None = field(default=None, init=False)
    """When the locks that the whole archive needs were last extended."""
    _seals: dict[int, datetime] = field(default_factory=dict, init=False)
    """Number of each seal that was extended → the date until which it is locked at least."""

    def keep_window(
        self, window: Window, state: WindowState, unnamed: Sequence[LatestRecord]
    ) -> datetime | None:
        """Extend the locks in a window that are shorter than today's policy: of what its segments
        name, and of the `unnamed` records. Must run before a segment names those. Returns the
        latest date of all of it, None without a lock.

        Raises `StoreError` that is about more than one object.
        """
        retention = self.retention
        until = latest_date(retention.until(window.end), state.lock_until)
        if until is None:
            return None
        behind = []
        for latest in unnamed:
            found = latest.record()
            until = latest_date(until, covering_date(found, window, retention))
            if is_behind_policy(found, window, retention):
                behind.append(latest)
        short = self._short_segments(window, state)
        named = state.records.values() if short and state.behind_policy else ()
        # A crash here leaves the segments short, so the next run of the window starts again.
        counts = _sum(self.workers.map(partial(self._keep_call, window), [*named, *behind]))
        counts += _sum(self._keep_segment(name, state.lock_until, window) for name in short)
        extended, weaker = counts["extended"], counts["weaker"]
        if extended or weaker:
            log.info(
                "window.locks_extended", window=str(window), objects=extended, mode_stays=weaker
            )
        if counts["gone"]:
            log.error("window.objects_gone", window=str(window), objects=counts["gone"])
        return until

    def keep_archive(self, key_id: str) -> None:
        """Extend the locks that the whole archive needs, if they are over a day shorter than
        today's policy from now, and those of hold events. Runs daily. Raises `StoreError`."""
        now = self.clock.monotonic()
        recently = self._checked_at is not None and now < self._checked_at + DAY.total_seconds()
        until = self.retention.until(self.clock.now())
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
            # The date moves with the clock; a day of slack avoids an extension per start.
            if head is not None and self._is_short(head, until - DAY):
                self._extend(until, (key, head.version_id))
        counts = _sum(self.workers.map(self._keep_event, self.held.events()))
        if counts["extended"]:
            log.info("holds.locks_extended", objects=counts["extended"])
        if counts["gone"]:
            log.error("holds.objects_gone", objects=counts["gone"])
        self._checked_at = now

    def _keep_event(self, found: tuple[EventSegment, bool]) -> Counts:
        (event, is_held), now = found, self.clock.now()
        until = self.retention.until(now if is_held else max(act.at for act in event.acts))
        if until is None or until <= now:
            return Counts()
        head = self._head(event.key)
        if head is None:
            return Counts(gone=1)
        if not self._is_short(head, until - DAY if is_held else until):
            return Counts()
        # The segment comes last, as a window's does.
        counts = self._extend_seal(event.seal, until, timedelta(0))
        keys = (layout.seal_pointer_key(event.key), layout.checksum_list_key(event.key), event.key)
        return counts + self._extend(until, *((key, None) for key in keys))

    def _keep_call(self, window: Window, latest: LatestRecord) -> Counts:
        """Extend all revisions of a call and their files, the newest first."""
        counts = Counts()
        for found in latest.revisions(self.store):
            if found is None:
                counts += Counts(gone=1)
            elif is_behind_policy(found, window, self.retention):
                until = self.retention.until(_lock_start(found, window) or window.end)
                files = ((file["key"], file["version_id"]) for file in found.files)
                counts += self._extend(until, *files, (found.key, None))
        return counts

    def _short_segments(self, window: Window, state: WindowState) -> list[SegmentName]:
        """The window's segments, if one is locked for less than the window's latest date; none if
        the records already show that this is not so."""
        until = state.lock_until
        if not state.revision or until is None or until <= self.clock.now():
            return []
        if state.records and not state.behind_policy:
            return []
        names = [name for name, _ in self.segments.of(window.start)]
        heads = (self._head(name.jsonl) for name in names)
        return names if any(head and self._is_short(head, until) for head in heads) else []

    def _keep_segment(self, name: SegmentName, until: datetime | None, window: Window) -> Counts:
        """Extend a segment, its checksum list, its seal pointer and its seal. A segment without a
        pointer is not sealed yet: its seal will be locked by today's policy."""
        try:
            pointer = self.store.read(name.seal, max_bytes=seal.POINTER_BYTES)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            pointer = b""  # the store refuses it: treat it as damaged
        number = seal.parse_seal_pointer(pointer) if pointer is not None else None
        counts = Counts(gone=int(pointer is not None and number is None))
        if number is not None:
            counts += self._extend_seal(number, until, window.end - window.start)
            counts += self._extend(until, (name.seal, None))
        return counts + self._extend(until, (name.sha256, None), (name.jsonl, None))

    def _extend_seal(self, number: int | None, until: datetime | None, length: timedelta) -> Counts:
        """Extend a seal and its signature to `until`, or to the policy's date for the windows that
        it covers, which are `length` long, whichever is later."""
        if until is None or number is None:
            return Counts()
        known = self._seals.get(number)
        if known is not None and known >= until:
            return Counts()
        try:
            found = seal.parse_seal(self.store.read(layout.seal_key(number)) or b"")
            names = (layout.parse_segment_key(entry.key) for entry in found.segments)
            latest = max((name[0].start for name in names if name), default=None)
        except (FormatError, StoreError) as error:
            if error.reach is not Reach.ITEM:
                raise
            latest = None  # `verify` reports that it cannot be read
        until = latest_date(until, self.retention.until(latest + length) if latest else None)
        assert until is not None  # noqa: S101  (as above)
        keys = (layout.seal_key(number), layout.signature_key(number))
        counts = self._extend(until, *((key, None) for key in keys))
        if len(self._seals) >= REMEMBERED_SEALS:
            self._seals.clear()
        self._seals[number] = until
        return counts

    def _extend(self, until: datetime | None, *objects: tuple[str, str | None]) -> Counts:
        """Lock objects (key, version) until `until`, unless they are locked for longer."""
        counts = Counts()
        for key, version_id in objects:
            try:
                lock = self.store.extend(key, version_id, until)
            except StoreError as error:
                if error.reach is not Reach.ITEM:
                    raise
                log.error("lock.not_extended", key=key, error=str(error))
                counts["gone"] += 1
                continue
            counts["extended"] += lock.extended
            counts["weaker"] += self.retention.mode == "COMPLIANCE" and lock.mode == "GOVERNANCE"
        return counts

    def _head(self, key: str) -> ObjectHead | None:
        """The object's metadata; None if it is missing, or if the store refuses, with an error in
        the log."""
        try:
            return self.store.head(key)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("lock.head_failed", key=key, error=str(error))
            return None

    def _is_short(self, head: ObjectHead, until: datetime) -> bool:
        """Whether an object's lock ends before `until`, or is in a weaker mode."""
        modes = {self.retention.mode, "COMPLIANCE"}
        return head.lock_mode not in modes or head.lock_until is None or head.lock_until < until


def _sum(counts: Iterable[Counts]) -> Counts:
    return sum(counts, Counts())
