"""Recordings behind signed URLs: checked, resumable downloads.

`RecordingClient.connect` opens one connection. It is separate from the API's client: it sends no
credentials, and asks for unencoded bytes. It refuses
- a host that is not in the exact allowlist, and any URL that two parsers could read differently;
- a redirect, but for one to another URL that is allowed;
- an answer with two lengths, with one that is no number, or larger than the limit;
- bytes that come slower than the minimum rate.
A body without a length is read to its end. Whether that is the end of the recording, the caller
decides: without chunks, a truncated body looks complete (RFC 9112, section 8).

`ResumableDownload` reads one recording over as many connections as it takes, and decodes it. After
a broken connection it resumes the same blob (`If-Match` with its ETag) at the next byte. It uses a
fresh signed URL if the old one was refused, or expires before the rest has come. A young one that
is refused may not be valid yet, so it is used again first. If it cannot resume (the blob changed,
or has no length or no strong ETag), the `CallError` is retryable: the caller may start over. Any
other `CallError` is final, because its retries are spent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from urllib.parse import urljoin, urlsplit

from archiver.core.checksums import Digests
from archiver.core.clock import Clock
from archiver.core.concurrency import ConcurrencyLimit
from archiver.core.errors import CallError, NoRecording
from archiver.core.http import (
    HttpClient,
    StreamingResponse,
    TransportError,
    retry_after_seconds,
)
from archiver.core.retry import LONGEST_WAIT_SECONDS, Retry
from archiver.observability.metrics import RETRIES, SAS_RENEWALS
from archiver.source.api import SignedUrl
from archiver.source.content_encoding import DECODED, Decoder, codings

READ_BYTES = 256 << 10
RATE_GRACE_SECONDS = 30.0
"""The minimum rate of a download is not checked before this time."""
TRIES = 4
"""After so many connections in a row with almost no bytes a recording is given up for now."""
MAX_TOTAL_WAIT_SECONDS = 3600.0
"""How long a download may wait between its connections, also where the blob store asks for it."""
YOUNG_SECONDS = 10.0
"""A signed URL that was first used so long ago is valid at its blob store by now."""
OLD_START_SECONDS = 30.0
"""So is one whose own start lies so far back: the clocks of source, blob store and this machine
differ by a few seconds only."""
YOUNG_PAUSES = (1.0, 2.0, 4.0)
"""The pauses before a young URL that was refused is used again."""
MAX_YOUNG_PAUSES_SECONDS = 2 * sum(YOUNG_PAUSES)
"""How long a download may wait for young URLs: for two of them. A blob store that refuses all
must not keep the workers waiting."""
REDIRECTS = (301, 302, 303, 307, 308)

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
    """What the blob store's headers say of a recording.

    `length` is that of the body as it comes, encoded or not; None if it is not announced.
    `content_md5` is its digest, encoded or not. `coding`: the content coding, if it is encoded.
    """

    host: str
    length: int | None
    etag: str | None
    content_md5: str | None
    last_modified: str | None
    coding: str | None = None
    is_chunked: bool = False

    @property
    def size(self) -> int | None:
        """The number of bytes that a `ResumableDownload` yields; None if it is not known before."""
        return None if self.coding else self.length

    def is_same_blob(self, other: BlobInfo) -> bool:
        mine, its = (self.etag, self.length, self.coding), (other.etag, other.length, other.coding)
        return mine == its


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
        headers = {"Accept-Encoding": "identity", "User-Agent": "call-archiver"}
        if known is not None and at:
            headers |= {"Range": f"bytes={at}-", "If-Match": known.etag or ""}
        host, response = self._get(url, headers)
        try:
            if known is not None and at:
                _check_range(response, known, at)
                info = known
            else:
                info = self._info(host, response)
                if known is not None and not info.is_same_blob(known):
                    raise _changed(response.status)
        except BaseException:
            response.close()
            raise
        return BlobStream(self, response, info, at)

    def _get(self, url: str, headers: Mapping[str, str]) -> tuple[str, StreamingResponse]:
        """GET a URL, or the one that it redirects to. Returns the host that answered, too."""
        host = self.check_url(url)
        try:
            response = self.http.stream(url, headers)
            if response.status not in REDIRECTS:
                return host, response
            response.close()
            location, target = response.headers.get("location", "").strip(), ""
            with suppress(ValueError):
                target = urljoin(url, location) if location else ""
            try:
                host = self.check_url(target)
            except UrlNotAllowed as error:
                text = f"the blob store redirects to another URL, and {error}"
                raise UrlNotAllowed(
                    text, error.host, names_other_host=error.names_other_host
                ) from None
            # A second redirect is refused for its status.
            return host, self.http.stream(target, headers)
        except TransportError as error:
            raise _no_answer(error) from None

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
        _check_status(response)
        headers, (length, coding) = response.headers, _framing(response)
        if length == 0:
            raise CallError("the blob is empty", reason="recording_empty", status=200)
        if length is not None and length > self.max_bytes:
            raise _too_large()
        md5 = headers.get("content-md5", "")
        return BlobInfo(
            host=host,
            length=length,
            etag=_recordable(headers.get("etag")),
            content_md5=md5 if _MD5.fullmatch(md5) else None,
            last_modified=_recordable(headers.get("last-modified")),
            coding=coding,
            is_chunked="transfer-encoding" in headers,
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
        start, length, clock = self.at, self.info.length, self.client.clock
        wanted = len(buffer) if length is None else min(len(buffer), length - start)
        began = clock.monotonic()
        while (filled := self.at - start) < wanted:
            try:
                count = self.response.readinto(buffer[filled:wanted])
            except TransportError as error:
                reason = "truncated" if error.kind == "truncated" else "source_unavailable"
                raise CallError("the download broke off", retryable=True, reason=reason) from None
            if not count and length is None:
                break
            if not count:
                raise CallError("the download ended early", retryable=True, reason="truncated")
            self.at += count
            if self.at > self.client.max_bytes:
                raise _too_large()
            clock.check()
            seconds = self._seconds + clock.monotonic() - began
            too_few = self.at - self.started_at < seconds * self.client.min_bytes_per_second
            if seconds > self.client.rate_grace_seconds and too_few:
                text = "the download is slower than ARCHIVER_MIN_RATE"
                raise CallError(text, retryable=True, reason="too_slow")
        self._seconds += clock.monotonic() - began
        return self.at - start


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
    decodes: bool = True
    """Whether an encoded recording is decoded, if that is possible."""
    received: Digests | None = field(default=None, init=False)
    """The digests of what came so far, if it is labelled as encoded; its MD5 is the announced
    one."""
    _decoder: Decoder | None = field(default=None, init=False)
    _signed: SignedUrl | None = field(default=None, init=False)
    _had_url: bool = field(default=False, init=False)
    _first_used_at: float | None = field(default=None, init=False)
    """When the present URL was first used, by the monotonic clock; None before that."""
    _was_accepted: bool = field(default=False, init=False)
    """Whether the present URL was accepted once."""
    _young_pauses_left: float = field(default=MAX_YOUNG_PAUSES_SECONDS, init=False)
    """How many more seconds to wait for young URLs."""
    _known: BlobInfo | None = field(default=None, init=False)
    _stream: BlobStream | None = field(default=None, init=False)
    _at: int = field(default=0, init=False)
    _has_ended: bool = field(default=False, init=False)
    """Whether a body without a length has ended."""
    _broke: str = field(default="truncated", init=False)
    """The reason why the latest connection broke."""
    _seconds: float = field(default=0.0, init=False)
    """Time spent reading from the source. The time that the store takes does not count."""
    _waits: float = field(default=0.0, init=False)
    """Time spent waiting between connections."""

    def __post_init__(self) -> None:
        self._retry = Retry(self.clock, TRIES, self.concurrency_limit)
        self._retrying(self._open)
        if self.decodes and self.info.coding in DECODED:
            self.received = Digests(self.info.content_md5)
            self._decoder = Decoder(self.info.coding, self._receive, self.blobs.max_bytes)

    @property
    def info(self) -> BlobInfo:
        assert self._known is not None  # noqa: S101  (set when it was opened)
        return self._known

    @property
    def is_undecodable(self) -> bool:
        """Whether the bytes are encoded by their label, and are passed on as they come."""
        return self.info.coding is not None and self._decoder is None

    @property
    def coding(self) -> str | None:
        """The coding that was decoded; None if the bytes are as they came."""
        return self._decoder.coding if self._decoder is not None else None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as the recording goes; fewer bytes only at its end.

        Raises what creating it raises, and what `Decoder.readinto` raises.
        """
        return self._decoder.readinto(buffer) if self._decoder else self._read(buffer)

    def _receive(self, buffer: memoryview) -> int:
        """Read encoded bytes, and hash them."""
        count = self._read(buffer)
        if self.received is not None:
            self.received.update(buffer[:count])
        return count

    def _read(self, buffer: memoryview) -> int:
        start, length = self._at, self.info.length
        wanted = len(buffer) if length is None else min(len(buffer), length - start)
        while self._at - start < wanted and not self._has_ended:
            self._retrying(lambda: self._fill(buffer[self._at - start : wanted]))
        return self._at - start

    def _retrying(self, step: Callable[[], object]) -> None:
        def timed() -> None:
            began = self.clock.monotonic()
            try:
                step()
            finally:
                self._seconds += self.clock.monotonic() - began

        began, seconds = self.clock.monotonic(), self._seconds
        try:
            self._retry.call("transfer", timed)
        except CallError as error:
            error.retryable = isinstance(error, StartOver)
            raise
        finally:
            elapsed = self.clock.monotonic() - began
            self._waits += elapsed - (self._seconds - seconds)

    def _fill(self, view: memoryview) -> None:
        """Read until `view` is full or the connection breaks. A break is an error only if the
        connection brought almost nothing, because a recording may take any number of connections.
        """
        stream = self._open()
        try:
            self._has_ended = stream.readinto(view) < len(view)
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
        3. Connect. A URL that is refused is used again only if it may not be valid yet.
        """
        if self._stream is not None:
            return self._stream
        rest_seconds = 0.0
        if self._known is not None and self._at:  # 1
            length = self._known.length
            # `If-Match` accepts only a strong ETag (RFC 9110, section 13.1.1).
            if length is None or not (self._known.etag or "").startswith('"'):
                raise StartOver("no length or no ETag says how to go on", reason=self._broke)
            if self._seconds > self.blobs.deadline_seconds(length):
                text = "the download takes longer than ARCHIVER_MIN_RATE allows"
                raise CallError(text, reason="too_slow")
            if self._waits > MAX_TOTAL_WAIT_SECONDS:
                text = "the blob store keeps the download waiting for over an hour"
                raise CallError(text, reason="too_slow")
            rest_seconds = (length - self._at) * self._seconds / self._at
        if self._signed is not None and self._signed.expires_at is not None:  # 2
            left = self._signed.expires_at - self.clock.now()
            if left.total_seconds() <= rest_seconds:
                self._signed = None
        if self._signed is None:
            SAS_RENEWALS.inc(self._had_url)
            asked_at = self.clock.monotonic()
            try:
                self._signed = self.renew()
            except NoRecording as error:
                if not self._at:
                    raise
                text = "the source has lost it meanwhile"
                raise CallError(text, reason="recording_missing", status=error.status) from None
            finally:
                # The source's time, which may be a long pause, is none of the blob store's.
                self._seconds -= self.clock.monotonic() - asked_at
                self._waits -= self.clock.monotonic() - asked_at
            self._had_url, self._first_used_at, self._was_accepted = True, None, False
        try:
            self._stream = self._connect(self._signed)  # 3
        except Expired:
            self._signed = None
            raise
        self._known = self._known or self._stream.info
        return self._stream

    def _connect(self, signed: SignedUrl) -> BlobStream:
        """Connect with a signed URL; again after a pause if it was refused and is young: by the
        blob store's clock, which may be behind, it is not valid yet."""
        if self._first_used_at is None:
            self._first_used_at = self.clock.monotonic()
        pauses = iter(YOUNG_PAUSES)
        while True:
            try:
                stream = self.blobs.connect(signed.url, self._known, self._at)
                self._was_accepted = True
                return stream
            except Expired as error:
                pause = next(pauses, None)
                if pause is None or pause > self._young_pauses_left or not self._is_young(signed):
                    raise
                RETRIES.labels("transfer", error.reason).inc()
            self._young_pauses_left -= pause
            self._seconds -= pause  # it is a wait
            self.clock.sleep(pause)

    def _is_young(self, signed: SignedUrl) -> bool:
        """Whether the present URL may not be valid yet."""
        now, start, expiry = self.clock.now(), signed.starts_at, signed.expires_at
        has_expired = expiry is not None and expiry <= now
        is_old = start is not None and (now - start).total_seconds() > OLD_START_SECONDS
        first_used_at = self._first_used_at or 0.0
        was_used = self.clock.monotonic() > first_used_at + YOUNG_SECONDS
        return not (self._was_accepted or has_expired or is_old or was_used)


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


