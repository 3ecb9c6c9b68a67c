"""A multipart upload: parts with their checksums, then one object that is checked."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from archiver import fixity
from archiver.errors import Reach, StoreError
from archiver.fixity import Buffer
from archiver.store.objects import Stored
from archiver.store.protection import Protection
from archiver.store.requests import Requests, etag_of

GIVEN_UP_AFTER = timedelta(days=6)
"""Whoever uploads in parts ends by then, one way or the other: 2 GiB at 16 KiB/s take 36 h, and
settings may allow more."""
ORPHANED_AFTER = timedelta(days=7)
"""An upload that is older has nobody any more, and each start aborts it. The day between the two is
for clocks that differ and for the last part. Seven days are also what lifecycle rules of buckets
give an upload, by custom (docs/bucket.md): a longer one could not rely on its parts anyway."""


class Upload:
    """A multipart upload under way. Used by one thread; ends by `complete` or `abort`."""

    def __init__(
        self,
        requests: Requests,
        protection: Protection,
        key: str,
        upload_id: str,
        retain_until: datetime | None,
    ) -> None:
        self._requests = requests
        self._protection = protection
        self._key = key
        self._at = {**requests.at(key), "UploadId": upload_id}
        self._retain_until = retain_until
        self._parts: list[dict[str, Any]] = []
        self._bytes = 0

    def part(self, data: Buffer, sha256: str | None = None) -> None:
        """Send the next part, with its SHA-256 (hex, if it is known already); sent again when its
        answer is lost."""
        requests, number = self._requests, len(self._parts) + 1
        checksum = fixity.hex_to_base64(sha256 or fixity.sha256_hex(data))

        def once() -> str:
            answer = requests.objects.upload_part(
                **self._at, PartNumber=number, Body=data, ChecksumSHA256=checksum
            )
            return etag_of(answer)

        answer = requests.again(lambda: requests.once("UploadPart", once))
        self._parts.append({"PartNumber": number, "ETag": answer, "ChecksumSHA256": checksum})
        self._bytes += len(data)

    def wrong_part(self) -> None:
        """Send a part with another's checksum, for the probe: a `StoreError` of status 400 is what
        a store should answer."""
        wrong = fixity.hex_to_base64(fixity.sha256_hex(b"another"))
        part = {**self._at, "PartNumber": 1, "Body": b"x", "ChecksumSHA256": wrong}
        requests = self._requests
        requests.once("UploadPart", lambda: etag_of(requests.s3.upload_part(**part)))

    def end(self, **condition: str) -> str | None:
        """Put the parts together in one try, unchecked, for the probe; the version made."""
        requests = self._requests
        answer: dict[str, Any] = requests.once(
            "CompleteMultipartUpload",
            lambda: requests.s3.complete_multipart_upload(
                **self._at, MultipartUpload={"Parts": self._parts}, **condition
            ),
        )
        return answer.get("VersionId")

    def complete(self, sha256: str) -> Stored:
        """Put the parts together and check the object; `sha256` is that of the whole."""
        requests = self._requests
        requests.again(self._complete_once)
        head = requests.head(self._key)
        if head is None:
            raise StoreError(
                f"{self._key} is not there after its upload: the store is unsafe",
                reason="lost",
                reach=Reach.ITEM,
            )
        stored = Stored(self._key, head.version_id, self._bytes, sha256)
        lock = self._protection.check(stored, self._retain_until)
        return replace(stored, lock_mode=lock.mode)

    def _complete_once(self) -> None:
        requests = self._requests
        try:
            requests.once(
                "CompleteMultipartUpload",
                lambda: requests.s3.complete_multipart_upload(
                    **self._at, MultipartUpload={"Parts": self._parts}, IfNoneMatch="*"
                ),
            )
        except StoreError as error:
            # The first answer may have been lost: then the upload is gone and the object there.
            landed = error.reason in ("no_upload", "taken") and requests.head(self._key)
            if not landed:
                raise

    def abort(self) -> None:
        """Give the parts back. Best effort: what is left behind is no object."""
        try:
            self._requests.s3.abort_multipart_upload(**self._at)
        except (BotoCoreError, ClientError, OSError):
            return
