"""The archive's bucket: the only file that knows boto3.

Contract of `Bucket`, on which everything above it stands:
- Durability: a write that returns is durable and was read back (HEAD by version: size, checksum
  where the store keeps one, lock); `Stored` names exactly what was written.
- Create-once: nothing is overwritten, nothing deleted. A key that is taken by the same bytes is
  adopted (`Stored` of what is there), one taken by other bytes raises `KeyTaken`. Of several
  writers one wins, as far as the store is atomic there (`probe.py`).
- Ambiguity: botocore's own retries are off, because a retry of a create-once write whose answer
  was lost gets 412 for its own success. We try again, and on 412 read back and compare.
- Errors: `StoreError`, one line, no body of the store's answer.
- Threads share a bucket. Keys are relative to the archive's prefix and come from `layout.py`.
"""

from __future__ import annotations

import email.utils
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import IO, Any, TypeVar

import boto3
import botocore.config
import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from archiver import __version__, fixity
from archiver.clock import Clock
from archiver.errors import KeyTaken, StoreError
from archiver.metrics import stage
from archiver.retry import Retry
from archiver.store.faults import translate
from archiver.store.objects import Head, Listed, Stored, Version

T = TypeVar("T")

READ_BYTES = 256 << 10
MAX_OBJECT_BYTES = 64 << 20
"""What `read` takes into memory unless it is told another limit."""

JSON = "application/json"
_GONE = {"NoSuchKey", "404", "NoSuchVersion", "NotFound"}


