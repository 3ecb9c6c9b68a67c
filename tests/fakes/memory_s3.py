"""A boto3 client of a bucket in memory, so that the real `Bucket` runs on it: one process's hands.

What lies in the bucket lies in a `MemoryStore`, whose rules judge each object that is made. On top
of them this client is as strict as S3 at its best, and stricter: whoever writes without
`If-None-Match: *` or without a checksum does what no writer of an archive may do.

A `Carrier` takes each request from the process to the bucket: it may refuse it, lose the answer, or
have it arrive later.
"""

# ruff: noqa: N803  (the arguments are called what boto3 calls them)

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import format_datetime
from types import SimpleNamespace
from typing import IO, Any, Protocol

from botocore.exceptions import ClientError

from archiver.core.checksums import Buffer
from archiver.manifest import layout
from tests.fakes import store_rules
from tests.fakes.memory_store import MemoryStore, Object
from tests.fakes.store_rules import Violation, sha256_hex

Answer = dict[str, Any]
LISTINGS = {
    "list_objects_v2": "ListObjectsV2",
    "list_object_versions": "ListObjectVersions",
    "list_multipart_uploads": "ListMultipartUploads",
}
"""What boto3 calls these, and what S3 does."""
Effect = Callable[[], Answer]


class Carrier(Protocol):
    """Carries out `effect`, or not; its answer, its `ClientError`, or whatever else befalls it."""

    def __call__(self, operation: str, key: str, effect: Effect) -> Answer: ...


def directly(operation: str, key: str, effect: Effect) -> Answer:
    """The carrier that never fails."""
    return effect()


def refusal(code: str, status: int, operation: str = "Request") -> ClientError:
    """As boto3 raises what S3 refuses."""
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)


class Body:
    """The body of an object, as boto3 hands it out; `error` breaks it off where it ends."""

    def __init__(self, data: bytes, error: Exception | None = None) -> None:
        self.data = data
        self.error = error

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        for at in range(0, len(self.data), size):
            yield self.data[at : at + size]
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        pass


@dataclass
class S3Upload:
    """A multipart upload. It is gone once it was completed or aborted."""

    key: str
    writer: str
    began: datetime
    arguments: dict[str, Any]
    parts: dict[int, bytes] = field(default_factory=dict)


class S3Uploads:
    """The multipart uploads of one bucket, of all processes."""

    def __init__(self) -> None:
        self.open: dict[str, S3Upload] = {}
        self.composite: set[str | None] = set()
        """The versions that came about in parts: of them S3 has no SHA-256 of the whole."""
        self.taken: set[str] = set()
        """Those that were completed and are answered with 412 when that is tried again."""
        self.numbers = itertools.count(1)


