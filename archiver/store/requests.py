"""One place where the store is asked: errors in our words, tries on our clock, keys with prefix."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from archiver import fixity, liveness
from archiver.clock import Clock, RemoteClock
from archiver.errors import Reach, StoreError
from archiver.heads import NoAnswer
from archiver.retry import Retry
from archiver.store.aside import Aside
from archiver.store.client import StoreOptions, make_client, make_session
from archiver.store.direct import Direct
from archiver.store.faults import translate
from archiver.store.objects import Head

T = TypeVar("T")

_GONE = {"NoSuchKey", "404", "NoSuchVersion", "NotFound"}


class Requests:
    """Asks one bucket. Threads share it."""

    def __init__(
        self, options: StoreOptions, clock: Clock, retry: Retry, *, client: Any = None
    ) -> None:
        self.options = options
        self.clock = clock
        self.retry = retry
        self.prefix = options.key_prefix
        session = make_session() if client is None or isinstance(client, BaseClient) else None
        self.client = client or make_client(options, session)
        self.remote = RemoteClock(clock)
        self.s3 = Aside(self.client, self.remote)
        self.objects = Direct(self.s3, session, options, self.remote) if session else self.s3
        """As `s3`, for what is asked most."""

    def at(self, key: str, version_id: str | None = None) -> dict[str, Any]:
        """Where an object lies, as boto3 takes it."""
        where = {"Bucket": self.options.bucket, "Key": self.prefix + key}
        return where if version_id is None else {**where, "VersionId": version_id}

    def relative(self, key: str) -> str:
        return key[len(self.prefix) :]

    def once(self, operation: str, request: Callable[[], T]) -> T:
        """One try. Raises `StoreError`, or `Interrupted` once the process must end."""
        self.clock.check()
        try:
            found = request()
            liveness.note()
            return found
        # An answer that botocore reads itself may break off in urllib3's own words.
        except (BotoCoreError, ClientError, HTTPError, NoAnswer, OSError) as error:
            raise translate(error, operation, self.options.bucket) from None

    def find(self, operation: str, request: Callable[[], T]) -> T | None:
        """As `once`; None where there is no such object."""

        def lenient() -> T | None:
            try:
                return request()
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                if code in _GONE:
                    return None
                raise

        return self.once(operation, lenient)

    def again(self, function: Callable[[], T]) -> T:
        """Try until it works, or until that is hopeless."""
        return self.retry.call("store", function)

    def head(self, key: str, version_id: str | None = None) -> Head | None:
        """What the store says of an object, or None where there is none."""
        arguments = {"ChecksumMode": "ENABLED", **self.at(key, version_id)}

        def once() -> Head | None:
            answer = self.find("HeadObject", lambda: self.objects.head_object(**arguments))
            return None if answer is None else _head(answer)

        return self.again(once)


def etag_of(answer: dict[str, Any]) -> str:
    """The acknowledgement of a write: an HTML page with status 200 looks like success to boto3."""
    etag = answer.get("ETag")
    if not isinstance(etag, str) or not etag:
        raise StoreError(
            "the store acknowledged a write oddly", retryable=True, reason="odd", reach=Reach.ITEM
        )
    return etag


def whole_second(moment: datetime) -> datetime:
    """Stores keep lock dates to the second: ask for a whole one, never earlier than promised."""
    whole = moment.astimezone(UTC).replace(microsecond=0)
    return whole if whole == moment else whole.fromtimestamp(whole.timestamp() + 1, UTC)


def _head(answer: dict[str, Any]) -> Head:
    checksum, etag = answer.get("ChecksumSHA256"), etag_of(answer)
    # Of an upload in parts a store has a checksum of checksums; not every one says so.
    if answer.get("ChecksumType") == "COMPOSITE" or "-" in (checksum or "") or "-" in etag:
        checksum = None
    if "ContentLength" not in answer:
        raise StoreError("the store tells no size", retryable=True, reason="odd", reach=Reach.ITEM)
    return Head(
        size=answer["ContentLength"],
        version_id=answer.get("VersionId"),
        etag=etag,
        sha256=fixity.base64_to_hex(checksum) if checksum else None,
        lock_mode=answer.get("ObjectLockMode"),
        lock_until=answer.get("ObjectLockRetainUntilDate"),
        held=answer.get("ObjectLockLegalHoldStatus") == "ON",
        sse=answer.get("ServerSideEncryption"),
        storage_class=answer.get("StorageClass"),
    )
