"""The frequent requests to the store, signed by botocore and sent by our own HTTP client.

`put_object`, `head_object`, `upload_part`, `get_object` and `list_objects_v2` take the arguments of
boto3's client, return its answers and raise `ClientError` as it does, for a tenth of its CPU time
(docs/adr/0002-libraries.md). If no answer came they raise `TransportError`. boto3 finds the
bucket's address and the signing scope. It also sends what this module does not support: files as
bodies, keys with `.` or `..` as a segment, S3 Express buckets, and requests that the store
redirects (to another region, for instance).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote_plus, urlencode, urlsplit
from xml.etree import ElementTree

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError

from archiver import __version__
from archiver.core.checksums import Buffer
from archiver.core.http import HttpClient, HttpResponse
from archiver.core.model import format_second, parse_time
from archiver.store.credentials import RenewableCredentials

USER_AGENT = f"call-archiver/{__version__}"
MAX_ANSWER_BYTES = 64 << 10
MAX_PAGE_BYTES = 16 << 20
"""The limit for a page of a listing: 1,000 keys of up to 3 kB each, URL-encoded."""
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")
_DOTS = re.compile(r"(^|/)\.{1,2}(/|$)")
"""Segments that an HTTP client resolves before it sends the URL (RFC 3986, section 5.2.4)."""
_CHECKSUM = "x-amz-checksum-sha256"
_SIGNING = {
    "has_streaming_input": True,
    "checksum": {"request_algorithm": {"in": "header", "name": _CHECKSUM}},
}
"""As in boto3, the signer leaves a body unsigned over TLS if its digest is in a header."""

_REQUEST_HEADERS = {  # by boto3's names
    "ChecksumMode": "x-amz-checksum-mode",
    "ChecksumSHA256": _CHECKSUM,
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
_ANSWER_HEADERS = {  # by boto3's names
    "ChecksumSHA256": _CHECKSUM,
    "ChecksumType": "x-amz-checksum-type",
    "ETag": "etag",
    "ObjectLockLegalHoldStatus": "x-amz-object-lock-legal-hold",
    "ObjectLockMode": "x-amz-object-lock-mode",
    "ObjectLockRetainUntilDate": "x-amz-object-lock-retain-until-date",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "StorageClass": "x-amz-storage-class",
    "VersionId": "x-amz-version-id",
}
_LIST_QUERY = {  # by boto3's names
    "ContinuationToken": "continuation-token",
    "Delimiter": "delimiter",
    "MaxKeys": "max-keys",
    "Prefix": "prefix",
    "StartAfter": "start-after",
}


class SignedRequests:
    """Sends requests about objects of one bucket. Thread-safe."""

    def __init__(
        self, client: Any, bucket: str, session: Any = None, http: HttpClient | None = None
    ) -> None:
        """`client`: boto3's S3 client. `session`: the `boto3.Session` that made it. Without
        `session` or `http`, boto3 sends every request."""
        self.boto3_client = client
        self._bucket = bucket
        self.session = session
        self._http = http

    def credentials(self) -> ReadOnlyCredentials | None:
        """What requests are signed with now. Raises `StoreError` if their provider fails."""
        found = self._credentials
        return None if found is None else found.get_frozen_credentials()

    def renew(self, refused: ReadOnlyCredentials | None) -> bool:
        """Find the credentials again. Whether there are others than those that were refused."""
        found = self._credentials
        if refused is None or not isinstance(found, RenewableCredentials):
            return False
        return found.renew(refused)

    @cached_property
    def _credentials(self) -> Any:
        """None if boto3 found none when the session began."""
        return self.session.get_credentials() if self.session is not None else None

    def _target(self) -> tuple[HttpClient, str, S3SigV4Auth] | None:
        """The HTTP client, the URL up to the key, and the signer. None if boto3 has no credentials
        or signs in another way."""
        credentials = self.credentials()
        if credentials is None or self._http is None or (where := self._address) is None:
            return None
        base, region = where
        return self._http, base, S3SigV4Auth(credentials, "s3", region)

    @cached_property
    def _address(self) -> tuple[str, str] | None:
        """The URL up to the key, from one that boto3 presigns, and the region that is signed for.
        None if boto3 signs in another way."""
        parameters = {"Bucket": self._bucket, "Key": "x"}
        url = urlsplit(self.boto3_client.generate_presigned_url("head_object", Params=parameters))
        scope = parse_qs(url.query).get("X-Amz-Credential", [""])[0].split("/")
        if len(scope) < 5 or scope[-2] != "s3":
            return None
        return f"{url.scheme}://{url.netloc}{url.path.removesuffix('x')}", scope[-3]

    def put_object(self, **arguments: Any) -> dict[str, Any]:
        return self._send("put_object", "PUT", arguments)

    def upload_part(self, **arguments: Any) -> dict[str, Any]:
        return self._send("upload_part", "PUT", arguments)

    def head_object(self, **arguments: Any) -> dict[str, Any]:
        return self._send("head_object", "HEAD", arguments)

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        """Return the answer; its `Body` has `iter_chunks` and `close`, as botocore's."""
        if (target := self._target()) is None or _DOTS.search(arguments["Key"]):
            return dict(self.boto3_client.get_object(**arguments))
        http, base, signer = target
        response = http.stream(*_signed(signer, "GET", _url(base, arguments), arguments))
        if response.status >= 300:
            _raise_refusal("get_object", "GET", response.read_all(MAX_ANSWER_BYTES))
        elif "content-length" in response.headers:
            return {**_result(response.headers), "Body": response}
        else:
            response.close()  # a chunked answer: boto3 checks its end
        return dict(self.boto3_client.get_object(**arguments))

    def list_objects_v2(self, **arguments: Any) -> dict[str, Any]:
        """Return the page as `parse_page` does, with the metadata of the answer."""
        if (target := self._target()) is not None:
            http, base, signer = target
            # The bucket stands in the path, or in the host: then the path is `/`, also in what is
            # signed.
            path = "/" if base.count("/") == 3 else ""
            url = f"{base.rstrip('/')}{path}?{query_of(arguments)}"
            answer = http.request("GET", *_signed(signer, "GET", url, {}), max_bytes=MAX_PAGE_BYTES)
            if answer.status < 300:
                return {**parse_page(answer.body), **_metadata(answer.headers)}
            _raise_refusal("list_objects_v2", "GET", answer)
        return dict(self.boto3_client.list_objects_v2(**arguments))

    def _send(
        self, name: str, method: Literal["HEAD", "PUT"], arguments: dict[str, Any]
    ) -> dict[str, Any]:
        body = arguments.get("Body")
        is_plain = body is None or isinstance(body, Buffer)
        target = self._target()
        if target is not None and is_plain and not _DOTS.search(arguments["Key"]):
            http, base, signer = target
            signed = _signed(signer, method, _url(base, arguments), arguments)
            answer = http.request(method, *signed, body, max_bytes=MAX_ANSWER_BYTES)
            if answer.status < 300:
                return _result(answer.headers)
            _raise_refusal(name, method, answer)
        if isinstance(body, memoryview):  # boto3 does not accept one
            arguments["Body"] = bytes(body)
        return dict(getattr(self.boto3_client, name)(**arguments))


