"""What each object is given against loss and change, and whether the store really gave it.

A store may ignore a header in silence. So after each write the very version is looked at: size,
checksum where the store keeps one, lock, hold, encryption, storage class. Only of a small object
for which none of these was asked, the checksum in the answer to its write may do (`is_told`).

Locks are extended and never shortened. The mode of a lock that holds stays: to weaken COMPLIANCE is
forbidden, and to strengthen GOVERNANCE stores ask for the right to go round it, which no writer of
an archive should have. Where a store refuses that, the lock is extended in the mode that it has.

Many windows share a seal, so threads and processes extend one object at once, and there are stores
that let a shorter date overwrite a longer one then: their check and their write are not one. So all
that a process has at work takes turns at an object, and a date that was overwritten is set again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import structlog

from archiver import hub
from archiver.errors import Reach, StoreError
from archiver.metrics import stage
from archiver.model import format_second
from archiver.store.objects import Head, Lock, Stored
from archiver.store.requests import Requests, whole_second

log = structlog.get_logger()

LEAST_RETENTION_SECONDS = 1.0
"""A retention that is over, or all but over, cannot be set, and need not be."""
LOCK_TRIES = 8
"""How often a date is set that is overwritten by a shorter one."""
LOCK_PAUSE_SECONDS = 0.05
"""Between two tries, and so much longer each time."""
TURNS = 256
"""Objects whose locks are set side by side, at most."""

_MAY_BE_DROPPED = (
    "ObjectLockLegalHoldStatus", "ObjectLockMode", "SSEKMSKeyId", "ServerSideEncryption",
    "StorageClass",
)  # fmt: skip
_NO_HOLDS = ("refused", "not_implemented", "not_configured")
"""Refusals that are about the object or the bucket, not about credentials or the network."""


class Protection:
    """Retention, holds, encryption and storage class of what is written. Threads share it."""

    def __init__(self, requests: Requests, has_lock: Callable[[], bool] = lambda: False) -> None:
        """`has_lock` says whether the bucket has Object Lock; asked where one did not take."""
        self._requests = requests
        self._has_lock = has_lock
        self._turns = [hub.Lock() for _ in range(TURNS)]
        self._options = requests.options
        self._modes_stay = False
        """Whether the store has refused to change the mode of a lock that holds: asked once."""

    def arguments(self, retain_until: datetime | None, held: bool = False) -> dict[str, Any]:
        """What a write passes, as boto3 takes it."""
        options = self._options
        arguments: dict[str, Any] = {
            "ObjectLockLegalHoldStatus": "ON" if held else None,
            "ServerSideEncryption": options.sse,
            "SSEKMSKeyId": options.sse_kms_key_id,
            "StorageClass": options.storage_class,
        }
        if (until := self._lock_date(retain_until)) is not None:
            arguments["ObjectLockMode"] = options.lock_mode
            arguments["ObjectLockRetainUntilDate"] = until
        return {name: value for name, value in arguments.items() if value is not None}

    @staticmethod
    def is_told(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether the answer to a write says all that a look at the object would: the checksum, and
        that nothing which a store may drop in silence was `asked`."""
        same = answer.get("ChecksumSHA256") == asked["ChecksumSHA256"]
        return same and asked.keys().isdisjoint(_MAY_BE_DROPPED)

    def check(self, stored: Stored, retain_until: datetime | None, held: bool = False) -> Lock:
        """Compare what was written with what the store has; how it is locked then. A lock or a hold
        that the store dropped on the way, or a lock that is shorter than today's policy, is set
        again."""
        with stage("verify"), self._turn(stored.key):
            head = self._requests.head(stored.key, stored.version_id)
            if head is None or head.size != stored.size:
                raise StoreError(
                    f"{stored.key} is not what was written: the store is unsafe",
                    reason="lost",
                    reach=Reach.ITEM,
                )
            if head.sha256 not in (None, stored.sha256):
                raise StoreError(
                    f"{stored.key} has another checksum: the store is unsafe",
                    reason="lost",
                    reach=Reach.ITEM,
                )
            if not stored.adopted:
                self._check_settings(stored.key, head)
            if held and not head.held:
                self.hold(stored.key, stored.version_id, True)
            return self._ensure_lock(stored.key, stored.version_id, head, retain_until)

    def extend(self, key: str, version_id: str | None, retain_until: datetime | None) -> Lock:
        """Lock an object that is there until then, unless it is locked for longer."""
        if self._lock_date(retain_until) is None:
            return Lock(None, None)
        with self._turn(key):
            head = self._look(key, version_id)
            return self._ensure_lock(key, version_id or head.version_id, head, retain_until)

    def hold(self, key: str, version_id: str | None, held: bool) -> None:
        """Put a legal hold on an object, or take it off, and look whether that took."""
        request = {
            **self._requests.at(key, version_id),
            "LegalHold": {"Status": "ON" if held else "OFF"},
        }
        s3 = self._requests.s3
        try:
            self._requests.again(
                lambda: self._requests.once(
                    "PutObjectLegalHold", lambda: s3.put_object_legal_hold(**request)
                )
            )
        except StoreError as error:
            if error.reason not in _NO_HOLDS:
                raise
            raise StoreError(
                f"{key} takes no legal hold ({error}): the bucket needs Object Lock, and the "
                "object must be there",
                reason=error.reason,
                status=error.status,
                reach=error.reach,
            ) from None
        head = self._requests.head(key, version_id)
        if head is None or head.held != held:
            raise StoreError(
                f"{key}: the store took a legal hold and shows none: the bucket needs Object Lock, "
                "and the credentials s3:GetObjectLegalHold"
                if held
                else f"{key}: the store still shows the legal hold that was taken off"
            )

    def _look(self, key: str, version_id: str | None) -> Head:
        head = self._requests.head(key, version_id)
        if head is None:
            raise StoreError(f"{key} is gone: run archiver verify", reason="gone", reach=Reach.ITEM)
        return head

    def _check_settings(self, key: str, head: Head) -> None:
        options = self._options
        if options.sse is not None and head.sse != options.sse:
            raise StoreError(
                f"{key} is not encrypted as ARCHIVER_SSE asks: the store took the setting and "
                "ignored it; unset it, or have the bucket encrypt by default"
            )
        told = head.storage_class or "STANDARD"
        if options.storage_class is not None and told != options.storage_class:
            raise StoreError(
                f"{key} has storage class {told[:32]}, not ARCHIVER_STORAGE_CLASS: the store took "
                "the setting and ignored it; unset it"
            )

    # --- locks

    def _turn(self, key: str) -> AbstractContextManager[None]:
        """Held by the one task or thread that looks at an object's lock and sets it."""
        return self._turns[hash(key) % TURNS]

    def _ensure_lock(
        self, key: str, version_id: str | None, head: Head, retain_until: datetime | None
    ) -> Lock:
        """Lock it as asked, or else for as long in the mode that it has."""
        until = self._lock_date(retain_until)
        if until is None:
            return Lock(head.lock_mode, head.lock_until)
        until = max(until, head.lock_until or until)  # nothing ever shortens
        modes, refusal = self._modes(head), None
        for mode in modes:
            if not _is_weaker(head, mode, until):
                return Lock(head.lock_mode, head.lock_until)
            head, refusal = self._try_lock(key, version_id, mode, until)
            if not _is_weaker(head, mode, until):
                return Lock(head.lock_mode, head.lock_until, extended=refusal is None)
            if mode != modes[-1]:
                self._note_refusal(head)
        raise refusal or self._not_locked(key, head, until)

    def _try_lock(
        self, key: str, version_id: str | None, mode: str, until: datetime
    ) -> tuple[Head, StoreError | None]:
        """Ask for a lock, again where another process overwrites it with a shorter one; how the
        object stands then, and what the store says where it refuses."""
        for number in range(LOCK_TRIES):
            if number:
                self._requests.clock.sleep(number * LOCK_PAUSE_SECONDS)
            refusal = self._set_lock(key, version_id, mode, until)
            # Refused too is what would shorten a lock that somebody else has extended meanwhile.
            head = self._look(key, version_id)
            if refusal is not None or head.lock_until is None or head.lock_until >= until:
                break
        return head, refusal

    def _not_locked(self, key: str, head: Head, until: datetime) -> StoreError:
        """The error where the store took a lock and does not show it."""
        if not self._has_lock():
            return StoreError(
                f"{key} is not locked as asked: the bucket needs Object Lock, or set "
                "ARCHIVER_OBJECT_LOCK_MODE=none"
            )
        shown = format_second(head.lock_until) if head.lock_until else "none"
        return StoreError(
            f"{key} is not locked as asked: the store took {format_second(until)} and shows "
            f"{shown}; try again, and where it stays so, the store is unsafe"
        )

    def _modes(self, head: Head) -> list[str]:
        """What to ask for, best first: the second one where the store refuses the first."""
        asked, stands = str(self._options.lock_mode), head.lock_mode
        if stands is None or stands == asked:
            return [asked]
        if self._holds(head) and (stands == "COMPLIANCE" or self._modes_stay):
            return [stands]
        return [asked, stands]

    def _set_lock(
        self, key: str, version_id: str | None, mode: str, until: datetime
    ) -> StoreError | None:
        """Ask for a lock; what the store says where it refuses."""
        s3, at = self._requests.s3, self._requests.at(key, version_id)
        lock = {"Mode": mode, "RetainUntilDate": until}
        try:
            self._requests.again(
                lambda: self._requests.once(
                    "PutObjectRetention", lambda: s3.put_object_retention(**at, Retention=lock)
                )
            )
        except StoreError as error:
            if error.retryable:
                raise
            return error
        return None

    def _note_refusal(self, head: Head) -> None:
        """Tell of it, and never ask again what would only be refused again."""
        if not self._modes_stay:
            self._modes_stay = True
            log.warning("lock.mode_stays", mode=head.lock_mode, asked=self._options.lock_mode)

    def _holds(self, head: Head) -> bool:
        return head.lock_until is not None and head.lock_until > self._requests.clock.now()

    def _lock_date(self, retain_until: datetime | None) -> datetime | None:
        """The date to ask for, None for none."""
        if self._options.lock_mode is None or retain_until is None:
            return None
        left = (retain_until - self._requests.clock.now()).total_seconds()
        return whole_second(retain_until) if left > LEAST_RETENTION_SECONDS else None


def _is_weaker(head: Head, mode: str, until: datetime) -> bool:
    """COMPLIANCE holds where GOVERNANCE is asked for: nothing is ever weakened."""
    return (
        head.lock_mode not in (mode, "COMPLIANCE")
        or head.lock_until is None
        or head.lock_until < until
    )
