"""Extending locks: of single objects, and of what covers a segment.

A seal covers many windows, which are touched one after the other, and by several threads. So it is
extended once, to the latest date that today's policy gives any of them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from archiver.errors import FormatError, Reach, StoreError
from archiver.manifest import layout, seal
from archiver.model import Retention
from archiver.pipeline.history import max_date
from archiver.pipeline.ports import Store
from archiver.store.objects import Head

log = structlog.get_logger()

REMEMBERED_SEALS = 10_000


@dataclass
class Done:
    """What came of it. Threads share it."""

    extended: int = 0
    weaker: int = 0
    """Objects in a weaker mode than today's, which the store does not change."""
    gone: int = 0
    """Objects that are not there, or cannot be read or locked: `verify` says which."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, extended: bool = False, weaker: bool = False, gone: bool = False) -> None:
        with self._lock:
            self.extended += extended
            self.weaker += weaker
            self.gone += gone


class Extender:
    """Extends locks. Threads share it. An object that is gone, or of which the store refuses it, is
    counted, and an error in the log; raises `StoreError` that is about more than one object."""

    def __init__(self, store: Store, retention: Retention) -> None:
        self._store = store
        self._retention = retention
        self._seals: dict[int, datetime] = {}
        """Until when the seals are locked that were extended, at least."""

    def extend(self, key: str, version_id: str | None, until: datetime | None, done: Done) -> None:
        """Lock an object until then, if it is not locked for longer."""
        try:
            lock = self._store.extend(key, version_id, until)
        except StoreError as error:
            if error.reach is not Reach.ITEM:
                raise
            log.error("lock.not_extended", key=key, error=str(error))
            done.add(gone=True)
            return
        weaker = self._retention.mode == "COMPLIANCE" and lock.mode == "GOVERNANCE"
        done.add(extended=lock.extended, weaker=weaker)

    def extend_seal(
        self, number: int, until: datetime | None, length: timedelta, done: Done
    ) -> None:
        """Lock a seal and its signature until then, or for as long as the policy gives the windows
        that it covers, which are so long."""
        known = self._seals.get(number)
        if until is None or (known is not None and known >= until):
            return
        latest = max_date(until, self._policy(number, length)) or until
        self.extend(layout.seal_key(number), None, latest, done)
        self.extend(layout.signature_key(number), None, latest, done)
        if len(self._seals) >= REMEMBERED_SEALS:
            self._seals.clear()
        self._seals[number] = latest

    def is_short(self, head: Head, until: datetime | None) -> bool:
        """Whether an object is locked for less than until then, or in a weaker mode."""
        if until is None:
            return False
        modes = {self._retention.mode, "COMPLIANCE"}
        return head.lock_mode not in modes or head.lock_until is None or head.lock_until < until

    def _policy(self, number: int, length: timedelta) -> datetime | None:
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
