"""The archive's bucket: create-once writes, multipart uploads, reads, listings.

Contract of `Bucket`, on which all other modules rely:
- Durability: a write that returns is durable and verified. A HEAD of the written version checks
  size, checksum (if the store keeps one), lock, hold, encryption and storage class. `Stored` names
  exactly what was written. With `trust_put_checksum`, and if the caller allows it, the checksum in
  the answer to the write replaces the HEAD.
- Create-once: nothing is overwritten or deleted. If a key has the same bytes already, the object is
  adopted (`Stored` describes it); if it has other bytes, the write raises `KeyTaken`. Of several
  writers one wins, as far as the store is atomic there (`probe.py`).
- Retries: built in (`client.py`). After a 412 the object is read back and compared, because our own
  earlier attempt may have created it and its answer may have been lost.
- Errors: `StoreError`, one line, without the body of the store's answer; `Interrupted` once the
  process must end.
- Thread-safe. Keys are relative to the archive's prefix and come from `layout.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import IO, Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from archiver.core import checksums, liveness
from archiver.core.checksums import Buffer
from archiver.core.clock import Clock
from archiver.core.errors import ArchiverError, KeyTaken, Reach, StoreError
from archiver.core.http import TransportError
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.observability.metrics import stage
from archiver.store.client import StoreClient, StoreOptions, etag_of
from archiver.store.errors import odd, of_object, translate
from archiver.store.locks import ObjectLocks
from archiver.store.types import ListedObject, ObjectHead, ObjectLock, ObjectVersion, Stored

READ_BYTES = 256 << 10
MAX_OBJECT_BYTES = 64 << 20
"""The most that `read` reads into memory by default."""
JSON = "application/json"
PROBE_BYTES = b"Written to learn whether this store refuses to overwrite it.\n"
"""The content of `manifest/probe`, the object with which the store is tested (`probe.py`)."""
GIVEN_UP_AFTER = timedelta(days=6)
"""A multipart upload is completed or given up by then. 2 GiB at 16 KiB/s take 36 h, and settings
may allow more."""
ORPHANED_AFTER = timedelta(days=7)
"""An older upload is orphaned, and each start aborts it. The day between the two limits allows for
clocks that differ and for the last part. Lifecycle rules of buckets commonly abort uploads after
seven days as well (docs/bucket.md), so a longer upload could lose its parts anyway."""

_IN_EVERY_ARCHIVE = (
    layout.PROBE, layout.seal_key(0), layout.signature_key(0), layout.VERIFY_PAGE
)  # fmt: skip
_NEVER_OF_ONE_OBJECT = ("clock", "credentials", "no_bucket", "provider", "settings", "tls")
"""Reasons that are never about one object."""
_DROPPED_IN_SILENCE = {
    "ObjectLockLegalHoldStatus", "ObjectLockMode", "SSEKMSKeyId", "ServerSideEncryption",
    "StorageClass",
}  # fmt: skip
"""Arguments of a write that a store may ignore while it answers with success."""
_NO_LISTING = "the store answers a listing with something else: check ARCHIVER_S3_ENDPOINT_URL"
_LISTED = ("Contents", "Versions", "DeleteMarkers")
"""The members of a listing's page that contain keys."""
_NEXT_PAGE = {
    "ContinuationToken": "NextContinuationToken",
    "KeyMarker": "NextKeyMarker",
    "VersionIdMarker": "NextVersionIdMarker",
    "UploadIdMarker": "NextUploadIdMarker",
}


class Readable(Protocol):
    """A store from which objects are read: a `Bucket`, or the auditor's. Raises `StoreError`."""

    def read(self, key: str, /) -> bytes | None: ...


def is_of_one_object(store: Readable, error: StoreError) -> bool:
    """Whether a failed read was about its object only: the control request of readers.

    A store that is out fails all requests; a store that refuses an object fails only the requests
    for it. So this reads an object that every archive has. Writers use `Bucket.is_answering`.
    """
    if error.reach is Reach.ITEM:
        return True
    if error.reason in _NEVER_OF_ONE_OBJECT:
        return False
    try:
        return store.read(layout.seal_key(0)) is not None
    except StoreError:
        return False