def _check_status(response: StreamingResponse) -> None:
    status = response.status
    if status == 200:
        return
    if status == 403:
        text = "the signed URL was refused"
        raise Expired(text, retryable=True, reason="url_refused", status=403)
    if status in (404, 410):
        raise CallError("no blob", reason="recording_missing", status=status)
    retryable = status in (408, 429) or status >= 500
    asked = retry_after_seconds(response.headers, at_most=LONGEST_WAIT_SECONDS)
    raise CallError(
        f"the blob store answered {status}",
        retryable=retryable,
        retry_after_seconds=asked if retryable else None,
        reason="source_unavailable" if retryable else "bad_response",
        status=status,
    )


def _check_range(response: StreamingResponse, known: BlobInfo, at: int) -> None:
    """Raise `CallError` if an answer is not the rest of the known blob."""
    status, headers = response.status, response.headers
    if status == 200:
        raise StartOver("the blob cannot be read in ranges", reason="truncated", status=200)
    if status in (412, 416):
        raise _changed(status)
    if status != 206:
        _check_status(response)
    length = known.length or 0
    wanted = f"bytes {at}-{length - 1}/{length}"
    same = headers.get("etag", known.etag) == known.etag
    framing = (length - at, known.coding)
    if not same or headers.get("content-range") != wanted or _framing(response) != framing:
        raise _changed(status)


def _changed(status: int) -> StartOver:
    return StartOver("the blob changed", reason="recording_changed", status=status)


def _too_large() -> CallError:
    return CallError("larger than MAX_RECORDING_BYTES", reason="too_large", status=200)


def _framing(response: StreamingResponse) -> tuple[int | None, str | None]:
    """The number of bytes that an answer announces, None without a length, and its coding. Raises
    `CallError` if one of the two is not certain."""
    headers, found = response.headers, codings(response.headers.get("content-encoding"))
    text, chunked = headers.get("content-length"), headers.get("transfer-encoding")
    # Two lengths: which one counts depends on who reads (RFC 9112, section 6.3).
    two_lengths = text is not None and chunked is not None
    if two_lengths or (chunked or "chunked").lower() != "chunked":
        raise CallError("no valid Transfer-Encoding", reason="bad_response", status=200)
    if text is not None and not _LENGTH.fullmatch(text):
        raise CallError("no valid Content-Length", reason="bad_response", status=200)
    return int(text) if text is not None else None, ", ".join(found) or None


def _recordable(value: str | None) -> str | None:
    """A header value as a record may store it: printable ASCII, 256 characters; else None."""
    return value[:256] if value and value.isprintable() and value.isascii() else None
