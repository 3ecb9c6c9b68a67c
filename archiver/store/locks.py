"""Object Lock: retention dates and legal holds, and whether the store really set them.

Rules:
- A store may ignore a header without an error, so each lock and hold is read back from the version
  that was written.
- Locks are extended and never shortened.
- The mode of a lock in force stays. A COMPLIANCE lock cannot be weakened. To strengthen a
  GOVERNANCE lock, stores require the permission to bypass it, which no writer of an archive should
  have. If a store refuses the requested mode, the lock is extended in its present mode.
- Many windows share a seal, so threads and processes extend the same object at once. In some stores
  the check and the write are not atomic, so a shorter date may overwrite a longer one. So the
  threads of a process take a mutex per object, and a date that another process overwrote is set
  again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import structlog

from archiver.core.errors import StoreError
from archiver.core.model import format_second, next_second
from archiver.store.client import StoreClient
from archiver.store.errors import of_object
from archiver.store.types import ObjectHead, ObjectLock

log = structlog.get_logger()

LEAST_RETENTION_SECONDS = 1.0
"""A retention that is over, or about to be, cannot be set and is not needed."""
LOCK_TRIES = 8
"""How often a date is set that another process overwrites with a shorter one."""
LOCK_PAUSE_SECONDS = 0.05
"""The pause before the second try; each further pause is longer by this."""
MUTEXES = 256
"""Number of mutexes. Objects share them by the hash of their keys."""
_TAKES_NO_HOLD = ("refused", "not_found", "not_implemented", "not_configured")
"""Reasons that concern the object or the bucket, not the credentials or the network."""


class ObjectLocks:
    """Sets the locks and holds of one bucket's objects. Thread-safe."""

    def __init__(self, client: StoreClient, has_object_lock: Callable[[], bool]) -> None:
        """`has_object_lock`: whether the bucket has Object Lock. Called if a lock is not kept."""
        self._client = client
        self._mode = client.options.lock_mode
        self._has_object_lock = has_object_lock
        self._mutexes = [threading.RLock() for _ in range(MUTEXES)]
        self._modes_stay = False
        """Whether the store has refused to change the mode of a lock in force. It would refuse
        again, so this is tried once."""

    def arguments(self, retain_until: datetime | None, held: bool) -> dict[str, Any]:
        """What a write passes for lock and hold, in boto3's names."""
        arguments: dict[str, Any] = {"ObjectLockLegalHoldStatus": "ON"} if held else {}
        if (until := self._lock_date(retain_until)) is not None:
            arguments |= {"ObjectLockMode": self._mode, "ObjectLockRetainUntilDate": until}
        return arguments

    def mutex(self, key: str) -> threading.RLock:
        """The mutex of an object. Hold it from the HEAD of the object until its lock is set."""
        return self._mutexes[hash(key) % MUTEXES]

    def extend(self, key: str, version_id: str | None, retain_until: datetime | None) -> ObjectLock:
        """Lock an existing object until `retain_until`, unless it is locked for longer. Raises
        `StoreError`, with the reason `gone` if there is no such object."""
        if self._lock_date(retain_until) is None:
            return ObjectLock(None, None)
        with self.mutex(key):
            head = self._head(key, version_id)
            return self.ensure(key, version_id or head.version_id, head, retain_until)

    def ensure(
        self, key: str, version_id: str | None, head: ObjectHead, retain_until: datetime | None
    ) -> ObjectLock:
        """Lock an object as requested, or for as long in its present mode. The caller holds its
        `mutex`.

        `head` is the object's metadata. Raises `StoreError`.

        1. Take the later of the requested date and the present date.
        2. For the requested mode, then for the object's present mode: return if the lock is already
           as strong.
        3. Set the lock, and again while other processes overwrite it with a shorter one.
        4. Read it back. Return if it is as strong as requested.
        """
        until = self._lock_date(retain_until)
        if until is None:
            return ObjectLock(head.lock_mode, head.lock_until)
        until = max(until, head.lock_until or until)  # 1
        modes, refusal = self._modes(head), None
        for mode in modes:
            if not _is_weaker(head, mode, until):  # 2
                return ObjectLock(head.lock_mode, head.lock_until)
            head, refusal = self._set_lock(key, version_id, mode, until)  # 3
            if not _is_weaker(head, mode, until):  # 4
                return ObjectLock(head.lock_mode, head.lock_until, extended=refusal is None)
            if mode != modes[-1] and not self._modes_stay:
                self._modes_stay = True
                log.warning("lock.mode_stays", mode=head.lock_mode, asked=self._mode)
        raise refusal or self._not_locked(key, head, until)

    def _set_lock(
        self, key: str, version_id: str | None, mode: str, until: datetime
    ) -> tuple[ObjectHead, StoreError | None]:
        """Set a lock, and again if another process overwrites it with a shorter one. Returns the
        metadata after that, and the store's refusal, if any."""
        refusal, lock = None, {"Mode": mode, "RetainUntilDate": until}
        for number in range(LOCK_TRIES):
            if number:
                self._client.clock.sleep(number * LOCK_PAUSE_SECONDS)
            try:
                self._client.call("put_object_retention", key, version_id, Retention=lock)
            except StoreError as error:
                if error.retryable:
                    raise
                refusal = error
            head = self._head(key, version_id)
            # A refusal may also mean that another process has set a longer lock meanwhile.
            if refusal is not None or head.lock_until is None or head.lock_until >= until:
                break
        return head, refusal

    def _not_locked(self, key: str, head: ObjectHead, until: datetime) -> StoreError:
        """The error if the store accepted a lock and does not show it."""
        if not self._has_object_lock():
            return StoreError(
                f"{key} is not locked as asked: the bucket needs Object Lock, or set "
                "ARCHIVER_OBJECT_LOCK_MODE=none"
            )
        shown = format_second(head.lock_until) if head.lock_until else "none"
        return StoreError(
            f"{key} is not locked as asked: the store took {format_second(until)} and shows "
            f"{shown}; try again, and where it stays so, the store is unsafe"
        )

    def set_hold(self, key: str, version_id: str | None, held: bool) -> None:
        """Put a legal hold on an object, or remove it, and read it back. Raises `StoreError`."""
        hold = {"Status": "ON" if held else "OFF"}
        try:
            self._client.call("put_object_legal_hold", key, version_id, LegalHold=hold)
        except StoreError as error:
            if error.reason not in _TAKES_NO_HOLD:
                raise
            raise StoreError(
                f"{key} takes no legal hold ({error}): the bucket needs Object Lock, and the "
                "object must be there",
                reason=error.reason,
                status=error.status,
                reach=error.reach,
            ) from None
        head = self._client.head(key, version_id)
        if head is None or head.held != held:
            raise StoreError(
                f"{key}: the store took a legal hold and shows none: the bucket needs Object Lock, "
                "and the credentials s3:GetObjectLegalHold"
                if held
                else f"{key}: the store still shows the legal hold that was taken off"
            )

    def _head(self, key: str, version_id: str | None) -> ObjectHead:
        head = self._client.head(key, version_id)
        if head is None:
            raise of_object(f"{key} is gone: run archiver verify", "gone")
        return head

    def _modes(self, head: ObjectHead) -> list[str]:
        """The modes to request, best first. The second is tried if the store refuses the first."""
        asked, stands = str(self._mode), head.lock_mode
        if stands is None or stands == asked:
            return [asked]
        holds = head.lock_until is not None and head.lock_until > self._client.clock.now()
        stays = holds and (stands == "COMPLIANCE" or self._modes_stay)
        return [stands] if stays else [asked, stands]

    def _lock_date(self, retain_until: datetime | None) -> datetime | None:
        """The date to request; None for no lock."""
        if self._mode is None or retain_until is None:
            return None
        left = (retain_until - self._client.clock.now()).total_seconds()
        return next_second(retain_until) if left > LEAST_RETENTION_SECONDS else None


def _is_weaker(head: ObjectHead, mode: str, until: datetime) -> bool:
    """Whether a lock is weaker than requested. COMPLIANCE satisfies GOVERNANCE."""
    return (
        head.lock_mode not in (mode, "COMPLIANCE")
        or head.lock_until is None
        or head.lock_until < until
    )