class Bucket:
    """One archive: a bucket, or a prefix of it."""

    def __init__(
        self, options: StoreOptions, clock: Clock, retry: Retry, *, client: Any = None
    ) -> None:
        """`client`: a boto3 client for every request; by default one is made from the options."""
        self.options = options
        self.client = StoreClient(options, clock, retry, client=client)
        self.create_once = True
        """Whether the store refuses to overwrite. If not, the one writer sends a HEAD before each
        write."""
        self.conditional_writes = True
        """Whether a PUT has the condition of a create-once write. Not if the store refuses it."""
        self.conditional_completion = True
        """Whether the end of a multipart upload has it. Its key belongs to one upload alone, so it
        can do without."""
        self.read_back = False
        """Whether each recording is read back and hashed, because a HEAD proves too little."""
        self.trust_put_checksum = False
        """Whether the checksum in the answer to a write may replace the HEAD: the store has proved
        that it verifies checksums."""
        self._locks = ObjectLocks(self.client, self.has_object_lock)

    def latest_clock_skew_seconds(self) -> float | None:
        """The store's `Date` minus our time, by its latest answer; None if that had none."""
        return self.client.remote.skew_seconds()

    # --- reading

    def read(
        self, key: str, version_id: str | None = None, max_bytes: int = MAX_OBJECT_BYTES
    ) -> bytes | None:
        """The object's bytes; None if there is no object. `StoreError` beyond `max_bytes`."""
        file = io.BytesIO()
        found = self.read_into(key, file, max_bytes, version_id)
        return file.getvalue() if found else None

    def read_into(
        self,
        key: str,
        file: IO[bytes],
        max_bytes: int,
        version_id: str | None = None,
        **more: str,
    ) -> bool:
        """As `read`, into an empty file; returns False if there is no object."""

        def once() -> bool:
            file.seek(0)
            file.truncate()
            chunks = self._open(key, version_id, **more)
            for chunk in chunks or ():
                file.write(chunk)
                if file.tell() > max_bytes:
                    raise of_object(f"{key} is larger than {max_bytes} bytes", "too_large")
            return chunks is not None

        return self.client.retrying(once)

    def tail(self, key: str, max_bytes: int) -> bytes | None:
        """The last bytes of an object, at most `max_bytes`; None if there is no object."""
        file = io.BytesIO()
        try:
            found = self.read_into(key, file, max_bytes, Range=f"bytes=-{max_bytes}")
        except StoreError as error:
            if error.status != 416:
                raise
            # The object is shorter than the range, and this store refuses such a range.
            return self.read(key, max_bytes=max_bytes)
        return file.getvalue() if found else None

    def stream(self, key: str, version_id: str | None = None) -> Iterator[bytes] | None:
        """The object in chunks; None if there is no object. A truncated body raises
        `StoreError`."""
        return self.client.retrying(lambda: self._open(key, version_id))

    def _open(self, key: str, version_id: str | None, **more: str) -> Iterator[bytes] | None:
        answer = self.client.find_once("get_object", key, version_id, **more)
        if answer is None:
            return None
        body = answer["Body"]

        def chunks() -> Iterator[bytes]:
            try:
                for chunk in body.iter_chunks(READ_BYTES):
                    liveness.note()
                    yield chunk
            except (BotoCoreError, TransportError, OSError) as error:
                raise translate(error, "GetObject", self.options.bucket) from None
            finally:
                body.close()

        try:
            etag_of(answer)  # a proxy's page of HTML has none
        except StoreError:
            body.close()
            raise
        return chunks()

    def head(self, key: str, version_id: str | None = None) -> ObjectHead | None:
        """The metadata of an object; None if there is no object."""
        return self.client.head(key, version_id)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ListedObject]:
        """Every object below a prefix. The order depends on the store; sort if it matters."""
        asked = {"Prefix": self.client.prefix + prefix}
        first = {"StartAfter": self.client.prefix + start_after} if start_after else {}
        for page in self._pages("list_objects_v2", asked, first):
            for item in page.get("Contents", ()):
                key = self.client.relative(item["Key"])
                yield ListedObject(key, item["Size"], item.get("LastModified"))

    def folders(self, prefix: str, *, hidden: bool = False) -> set[str]:
        """The names directly below a prefix that a slash ends. One or two pages show which days
        there are, in the order of the store. `hidden`: include names below which delete markers
        hide everything (in a bucket with versioning)."""
        whole, found = self.client.prefix + prefix, set[str]()
        asked = {"Prefix": whole, "Delimiter": "/"}
        for page in self._pages("list_object_versions" if hidden else "list_objects_v2", asked):
            keys = [item["Prefix"] for item in page.get("CommonPrefixes", ())]
            # A store that does not support delimiters lists all keys.
            keys += [item["Key"] for member in _LISTED for item in page.get(member, ())]
            rests = (key.removeprefix(whole).partition("/") for key in keys)
            found |= {name for name, slash, _ in rests if slash}
        return found

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        """Every version and delete marker below a prefix; nothing if the store has no versions."""
        asked = {"Prefix": self.client.prefix + prefix}
        try:
            for page in self._pages("list_object_versions", asked):
                for member, is_marker in (("Versions", False), ("DeleteMarkers", True)):
                    for item in page.get(member, ()):
                        yield ObjectVersion(
                            self.client.relative(item["Key"]),
                            item.get("VersionId", "null"),
                            bool(item.get("IsLatest")),
                            is_marker,
                            item.get("Size", 0),
                        )
        except StoreError as error:
            if error.reason != "not_implemented":
                raise

    def _pages(
        self, method: str, asked: dict[str, str], first: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The pages of a listing; `first` is for the first request only. Retries each page."""
        arguments = {**asked, **(first or {})}

        def once() -> dict[str, Any]:
            page = self.client.call_once(method, **arguments)
            if page.keys().isdisjoint(("IsTruncated", "Name", "Bucket")):
                raise odd(_NO_LISTING)
            return page

        while True:
            page = self.client.retrying(once)
            yield page
            if not page.get("IsTruncated"):
                return
            following = {name: page[new] for name, new in _NEXT_PAGE.items() if page.get(new)}
            # Without a new marker the listing would never end.
            if not following or following.items() <= arguments.items():
                raise of_object("the store says that a listing goes on, but not where", "error")
            arguments = {**asked, **following}

    # --- writing

    def put_once(
        self,
        key: str,
        data: Buffer,
        *,
        content_type: str = JSON,
        retain_until: datetime | None = None,
        held: bool = False,
        sha256: str | None = None,
        verify: bool = True,
    ) -> Stored:
        """Create an object, or adopt the same bytes already there. Raises `KeyTaken` for other
        bytes.

        `held` puts a legal hold on the object in the same request. `sha256` (hex) is the hash of
        the bytes, if it is known; the store refuses other bytes. With `verify=False` the answer to
        the write replaces the HEAD, if it proves as much.
        """
        sha256 = sha256 or checksums.sha256_hex(data)
        arguments = {
            "ContentType": content_type,
            "ChecksumSHA256": checksums.hex_to_base64(sha256),
            **({"IfNoneMatch": "*"} if self.conditional_writes else {}),
            **self.write_arguments(retain_until, held),
        }
        wanted = Stored(key, None, len(data), sha256)

        def put() -> dict[str, Any]:
            answer = self.client.call_once("put_object", key, **arguments, Body=data)
            etag_of(answer)
            return answer

        def once() -> tuple[Stored, dict[str, Any]]:
            try:
                if not self.create_once and self.head(key) is not None:
                    return self._adopt(wanted), {}
                answer = put()
            except KeyTaken:
                return self._adopt(wanted), {}
            return replace(wanted, version_id=answer.get("VersionId")), answer

        stored, answer = self.client.retrying(once)
        if self.trust_put_checksum and not verify and proves_write(answer, arguments):
            return stored
        return self.verify_write(stored, retain_until, held)

    def _adopt(self, wanted: Stored) -> Stored:
        """Return the object under a taken key if it has the wanted bytes; else raise `KeyTaken`.
        The bytes are read back and hashed, because a record will name their hash."""
        head = self.head(wanted.key)
        if head is None:
            text = "a key is taken and yet empty: another writer is at it, or it was deleted"
            raise of_object(text, "conflict", retryable=True)
        if head.size != wanted.size or self._hash(wanted.key, head.version_id) != wanted.sha256:
            raise KeyTaken(f"{wanted.key} holds other bytes", reason="taken")
        return replace(wanted, version_id=head.version_id, adopted=True)

    def _hash(self, key: str, version_id: str | None) -> str:
        """The SHA-256 (hex) of the stored bytes."""
        digests = checksums.Digests()
        for chunk in self.stream(key, version_id) or ():
            digests.update(chunk)
        return digests.sha256

    def write_arguments(self, retain_until: datetime | None, held: bool = False) -> dict[str, Any]:
        """What each write passes, in boto3's names: encryption, storage class, lock, hold."""
        options = self.options
        arguments = {
            "ServerSideEncryption": options.sse,
            "SSEKMSKeyId": options.sse_kms_key_id,
            "StorageClass": options.storage_class,
            **self._locks.arguments(retain_until, held),
        }
        return {name: value for name, value in arguments.items() if value is not None}

    def verify_write(
        self, stored: Stored, retain_until: datetime | None, held: bool = False
    ) -> Stored:
        """Compare what was written with what the store has; returns `stored` with its lock's mode.

        Sets a lock or a hold again that the store dropped, and extends the lock of an adopted
        object that is shorter than today's policy. Raises `StoreError` for any other difference. An
        adopted object keeps its encryption and its storage class.
        """
        key, options = stored.key, self.options
        with stage("verify"), self._locks.mutex(key):
            head = self.head(key, stored.version_id)
            if head is None or head.size != stored.size:
                raise of_object(f"{key} is not what was written: the store is unsafe", "lost")
            if head.sha256 not in (None, stored.sha256):
                raise of_object(f"{key} has another checksum: the store is unsafe", "lost")
            if not stored.adopted and options.sse is not None and head.sse != options.sse:
                raise StoreError(
                    f"{key} is not encrypted as ARCHIVER_SSE asks: the store took the setting and "
                    "ignored it; unset it, or have the bucket encrypt by default"
                )
            shown = head.storage_class or "STANDARD"
            if not stored.adopted and options.storage_class not in (None, shown):
                raise StoreError(
                    f"{key} has storage class {shown[:32]}, not ARCHIVER_STORAGE_CLASS: the store "
                    "took the setting and ignored it; unset it"
                )
            if held and not head.held:
                self.set_hold(key, stored.version_id, True)
            lock = self._locks.ensure(key, stored.version_id, head, retain_until)
        return replace(stored, lock_mode=lock.mode)

    def extend(self, key: str, version_id: str | None, retain_until: datetime | None) -> ObjectLock:
        """Lock an existing object until `retain_until`, unless it is locked for longer. Raises
        `StoreError`, with the reason `gone` if there is no object."""
        return self._locks.extend(key, version_id, retain_until)

    def set_hold(self, key: str, version_id: str | None, held: bool) -> None:
        """Put a legal hold on an object, or remove it. Idempotent. The hold is read back: raises
        `StoreError` if the object is missing, if the bucket has no Object Lock, or if the store
        accepted the hold and does not show it."""
        self._locks.set_hold(key, version_id, held)

    # --- multipart uploads

    def begin(
        self, key: str, *, content_type: str, retain_until: datetime | None
    ) -> MultipartUpload:
        """Begin a multipart upload to a key that no other writer uses."""
        arguments = {"ContentType": content_type, **self.write_arguments(retain_until)}

        def once() -> str:
            answer = self.client.call_once(
                "create_multipart_upload", key, ChecksumAlgorithm="SHA256", **arguments
            )
            if not answer.get("UploadId"):
                raise odd("the store began an upload oddly")
            return str(answer["UploadId"])

        return MultipartUpload(self, key, self.client.retrying(once), retain_until)

    def abort_uploads(self, prefix: str, before: datetime) -> int:
        """Abort the uploads below a prefix that were begun before `before` and are still open:
        their process is gone. Returns how many there were. Raises `StoreError`."""
        aborted = 0
        asked = {"Prefix": self.client.prefix + prefix}
        for page in self._pages("list_multipart_uploads", asked):
            for item in page.get("Uploads", ()):
                if item["Initiated"] >= before:
                    continue
                key, upload_id = self.client.relative(item["Key"]), item["UploadId"]
                try:
                    self.client.call("abort_multipart_upload", key, UploadId=upload_id)
                    aborted += 1
                except StoreError as error:
                    if error.reason != "no_upload":  # another process has aborted it
                        raise
        return aborted

    # --- the bucket itself

    def is_answering(self) -> bool:
        """Whether the store accepts writes now: the control request of writers. It distinguishes an
        outage from one object that the store refuses.

        It is a create-once write of `manifest/probe`. The object exists if `ensure_archive` has
        begun the archive, so 412 is the expected answer, and nothing is written.
        """
        condition = {"IfNoneMatch": "*"} if self.create_once else {}
        try:
            if self.create_once or self.head(layout.PROBE) is None:
                self.put_probe(**condition)
        except KeyTaken:
            return True
        except StoreError as error:
            return error.reason in ("conflict", "not_implemented")
        return True

    def put_probe(self, **arguments: str) -> dict[str, Any]:
        """Write `manifest/probe` as every object is written, except for `arguments`, in one attempt
        and unverified. Returns the store's answer."""
        sha256 = checksums.hex_to_base64(checksums.sha256_hex(PROBE_BYTES))
        usual = {
            "ContentType": "text/plain",
            "ChecksumSHA256": sha256,
            **self.write_arguments(None),
        }
        whole = {**usual, **arguments}
        return self.client.call_once("put_object", layout.PROBE, Body=PROBE_BYTES, **whole)

    def check_access(self) -> None:
        """Raise `StoreError` if the bucket is missing, denies access, or lacks a required lock."""
        answer = self.client.call("list_objects_v2", Prefix=self.client.prefix, MaxKeys=1)
        if "IsTruncated" not in answer and "Name" not in answer:
            raise StoreError(_NO_LISTING)
        if self.options.lock_mode is None:
            return
        if not self.has_object_lock():
            raise StoreError(
                f"bucket {self.options.bucket} has no Object Lock: make it with Object Lock "
                "enabled, on a store that has it, or set ARCHIVER_OBJECT_LOCK_MODE=none"
            )
        self.check_lock_permissions()

    def check_lock_permissions(self) -> None:
        """Raise `StoreError` if these credentials may not see locks and legal holds. A store leaves
        them out of a HEAD then, so an existing lock would look missing.

        Credentials without the permission are refused for every object. One object may be refused
        for itself, so the others are requested before the permission counts as missing.
        """
        for method in ("get_object_retention", "get_object_legal_hold"):
            denials = []
            for key in _IN_EVERY_ARCHIVE:
                try:
                    self.client.call_once(method, key)
                    break
                except StoreError as error:
                    # Any other answer hides no lock. A store without locks may even answer 500.
                    if error.reason != "denied":
                        break
                    denials.append(error)
            if len(denials) == len(_IN_EVERY_ARCHIVE):
                raise denials[0]

    def has_object_lock(self) -> bool:
        """Whether the bucket has Object Lock. Raises `StoreError` if that is denied: a guess would
        go into seal 0."""
        return self._lock_configuration().get("ObjectLockEnabled") == "Enabled"

    def locks_by_itself(self) -> bool:
        """Whether the bucket has a default retention, which locks objects written without a
        lock."""
        rule = self._lock_configuration().get("Rule") or {}
        return bool(rule.get("DefaultRetention"))

    def is_versioned(self) -> bool:
        """Whether the bucket keeps versions. Raises `StoreError` if the credentials may not ask."""
        return self._configuration("get_bucket_versioning").get("Status") == "Enabled"

    def _lock_configuration(self) -> dict[str, Any]:
        answer = self._configuration("get_object_lock_configuration")
        return answer.get("ObjectLockConfiguration") or {}

    def _configuration(self, method: str) -> dict[str, Any]:
        """A setting of the bucket; empty if the store does not have such a setting. Stores say so
        with 501, or with 400 (Google Cloud Storage), 404 or 405."""
        try:
            return self.client.call(method)
        except StoreError as error:
            is_unknown = error.reason == "refused" and error.status in (400, 404, 405)
            if is_unknown or error.reason in ("not_implemented", "not_configured", "not_found"):
                return {}
            raise


class MultipartUpload:
    """A multipart upload in progress. Not thread-safe; to be ended by `complete` or `abort`."""

    def __init__(
        self, bucket: Bucket, key: str, upload_id: str, retain_until: datetime | None
    ) -> None:
        self.upload_id = upload_id
        self._bucket = bucket
        self._key = key
        self._retain_until = retain_until
        self._parts: list[dict[str, Any]] = []
        self._bytes = 0

    def part(self, data: Buffer, sha256: str | None = None) -> None:
        """Send the next part, with its SHA-256 (hex, if it is known). Retried if its answer is
        lost."""
        checksum = checksums.hex_to_base64(sha256 or checksums.sha256_hex(data))
        part = {"PartNumber": len(self._parts) + 1, "ChecksumSHA256": checksum}
        etag = self._bucket.client.retrying(
            lambda: etag_of(self._send_once("upload_part", Body=data, **part))
        )
        self._parts.append({**part, "ETag": etag})
        self._bytes += len(data)

    def complete(self, sha256: str) -> Stored:
        """Complete the upload and verify the object; `sha256` is the hash of the whole."""
        condition = {"IfNoneMatch": "*"} if self._bucket.conditional_completion else {}

        def once() -> None:
            try:
                self.complete_once(**condition)
            except StoreError as error:
                # If an earlier answer was lost, the upload is gone and the object is there.
                landed = error.reason in ("no_upload", "taken") and self._bucket.head(self._key)
                if not landed:
                    raise

        self._bucket.client.retrying(once)
        head = self._bucket.head(self._key)
        if head is None:
            text = f"{self._key} is not there after its upload: the store is unsafe"
            raise of_object(text, "lost")
        stored = Stored(self._key, head.version_id, self._bytes, sha256)
        return self._bucket.verify_write(stored, self._retain_until)

    def complete_once(self, **condition: str) -> str | None:
        """Complete the upload, in one attempt and unverified. Returns the version, if named."""
        parts = {"Parts": self._parts}
        answer = self._send_once("complete_multipart_upload", MultipartUpload=parts, **condition)
        version_id: str | None = answer.get("VersionId")
        return version_id

    def abort(self) -> None:
        """Abort the upload, even if the process must end. Best effort: parts that stay are not an
        object, and a later start aborts the upload (`abort_uploads`)."""
        client = self._bucket.client
        with suppress(ArchiverError, BotoCoreError, ClientError, OSError):
            client.s3.abort_multipart_upload(**client.at(self._key), UploadId=self.upload_id)

    def _send_once(self, method: str, **arguments: Any) -> dict[str, Any]:
        client = self._bucket.client
        return client.call_once(method, self._key, UploadId=self.upload_id, **arguments)


def proves_write(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether the answer to a write proves as much as a HEAD: it names the checksum, and `asked`
    has no argument that a store may ignore."""
    same = answer.get("ChecksumSHA256") == asked["ChecksumSHA256"]
    return same and asked.keys().isdisjoint(_DROPPED_IN_SILENCE)
