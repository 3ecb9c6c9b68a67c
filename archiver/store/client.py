"""The client of one bucket: boto3 with our errors, our retries and the archive's prefix.

boto3's own retries are off. If the answer to a create-once write is lost, a retry gets 412 for its
own success. So this client retries, and the writer reads the object back after a 412 (`bucket.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.request import getproxies

import boto3
import botocore.config
import botocore.session
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from archiver.core import checksums, liveness
from archiver.core.clock import Clock, RemoteClock
from archiver.core.errors import StoreError, UsageError
from archiver.core.http import ANSWER_SECONDS, Transport, TransportError, with_upload_seconds
from archiver.core.http import make_client as make_http_client
from archiver.core.network import boto3_bundle, proxy_for, root_bundle
from archiver.core.retry import Retry
from archiver.store.credentials import prepare
from archiver.store.errors import odd, translate
from archiver.store.signed_requests import USER_AGENT, SignedRequests
from archiver.store.types import ObjectHead

T = TypeVar("T")

READ_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class StoreOptions:
    """How to reach the bucket and how to write objects, as plain values."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    lock_mode: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    storage_class: str | None = None
    connections: int = 16
    transport: Transport = "fast"
    addressing_style: str | None = None
    """`auto`, `path` or `virtual`: whether the bucket's name stands in the path or in the host. By
    default as the AWS configuration says, else in the path where `endpoint_url` is set."""
    signed_requests: bool = True
    """Whether `signed_requests.py` sends the frequent requests; otherwise boto3 does."""


def make_client(
    options: StoreOptions,
    session: boto3.Session | None = None,
    *,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
) -> Any:
    """A boto3 client without retries and checksums of its own, with the proxy of
    `core/network.py`. Raises `StoreError`, and `UsageError` for proxies and AWS's own variables."""
    # A store with its own endpoint rarely has a DNS name for each bucket.
    style = options.addressing_style or ("path" if options.endpoint_url else "auto")
    config = botocore.config.Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=10,
        read_timeout=read_timeout_seconds,
        max_pool_connections=options.connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",
        user_agent_extra=USER_AGENT,
        s3={"addressing_style": style},  # type: ignore[arg-type]
    )
    try:
        make = partial(
            (session or boto3.Session()).client,
            "s3",
            endpoint_url=options.endpoint_url,
            region_name=options.region,
        )
        client = make(config=config)
        if getproxies():
            proxy = proxy_for(client.meta.endpoint_url)
            proxies = dict.fromkeys(("http", "https"), proxy) if proxy else {}
            client = make(config=config.merge(botocore.config.Config(proxies=proxies)))
    except (BotoCoreError, ValueError) as error:
        raise translate(error, "connect", options.bucket) from None
    for operation in ("PutObjectRetention", "PutObjectLegalHold"):
        client.meta.events.register(f"before-sign.s3.{operation}", _send_content_md5)
    return client


def _send_content_md5(request: Any, **_: Any) -> None:
    """Have a request carry Content-MD5, not the CRC that botocore sends instead: S3 takes both, and
    stores that were made before the CRC refuse a lock or a hold without Content-MD5."""
    for name in ("x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm"):
        del request.headers[name]
    request.headers["Content-MD5"] = checksums.md5_base64(request.body)


def connect(
    options: StoreOptions,
    check: Callable[[], None],
    aws: botocore.session.Session | None = None,
) -> SignedRequests:
    """Return the requests of a bucket. `check` is as in `http.make_client`; `aws` has the
    credentials, by default those of the environment. Raises `StoreError`, and `UsageError` for
    AWS's own variables and files."""
    aws = aws or botocore.session.Session()
    prepare(aws)
    aws_bundle = aws.get_config_variable("ca_bundle")
    if (bundle := boto3_bundle(aws_bundle)) is not None:
        # Of the session, so that it holds for the providers of credentials as well.
        aws.set_config_variable("ca_bundle", str(bundle))
    session = boto3.Session(botocore_session=aws)
    if options.addressing_style is None:
        options = replace(options, addressing_style=_configured_style(aws))
    client = make_client(options, session)
    http = make_http_client(
        options.transport,
        roots=root_bundle(aws_bundle),
        silence_seconds=READ_TIMEOUT_SECONDS,
        check=check,
    )
    return SignedRequests(
        client, options.bucket, session, http if options.signed_requests else None
    )


