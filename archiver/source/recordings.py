"""Recordings behind signed URLs: checked, resumable downloads.

`RecordingClient.connect` opens one connection. It is separate from the API's client: it sends no
credentials, follows no redirect, and asks for unencoded bytes. It refuses
- a host that is not in the exact allowlist, and any URL that two parsers could read differently;
- an answer without Content-Length (a truncated body would look complete), with a Content-Encoding,
  or larger than the limit;
- bytes that come slower than the minimum rate.

`ResumableDownload` reads one recording over as many connections as it takes. After a broken
connection it resumes the same blob (`If-Match` with its ETag) at the next byte. It uses a fresh
signed URL if the old one was refused, or expires before the rest has come. If it cannot resume (the
blob changed, or has no strong ETag), the `CallError` is retryable: the caller may start over. Any
other `CallError` is final, because its retries are spent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, field
from urllib.parse import urlsplit

from archiver.core.clock import Clock
from archiver.core.concurrency import ConcurrencyLimit
from archiver.core.errors import CallError, NoRecording
from archiver.core.http import HttpClient, StreamingResponse, TransportError
from archiver.core.retry import Retry
from archiver.observability.metrics import RETRIES, SAS_RENEWALS
from archiver.source.api import SignedUrl

READ_BYTES = 256 << 10
RATE_GRACE_SECONDS = 30.0
"""The minimum rate of a download is not checked before this time."""
TRIES = 4
"""After so many connections in a row with almost no bytes a recording is given up for now."""

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:\d{1,5})?|\[[0-9a-f:]+\](:\d{1,5})?")
_LENGTH = re.compile(r"\d{1,15}", re.ASCII)
_MD5 = re.compile(r"[A-Za-z0-9+/]{22}==")


class Expired(CallError):
    """The blob store refused the signed URL (403): a fresh one may be accepted."""


class UrlNotAllowed(CallError):
    """A recording URL that is not requested. `host` is that of a well-formed URL, else None;
    `names_other_host`: the host is not in the allowlist."""

    def __init__(
        self, message: str, host: str | None = None, *, names_other_host: bool = False
    ) -> None:
        super().__init__(message, reason="url_not_allowed")
        self.host = host
        self.names_other_host = names_other_host


class StartOver(CallError):
    """The bytes so far are useless: the blob has changed, or cannot be read in ranges. Resuming
    cannot help; a new download may."""


@dataclass(frozen=True)
class BlobInfo:
    """What the blob store's headers say of a recording."""

    host: str
    length: int
    etag: str | None
    content_md5: str | None
    last_modified: str | None


@dataclass(eq=False, repr=False)
class RecordingClient:
    """Opens signed URLs. Thread-safe; each connection is used by one thread."""

    hosts: Collection[str]
    clock: Clock
    http: HttpClient
    _: KW_ONLY
    allow_http: bool = False
    max_bytes: int = 2 << 30
    min_bytes_per_second: float = 16 << 10
    rate_grace_seconds: float = RATE_GRACE_SECONDS

    def __post_init__(self) -> None:
        self._hosts = frozenset(host.lower() for host in self.hosts)

    def close(self) -> None:
        self.http.close()

    def deadline_seconds(self, length: int) -> float:
        """How long a recording of this many bytes may take, over all its connections."""
        return self.rate_grace_seconds + length / self.min_bytes_per_second

    def connect(self, url: str, known: BlobInfo | None = None, at: int = 0) -> BlobStream:
        """GET a signed URL and check the headers of the answer. The caller reads the body and
        closes it.

        With `at`, resume the blob `known` at that byte; raises `StartOver` if that is impossible.
        Raises `Expired` on 403, otherwise `CallError` with one of `record.FAILED_REASONS`.
        """
        host = self.check_url(url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "call-archiver"}
        if known is not None and at:
            headers |= {"Range": f"bytes={at}-", "If-Match": known.etag or ""}
        try:
            response = self.http.stream(url, headers)
        except TransportError as error:
            raise _no_answer(error) from None
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
        return BlobStream(self, response, info, at)

    def check_url(self, url: str) -> str:
        """Return the URL's `host` or `host:port`. Raises `UrlNotAllowed`."""
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
        # Another parser must find the same host, even one that takes all up to the first `/`.
        if not url.lower().startswith(f"{parts.scheme}://{authority}") or "#" in url:
            raise malformed
        default = ":443" if parts.scheme == "https" else ":80"
        if self._hosts.isdisjoint({authority, authority.removesuffix(default)}):
            raise UrlNotAllowed(
                "the recording URL names a host that is not in ARCHIVER_RECORDING_HOSTS",
                host=authority,
                names_other_host=True,
            )
        if parts.scheme == "http" and not self.allow_http:
            raise UrlNotAllowed("the recording URL is plain http", host=authority)
        return authority

    def _info(self, host: str, response: StreamingResponse) -> BlobInfo:
        _check_status(response.status)
        headers, length = response.headers, _length(response)
        if length == 0:
            raise CallError("the blob is empty", reason="recording_empty", status=200)
        if length > self.max_bytes:
            raise CallError("larger than MAX_RECORDING_BYTES", reason="too_large", status=200)
        md5 = headers.get("content-md5", "")
        return BlobInfo(
            host=host,
            length=length,
            etag=_recordable(headers.get("etag")),
            content_md5=md5 if _MD5.fullmatch(md5) else None,
            last_modified=_recordable(headers.get("last-modified")),
        )


