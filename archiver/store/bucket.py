"""The archive's bucket: create-once writes, uploads, reads, lists.

Contract of `Bucket`, on which everything above it stands:
- Durability: a write that returns is durable and was looked at (HEAD by version: size, checksum
  where the store keeps one, lock, encryption; or, where that is allowed and enough, the checksum
  that the answer to the write names); `Stored` names exactly what was written.
- Create-once: nothing is overwritten, nothing deleted. A key that is taken by the same bytes is
  adopted (`Stored` of what is there), one taken by other bytes raises `KeyTaken`. Of several
  writers one wins, as far as the store is atomic there (`probe.py`).
- Ambiguity: botocore's own retries are off, because a retry of a create-once write whose answer
  was lost gets 412 for its own success. We try again, and on 412 read back and compare.
- Errors: `StoreError`, one line, no body of the store's answer.
- Threads share a bucket. Keys are relative to the archive's prefix and come from `layout.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import IO, Any

from botocore.exceptions import BotoCoreError

from archiver import fixity, liveness
from archiver.clock import Clock
from archiver.errors import KeyTaken, Reach, StoreError
from archiver.fixity import Buffer
from archiver.heads import NoAnswer
from archiver.manifest import layout
from archiver.retry import Retry
from archiver.store.client import StoreOptions
from archiver.store.faults import translate
from archiver.store.objects import Head, Listed, Lock, Stored, Version
from archiver.store.protection import Protection
from archiver.store.requests import Requests, etag_of
from archiver.store.upload import Upload

READ_BYTES = 256 << 10
_LISTED = ("Contents", "Versions", "DeleteMarkers")
"""What a page of a listing has keys in."""
MAX_OBJECT_BYTES = 64 << 20
"""What `read` takes into memory unless it is told another limit."""

JSON = "application/json"
PROBE_BYTES = b"Written to learn whether this store refuses to overwrite it.\n"
"""What `manifest/probe` holds, on which the store is tried out (`trial.py`)."""
SIGHT_KEYS = (layout.PROBE, layout.seal_key(0), layout.signature_key(0), layout.VERIFY_PAGE)
"""Objects of every archive, whose locks are asked for to learn whether we may see any."""


class Bucket:
    """One archive: a bucket, or a prefix of it."""

    def __init__(
        self, options: StoreOptions, clock: Clock, retry: Retry, *, client: Any = None
    ) -> None:
        self.options = options
        self.requests = Requests(options, clock, retry, client=client)
        self.create_once = True
        """Whether the store refuses to overwrite; else one writer looks before each write."""
        self.read_back = False
        """Whether each recording is read back and hashed, because a HEAD proves too little."""
        self.believed = False
        """Whether the checksum in a write's answer is relied on: the store proved that it computes
        it."""
        self._protection = Protection(self.requests, self.has_object_lock)

    def latest_clock_skew_seconds(self) -> float | None:
        """The store's `Date` less our time, by its latest answer; None where it told none."""
        return self.requests.remote.skew_seconds()

    # --- reading

    def read(
        self, key: str, version_id: str | None = None, max_bytes: int = MAX_OBJECT_BYTES
    ) -> bytes | None:
        """The object's bytes, or None where there is none. `StoreError` beyond `max_bytes`."""
        file = io.BytesIO()
        found = self._into(key, self.requests.at(key, version_id), file, max_bytes)
        return file.getvalue() if found else None

    def read_into(self, key: str, file: IO[bytes], max_bytes: int) -> bool:
        """As `read`, into an empty file; False where there is no such object."""
        return self._into(key, self.requests.at(key), file, max_bytes)

    def tail(self, key: str, max_bytes: int) -> bytes | None:
        """The last bytes of an object, at most `max_bytes`, or None where there is none."""
        file = io.BytesIO()
        asked = {**self.requests.at(key), "Range": f"bytes=-{max_bytes}"}
        try:
            found = self._into(key, asked, file, max_bytes)
        except StoreError as error:
            if error.status != 416:
                raise
            return self.read(key, max_bytes=max_bytes)  # shorter than that, and a store that minds
        return file.getvalue() if found else None

    def _into(self, key: str, asked: dict[str, Any], file: IO[bytes], max_bytes: int) -> bool:
        def once() -> bool:
            file.seek(0)
            file.truncate()
            chunks = self._open(asked)
            for chunk in chunks or ():
                file.write(chunk)
                if file.tell() > max_bytes:
                    raise StoreError(
                        f"{key} is larger than {max_bytes} bytes",
                        reason="too_large",
                        reach=Reach.ITEM,
                    )
            return chunks is not None

        return self.requests.again(once)

    def stream(self, key: str, version_id: str | None = None) -> Iterator[bytes] | None:
        """The object in chunks, or None where there is none; a body cut short raises."""
        return self.requests.again(lambda: self._open(self.requests.at(key, version_id)))

    def _open(self, asked: dict[str, Any]) -> Iterator[bytes] | None:
        answer = self.requests.find("GetObject", lambda: self.requests.objects.get_object(**asked))
        if answer is None:
            return None
        try:
            etag_of(answer)  # a page of HTML has none
        except StoreError:
            answer["Body"].close()
            raise
        return self._chunks(answer["Body"])

    def _chunks(self, body: Any) -> Iterator[bytes]:
        """A body that was cut short raises."""
        try:
            for chunk in body.iter_chunks(READ_BYTES):
                liveness.note()
                yield chunk
        except (BotoCoreError, NoAnswer, OSError) as error:
            raise translate(error, "GetObject", self.options.bucket) from None
        finally:
            body.close()

    def head(self, key: str, version_id: str | None = None) -> Head | None:
        """What the store says of an object, or None where there is none."""
        return self.requests.head(key, version_id)

    def list(self, prefix: str, start_after: str = "") -> Iterator[Listed]:
        """Every object below a prefix. Stores differ in the order: sort where it matters."""
        arguments: dict[str, Any] = {"Prefix": self.requests.prefix + prefix}
        if start_after:
            arguments["StartAfter"] = self.requests.prefix + start_after
        for page in self._pages("list_objects_v2", arguments):
            for item in page.get("Contents", ()):
                key = self.requests.relative(item["Key"])
                yield Listed(key, item["Size"], item.get("LastModified"))
            arguments.pop("StartAfter", None)

    def folders(self, prefix: str, *, hidden: bool = False) -> set[str]:
        """The names right below a prefix that a slash ends: what there are of days, in a page or
        two and in whatever order the store lists. `hidden`: also where delete markers hide all that
        lies below, in a store that keeps versions."""
        whole = self.requests.prefix + prefix
        method = "list_object_versions" if hidden else "list_objects_v2"
        found = set[str]()
        for page in self._pages(method, {"Prefix": whole, "Delimiter": "/"}):
            # A store that knows no delimiter lists all keys.
            keys = [item["Prefix"] for item in page.get("CommonPrefixes", ())]
            keys += [i["Key"] for n in _LISTED for i in page.get(n, ())]
            rests = (key.removeprefix(whole).partition("/") for key in keys)
            found |= {name for name, slash, _ in rests if slash}
        return found

    def versions(self, prefix: str) -> Iterator[Version]:
        """Every version and delete marker below a prefix; nothing where the store has none."""
        asked = {"Prefix": self.requests.prefix + prefix}
        try:
            for page in self._pages("list_object_versions", asked):
                for marker, name in ((False, "Versions"), (True, "DeleteMarkers")):
                    yield from (self._version(item, marker) for item in page.get(name, ()))
        except StoreError as error:
            if error.reason != "not_implemented":
                raise

    def _version(self, item: dict[str, Any], marker: bool) -> Version:
        key, version_id = self.requests.relative(item["Key"]), item.get("VersionId", "null")
        return Version(key, version_id, bool(item.get("IsLatest")), marker, item.get("Size", 0))

    def _pages(self, method: str, arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Page through a listing; a page is asked for again when it fails."""
        tokens: dict[str, Any] = {}
        while True:
            asked = {**arguments, **tokens}
            page = self._page(method, asked)
            yield page
            if not page.get("IsTruncated"):
                return
            following = {
                "ContinuationToken": page.get("NextContinuationToken"),
                "KeyMarker": page.get("NextKeyMarker"),
                "VersionIdMarker": page.get("NextVersionIdMarker"),
                "UploadIdMarker": page.get("NextUploadIdMarker"),
            }
            tokens = {name: value for name, value in following.items() if value}
            if not tokens or tokens.items() <= asked.items():
                raise StoreError(
                    "the store says that a listing goes on, but not where", reach=Reach.ITEM
                )

    def _page(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        client = self.requests.objects if method == "list_objects_v2" else self.requests.s3
        call = getattr(client, method)
        operation = self.requests.s3.meta.method_to_api_mapping[method]

        def once() -> dict[str, Any]:
            ask = partial(call, Bucket=self.options.bucket, **arguments)
            page: dict[str, Any] = self.requests.once(operation, ask)
            if page.keys().isdisjoint(("IsTruncated", "Name", "Bucket")):
                raise StoreError(
                    "the store answers a listing with something else: check "
                    "ARCHIVER_S3_ENDPOINT_URL",
                    retryable=True,
                    reason="odd",
                    reach=Reach.ITEM,
                )
            return page

        return self.requests.again(once)

    # --- writing

    def put_once(
        self,
        key: str,
        data: Buffer | IO[bytes],
        *,
        content_type: str = JSON,
        retain_until: datetime | None = None,
        held: bool = False,
        sha256: str | None = None,
        look: bool = True,
    ) -> Stored:
        """Create an object, or adopt the same bytes already there; `KeyTaken` for other bytes.

        `data` may be a file that can be sought in: all of it is sent, and it stays open. `held`
        puts a legal hold on it, in the same request. `sha256` (hex) is that of bytes in memory
        which were hashed already; the store refuses them where it is not. Without `look`, the
        answer does for a HEAD where it says as much.
        """
        if sha256 is not None and isinstance(data, Buffer):
            size = len(data)
        else:
            sha256, size = _measured(data)
        arguments = {
            "Body": data,
            "ContentType": content_type,
            "ChecksumSHA256": fixity.hex_to_base64(sha256),
            "IfNoneMatch": "*",
            **self._protection.arguments(retain_until, held),
        }
        wanted = Stored(key, None, size, sha256)

        def once() -> tuple[Stored, dict[str, Any]]:
            try:
                if not self.create_once and self.head(key) is not None:
                    return self._adopt(wanted), {}
                answer = self.requests.once("PutObject", lambda: self._put(key, arguments))
            except KeyTaken:
                return self._adopt(wanted), {}
            return Stored(key, answer.get("VersionId"), size, sha256), answer

        stored, answer = self.requests.again(once)
        if self.believed and not look and self._protection.is_told(answer, arguments):
            return stored
        lock = self._protection.check(stored, retain_until, held)
        return replace(stored, lock_mode=lock.mode)

    def _put(self, key: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(arguments["Body"], Buffer):
            arguments["Body"].seek(0)
            arguments = {**arguments, "Body": _Sent(arguments["Body"])}
        answer: dict[str, Any] = self.requests.objects.put_object(
            **self.requests.at(key), **arguments
        )
        etag_of(answer)
        return answer

    def _adopt(self, wanted: Stored) -> Stored:
        """The object under a taken key, if it holds the wanted bytes; else `KeyTaken`."""
        head = self.head(wanted.key)
        if head is None:
            raise StoreError(
                "a key is taken and yet empty: another writer is at it, or it was deleted",
                retryable=True,
                reason="conflict",
                reach=Reach.ITEM,
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
            **self._protection.arguments(retain_until),
        }

        def once() -> str:
            answer = self.requests.s3.create_multipart_upload(**self.requests.at(key), **arguments)
            if not answer.get("UploadId"):
                raise StoreError(
                    "the store began an upload oddly",
                    retryable=True,
                    reason="odd",
                    reach=Reach.ITEM,
                )
            return str(answer["UploadId"])

        upload_id = self.requests.again(lambda: self.requests.once("CreateMultipartUpload", once))
        return Upload(self.requests, self._protection, key, upload_id, retain_until)

    def abort_uploads(self, prefix: str, before: datetime) -> int:
        """Abort the multipart uploads below a prefix that were begun before then, and never ended:
        whoever began them is gone. How many there were. Raises `StoreError`."""
        aborted = 0
        asked = {"Prefix": self.requests.prefix + prefix}
        for page in self._pages("list_multipart_uploads", asked):
            for item in page.get("Uploads", ()):
                if item["Initiated"] < before:
                    aborted += self._abort(item["Key"], item["UploadId"])
        return aborted

    def _abort(self, whole_key: str, upload_id: str) -> bool:
        at = {"Bucket": self.options.bucket, "Key": whole_key, "UploadId": upload_id}
        abort = self.requests.s3.abort_multipart_upload
        try:
            self.requests.again(
                lambda: self.requests.once("AbortMultipartUpload", lambda: abort(**at))
            )
        except StoreError as error:
            if error.reason != "no_upload":
                raise
            return False  # somebody else was faster
        return True

    def extend(self, key: str, version_id: str | None, retain_until: datetime | None) -> Lock:
        """Lock an object that is there until then, unless it is locked for longer already. Raises
        `StoreError`, with the reason `gone` where there is none."""
        return self._protection.extend(key, version_id, retain_until)

    def set_hold(self, key: str, version_id: str | None, held: bool) -> None:
        """Put a legal hold on an object, or take it off; done twice it does no harm. What returns
        was looked at: `StoreError` where the object is not there, where the bucket has no Object
        Lock, and where the store took it and dropped it, or does not tell."""
        self._protection.hold(key, version_id, held)

    # --- the bucket itself

    def is_answering(self) -> bool:
        """Whether the store takes reads and writes: the control that tells an outage from one bad
        object.

        It sends a create-once write of `manifest/probe`, which is there, so that 412 is the answer
        to expect. Writes nothing new where the archive was begun by `ensure_archive`.
        """
        try:
            self.requests.once("PutObject", self._put_probe)
        except KeyTaken:
            return True
        except StoreError as error:
            return error.reason in ("conflict", "not_implemented")
        return True

    def _put_probe(self) -> None:
        digest = fixity.hex_to_base64(fixity.sha256_hex(PROBE_BYTES))
        arguments = {"ContentType": "text/plain", "ChecksumSHA256": digest}
        if self.create_once:
            arguments["IfNoneMatch"] = "*"
        elif self.requests.head(layout.PROBE) is not None:
            return
        self.requests.s3.put_object(
            **self.requests.at(layout.PROBE),
            Body=PROBE_BYTES,
            **arguments,
            **self._protection.arguments(None),
        )

    def check_access(self) -> None:
        """Raises `StoreError` where the bucket is missing, closed to us, or lacks the lock."""
        asked = {"Bucket": self.options.bucket, "Prefix": self.requests.prefix, "MaxKeys": 1}
        answer = self.requests.again(
            lambda: self.requests.once(
                "ListObjectsV2", lambda: self.requests.s3.list_objects_v2(**asked)
            )
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
        if self.options.lock_mode is not None:
            self.check_sight()

    def check_sight(self) -> None:
        """Raises `StoreError` where we may not see locks and legal holds: a store leaves out of a
        HEAD what we may not see, so it would pass for missing.

        Who lacks the permission is refused whatever object is asked for. One that is refused alone
        is a matter of its own, so others are asked for before that is believed.
        """
        s3 = self.requests.s3
        for operation, ask in (
            ("GetObjectRetention", s3.get_object_retention),
            ("GetObjectLegalHold", s3.get_object_legal_hold),
        ):
            denied: StoreError | None = None
            for key in SIGHT_KEYS:
                try:
                    self.requests.once(operation, partial(ask, **self.requests.at(key)))
                except StoreError as error:
                    # Any other answer hides no lock; a store that knows none may even answer 500.
                    if error.reason == "denied":
                        denied = denied or error
                        continue
                denied = None
                break
            if denied is not None:
                raise denied

    def has_object_lock(self) -> bool:
        """Raises `StoreError` where we may not ask: guessing would be set down in seal 0."""
        return self._lock_configuration().get("ObjectLockEnabled") == "Enabled"

    def locks_by_itself(self) -> bool:
        """Whether the bucket gives each object a lock that it is not written with."""
        rule = self._lock_configuration().get("Rule") or {}
        return bool(rule.get("DefaultRetention"))

    def _lock_configuration(self) -> dict[str, Any]:
        answer = self._configuration("get_object_lock_configuration", "GetObjectLockConfiguration")
        return answer.get("ObjectLockConfiguration") or {}

    def is_versioned(self) -> bool:
        """Raises `StoreError` where we may not ask."""
        answer = self._configuration("get_bucket_versioning", "GetBucketVersioning")
        return bool(answer.get("Status") == "Enabled")

    def _configuration(self, method: str, operation: str) -> dict[str, Any]:
        """A setting of the bucket; empty where the store knows no such thing."""
        request = getattr(self.requests.s3, method)
        try:
            answer: dict[str, Any] = self.requests.again(
                lambda: self.requests.once(operation, lambda: request(Bucket=self.options.bucket))
            )
        except StoreError as error:
            if error.reason in ("not_implemented", "not_configured"):
                return {}
            raise
        return answer


class _Sent:
    """A file that boto3 sends, block by block: each of them shows that we live."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        liveness.note()
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _measured(data: Buffer | IO[bytes]) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes."""
    if isinstance(data, Buffer):
        return fixity.sha256_hex(data), len(data)
    data.seek(0)
    digests = fixity.Digests()
    while chunk := data.read(READ_BYTES):
        digests.update(chunk)
    return digests.sha256, digests.bytes
