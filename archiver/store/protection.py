"""What each object is given against loss and change, and whether the store really gave it.

A store may ignore a header in silence. So after each write the very version is looked at: size,
checksum where the store keeps one, lock, encryption, storage class.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from archiver.errors import StoreError
from archiver.metrics import stage
from archiver.store.objects import Head, Stored
from archiver.store.requests import Requests, whole_second

LEAST_RETENTION_SECONDS = 1.0
"""A retention that is over, or all but over, cannot be set, and need not be."""


class Protection:
    """Retention, encryption and storage class of what is written. Threads share it."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._options = requests.options

    def arguments(self, retain_until: datetime | None) -> dict[str, Any]:
        """What a write passes, as boto3 takes it."""
        options = self._options
        arguments: dict[str, Any] = {
            "ServerSideEncryption": options.sse,
            "SSEKMSKeyId": options.sse_kms_key_id,
            "StorageClass": options.storage_class,
        }
        if (until := self._lock_date(retain_until)) is not None:
            arguments["ObjectLockMode"] = options.lock_mode
            arguments["ObjectLockRetainUntilDate"] = until
        return {name: value for name, value in arguments.items() if value is not None}

    def check(self, stored: Stored, retain_until: datetime | None) -> None:
        """Compare what was written with what the store has. A lock that the store dropped on the
        way, or that is shorter than today's policy, is set again."""
        with stage("verify"):
            head = self._requests.head(stored.key, stored.version_id)
            if head is None or head.size != stored.size:
                raise StoreError(f"{stored.key} is not what was written: the store is unsafe")
            if head.sha256 not in (None, stored.sha256):
                raise StoreError(f"{stored.key} has another checksum: the store is unsafe")
            if not stored.adopted:
                self._check_settings(stored.key, head)
            self._ensure_lock(stored.key, stored.version_id, head, retain_until)

    def extend(self, key: str, version_id: str | None, retain_until: datetime | None) -> None:
        """Lock an object that is there until then, unless it is locked for longer."""
        if self._lock_date(retain_until) is None:
            return
        head = self._requests.head(key, version_id)
        if head is None:
            raise StoreError(f"{key} is gone: run archiver verify")
        self._ensure_lock(key, version_id or head.version_id, head, retain_until)

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

    def _ensure_lock(
        self, key: str, version_id: str | None, head: Head, retain_until: datetime | None
    ) -> None:
        until = self._lock_date(retain_until)
        if until is None or not self._is_weaker(head, until):
            return
        until = max(until, head.lock_until or until)  # nothing ever shortens
        request = {
            **self._requests.at(key, version_id),
            "Retention": {"Mode": self._options.lock_mode, "RetainUntilDate": until},
        }
        s3 = self._requests.s3
        self._requests.again(
            lambda: self._requests.once(
                "PutObjectRetention", lambda: s3.put_object_retention(**request)
            )
        )
        again = self._requests.head(key, version_id)
        if again is None or self._is_weaker(again, until):
            raise StoreError(
                f"{key} is not locked as asked: the bucket needs Object Lock, or set "
                "ARCHIVER_OBJECT_LOCK_MODE=none"
            )

    def _is_weaker(self, head: Head, until: datetime) -> bool:
        """COMPLIANCE holds where GOVERNANCE is asked for: nothing is ever weakened."""
        modes = {self._options.lock_mode, "COMPLIANCE"}
        return head.lock_mode not in modes or head.lock_until is None or head.lock_until < until

    def _lock_date(self, retain_until: datetime | None) -> datetime | None:
        """The date to ask for, None for none."""
        if self._options.lock_mode is None or retain_until is None:
            return None
        left = (retain_until - self._requests.clock.now()).total_seconds()
        return whole_second(retain_until) if left > LEAST_RETENTION_SECONDS else None
