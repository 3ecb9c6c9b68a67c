"""The one object that a store is tried out on, and what is asked of it (`probe.py` judges).

Unlike a `Bucket`, nothing here is checked after it was done: the answer is what one wants to know.
Only what a store says in passing (busy, a lost connection) is asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from archiver import fixity
from archiver.errors import KeyTaken, StoreError
from archiver.manifest import layout
from archiver.retry import Retry
from archiver.store.bucket import PROBE_BYTES, Bucket
from archiver.store.client import make_client
from archiver.store.objects import Head, Stored, Version
from archiver.store.protection import Protection
from archiver.store.requests import etag_of

TEXT, IN_PARTS = "text/plain", "text/x-uploaded-in-parts"
"""Content types: how a version of the object came about."""
WRONG = fixity.hex_to_base64(fixity.sha256_hex(b"another"))
"""The SHA-256 of other bytes, as a request has it."""
T = TypeVar("T")


class Trial:
    """The object `manifest/probe` of one archive. Threads share it."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.lock_mode = bucket.options.lock_mode
        self._requests = bucket.requests
        self._protection = Protection(bucket.requests)
        self._sha256 = fixity.sha256_hex(PROBE_BYTES)

    def hasty(self, threads: int, patience_seconds: float) -> Trial:
        """The same for so many threads at once, who wait so long for an answer, and ask once."""
        options = replace(self.bucket.options, connections=threads)
        client = make_client(options, read_timeout_seconds=patience_seconds)
        clock = self._requests.clock
        return Trial(Bucket(options, clock, Retry(clock, attempts=1), client=client))

    def put(self, **arguments: Any) -> None:
        """Write the object as the archive's others are written, but for `arguments`. Raises
        `StoreError`, `KeyTaken` where that is the answer."""
        self._requests.again(lambda: self._put(arguments))

    def refuses_wrong_put(self) -> bool:
        """Whether the store refuses the object with another's SHA-256."""
        return self._requests.again(lambda: _is_bad(lambda: self._put({"ChecksumSHA256": WRONG})))

    def refuses_wrong_part(self) -> bool:
        """The same of a part, sent to an upload that is then given up."""
        upload = self.bucket.begin(layout.PROBE, content_type=IN_PARTS, retain_until=None)
        try:
            return self._requests.again(lambda: _is_bad(upload.wrong_part))
        finally:
            upload.abort()

    def _put(self, arguments: dict[str, Any]) -> None:
        s3, at = self._requests.s3, self._requests.at(layout.PROBE)
        body = {
            "Body": PROBE_BYTES,
            "ContentType": TEXT,
            "ChecksumSHA256": fixity.hex_to_base64(self._sha256),
            **self._protection.arguments(None),
            **arguments,
        }
        self._requests.once("PutObject", lambda: etag_of(s3.put_object(**at, **body)))

    def upload(self, retain_until: datetime | None, **condition: str) -> str | None:
        """Write it as an upload of one part; its version id, where the store told one. Raises
        `KeyTaken` where the store refused to end the upload."""

        def once() -> str | None:
            upload = self.bucket.begin(
                layout.PROBE, content_type=IN_PARTS, retain_until=retain_until
            )
            try:
                upload.part(PROBE_BYTES)
                return upload.end(**condition)
            except BaseException:
                upload.abort()
                raise

        return self._requests.again(once)

    def head(self, version: str | None = None) -> Head | None:
        return self.bucket.head(layout.PROBE, version)

    def is_ours(self) -> bool:
        """Whether the object holds what was written, and not another program's bytes."""
        return self.bucket.read(layout.PROBE, max_bytes=1 << 20) == PROBE_BYTES

    def check_settings(self) -> None:
        """Raises `StoreError` where the store took encryption or storage class and dropped it."""
        self._protection.check(Stored(layout.PROBE, None, len(PROBE_BYTES), self._sha256), None)

    def versions(self) -> list[Version] | None:
        """Newest first; None where we may not ask."""
        try:
            found = list(self.bucket.versions(layout.PROBE))
        except StoreError as error:
            if error.reason != "denied":
                raise
            return None
        return [v for v in found if v.key == layout.PROBE and not v.is_delete_marker]

    def times_put(self) -> int:
        """How many versions came about by a PUT; 0 where we may not list them."""
        return len(self.put_versions())

    def put_versions(self) -> list[tuple[str, datetime]]:
        """The versions that came about by a PUT, as they are listed, and when each was made. Those
        uploaded in parts are another trial's: several processes may begin an archive at one
        moment."""
        heads = [(one.version_id, self._raw_head(one.version_id)) for one in self.versions() or ()]
        return [
            (version, head.get("LastModified") or datetime.min.replace(tzinfo=UTC))
            for version, head in heads
            if head.get("ContentType") != IN_PARTS
        ]

    def lock(self, version: str, mode: str, until: datetime) -> None:
        self._requests.again(lambda: self._lock(version, mode, until))

    def try_to_unlock(self, version: str, mode: str, sooner: datetime) -> None:
        """Shorten a lock, and delete the version; what that did is to be seen afterwards."""
        with suppress(StoreError):
            self._lock(version, mode, sooner)
        with suppress(StoreError):
            self._delete(version)

    def hold(self, version: str | None, held: bool) -> None:
        self._requests.again(lambda: self._hold(version, "ON" if held else "OFF"))

    def _hold(self, version: str | None, status: str) -> None:
        s3, at = self._requests.s3, self._requests.at(layout.PROBE, version)
        hold = {"Status": status}
        self._requests.once(
            "PutObjectLegalHold", lambda: s3.put_object_legal_hold(**at, LegalHold=hold)
        )

    def _lock(self, version: str, mode: str, until: datetime) -> None:
        s3, at = self._requests.s3, self._requests.at(layout.PROBE, version)
        lock = {"Mode": mode, "RetainUntilDate": until}
        self._requests.once(
            "PutObjectRetention", lambda: s3.put_object_retention(**at, Retention=lock)
        )

    def _delete(self, version: str) -> None:
        s3, at = self._requests.s3, self._requests.at(layout.PROBE, version)
        self._requests.once("DeleteObjectVersion", lambda: s3.delete_object(**at))

    def clean_up(self) -> None:
        """Take away what a store kept that should have refused it: all versions but the newest, as
        far as we may."""
        for version in self.versions() or ():
            if not version.is_latest:
                with suppress(StoreError):
                    self._delete(version.version_id)

    # --- what the answer to a HEAD tells beside the object

    def content_type(self, version: str | None = None) -> str | None:
        return self._raw_head(version).get("ContentType")

    def clock_skew_seconds(self) -> float | None:
        """The store's `Date` less our time; None where it sends none."""
        answer = self._raw_head().get("ResponseMetadata", {})
        try:
            served = parsedate_to_datetime(answer.get("HTTPHeaders", {}).get("date"))
        except (TypeError, ValueError, OverflowError):
            return None
        served = served if served.tzinfo else served.replace(tzinfo=UTC)
        return (served - self._requests.clock.now()).total_seconds()

    @property
    def uses_tls(self) -> bool:
        return urlsplit(str(self._requests.s3.meta.endpoint_url)).scheme == "https"

    def _raw_head(self, version: str | None = None) -> dict[str, Any]:
        s3, at = self._requests.s3, self._requests.at(layout.PROBE, version)
        return self._requests.again(
            lambda: self._requests.once("HeadObject", lambda: dict(s3.head_object(**at)))
        )


def is_taken(write: Callable[[], object]) -> bool:
    """Whether the store refuses a write because the key is taken. False too where it knows no such
    condition and says so."""
    try:
        write()
    except KeyTaken:
        return True
    except StoreError as error:
        if error.reason != "not_implemented":
            raise
    return False


def unless_denied(ask: Callable[[], T]) -> T | None:
    """The answer, or None where these credentials may not ask."""
    try:
        return ask()
    except StoreError as error:
        if error.reason != "denied":
            raise
        return None


def _is_bad(request: Callable[[], object]) -> bool:
    """Whether the store finds fault with the request itself."""
    try:
        request()
    except StoreError as error:
        if error.status != 400:
            raise
        return True
    return False
