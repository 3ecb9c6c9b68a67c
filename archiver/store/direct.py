"""The requests that bring objects into the archive and out, without boto3's way there.

`put_object`, `head_object`, `upload_part`, `get_object` and `list_objects_v2` take what boto3's
client takes, answer what it answers and raise what it raises (`NoAnswer` where none came), for a
tenth of its CPU time (docs/adr/0013-direct-requests.md). They are signed with botocore's
credentials, which may change, and go over `wire.py`.

- The SHA-256 that each write announces is the only one that is computed: over TLS the body is not
  signed besides, without TLS the same digest signs it.
- Where the bucket lies, boto3 says. What the store answers with a way to another place (a redirect,
  another region), and what is not reached directly (a proxy, an S3 Express bucket), boto3 asks.
- Threads share it.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qs, quote, urlsplit

import botocore.session
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from archiver import fixity
from archiver.clock import RemoteClock
from archiver.fixity import Buffer
from archiver.heads import NoAnswer
from archiver.hub import Lock, offload
from archiver.model import format_second
from archiver.store import listing
from archiver.store.client import READ_TIMEOUT_SECONDS, USER_AGENT, StoreOptions, parse_time
from archiver.store.sigv4 import UNSIGNED, Credentials, signed_headers
from archiver.tls import trusting
from archiver.wire import Answer, Inflow, Method, Wire

MAX_ANSWER_BYTES = 64 << 10
MAX_PAGE_BYTES = 16 << 20
"""A page of a listing: 1,000 keys of up to 3 kB each, as they are encoded."""
_NO_HEADERS: Mapping[str, str] = {}
_NOTHING = fixity.sha256_hex(b"")
_PLAIN = re.compile(r"[A-Za-z0-9_./=-]*", re.ASCII)
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")

_ASKED = {
    "ChecksumMode": "x-amz-checksum-mode",
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "ContentType": "content-type",
    "IfNoneMatch": "if-none-match",
    "ObjectLockLegalHoldStatus": "x-amz-object-lock-legal-hold",
    "ObjectLockMode": "x-amz-object-lock-mode",
    "ObjectLockRetainUntilDate": "x-amz-object-lock-retain-until-date",
    "Range": "range",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "StorageClass": "x-amz-storage-class",
}
_QUERY = {"PartNumber": "partNumber", "UploadId": "uploadId", "VersionId": "versionId"}
_ANSWERED = {
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "ChecksumType": "x-amz-checksum-type",
    "ETag": "etag",
    "ObjectLockLegalHoldStatus": "x-amz-object-lock-legal-hold",
    "ObjectLockMode": "x-amz-object-lock-mode",
    "ObjectLockRetainUntilDate": "x-amz-object-lock-retain-until-date",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "StorageClass": "x-amz-storage-class",
    "VersionId": "x-amz-version-id",
}
"""By boto3's names."""