def _configured_style(aws: botocore.session.Session) -> str | None:
    """`addressing_style` in the AWS configuration. Raises `UsageError` if it is none."""
    configured = aws.get_config_variable("s3")
    style = configured.get("addressing_style") if isinstance(configured, dict) else None
    if style not in (None, "auto", "path", "virtual"):
        raise UsageError("AWS_CONFIG_FILE: addressing_style must be auto, path or virtual")
    return style


class StoreClient:
    """Sends requests to one bucket. Thread-safe.

    `call`, `call_once` and `find_once` take the name of a method of boto3's client (`put_object`),
    a key, a version, and the method's other arguments; they return the method's answer. `s3` is
    boto3's client; `signed` sends the frequent requests (`signed_requests.py`). They raise
    `StoreError`, and `Interrupted` once the process must end.
    """

    def __init__(
        self,
        options: StoreOptions,
        clock: Clock,
        retry: Retry,
        *,
        client: SignedRequests | Any = None,
    ) -> None:
        """`client`: what `connect` returns, or a boto3 client that sends every request; by default
        it is made from the options. Raises `StoreError`."""
        self.options = options
        self.clock = clock
        self.retry = retry
        prefix = options.prefix.strip("/")
        self.prefix = prefix and f"{prefix}/"
        self.remote = RemoteClock(clock)
        if client is None:
            client = connect(options, clock.check)
        elif not isinstance(client, SignedRequests):
            client = SignedRequests(client, options.bucket)
        self.signed = client
        self.s3 = client.boto3_client

    @property
    def endpoint_url(self) -> str:
        return str(self.s3.meta.endpoint_url)

    @property
    def uses_tls(self) -> bool:
        return self.endpoint_url.lower().startswith("https:")

    def at(self, key: str, version_id: str | None = None) -> dict[str, Any]:
        """The bucket, key and version of an object, in boto3's names."""
        where = {"Bucket": self.options.bucket, "Key": self.prefix + key}
        return where if version_id is None else {**where, "VersionId": version_id}

    def relative(self, key: str) -> str:
        """A key of the bucket without the archive's prefix."""
        return key[len(self.prefix) :]

    def retrying(self, function: Callable[[], T]) -> T:
        """Call `function` until it returns, or until a retry cannot help."""
        return self.retry.call("store", function)

    def call(
        self, method: str, key: str | None = None, version_id: str | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Call a method, with retries; returns its answer."""
        return self.retrying(lambda: self.call_once(method, key, version_id, **arguments))

    def call_once(
        self, method: str, key: str | None = None, version_id: str | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Call a method, in one attempt; returns its answer. Without a key it is about the
        bucket."""
        send = getattr(self.signed, method, None) or getattr(self.s3, method)
        where = {"Bucket": self.options.bucket} if key is None else self.at(key, version_id)
        operation = "".join(word.capitalize() for word in method.split("_"))
        # boto3 does not report progress on a body.
        with liveness.waiting(with_upload_seconds(ANSWER_SECONDS, arguments.get("Body"))):
            return self.attempt(operation, partial(send, **where, **arguments))

    def find_once(
        self, method: str, key: str, version_id: str | None = None, **arguments: Any
    ) -> dict[str, Any] | None:
        """As `call_once`; None if there is no such object."""
        try:
            return self.call_once(method, key, version_id, **arguments)
        except StoreError as error:
            if error.reason != "not_found":
                raise
            return None

    def attempt(self, operation: str, send: Callable[[], T]) -> T:
        """Call `send`, translate its errors, and note the store's `Date`. Once more if the store
        refuses the credentials and there are others by now: they have expired, or were rotated.
        Raises `Interrupted` if the process must end."""
        used = self.signed.credentials()
        try:
            return self._attempt(operation, send)
        except StoreError as error:
            if error.reason != "credentials" or not self.signed.renew(used):
                raise
        return self._attempt(operation, send)

    def _attempt(self, operation: str, send: Callable[[], T]) -> T:
        self.clock.check()
        try:
            answer = send()
        except (BotoCoreError, ClientError, HTTPError, TransportError, OSError) as error:
            if isinstance(error, ClientError):
                self._note_date(error.response)
            raise translate(error, operation, self.options.bucket) from None
        self._note_date(answer)
        liveness.note()
        return answer

    def head(self, key: str, version_id: str | None = None) -> ObjectHead | None:
        """The metadata of an object; None if there is no such object."""

        def once() -> ObjectHead | None:
            try:
                answer = self.find_once("head_object", key, version_id, ChecksumMode="ENABLED")
            except StoreError as error:
                # No body says why a HEAD is refused: it may be that the credentials have expired.
                if error.status not in (400, 403) or not self._refuses_credentials(key, version_id):
                    raise
                answer = self.find_once("head_object", key, version_id, ChecksumMode="ENABLED")
            # No object of ours is empty. Some stores, and proxies before them, tell no length or 0.
            if answer is not None and not answer.get("ContentLength"):
                answer["ContentLength"] = self._size(key, version_id)
            return None if answer is None else _head(answer)

        return self.retrying(once)

    def _refuses_credentials(self, key: str, version_id: str | None) -> bool:
        """Whether a GET is refused for the credentials, so that `attempt` has found other ones.
        Raises `StoreError` if there are none."""
        used = self.signed.credentials()
        if used is None:
            return False
        try:
            self._first_byte(key, version_id)
        except StoreError as error:
            if error.reason in ("credentials", "provider", "clock"):
                raise
        return self.signed.credentials() != used

    def _size(self, key: str, version_id: str | None) -> int:
        """The size of an object by a GET of its first byte. Raises `StoreError`."""
        try:
            headers = self._first_byte(key, version_id)["ResponseMetadata"]["HTTPHeaders"]
        except StoreError as error:
            if error.status != 416:
                raise
            return 0
        _, slash, size = headers.get("content-range", "").rpartition("/")
        if not slash:  # the whole object was answered
            size = headers.get("content-length", "")
        if not size.isdecimal():
            raise odd("the store does not say the size")
        return int(size)

    def _first_byte(self, key: str, version_id: str | None) -> dict[str, Any]:
        """The answer to a GET of an object's first byte, without its body."""
        answer = self.call_once("get_object", key, version_id, Range="bytes=0-0")
        answer.pop("Body").close()
        return answer

    def _note_date(self, answer: Any) -> None:
        if isinstance(answer, dict):
            headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            self.remote.note_date(headers.get("date"))


def etag_of(answer: dict[str, Any]) -> str:
    """The ETag of an answer. Raises `StoreError` if there is none: boto3 treats a page of HTML with
    status 200 as success."""
    etag = answer.get("ETag")
    if not isinstance(etag, str) or not etag:
        raise odd("the store acknowledged a write oddly")
    return etag


def _head(answer: dict[str, Any]) -> ObjectHead:
    checksum, etag = answer.get("ChecksumSHA256"), etag_of(answer)
    # For a multipart upload the store keeps a checksum of checksums; not all stores mark it.
    if answer.get("ChecksumType") == "COMPOSITE" or "-" in (checksum or "") or "-" in etag:
        checksum = None
    return ObjectHead(
        size=answer["ContentLength"],
        version_id=answer.get("VersionId"),
        etag=etag,
        sha256=checksums.base64_to_hex(checksum) if checksum else None,
        lock_mode=answer.get("ObjectLockMode"),
        lock_until=answer.get("ObjectLockRetainUntilDate"),
        held=answer.get("ObjectLockLegalHoldStatus") == "ON",
        sse=answer.get("ServerSideEncryption"),
        storage_class=answer.get("StorageClass"),
    )