class MemoryS3:
    """A client. `store` is the bucket in this process's hands, its own hooks unused."""

    def __init__(
        self,
        store: MemoryStore,
        uploads: S3Uploads,
        now: Callable[[], datetime],
        carrier: Carrier = directly,
    ) -> None:
        self.meta = SimpleNamespace(
            endpoint_url="https://s3.test", method_to_api_mapping=dict(LISTINGS)
        )
        self._store = store
        self._uploads = uploads
        self._now = now
        self._carrier = carrier

    def _carry(self, operation: str, key: str, effect: Effect) -> Answer:
        """The answer that comes, with the store's `Date`."""
        answer = self._carrier(operation, key, effect)
        date = format_datetime(self._now(), usegmt=True)
        return {**answer, "ResponseMetadata": {"HTTPHeaders": {"date": date}}}

    # --- objects

    def put_object(
        self, *, Key: str, Body: Buffer | IO[bytes], ChecksumSHA256: str, **rest: Any
    ) -> Answer:
        data = bytes(Body) if isinstance(Body, Buffer) else Body.read()
        self._require(Key, rest.get("IfNoneMatch") == "*", "a write that may overwrite")

        def effect() -> Answer:
            if Key in self._objects:
                raise refusal("PreconditionFailed", 412, "PutObject")
            if _base64(data) != ChecksumSHA256:
                raise refusal("BadDigest", 400, "PutObject")
            return {**_written(self._create(Key, data, rest)), "ChecksumSHA256": ChecksumSHA256}

        return self._carry("put", Key, effect)

    def get_object(self, *, Key: str, Range: str = "", **rest: Any) -> Answer:
        def effect() -> Answer:
            found = self._find(Key, rest, "NoSuchKey")
            data = found.data
            if Range and not data:
                raise refusal("InvalidRange", 416, "GetObject")
            if Range == "bytes=0-0":
                data = data[:1]
            elif Range:
                data = data[-int(Range.removeprefix("bytes=-")) :]
            return {**_written(found), "Body": Body(data), "ContentLength": len(data)}

        return self._carry("get", Key, effect)

    def head_object(self, *, Key: str, **rest: Any) -> Answer:
        return self._carry("head", Key, lambda: self._told(self._find(Key, rest, "404")))

    def _told(self, found: Object) -> Answer:
        composite = found.version_id in self._uploads.composite
        return {
            **_written(found),
            "ContentLength": len(found.data),
            "ChecksumSHA256": _base64(found.data) + ("-1" if composite else ""),
            "ChecksumType": "COMPOSITE" if composite else "FULL_OBJECT",
            "ObjectLockMode": found.lock_mode,
            "ObjectLockRetainUntilDate": found.lock_until,
            "ObjectLockLegalHoldStatus": "ON" if found.held else None,
            "ContentType": found.content_type,
        }

    def put_object_retention(self, *, Key: str, Retention: dict[str, Any], **rest: Any) -> Answer:
        def effect() -> Answer:
            found, until = self._find(Key, rest, "NoSuchKey"), Retention["RetainUntilDate"]
            if found.lock_until is not None and until < found.lock_until:
                raise refusal("AccessDenied", 403, "PutObjectRetention")
            self._change(found, lock_mode=Retention["Mode"], lock_until=until)
            return {}

        return self._carry("extend", Key, effect)

    def put_object_legal_hold(self, *, Key: str, LegalHold: dict[str, str], **rest: Any) -> Answer:
        def effect() -> Answer:
            held = LegalHold["Status"] == "ON"
            self._change(self._find(Key, rest, "NoSuchKey"), held=held)
            return {}

        return self._carry("hold", Key, effect)

    def get_object_retention(self, *, Key: str, **rest: Any) -> Answer:
        def effect() -> Answer:
            found = self._find(Key, rest, "NoSuchKey")
            if found.lock_mode is None:
                raise refusal("NoSuchObjectLockConfiguration", 404, "GetObjectRetention")
            return {"Retention": {"Mode": found.lock_mode, "RetainUntilDate": found.lock_until}}

        return self._carry("settings", Key, effect)

    def get_object_legal_hold(self, *, Key: str, **rest: Any) -> Answer:
        def effect() -> Answer:
            held = self._find(Key, rest, "NoSuchKey").held
            return {"LegalHold": {"Status": "ON" if held else "OFF"}}

        return self._carry("settings", Key, effect)

    # --- listings

    def list_objects_v2(self, *, Prefix: str, StartAfter: str = "", **rest: Any) -> Answer:
        def effect() -> Answer:
            found = self._store.list(Prefix, start_after=StartAfter)
            contents = [
                {"Key": item.key, "Size": item.size, "LastModified": item.modified}
                for item in found
            ]
            return {"Contents": contents, "IsTruncated": False, "KeyCount": len(contents)}

        return self._carry("list", Prefix, effect)

    def list_object_versions(self, *, Prefix: str, **rest: Any) -> Answer:
        def effect() -> Answer:
            versions = [
                {"Key": one.key, "VersionId": one.version_id, "IsLatest": True, "Size": one.size}
                for one in self._store.versions(Prefix)
            ]
            return {"Versions": versions, "IsTruncated": False}

        return self._carry("versions", Prefix, effect)

    def list_multipart_uploads(self, *, Prefix: str, **rest: Any) -> Answer:
        def effect() -> Answer:
            found = [
                {"Key": one.key, "UploadId": number, "Initiated": one.began}
                for number, one in self._uploads.open.items()
                if one.key.startswith(Prefix)
            ]
            return {"Uploads": found, "IsTruncated": False}

        return self._carry("uploads", Prefix, effect)

    # --- uploads in parts

    def create_multipart_upload(self, *, Key: str, **rest: Any) -> Answer:
        if Key != layout.PROBE:
            self._store._judge(Key, lambda: store_rules.check_parts(Key))

        def effect() -> Answer:
            number = f"upload-{next(self._uploads.numbers)}"
            made = S3Upload(Key, self._store.writer, self._now(), rest)
            self._uploads.open[number] = made
            return {"UploadId": number}

        return self._carry("begin", Key, effect)

    def upload_part(
        self, *, Key: str, UploadId: str, PartNumber: int, Body: bytes, ChecksumSHA256: str,
        **rest: Any,
    ) -> Answer:  # fmt: skip
        data = bytes(Body)
        self._require(Key, len(data) > 0, "an empty part")

        def effect() -> Answer:
            upload = self._upload(UploadId, "UploadPart")
            if _base64(data) != ChecksumSHA256:
                raise refusal("BadDigest", 400, "UploadPart")
            upload.parts[PartNumber] = data
            return {"ETag": _etag(data)}

        return self._carry("part", Key, effect)

    def complete_multipart_upload(
        self, *, Key: str, UploadId: str, MultipartUpload: dict[str, Any], **rest: Any
    ) -> Answer:
        parts = MultipartUpload["Parts"]
        numbers = [part["PartNumber"] for part in parts]
        self._require(Key, rest.get("IfNoneMatch") == "*", "an upload that may overwrite")
        self._require(Key, numbers == list(range(1, len(parts) + 1)), "parts out of order")

        def effect() -> Answer:
            if UploadId in self._uploads.taken:
                # Ended before: some stores look at the key first, and some at the upload.
                raise refusal("PreconditionFailed", 412, "CompleteMultipartUpload")
            upload = self._upload(UploadId, "CompleteMultipartUpload")
            if Key in self._objects:
                raise refusal("PreconditionFailed", 412, "CompleteMultipartUpload")
            for part in parts:
                data = upload.parts.get(part["PartNumber"], b"")
                if (part["ETag"], part["ChecksumSHA256"]) != (_etag(data), _base64(data)):
                    raise refusal("InvalidPart", 400, "CompleteMultipartUpload")
            whole = b"".join(upload.parts[number] for number in numbers)
            made = self._create(Key, whole, upload.arguments)
            self._uploads.composite.add(made.version_id)
            del self._uploads.open[UploadId]
            if int(UploadId.rpartition("-")[2]) % 2:
                self._uploads.taken.add(UploadId)
            return _written(made)

        return self._carry("complete", Key, effect)

    def abort_multipart_upload(self, *, Key: str, UploadId: str, **rest: Any) -> Answer:
        def effect() -> Answer:
            self._upload(UploadId, "AbortMultipartUpload")
            del self._uploads.open[UploadId]
            return {}

        return self._carry("abort", Key, effect)

    # --- the bucket

    def get_object_lock_configuration(self, **rest: Any) -> Answer:
        def effect() -> Answer:
            if self._store._lock_mode is None:
                raise refusal("ObjectLockConfigurationNotFoundError", 404)
            return {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}}

        return self._carry("settings", "", effect)

    @property
    def _objects(self) -> dict[str, Object]:
        return self._store._shelf.objects

    def _find(self, key: str, where: dict[str, Any], otherwise: str) -> Object:
        found = self._objects.get(key)
        if found is None or where.get("VersionId") not in (None, found.version_id):
            raise refusal(otherwise, 404)
        return found

    def _create(self, key: str, data: bytes, arguments: dict[str, Any]) -> Object:
        until = arguments.get("ObjectLockRetainUntilDate")
        made = self._store._create(key, data, arguments["ContentType"], None)
        return self._change(
            made,
            lock_mode=arguments.get("ObjectLockMode"),
            lock_until=until,
            held=arguments.get("ObjectLockLegalHoldStatus") == "ON",
        )

    def _change(self, found: Object, **fields: Any) -> Object:
        changed = self._objects[found.key] = replace(found, **fields)
        return changed

    def _upload(self, number: str, operation: str) -> S3Upload:
        found = self._uploads.open.get(number)
        if found is None:
            raise refusal("NoSuchUpload", 404, operation)
        return found

    def _require(self, key: str, holds: bool, otherwise: str) -> None:
        def rule() -> None:
            if not holds:
                raise Violation(otherwise)

        self._store._judge(key, rule)


def _written(found: Object) -> Answer:
    return {"ETag": f'"{found.sha256[:32]}"', "VersionId": found.version_id}


def _etag(data: bytes) -> str:
    return f'"{sha256_hex(data)[:32]}"'


def _base64(data: bytes) -> str:
    return base64.b64encode(bytes.fromhex(sha256_hex(data))).decode()