@dataclass(eq=False, repr=False)
class BlobStream:
    """The body of one answer, with its length and rate checked. `at` is the blob's next byte. Not
    thread-safe; the caller closes it."""

    client: RecordingClient
    response: StreamingResponse
    info: BlobInfo
    at: int
    _seconds: float = field(default=0.0, init=False)
    """Time spent reading. The time that the store takes does not count against the source."""

    def __post_init__(self) -> None:
        self.close = self.response.close
        self.started_at = self.at

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the blob goes; fewer bytes only at its end.

        Raises `CallError` (`truncated`, `too_slow`, `source_unavailable`) and `Interrupted`. The
        bytes that came before are in `buffer` and counted in `at`.
        """
        start, wanted = self.at, min(len(buffer), self.info.length - self.at)
        clock = self.client.clock
        began = clock.monotonic()
        while (filled := self.at - start) < wanted:
            try:
                count = self.response.readinto(buffer[filled:wanted])
            except TransportError as error:
                reason = "truncated" if error.kind == "truncated" else "source_unavailable"
                raise CallError("the download broke off", retryable=True, reason=reason) from None
            if not count:
                raise CallError("the download ended early", retryable=True, reason="truncated")
            self.at += count
            clock.check()
            seconds = self._seconds + clock.monotonic() - began
            too_few = self.at - self.started_at < seconds * self.client.min_bytes_per_second
            if seconds > self.client.rate_grace_seconds and too_few:
                text = "the download is slower than ARCHIVER_MIN_RATE"
                raise CallError(text, retryable=True, reason="too_slow")
        self._seconds += clock.monotonic() - began
        return wanted


@dataclass(eq=False, repr=False)
class ResumableDownload:
    """A recording as one stream. Not thread-safe; the caller closes it.

    Creating it opens the recording, with a URL that `renew` returns. Raises what `renew` raises,
    `CallError`, and `Interrupted`.
    """

    blobs: RecordingClient
    renew: Callable[[], SignedUrl]
    clock: Clock
    concurrency_limit: ConcurrencyLimit | None = None
    _signed: SignedUrl | None = field(default=None, init=False)
    _had_url: bool = field(default=False, init=False)
    _known: BlobInfo | None = field(default=None, init=False)
    _stream: BlobStream | None = field(default=None, init=False)
    _at: int = field(default=0, init=False)
    _broke: str = field(default="truncated", init=False)
    """The reason why the latest connection broke."""
    _seconds: float = field(default=0.0, init=False)
    """Time spent waiting for the source. The time that the store takes does not count."""

    def __post_init__(self) -> None:
        self._retry = Retry(self.clock, TRIES, self.concurrency_limit)
        self._retrying(self._open)

    @property
    def info(self) -> BlobInfo:
        assert self._known is not None  # noqa: S101  (set when it was opened)
        return self._known

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the recording goes; fewer bytes only at its end.

        Raises what creating it raises.
        """
        start, wanted = self._at, min(len(buffer), self.info.length - self._at)
        while self._at - start < wanted:
            self._retrying(lambda: self._fill(buffer[self._at - start : wanted]))
        return wanted

    def _retrying(self, step: Callable[[], object]) -> None:
        began = self.clock.monotonic()
        try:
            self._retry.call("transfer", step)
        except CallError as error:
            error.retryable = isinstance(error, StartOver)
            raise
        finally:
            self._seconds += self.clock.monotonic() - began

    def _fill(self, view: memoryview) -> None:
        """Read until `view` is full or the connection breaks. A break is an error only if the
        connection brought almost nothing, because a recording may take any number of connections.
        """
        stream = self._open()
        try:
            stream.readinto(view)
        except CallError as error:
            self._at, self._broke = stream.at, error.reason
            self.close()
            if not error.retryable or self._at - stream.started_at < READ_BYTES:
                raise
            RETRIES.labels("transfer", error.reason).inc()
        self._at = stream.at

    def _open(self) -> BlobStream:
        """Return the open connection, or open a new one at the next byte.

        1. Check that the download can be resumed and is within its time.
        2. Keep the present URL if it is valid for as long as the rest takes at the rate so far;
           else get a fresh one.
        3. Connect. A URL that is refused is not used again.
        """
        if self._stream is not None:
            return self._stream
        rest_seconds = 0.0
        if self._known is not None and self._at:  # 1
            # `If-Match` accepts only a strong ETag (RFC 9110, section 13.1.1).
            if not (self._known.etag or "").startswith('"'):
                raise StartOver("no ETag says how to go on", reason=self._broke)
            if self._seconds > self.blobs.deadline_seconds(self._known.length):
                text = "the download takes longer than ARCHIVER_MIN_RATE allows"
                raise CallError(text, reason="too_slow")
            rest_seconds = (self._known.length - self._at) * self._seconds / self._at
        if self._signed is not None and self._signed.expires_at is not None:  # 2
            left = self._signed.expires_at - self.clock.now()
            if left.total_seconds() <= rest_seconds:
                self._signed = None
        if self._signed is None:
            SAS_RENEWALS.inc(self._had_url)
            try:
                self._signed = self.renew()
            except NoRecording as error:
                if not self._at:
                    raise
                text = "the source has lost it meanwhile"
                raise CallError(text, reason="recording_missing", status=error.status) from None
            self._had_url = True
        try:
            self._stream = self.blobs.connect(self._signed.url, self._known, self._at)  # 3
        except Expired:
            self._signed = None
            raise
        self._known = self._known or self._stream.info
        return self._stream