@dataclass(frozen=True)
class StoreOptions:
    """How to reach the bucket and how each object is written, in plain values."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    lock_mode: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    storage_class: str | None = None
    connections: int = 16

    @property
    def key_prefix(self) -> str:
        return self.prefix.strip("/") + "/" if self.prefix.strip("/") else ""


def make_client(options: StoreOptions) -> Any:
    """A boto3 client without retries of its own, with checksums only where we give them."""
    config = botocore.config.Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=options.connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",
        user_agent=f"call-archiver/{__version__}",  # botocore's own is put together anew each time
        # A store behind an address of its own rarely has a DNS name for each bucket.
        s3={"addressing_style": "path" if options.endpoint_url else "auto"},
    )
    # botocore reads dates with dateutil, which takes longer than all else about a long listing.
    session = botocore.session.Session()
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_parse_time)
    try:
        return boto3.session.Session(botocore_session=session).client(
            "s3", endpoint_url=options.endpoint_url, region_name=options.region, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise translate(error, "connect", options.bucket) from None


def _parse_time(text: Any) -> datetime:
    """A time in an answer's body (RFC 3339) or header (RFC 9110). Raises `ValueError`."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        moment = email.utils.parsedate_to_datetime(str(text))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Bucket:
    """One archive: a bucket, or a prefix of it."""

    def __init__(
        self, options: StoreOptions, clock: Clock, retry: Retry, *, client: Any = None
    ) -> None:
        self.options = options
        self.create_once = True
        """Whether the store refuses to overwrite; else one writer looks before each write."""
        self.read_back = False
        """Whether each recording is read back and hashed, because a HEAD proves too little."""
        self._clock = clock
        self._retry = retry
        self._prefix = options.key_prefix
        self._s3 = client or make_client(options)

    # --- reading

    def read(
        self, key: str, version_id: str | None = None, max_bytes: int = MAX_OBJECT_BYTES
    ) -> bytes | None:
        """The object's bytes, or None where there is none. `StoreError` beyond `max_bytes`."""
        file = io.BytesIO()
        found = self._into(key, self._version(version_id), file, max_bytes)
        return file.getvalue() if found else None

    def read_into(self, key: str, file: IO[bytes], max_bytes: int) -> bool:
        """As `read`, into an empty file; False where there is no such object."""
        return self._into(key, {}, file, max_bytes)

    def tail(self, key: str, max_bytes: int) -> bytes | None:
        """The last bytes of an object, at most `max_bytes`, or None where there is none."""
        file = io.BytesIO()
        found = self._into(key, {"Range": f"bytes=-{max_bytes}"}, file, max_bytes)
        return file.getvalue() if found else None

    def _into(self, key: str, asked: dict[str, str], file: IO[bytes], max_bytes: int) -> bool:
        def once() -> bool:
            file.seek(0)
            file.truncate()
            chunks = self._open(key, asked)
            for chunk in chunks or ():
                file.write(chunk)
                if file.tell() > max_bytes:
                    raise StoreError(f"{key} is larger than {max_bytes} bytes", reason="too_large")
            return chunks is not None

        return self._retry.call("store", once)

    def stream(self, key: str, version_id: str | None = None) -> Iterator[bytes] | None:
        """The object in chunks, or None where there is none; a body cut short raises."""
        arguments = self._version(version_id)
        return self._retry.call("store", lambda: self._open(key, arguments))

    def _open(self, key: str, arguments: dict[str, str]) -> Iterator[bytes] | None:
        answer = self._ask("GetObject", lambda: self._s3.get_object(**self._at(key), **arguments))
        return None if answer is None else self._chunks(answer["Body"], answer["ContentLength"])

    def _chunks(self, body: Any, length: int) -> Iterator[bytes]:
        count = 0
        try:
            for chunk in body.iter_chunks(READ_BYTES):
                count += len(chunk)
                yield chunk
        except (BotoCoreError, OSError) as error:
            raise translate(error, "GetObject", self.options.bucket) from None
        finally:
            body.close()
        if count != length:
            raise StoreError("the store cut an object short", retryable=True, reason="truncated")

    def head(self, key: str, version_id: str | None = None) -> Head | None:
        """What the store says of an object, or None where there is none."""
        arguments = {"ChecksumMode": "ENABLED", **self._version(version_id)}

        def once() -> Head | None:
            answer = self._ask(
                "HeadObject", lambda: self._s3.head_object(**self._at(key), **arguments)
            )
            return None if answer is None else _head(answer)

        return self._retry.call("store", once)

    def list(self, prefix: str, start_after: str = "") -> Iterator[Listed]:
        """Every object below a prefix. Stores differ in the order: sort where it matters."""
        arguments: dict[str, Any] = {"Prefix": self._prefix + prefix}
        if start_after:
            arguments["StartAfter"] = self._prefix + start_after
        for page in self._pages("list_objects_v2", arguments):
            for item in page.get("Contents", ()):
                yield Listed(self._relative(item["Key"]), item["Size"])
            arguments.pop("StartAfter", None)

    def versions(self, prefix: str) -> Iterator[Version]:
        """Every version and delete marker below a prefix; nothing where the store has none."""
        for page in self._pages("list_object_versions", {"Prefix": self._prefix + prefix}):
            for marker, name in ((False, "Versions"), (True, "DeleteMarkers")):
                for item in page.get(name, ()):
                    key, version_id = self._relative(item["Key"]), item.get("VersionId", "null")
                    latest = bool(item.get("IsLatest"))
                    yield Version(key, version_id, latest, marker, item.get("Size", 0))

    def _pages(self, operation: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Page through a listing; a page is asked for again when it fails."""
        tokens: dict[str, Any] = {}
        while True:
            asked = {**arguments, **tokens}
            page = self._page(operation, asked)
            yield page
            if not page.get("IsTruncated"):
                return
            following = {
                "ContinuationToken": page.get("NextContinuationToken"),
                "KeyMarker": page.get("NextKeyMarker"),
                "VersionIdMarker": page.get("NextVersionIdMarker"),
            }
            tokens = {name: value for name, value in following.items() if value}
            if not tokens or tokens.items() <= asked.items():
                raise StoreError("the store says that a listing goes on, but not where")

    def _page(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        def request() -> dict[str, Any]:
            call = getattr(self._s3, operation)
            page: dict[str, Any] = call(Bucket=self.options.bucket, **arguments)
            return page

        return self._retry.call("store", lambda: self._call(operation, request))

    # --- writing

    def put_once(
        self,
        key: str,
        data: bytes | bytearray | IO[bytes],
        *,
        content_type: str = JSON,
        retain_until: datetime | None = None,
    ) -> Stored:
        """Create an object, or adopt the same bytes already there; `KeyTaken` for other bytes.

        `data` may be a file that can be sought in: all of it is sent, and it stays open.
        """
        sha256, size = _measured(data)
        arguments = {
            "Body": data,
            "ContentType": content_type,
            "ChecksumSHA256": fixity.hex_to_base64(sha256),
            "IfNoneMatch": "*",
            **self._protection(retain_until),
        }
        stored = Stored(key, None, size, sha256)

        def once() -> Stored:
            try:
                if not self.create_once and self.head(key) is not None:
                    return self._adopt(stored)
                answer = self._call("PutObject", lambda: self._put(key, arguments))
            except KeyTaken:
                return self._adopt(stored)
            return replace(stored, version_id=answer.get("VersionId"))

        stored = self._retry.call("store", once)
        self._check(stored, retain_until)
        return stored

    def _put(self, key: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(arguments["Body"], bytes | bytearray):
            arguments["Body"].seek(0)
        answer: dict[str, Any] = self._s3.put_object(**self._at(key), **arguments)
        _etag(answer)
        return answer

    def _adopt(self, wanted: Stored) -> Stored:
        """The object under a taken key, if it holds the wanted bytes; else `KeyTaken`."""
        head = self.head(wanted.key)
        if head is None:
            raise StoreError(
                "a key is taken and yet empty: another writer is at it, or it was deleted",
                retryable=True,
                reason="conflict",
            )
        if head.size != wanted.size or self._digest(wanted.key, head) != wanted.sha256:
            raise KeyTaken(f"{wanted.key} holds other bytes", reason="taken")
        return replace(wanted, version_id=head.version_id, adopted=True)

    def _digest(self, key: str, head: Head) -> str | None:
        """SHA-256 of the stored bytes, read back: what is adopted is vouched for."""
        digests = fixity.Digests()
        for chunk in self.stream(key, head.version_id) or ():
            digests.update(chunk)
        return digests.sha256

    def begin(self, key: str, *, content_type: str, retain_until: datetime | None) -> Upload:
        """Start a multipart upload to a key that no other writer uses."""
        arguments = {
            "ContentType": content_type,
            "ChecksumAlgorithm": "SHA256",
            **self._protection(retain_until),
        }

        def once() -> str:
            answer = self._s3.create_multipart_upload(**self._at(key), **arguments)
            if not answer.get("UploadId"):
                raise StoreError("the store began an upload oddly", retryable=True, reason="odd")
            return str(answer["UploadId"])

        upload_id = self._retry.call("store", lambda: self._call("CreateMultipartUpload", once))
        return Upload(self, key, upload_id, retain_until)

    # --- checking what was written

    def _check(self, stored: Stored, retain_until: datetime | None) -> None:
        """HEAD the very version and compare; the store may have ignored a header in silence."""
        with stage("verify"):
            head = self.head(stored.key, stored.version_id)
            if head is None or head.size != stored.size:
                raise StoreError(f"{stored.key} is not what was written: the store is unsafe")
            if head.sha256 not in (None, stored.sha256):
                raise StoreError(f"{stored.key} has another checksum: the store is unsafe")
            if self._lock_is_weaker(head, retain_until):
                self._retain(stored, retain_until)

    def _lock_is_weaker(self, head: Head, retain_until: datetime | None) -> bool:
        if not self._locks(retain_until):
            return False
        return (
            head.lock_mode != self.options.lock_mode
            or head.lock_until is None
            or head.lock_until < _second(retain_until)
        )

    def _retain(self, stored: Stored, retain_until: datetime | None) -> None:
        """Set the retention that a store dropped on the way, and look again."""
        until = _second(retain_until)
        at = {**self._at(stored.key), **self._version(stored.version_id)}
        lock = {"Mode": self.options.lock_mode, "RetainUntilDate": until}
        self._retry.call(
            "store",
            lambda: self._call(
                "PutObjectRetention", lambda: self._s3.put_object_retention(**at, Retention=lock)
            ),
        )
        head = self.head(stored.key, stored.version_id)
        if head is None or self._lock_is_weaker(head, retain_until):
            raise StoreError(
                f"{stored.key} is not locked as asked: the bucket needs Object Lock, or set "
                "ARCHIVER_OBJECT_LOCK_MODE=none"
            )

    def _protection(self, retain_until: datetime | None) -> dict[str, Any]:
        options = self.options
        arguments: dict[str, Any] = {
            "ServerSideEncryption": options.sse,
            "SSEKMSKeyId": options.sse_kms_key_id,
            "StorageClass": options.storage_class,
        }
        if self._locks(retain_until):
            arguments["ObjectLockMode"] = options.lock_mode
            arguments["ObjectLockRetainUntilDate"] = _second(retain_until)
        return {name: value for name, value in arguments.items() if value is not None}

    def _locks(self, retain_until: datetime | None) -> bool:
        """A retention that is over already cannot be set, and need not be."""
        if self.options.lock_mode is None or retain_until is None:
            return False
        return (retain_until - self._clock.now()).total_seconds() > 1

    # --- the bucket itself

    def check_access(self) -> None:
        """Raises `StoreError` where the bucket is missing, closed to us, or lacks the lock."""
        answer = self._retry.call(
            "store",
            lambda: self._call(
                "ListObjectsV2",
                lambda: self._s3.list_objects_v2(
                    Bucket=self.options.bucket, Prefix=self._prefix, MaxKeys=1
                ),
            ),
        )
        if "IsTruncated" not in answer and "Name" not in answer:
            raise StoreError(
                "the store answers a listing with something else: check ARCHIVER_S3_ENDPOINT_URL"
            )
        if self.options.lock_mode is not None and not self.has_object_lock():
            raise StoreError(
                f"bucket {self.options.bucket} has no Object Lock: make it with Object Lock "
                "enabled, or set ARCHIVER_OBJECT_LOCK_MODE=none"
            )

    def has_object_lock(self) -> bool:
        """Raises `StoreError` where we may not ask: guessing would be set down in seal 0."""
        answer = self._configuration("get_object_lock_configuration", "GetObjectLockConfiguration")
        return (answer.get("ObjectLockConfiguration") or {}).get("ObjectLockEnabled") == "Enabled"

    def is_versioned(self) -> bool:
        """Raises `StoreError` where we may not ask."""
        answer = self._configuration("get_bucket_versioning", "GetBucketVersioning")
        return bool(answer.get("Status") == "Enabled")

    def _configuration(self, method: str, operation: str) -> dict[str, Any]:
        """A setting of the bucket; empty where the store knows no such thing."""
        request = getattr(self._s3, method)
        try:
            answer: dict[str, Any] = self._retry.call(
                "store",
                lambda: self._call(operation, lambda: request(Bucket=self.options.bucket)),
            )
        except StoreError as error:
            if error.reason in ("not_implemented", "not_configured"):
                return {}
            raise
        return answer

    def refuses_wrong_checksum(self, key: str) -> bool:
        """Send a part with another's SHA-256 to an upload that is given up: it leaves nothing."""
        upload = self.begin(key, content_type="text/plain", retain_until=None)
        try:
            return upload.is_refused_wrong()
        finally:
            upload.abort()

    def refuses_overwrite(self, key: str, data: bytes) -> bool:
        """Write `data` create-once to `key`, which holds them already: the store must refuse."""
        arguments = {
            "Body": data,
            "ContentType": "text/plain",
            "ChecksumSHA256": fixity.hex_to_base64(fixity.sha256_hex(data)),
            "IfNoneMatch": "*",
        }
        try:
            self._call("PutObject", lambda: self._put(key, arguments))
        except KeyTaken:
            return True
        except StoreError as error:
            if error.reason == "not_implemented":
                return False
            raise
        return False

    # --- plumbing

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.options.bucket, "Key": self._prefix + key}

    @staticmethod
    def _version(version_id: str | None) -> dict[str, Any]:
        return {"VersionId": version_id} if version_id is not None else {}

    def _relative(self, key: str) -> str:
        return key[len(self._prefix) :]

    def _call(self, operation: str, request: Callable[[], T]) -> T:
        self._clock.check()
        try:
            return request()
        except (BotoCoreError, ClientError, OSError) as error:
            raise translate(error, operation, self.options.bucket) from None

    def _ask(self, operation: str, request: Callable[[], T]) -> T | None:
        """As `_call`; None where there is no such object."""

        def lenient() -> T | None:
            try:
                return request()
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                if code in _GONE:
                    return None
                raise

        return self._call(operation, lenient)


