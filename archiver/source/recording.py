"""A signed URL as a checked byte stream: host rules, status, range, length, rate, size.

The blob's client is not the API's: it sends no credentials, follows no redirect, hears no proxy
setting, and asks for the bytes as they are. What is refused here:
- a host that is not in the exact allowlist, any URL that two parsers could read differently;
- an answer without Content-Length (a body cut short would pass for whole), with a
  Content-Encoding, or larger than the limit;
- bytes that come slower than the minimum rate.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from archiver.clock import Clock
from archiver.connection import RECORD_BYTES
from archiver.errors import CallError
from archiver.heads import NoAnswer

READ_BYTES = 256 << 10
RATE_GRACE_SECONDS = 30.0
"""A download is not measured against the minimum rate before this long."""

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:\d{1,5})?|\[[0-9a-f:]+\](:\d{1,5})?")
_LENGTH = re.compile(r"\d{1,15}", re.ASCII)
_MD5 = re.compile(r"[A-Za-z0-9+/]{22}==")


class Expired(CallError):
    """The blob store refused the signed URL (403): a fresh one may do."""


class UrlNotAllowed(CallError):
    """A recording URL that is not asked. `host` is whom a well-formed one names, else None;
    `names_other_host` says that this host is not in the allowlist."""

    def __init__(
        self, message: str, host: str | None = None, *, names_other_host: bool = False
    ) -> None:
        super().__init__(message, reason="url_not_allowed")
        self.host = host
        self.names_other_host = names_other_host


class StartOver(CallError):
    """What came so far is of no use: the blob is another one now, or is not to be had in ranges.
    Going on cannot help; beginning anew may."""


@dataclass(frozen=True)
class BlobInfo:
    """What the blob store says of a recording before its first byte."""

    host: str
    length: int
    etag: str | None
    content_md5: str | None
    last_modified: str | None

    @property
    def can_be_resumed(self) -> bool:
        """Whether a range of it can be asked for: `If-Match` takes a strong ETag (RFC 9110)."""
        return self.etag is not None and self.etag.startswith('"')


class Response(Protocol):
    """An answer whose body is read as it is wanted: `archiver.wire.Inflow`."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def readinto(self, view: memoryview) -> int: ...

    def close(self) -> None: ...


class Opener(Protocol):
    """Who sends a GET: `archiver.wire.Wire`. Raises `NoAnswer`."""

    def open(self, url: str, headers: Mapping[str, str]) -> Response: ...

    def close(self) -> None: ...