def _no_answer(error: TransportError) -> CallError:
    if error.kind == "untrusted":
        text = "the blob store's TLS certificate is not trusted"
        return CallError(text, reason="source_unavailable")
    if error.kind == "invalid":
        return CallError("the recording URL cannot be asked", reason="url_not_allowed")
    if error.kind == "malformed":
        return CallError("the blob store answers no HTTP", reason="bad_response", status=200)
    text = f"the blob store is unreachable ({error})"
    return CallError(text, retryable=True, reason="source_unavailable")


def _check_status(status: int) -> None:
    if status == 200:
        return
    if status == 403:
        text = "the signed URL was refused"
        raise Expired(text, retryable=True, reason="url_refused", status=403)
    if status in (404, 410):
        raise CallError("no blob", reason="recording_missing", status=status)
    retryable = status in (408, 429) or status >= 500
    reason = "source_unavailable" if retryable else "bad_response"
    text = f"the blob store answered {status}"
    raise CallError(text, retryable=retryable, reason=reason, status=status)


def _check_range(response: StreamingResponse, known: BlobInfo, at: int) -> None:
    """Raise `CallError` if an answer is not the rest of the known blob."""
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


def _length(response: StreamingResponse) -> int:
    """The number of bytes that an answer announces. Raises `CallError` if it is not certain."""
    headers = response.headers
    text = headers.get("content-length", "")
    encoding = headers.get("content-encoding", "identity").lower()
    chunked = "transfer-encoding" in headers  # it overrides Content-Length (RFC 9112, 6.3)
    if not _LENGTH.fullmatch(text) or chunked or encoding != "identity":
        raise CallError("no Content-Length, or encoded", reason="bad_response", status=200)
    return int(text)


def _recordable(value: str | None) -> str | None:
    """A header value as a record may store it: printable ASCII, 256 characters; else None."""
    return value[:256] if value and value.isprintable() and value.isascii() else None