@dataclass(frozen=True)
class _Place:
    """Where the bucket's objects lie, and for what requests there are signed."""

    host: str
    """As the signature and the request name it."""
    path: str
    """What stands before a key, from the first slash on."""
    region: str
    tls: bool
    wire: Wire

    @property
    def origin(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"


class Direct:
    """Asks for objects of one bucket."""

    def __init__(
        self,
        client: Any,
        session: botocore.session.Session,
        options: StoreOptions,
        remote: RemoteClock | None = None,
    ) -> None:
        """`remote` hears of the `Date` of each answer."""
        self._client = client
        self._remote = remote
        self._session = session
        self._bucket = options.bucket
        self._lock = Lock()
        self._place: _Place | None = None
        self._looked = False

    def put_object(self, *, Body: Any, **arguments: Any) -> dict[str, Any]:  # noqa: N803
        if not isinstance(Body, Buffer):  # a file: rare, and boto3 knows how
            return dict(self._client.put_object(Body=Body, **arguments))
        return self._ask("put_object", "PUT", arguments, Body)

    def upload_part(self, *, Body: Buffer, **arguments: Any) -> dict[str, Any]:  # noqa: N803
        return self._ask("upload_part", "PUT", arguments, Body)

    def head_object(self, **arguments: Any) -> dict[str, Any]:
        return self._ask("head_object", "HEAD", arguments, None)

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        """`Body` has `iter_chunks` and `close`, as botocore's."""
        place = self._where()
        if place is not None:
            inflow = place.wire.open(*self._signed(place, "GET", *_object(place, arguments)))
            self._hear(inflow.headers)
            if inflow.status < 300 and "content-length" in inflow.headers:
                return {**_told(inflow.headers), "Body": Body(inflow)}
            if inflow.status < 300:
                inflow.close()  # in chunks, which are rare, and boto3 knows
            else:
                said = inflow.rest(MAX_ANSWER_BYTES)
                _check("get_object", "GET", Answer(inflow.status, inflow.headers, said))
        return dict(self._client.get_object(**arguments))

    def list_objects_v2(self, **arguments: Any) -> dict[str, Any]:
        """What `listing.parse_page` makes of the page."""
        place = self._where()
        if place is not None:
            path = place.path.rstrip("/") or "/"
            url, headers = self._signed(place, "GET", path, listing.query_of(arguments))
            answer = place.wire.ask("GET", url, headers, max_bytes=MAX_PAGE_BYTES)
            self._hear(answer.headers)
            if answer.status < 300:
                return listing.parse_page(answer.body)
            _check("list_objects_v2", "GET", answer)
        return dict(self._client.list_objects_v2(**arguments))

    def _ask(
        self,
        name: Literal["put_object", "upload_part", "head_object"],
        method: Literal["HEAD", "PUT"],
        arguments: dict[str, Any],
        body: Buffer | None,
    ) -> dict[str, Any]:
        place = self._where()
        if place is not None:
            signed = self._signed(
                place, method, *_object(place, arguments), _payload(place, arguments, body)
            )
            answer = place.wire.ask(method, *signed, body, max_bytes=MAX_ANSWER_BYTES)
            self._hear(answer.headers)
            if answer.status < 300:
                return _told(answer.headers)
            _check(name, method, answer)
        more = {} if body is None else {"Body": bytes(body)}
        return dict(getattr(self._client, name)(**arguments, **more))

    def _hear(self, headers: Mapping[str, str]) -> None:
        if self._remote is not None:
            self._remote.tells(headers.get("date"))

    def _signed(
        self,
        place: _Place,
        method: Method,
        path: str,
        query: str,
        headers: Mapping[str, str] = _NO_HEADERS,
        payload: str = _NOTHING,
    ) -> tuple[str, dict[str, str]]:
        """Where to send what headers."""
        found = signed_headers(
            method,
            place.host,
            path,
            query,
            headers,
            payload=payload,
            credentials=self._credentials(),
            region=place.region,
            now=datetime.now(UTC),
        )
        found["user-agent"] = USER_AGENT
        return f"{place.origin}{path}?{query}" if query else place.origin + path, found

    def _credentials(self) -> Credentials:
        found = self._session.get_credentials()
        if found is None:
            raise NoCredentialsError
        # Those that end are fetched anew, from a server that may take its time.
        ends = getattr(found, "refresh_needed", None)
        frozen = found.get_frozen_credentials
        return cast("Credentials", offload(frozen) if ends and ends() else frozen())

    def _where(self) -> _Place | None:
        """None where boto3 is to ask."""
        if self._looked:
            return self._place
        with self._lock:
            if not self._looked:
                self._place, self._looked = self._look(), True
            return self._place

    def _look(self) -> _Place | None:
        """A signed URL of boto3's tells all. Raises `NoCredentialsError`."""
        told = urlsplit(
            self._client.generate_presigned_url(
                "head_object", Params={"Bucket": self._bucket, "Key": "x"}
            )
        )
        scope = parse_qs(told.query).get("X-Amz-Credential", [""])[0].split("/")
        proxies = get_environ_proxies(f"{told.scheme}://{told.netloc}")
        if len(scope) < 5 or scope[-2] != "s3" or proxies:
            return None
        tls = told.scheme == "https"
        # A signature leaves out a port that goes without saying; so does `Place`.
        host = told.netloc.removesuffix(":443" if tls else ":80")
        wire = Wire(self._trust() if tls else None, silence_seconds=READ_TIMEOUT_SECONDS)
        return _Place(host, told.path.removesuffix("x"), scope[-3], tls, wire)

    def _trust(self) -> ssl.SSLContext:
        """Whom boto3 would trust."""
        told = self._session.get_config_variable("ca_bundle") or os.environ.get(
            "REQUESTS_CA_BUNDLE"
        )
        try:
            return trusting(Path(str(told or get_cert_path(True))))
        except OSError:  # as what is no certificate, too
            raise NoAnswer("its roots cannot be read", "untrusted") from None


class Body:
    """An object's bytes as they come."""

    def __init__(self, inflow: Inflow) -> None:
        self._inflow = inflow

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        """Chunks of `size`, but for the last one: who takes them has work with each. Raises
        `NoAnswer` for a body that was cut short."""
        buffer = memoryview(bytearray(size))
        filled = count = self._inflow.readinto(buffer)
        while count:
            if filled == size:
                yield bytes(buffer)
                filled = 0
            count = self._inflow.readinto(buffer[filled:])
            filled += count
        if filled:
            yield bytes(buffer[:filled])

    def close(self) -> None:
        self._inflow.close()


def _encoded(key: str) -> str:
    """A key as a path. Nearly all are made of what `layout.py` uses, for which this is faster."""
    return key.replace("=", "%3D") if _PLAIN.fullmatch(key) else quote(key, safe="/~")


def _object(place: _Place, arguments: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Path, query and headers of what is asked of an object."""
    return place.path + _encoded(arguments["Key"]), _query(arguments), _headers(arguments)


def _check(name: str, method: str, answer: Answer) -> None:
    """Raise the refusal, unless boto3 may know better."""
    code = _code(answer)
    if not _leads_elsewhere(method, answer.status, code):
        raise _refusal(name, answer.status, code)


def _headers(arguments: Mapping[str, Any]) -> dict[str, str]:
    headers = {}
    for name, value in arguments.items():
        if name in _ASKED:
            headers[_ASKED[name]] = format_second(value) if isinstance(value, datetime) else value
    return headers


def _query(arguments: Mapping[str, Any]) -> str:
    """In the order of the names, as the signature wants it."""
    asked = ((_QUERY[name], str(arguments[name])) for name in _QUERY if name in arguments)
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in asked)


def _payload(place: _Place, arguments: Mapping[str, Any], body: Buffer | None) -> str:
    """What the signature says of the body: TLS keeps it whole, and so does its announced digest."""
    if body is None:
        return _NOTHING
    digest = fixity.base64_to_hex(arguments.get("ChecksumSHA256", ""))
    if digest is None:
        return fixity.sha256_hex(body)
    return UNSIGNED if place.tls else digest


def _told(headers: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: headers[header] for name, header in _ANSWERED.items() if header in headers
    }
    if "ObjectLockRetainUntilDate" in found:
        with suppress(ValueError):
            found["ObjectLockRetainUntilDate"] = parse_time(found["ObjectLockRetainUntilDate"])
        if isinstance(found["ObjectLockRetainUntilDate"], str):
            del found["ObjectLockRetainUntilDate"]  # no date, no lock that one could rely on
    if (length := headers.get("content-length", "")).isdecimal():
        found["ContentLength"] = int(length)
    return found


def _code(answer: Answer) -> str:
    """The answer's error code; its status where it has none, as after a HEAD."""
    match = _CODE.search(answer.body)
    return match[1].decode() if match else str(answer.status)


def _leads_elsewhere(method: str, status: int, code: str) -> bool:
    """Whether boto3 may know better: it follows a bucket to its region. To a HEAD there is no code
    that would tell why it was refused."""
    unsaid = method == "HEAD" and status == 400
    return status < 400 or unsaid or code == "AuthorizationHeaderMalformed"


def _refusal(name: str, status: int, code: str) -> ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, name)  # type: ignore[arg-type]