class RecordingClient:
    """Opens signed URLs. Threads share it; each connection is used by one thread."""

    def __init__(
        self,
        hosts: Collection[str],
        clock: Clock,
        http: Opener,
        *,
        allow_http: bool = False,
        max_bytes: int = 2 << 30,
        min_bytes_per_second: float = 16 << 10,
        rate_grace_seconds: float = RATE_GRACE_SECONDS,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._clock = clock
        self._http = http
        self._schemes = {"https", "http"} if allow_http else {"https"}
        self._max_bytes = max_bytes
        self._pace = (min_bytes_per_second, rate_grace_seconds)

    def close(self) -> None:
        self._http.close()

    def deadline_seconds(self, length: int) -> float:
        """How long a recording of so many bytes may take, over all its connections."""
        rate, grace = self._pace
        return grace + length / rate

    def connect(self, url: str, known: BlobInfo | None = None, at: int = 0) -> BlobStream:
        """GET a signed URL and check its answer's head; the caller reads the body, and closes.

        With `at`, go on with the blob `known` from that byte; `StartOver` where that cannot be.
        Raises `Expired` on 403, `CallError` with one of `record.FAILED_REASONS` otherwise.
        """
        host = self.check_url(url)
        response = self._get(url, _range_of(known, at) if known and at else {})
        try:
            if known is not None and at:
                _check_range(response, known, at)
                info = known
            else:
                info = self._info(host, response)
                if known is not None and known.etag != info.etag:
                    raise _changed(response.status)
        except BaseException:
            response.close()
            raise
        return BlobStream(response, info, at, self._clock, *self._pace)

    def check_url(self, url: str) -> str:
        """The URL's `host` or `host:port`; raises `UrlNotAllowed` where it is not allowed."""
        malformed = UrlNotAllowed("the recording URL is malformed")
        if not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
            raise malformed
        try:
            parts = urlsplit(url)
            authority = parts.netloc.lower()
        except ValueError:
            raise malformed from None
        if parts.scheme not in ("https", "http") or not _HOST.fullmatch(authority):
            raise malformed
        # Two parsers must find the same host: `wire.py` takes what comes up to the first `/`.
        if not url.lower().startswith(f"{parts.scheme}://{authority}") or "#" in url:
            raise malformed
        default = ":443" if parts.scheme == "https" else ":80"
        if self._hosts.isdisjoint({authority, authority.removesuffix(default)}):
            raise UrlNotAllowed(
                "the recording URL names a host that is not in ARCHIVER_RECORDING_HOSTS",
                host=authority,
                names_other_host=True,
            )
        if parts.scheme not in self._schemes:
            raise UrlNotAllowed("the recording URL is plain http", host=authority)
        return authority

    def _get(self, url: str, more: dict[str, str]) -> Response:
        headers = {"Accept-Encoding": "identity", "User-Agent": "call-archiver", **more}
        try:
            return self._http.open(url, headers)
        except NoAnswer as error:
            raise _unanswered(error) from None

    def _info(self, host: str, response: Response) -> BlobInfo:
        _check_status(response.status)
        headers, length = response.headers, _length(response)
        if length == 0:
            raise CallError("the blob is empty", reason="recording_empty", status=200)
        if length > self._max_bytes:
            raise CallError("larger than MAX_RECORDING_BYTES", reason="too_large", status=200)
        md5 = headers.get("content-md5", "")
        return BlobInfo(
            host=host,
            length=length,
            etag=_header(headers.get("etag")),
            content_md5=md5 if _MD5.fullmatch(md5) else None,
            last_modified=_header(headers.get("last-modified")),
        )


def _unanswered(error: NoAnswer) -> CallError:
    if error.kind == "untrusted":
        return CallError(
            "the blob store's TLS certificate is not trusted", reason="source_unavailable"
        )
    if error.kind == "invalid":
        return CallError("the recording URL cannot be asked", reason="url_not_allowed")
    if error.kind == "malformed":
        return CallError("the blob store answers no HTTP", reason="bad_response", status=200)
    return CallError(
        f"the blob store is unreachable ({error})", retryable=True, reason="source_unavailable"
    )


def _range_of(known: BlobInfo, at: int) -> dict[str, str]:
    return {"Range": f"bytes={at}-", "If-Match": known.etag or ""}


def _check_range(response: Response, known: BlobInfo, at: int) -> None:
    """Whether an answer is the rest of the known blob."""
    status, headers = response.status, response.headers
    if status == 200:
        raise StartOver("the blob cannot be read in ranges", reason="truncated", status=200)
    if status in (412, 416):
        raise _changed(status)
    if status != 206:
        _check_status(status)
    wanted = f"bytes {at}-{known.length - 1}/{known.length}"
    same = headers.get("etag", known.etag) == known.etag
    if not same or headers.get("content-range") != wanted or _length(response) != known.length - at:
        raise _changed(status)


def _changed(status: int) -> StartOver:
    return StartOver("the blob changed", reason="recording_changed", status=status)


def _length(response: Response) -> int:
    """The bytes that an answer announces; raises `CallError` where it does not say for sure."""
    headers = response.headers
    text = headers.get("content-length", "")
    encoding = headers.get("content-encoding", "identity").lower()
    chunked = "transfer-encoding" in headers  # it would outweigh the length
    if not _LENGTH.fullmatch(text) or chunked or encoding != "identity":
        raise CallError("no Content-Length, or encoded", reason="bad_response", status=200)
    return int(text)


def _check_status(status: int) -> None:
    if status == 200:
        return
    if status == 403:
        raise Expired(
            "the signed URL was refused", retryable=True, reason="url_refused", status=403
        )
    if status in (404, 410):
        raise CallError("no blob", reason="recording_missing", status=status)
    retryable = status in (408, 429) or status >= 500
    reason = "source_unavailable" if retryable else "bad_response"
    raise CallError(
        f"the blob store answered {status}", retryable=retryable, reason=reason, status=status
    )


def _header(value: str | None) -> str | None:
    """A header as it goes into a record: printable, of bounded length."""
    return value[:256] if value and value.isprintable() and value.isascii() else None


class BlobStream:
    """The body of one answer, counted and timed; `at` is the blob's next byte.

    Use it as a context, or close it: a connection whose answer was read to its end goes back to
    the pool, any other can't be used again.
    """

    def __init__(
        self,
        response: Response,
        info: BlobInfo,
        at: int,
        clock: Clock,
        min_bytes_per_second: float,
        grace_seconds: float,
    ) -> None:
        self.info = info
        self.at = at
        self._response = response
        self._clock = clock
        self._min_rate = min_bytes_per_second
        self._grace = grace_seconds
        self._started_at = at
        self._seconds = 0.0

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._response.close()

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the blob goes; fewer bytes only at its end.

        Raises `CallError` (`truncated`, `too_slow`, `source_unavailable`), and `Interrupted`; what
        came before is in `buffer`, and counted in `at`.
        """
        start, wanted = self.at, min(len(buffer), self.info.length - self.at)
        began = self._clock.monotonic()
        unchecked = 0
        while (filled := self.at - start) < wanted:
            count = self._receive(buffer[filled:wanted])
            self.at += count
            unchecked += count
            # A drip feed comes up for its check at every drop; a stream now and then.
            if count < RECORD_BYTES or unchecked >= READ_BYTES:
                self._clock.check()
                self._check_rate(self._seconds + self._clock.monotonic() - began)
                unchecked = 0
        self._seconds += self._clock.monotonic() - began
        return wanted

    def _receive(self, view: memoryview) -> int:
        try:
            count = self._response.readinto(view)
        except NoAnswer as error:
            reason = "truncated" if error.kind == "truncated" else "source_unavailable"
            raise CallError("the download broke off", retryable=True, reason=reason) from None
        if not count:
            raise CallError("the download ended early", retryable=True, reason="truncated")
        return count

    def _check_rate(self, seconds: float) -> None:
        """Of the time that was spent reading: what the store takes is not the source's fault."""
        if seconds > self._grace and self.at - self._started_at < seconds * self._min_rate:
            raise CallError(
                "the download is slower than ARCHIVER_MIN_RATE", retryable=True, reason="too_slow"
            )