class Upload:
    """A multipart upload under way. Used by one thread; ends by `complete` or `abort`."""

    def __init__(
        self, bucket: Bucket, key: str, upload_id: str, retain_until: datetime | None
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._at = {**bucket._at(key), "UploadId": upload_id}
        self._retain_until = retain_until
        self._parts: list[dict[str, Any]] = []
        self._bytes = 0

    def part(self, data: bytes | bytearray) -> None:
        """Send the next part, with its SHA-256; sent again when its answer is lost."""
        bucket, number = self._bucket, len(self._parts) + 1
        checksum = fixity.hex_to_base64(fixity.sha256_hex(data))

        def once() -> str:
            answer = bucket._s3.upload_part(
                **self._at, PartNumber=number, Body=data, ChecksumSHA256=checksum
            )
            return _etag(answer)

        answer = bucket._retry.call("store", lambda: bucket._call("UploadPart", once))
        self._parts.append({"PartNumber": number, "ETag": answer, "ChecksumSHA256": checksum})
        self._bytes += len(data)

    def is_refused_wrong(self) -> bool:
        """Send a part whose checksum is another's; whether the store minded."""
        wrong = fixity.hex_to_base64(fixity.sha256_hex(b"another"))
        try:
            self._bucket._s3.upload_part(**self._at, PartNumber=1, Body=b"x", ChecksumSHA256=wrong)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 400:
                return True
            raise translate(error, "UploadPart", self._bucket.options.bucket) from None
        except (BotoCoreError, OSError) as error:
            raise translate(error, "UploadPart", self._bucket.options.bucket) from None
        return False

    def complete(self, sha256: str) -> Stored:
        """Put the parts together and check the object; `sha256` is that of the whole."""
        bucket = self._bucket
        bucket._retry.call("store", self._complete_once)
        head = bucket.head(self._key)
        if head is None:
            raise StoreError(f"{self._key} is not there after its upload: the store is unsafe")
        stored = Stored(self._key, head.version_id, self._bytes, sha256)
        bucket._check(stored, self._retain_until)
        return stored

    def _complete_once(self) -> None:
        bucket = self._bucket
        try:
            bucket._call(
                "CompleteMultipartUpload",
                lambda: bucket._s3.complete_multipart_upload(
                    **self._at, MultipartUpload={"Parts": self._parts}, IfNoneMatch="*"
                ),
            )
        except StoreError as error:
            # The first answer may have been lost: then the upload is gone and the object there.
            landed = error.reason in ("no_upload", "taken") and bucket.head(self._key)
            if not landed:
                raise

    def abort(self) -> None:
        """Give the parts back. Best effort: what is left behind is no object."""
        bucket = self._bucket
        try:
            bucket._s3.abort_multipart_upload(**self._at)
        except (BotoCoreError, ClientError, OSError):
            return


def _etag(answer: dict[str, Any]) -> str:
    """The acknowledgement of a write: an HTML page with status 200 looks like success to boto3."""
    etag = answer.get("ETag")
    if not isinstance(etag, str) or not etag:
        raise StoreError("the store acknowledged a write oddly", retryable=True, reason="odd")
    return etag


def _measured(data: bytes | bytearray | IO[bytes]) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes."""
    if isinstance(data, bytes | bytearray):
        return fixity.sha256_hex(data), len(data)
    data.seek(0)
    digests = fixity.Digests()
    while chunk := data.read(READ_BYTES):
        digests.update(chunk)
    return digests.sha256, digests.bytes


def _second(moment: datetime | None) -> datetime:
    """Stores keep lock dates to the second: ask for a whole one, never earlier than promised."""
    if moment is None:
        raise ValueError("no date")
    whole = moment.astimezone(UTC).replace(microsecond=0)
    return whole if whole == moment else whole.fromtimestamp(whole.timestamp() + 1, UTC)


def _head(answer: dict[str, Any]) -> Head:
    checksum = answer.get("ChecksumSHA256")
    if answer.get("ChecksumType") == "COMPOSITE" or "-" in (checksum or ""):
        checksum = None
    return Head(
        size=answer["ContentLength"],
        version_id=answer.get("VersionId"),
        etag=_etag(answer),
        sha256=fixity.base64_to_hex(checksum) if checksum else None,
        lock_mode=answer.get("ObjectLockMode"),
        lock_until=answer.get("ObjectLockRetainUntilDate"),
    )