def _url(base: str, arguments: Mapping[str, Any]) -> str:
    query = {_QUERY[name]: arguments[name] for name in _QUERY if name in arguments}
    url = base + quote(arguments["Key"], safe="/~")
    return f"{url}?{urlencode(query, quote_via=quote, safe='')}" if query else url


def _signed(
    signer: S3SigV4Auth, method: str, url: str, arguments: Mapping[str, Any]
) -> tuple[str, dict[str, str]]:
    """The URL and the signed headers of a request."""
    headers = {
        header: format_second(value) if isinstance(value, datetime) else value
        for name, header in _REQUEST_HEADERS.items()
        if (value := arguments.get(name)) is not None
    }
    request = AWSRequest(method, url, headers, arguments.get("Body") or b"")
    request.context.update(_SIGNING)
    signer.add_auth(request)
    return url, {**dict(request.headers.items()), "User-Agent": USER_AGENT}


def _raise_refusal(name: str, method: str, answer: HttpResponse) -> None:
    """Raise `ClientError`, or return if boto3 is to send the request again: it follows a bucket to
    its region. A HEAD refused with 400 has no body that says why, so boto3 repeats it too."""
    found = _CODE.search(answer.body)
    code = found[1].decode() if found else str(answer.status)
    elsewhere = answer.status < 400 or code == "AuthorizationHeaderMalformed"
    if not elsewhere and not (method == "HEAD" and answer.status == 400):
        response = {"Error": {"Code": code}, **_metadata(answer.headers)}
        response["ResponseMetadata"]["HTTPStatusCode"] = answer.status
        raise ClientError(response, name)  # type: ignore[arg-type]


def _result(headers: Mapping[str, str]) -> dict[str, Any]:
    """An answer in boto3's names. An invalid lock date is left out."""
    named = _ANSWER_HEADERS.items()
    found: dict[str, Any] = {name: headers[key] for name, key in named if key in headers}
    if (date := found.pop("ObjectLockRetainUntilDate", None)) is not None:
        with suppress(ValueError):  # RFC 3339, or RFC 9110 as in other headers
            until = parse_time(date) or parsedate_to_datetime(date)
            found["ObjectLockRetainUntilDate"] = until.replace(tzinfo=until.tzinfo or UTC)
    if (length := headers.get("content-length", "")).isdecimal():
        found["ContentLength"] = int(length)
    return {**found, **_metadata(headers)}


def _metadata(headers: Mapping[str, str]) -> dict[str, Any]:
    return {"ResponseMetadata": {"HTTPHeaders": headers}}


# --- pages of ListObjectsV2: botocore takes ten times as long for one


def query_of(arguments: dict[str, Any]) -> str:
    """The query for boto3's `arguments`, with its parameters sorted by name. Keys are requested
    URL-encoded, because XML cannot represent some characters."""
    asked = {_LIST_QUERY[name]: str(arguments[name]) for name in _LIST_QUERY if name in arguments}
    asked |= {"encoding-type": "url", "list-type": "2"}
    return "&".join(f"{name}={quote(asked[name], safe='')}" for name in sorted(asked))


def parse_page(body: bytes) -> dict[str, Any]:
    """Parse a page into boto3's names: `Name`, `IsTruncated`, `NextContinuationToken`, `Contents`
    (`Key`, `Size`, `LastModified`, which stays text) and `CommonPrefixes` (`Prefix`). Empty if it
    is not such a page."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314  (expat bounds what entities may grow to)
        return _page(root) if _local_name(root) == "ListBucketResult" else {}
    except (ElementTree.ParseError, KeyError, ValueError):
        return {}


def _page(root: ElementTree.Element) -> dict[str, Any]:
    fields: dict[str, str] = {}
    contents: list[dict[str, Any]] = []
    prefixes: list[dict[str, Any]] = []
    for child in root:
        name = _local_name(child)
        if name == "Contents":
            item = {_local_name(part): part.text or "" for part in child}
            size, modified = int(item["Size"]), item.get("LastModified")
            contents.append({"Key": item["Key"], "Size": size, "LastModified": modified})
        elif name == "CommonPrefixes":
            prefixes += [{"Prefix": part.text or ""} for part in child]
        else:
            fields[name] = child.text or ""
    if fields.get("EncodingType") == "url":
        for found, key in [(one, "Key") for one in contents] + [
            (one, "Prefix") for one in prefixes
        ]:
            found[key] = unquote_plus(found[key])
    page: dict[str, Any] = {"Contents": contents, "Name": fields.get("Name", "")}
    if prefixes:
        page["CommonPrefixes"] = prefixes
    page["IsTruncated"] = fields.get("IsTruncated") == "true"
    if token := fields.get("NextContinuationToken"):
        page["NextContinuationToken"] = token
    return page


def _local_name(element: ElementTree.Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]
