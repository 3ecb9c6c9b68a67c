"""The HTTP client for recordings and for the store's frequent requests: one port, two adapters.

`fast` is pyreqwest (reqwest, hyper and rustls, without the interpreter's lock); `standard` is httpx
on OpenSSL. `HTTP_TRANSPORT` chooses. What both promise:

- Nothing is sent but what was asked for: no cookies, no credentials of `.netrc`, no redirects
  followed, no retries. Bodies come as they were sent, whatever their `Content-Encoding` says.
- A request is sent once. Where no answer came the server may have acted on it all the same.
- The memory of a request's body may be used again once `request` has returned.
- A request has an end, however slowly a server answers.
- A body that is shorter than announced is an error (`truncated`).
- What comes on a connection after an answer is never taken for the next one (RFC 9112, section
  6.3). httpcore would do that, so `standard` opens a connection for each request.
- Proxies (`HTTPS_PROXY`, `NO_PROXY`) and private roots (`SSL_CERT_FILE`) are taken from the
  environment, as httpx and curl do.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol
from weakref import WeakSet

from archiver.core import liveness
from archiver.core.checksums import Buffer

if TYPE_CHECKING:
    import httpx
    from pyreqwest.client import SyncClient
    from pyreqwest.http import HeaderMap
    from pyreqwest.middleware import SyncNext
    from pyreqwest.request import Request, SyncRequestBuilder, SyncStreamRequest
    from pyreqwest.response import SyncResponse

Transport = Literal["fast", "standard"]
Method = Literal["GET", "HEAD", "PUT"]
Kind = Literal[
    "invalid", "unconnected", "untrusted", "broken", "truncated", "malformed", "too_large",
    "too_slow",
]  # fmt: skip

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""A streamed answer on whose connection nothing moves for so long has failed."""
ANSWER_SECONDS = 120.0
"""So long after a request was begun its whole answer is there."""
IDLE_SECONDS = 30.0
"""A connection that was idle for longer is not used again: a firewall may have forgotten it."""
LEAST_BYTES_PER_SECOND = 16 << 10
"""A request's body that is taken more slowly has failed."""
READ_BYTES = 256 << 10
_ENDS = ("end of file before message length", "unexpected EOF", "peer closed connection")
"""How hyper and rustls say that a connection was closed."""
_clients: WeakSet[FastClient | HttpxClient] = WeakSet()


class TransportError(Exception):
    """No whole answer came. The message is a few words without anything that was sent or read.

    `kind`: `invalid` for a URL that cannot be asked; `unconnected` where no connection, TLS and
    all, came about; `untrusted` for its certificate; `broken` where it was reset, fell silent or
    ended before the body; `truncated` where the body ended early; `malformed` for what is no HTTP;
    `too_large` and `too_slow` for the bounds that were given.
    """

    def __init__(self, what: str, kind: Kind) -> None:
        super().__init__(what)
        self.kind = kind


class Answer(NamedTuple):
    """An answer: `headers` by their names in small letters, repeated ones joined."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StreamedAnswer(ABC):
    """An answer whose body is read as it is wanted. One thread uses it, and closes it."""

    def __init__(self, status: int, fields: Iterable[tuple[str, str]]) -> None:
        self.status = status
        self.headers = _joined(fields)
        self._unread = memoryview(b"")

    def readinto(self, view: memoryview) -> int:
        """Bytes that are there, at least one, into `view`; 0 at the body's end. Raises
        `TransportError`."""
        piece = self._unread or self._next()
        count = min(len(piece), len(view))
        view[:count] = piece[:count]
        self._unread = piece[count:]
        return count

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        """The body in pieces of `size` bytes, but for the last one. Raises `TransportError`."""
        buffer = memoryview(bytearray(size))
        filled = count = self.readinto(buffer)
        while count:
            if filled == size:
                yield bytes(buffer)
                filled = 0
            count = self.readinto(buffer[filled:])
            filled += count
        if filled:
            yield bytes(buffer[:filled])

    def read_all(self, max_bytes: int) -> bytes:
        """The rest of the body; of a refusal (status 300 and above) that has more to say, nothing.
        Raises `TransportError`."""
        pieces, left = [], max_bytes
        while piece := self._unread or self._next():
            self._unread = memoryview(b"")
            left -= len(piece)
            if left < 0:
                if self.status >= 300:
                    return b""
                raise TransportError("the answer is too large", "too_large")
            pieces.append(piece)
        return b"".join(pieces)

    @abstractmethod
    def _next(self) -> memoryview:
        """The next piece of the body, empty at its end. Raises `TransportError`."""

    @abstractmethod
    def close(self) -> None:
        """A connection whose answer was not read to its end is not used again."""


class HttpClient(Protocol):
    """Sends requests. Threads share it."""

    def request(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None = None,
        *,
        max_bytes: int,
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        """One request and its whole answer, of at most `max_bytes`, within `seconds`; a body that
        goes out is given the time that `LEAST_BYTES_PER_SECOND` takes besides. Of a refusal (status
        300 and above) that is larger the body is left out. Raises `TransportError`."""

    def stream(self, url: str, headers: Mapping[str, str]) -> StreamedAnswer:
        """GET; returns once the answer's headers have come. Raises `TransportError`."""

    def close(self) -> None: ...


def make_client(
    transport: Transport,
    *,
    roots: Path | None = None,
    silence_seconds: float = SILENCE_SECONDS,
    check: Callable[[], None] = lambda: None,
) -> HttpClient:
    """A client over the chosen transport.

    `roots` is a file or directory of PEM certificates to trust; `fast` trusts the system's besides,
    `standard` trusts them alone. `check` is called before a request and for each piece of a body;
    what it raises ends the request. Raises `OSError` where `roots` cannot be read.
    """
    if transport == "fast":
        return FastClient(roots, silence_seconds, check)
    return HttpxClient(standard_client(roots, silence_seconds), check)


def make_httpx_client(
    transport: Transport,
    *,
    roots: Path | None = None,
    silence_seconds: float = SILENCE_SECONDS,
    check: Callable[[], None] = lambda: None,
) -> HttpxClient:
    """A client for an API: httpx, over the chosen transport. The rest is as in `make_client`."""
    if transport == "standard":
        return HttpxClient(standard_client(roots, silence_seconds), check)
    import httpx
    from pyreqwest.compatibility.httpx import SyncHttpxTransport

    over = SyncHttpxTransport(fast_client(roots, silence_seconds, for_httpx=True))
    client = httpx.Client(transport=over, cookies=_no_cookies())
    return HttpxClient(client, check, over_fast=True)


def abort_requests() -> None:
    """End all requests of this process that go over `fast`, for a process that must end. Those over
    `standard` end by their own limits."""
    for client in tuple(_clients):
        client.close()


# --- fast: pyreqwest


def fast_client(
    roots: Path | None, silence_seconds: float, *, uploads: bool = False, for_httpx: bool = False
) -> SyncClient:
    """The library's client as we want it, `for_httpx` where that is to read its answers.

    `silence_seconds` counts from the request's first byte to the answer's headers, and then between
    two pieces of its body; where there are `uploads`, between two acknowledgements of what is sent.
    Raises `OSError` where `roots` cannot be read.
    """
    # Once the thread that loaded it has ended, pyreqwest 0.15 crashes the process.
    if "pyreqwest" not in sys.modules and threading.current_thread() != threading.main_thread():
        raise RuntimeError("the main thread must make the first HTTP client")
    from pyreqwest.client import SyncClientBuilder

    builder = (
        SyncClientBuilder()
        .follow_redirects(False)
        .referer(False)
        .gzip(False)
        .brotli(False)
        .zstd(False)
        .deflate(False)
        .connect_timeout(timedelta(seconds=CONNECT_SECONDS))
        .pool_idle_timeout(timedelta(seconds=IDLE_SECONDS))
        .tcp_user_timeout(timedelta(seconds=silence_seconds))
    )
    if not uploads:
        builder = builder.read_timeout(timedelta(seconds=silence_seconds))
    if for_httpx:
        builder = builder.with_middleware(_without_unreadable_headers)
    if roots is not None:
        tls_context(roots)  # the library would pass in silence by what is no certificate
        builder = builder.add_root_certificate_pem(_certificates(roots).encode())
    return builder.build()


class FastClient:
    """Over pyreqwest. Bodies and TLS are handled outside of the interpreter's lock."""

    def __init__(
        self, roots: Path | None, silence_seconds: float, check: Callable[[], None]
    ) -> None:
        # The library's read timeout covers the sending of a request's body too, however well that
        # goes on. So whole answers have a limit of their own, by the size of what is sent.
        self._whole = fast_client(roots, silence_seconds, uploads=True)
        self._streamed = fast_client(roots, silence_seconds)
        self._check = check
        _clients.add(self)

    def close(self) -> None:
        self._whole.close()
        self._streamed.close()

    def request(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None = None,
        *,
        max_bytes: int,
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        self._check()
        seconds = _whole(seconds, body)
        sent = None if body is None else memoryview(body)
        if sent is not None:  # the library leaves out the length of an empty body
            headers = {**headers, "Content-Length": str(len(sent))}
        builder = self._builder(self._whole, method, url, headers, sent)
        request = _built(builder.timeout(timedelta(seconds=seconds)))
        deadline = time.monotonic() + seconds
        try:
            with liveness.waiting(seconds):
                answer = _FastAnswer(request, self._check, deadline)
                try:
                    return Answer(answer.status, answer.headers, answer.read_all(max_bytes))
                finally:
                    answer.close()
        finally:
            if sent is not None:
                self._wait_until_sent(sent)

    def _wait_until_sent(self, body: memoryview) -> None:
        """Return once the library has let go of the caller's memory. After an answer that came
        early, and after a timeout, it goes on sending in the background, until all is sent or the
        connection breaks; the kernel ends one that takes nothing."""
        while True:
            try:
                return body.release()
            except BufferError:
                self._check()
                time.sleep(0.01)

    def stream(self, url: str, headers: Mapping[str, str]) -> StreamedAnswer:
        self._check()
        builder = self._builder(self._streamed, "GET", url, headers)
        # Without this the library would gather 64 KiB, however slowly they come, before it gives
        # any of them, and lose them where the connection breaks meanwhile.
        return _FastAnswer(_built(builder.streamed_read_buffer_limit(0)), self._check)

    def _builder(
        self,
        client: SyncClient,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: memoryview | None = None,
    ) -> SyncRequestBuilder:
        try:
            builder = client.request(method, url).headers(dict(headers))
        except ValueError:
            raise _invalid() from None
        return builder if body is None else builder.body_bytes(body)


def _built(builder: SyncRequestBuilder) -> SyncStreamRequest:
    try:
        return builder.build_streamed()
    except ValueError:
        raise _invalid() from None


class _FastAnswer(StreamedAnswer):
    def __init__(
        self,
        request: SyncStreamRequest,
        check: Callable[[], None],
        deadline: float | None = None,
    ) -> None:
        from pyreqwest.exceptions import PyreqwestError

        self._check = check
        self._deadline = deadline
        self._request = request
        try:
            response = self._request.__enter__()
        except PyreqwestError as error:
            raise _no_answer(error, deadline) from None
        super().__init__(response.status, _readable(response.headers))
        self._body = response.body_reader
        liveness.note()

    def _next(self) -> memoryview:
        from pyreqwest.exceptions import PyreqwestError

        self._check()
        try:
            # What is there. `read(n)` would wait for n bytes, however slowly they come.
            piece = self._body.read_chunk()
        except PyreqwestError as error:
            raise _no_answer(error, self._deadline) from None
        liveness.note()
        return memoryview(piece) if piece is not None else memoryview(b"")

    def close(self) -> None:
        self._request.__exit__(None, None, None)


def _without_unreadable_headers(request: Request, handler: SyncNext) -> SyncResponse:
    """Middleware: httpx reads all headers of an answer, and would fail for one."""
    response = handler.run(request)
    readable = {name for name, _ in _readable(response.headers)}
    for name in set(response.headers) - readable:
        del response.headers[name]
    return response


def _readable(headers: HeaderMap) -> Iterator[tuple[str, str]]:
    """The fields whose values are text; the library gives no others (people's names in Latin-1)."""
    for name in dict.fromkeys(headers):
        with suppress(ValueError):
            for value in headers.getall(name):
                yield name, value


def _fast_error(error: BaseException) -> TransportError:
    """By the error's class, and by the causes that reqwest, hyper and rustls give in words: their
    only mark (pyreqwest 0.15). What is unknown is taken for a broken connection, after which the
    server may have acted on the request."""
    from pyreqwest import exceptions

    details = getattr(error, "details", None) or {}
    causes = [str(cause["message"]) for cause in details.get("causes") or ()]
    causes = [cause for cause in causes if " for url (" not in cause]  # whose words are not theirs
    words = " ".join(causes)
    if isinstance(error, exceptions.BuilderError):
        return _invalid()
    if "client error (Connect)" in words:
        if "certificate" in words:
            return TransportError("its certificate is not trusted", "untrusted")
        return TransportError(causes[-1].partition(": ")[0], "unconnected")
    if isinstance(error, TimeoutError):
        return TransportError("timeout", "broken")
    if any(end in words for end in _ENDS) and "reading a body" in words:
        return TransportError("the answer broke off", "truncated")
    if isinstance(error, exceptions.DecodeError) or "chunk" in words:
        return TransportError("no HTTP", "malformed")
    return TransportError("the connection broke off", "broken")


# --- httpx: its own transport on OpenSSL, or pyreqwest's


def standard_client(roots: Path | None, silence_seconds: float) -> httpx.Client:
    """httpx over its own transport. Raises `OSError` where `roots` cannot be read."""
    import httpx

    return httpx.Client(
        verify=tls_context(roots),
        cookies=_no_cookies(),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        timeout=httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS),
    )


def _no_cookies() -> CookieJar:
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def tls_context(roots: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer, certificate and host name verified; with `roots` (a file or directory) in
    the place of the system's, which OpenSSL takes from `SSL_CERT_FILE` where that is set. Raises
    `OSError` where they cannot be read."""
    context = ssl.create_default_context(cadata=None if roots is None else _certificates(roots))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class HttpxClient:
    """Over httpx, with whichever transport its client has."""

    def __init__(
        self,
        client: httpx.Client,
        check: Callable[[], None] = lambda: None,
        *,
        over_fast: bool = False,
    ) -> None:
        import httpx

        self._client = client
        self._check = check
        self._over_fast = over_fast
        self._errors: tuple[type[Exception], ...] = (httpx.HTTPError,)
        if over_fast:  # whose adapter lets some of its own errors pass
            from pyreqwest.exceptions import PyreqwestError

            self._errors = (httpx.HTTPError, PyreqwestError)
        _clients.add(self)

    def close(self) -> None:
        self._client.close()

    def request(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None = None,
        *,
        max_bytes: int,
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        import httpx

        whole = _whole(seconds, body)
        deadline = time.monotonic() + whole
        with liveness.waiting(whole), self._within(whole) as options:
            if body is not None and not self._over_fast:
                # The kernel takes megabytes ahead, which then go out slowly.
                limit = httpx.Timeout(whole, connect=CONNECT_SECONDS, write=seconds)
                options["timeout"] = limit
            answer = self._send(method, url, headers, body, deadline, options)
            try:
                return Answer(answer.status, answer.headers, answer.read_all(max_bytes))
            finally:
                answer.close()

    def stream(self, url: str, headers: Mapping[str, str]) -> StreamedAnswer:
        with self._within(None) as options:
            return self._send("GET", url, headers, None, None, options)

    @contextmanager
    def _within(self, seconds: float | None) -> Iterator[dict[str, Any]]:
        """What a request is built with that must end within `seconds`; without them the headers of
        its answer must come in time."""
        import httpx

        if self._over_fast:
            # The transport takes the sum of httpx's limits for one that covers the whole request.
            yield {"timeout": httpx.Timeout(None, read=seconds)}
            return
        alarm = _Alarm(ANSWER_SECONDS if seconds is None else seconds)
        try:
            yield {"extensions": {"trace": alarm.trace}}
        finally:
            alarm.cancel()

    def _send(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None,
        deadline: float | None,
        options: Mapping[str, Any],
    ) -> StreamedAnswer:
        import httpx

        self._check()
        headers = {"Accept-Encoding": "identity", **headers}
        content: bytes | Iterator[bytes] | None = None
        if body is not None:
            # `fast` may go on reading in the background: see `FastClient._wait_until_sent`.
            content = bytes(body) if self._over_fast else _pieces(body)
            headers["Content-Length"] = str(len(body))
        build = self._client.build_request
        try:
            request = build(method, url, headers=headers, content=content, **options)
            response = self._client.send(request, stream=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, ValueError):
            raise _invalid() from None
        except self._errors as error:
            raise _no_answer(error, deadline) from None
        liveness.note()
        return _HttpxAnswer(response, self._check, self._errors, deadline)


class _HttpxAnswer(StreamedAnswer):
    def __init__(
        self,
        response: httpx.Response,
        check: Callable[[], None],
        errors: tuple[type[Exception], ...],
        deadline: float | None,
    ) -> None:
        super().__init__(response.status_code, response.headers.multi_items())
        self._response = response
        self._pieces = response.iter_raw()
        self._check = check
        self._errors = errors
        self._deadline = deadline

    def _next(self) -> memoryview:
        self._check()
        try:
            piece = next(self._pieces, b"")
        except self._errors as error:
            raise _no_answer(error, self._deadline) from None
        liveness.note()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise _too_slow()  # whatever came: the alarm looks like the end of the body
        return memoryview(piece)

    def close(self) -> None:
        self._response.close()


class _Alarm:
    """Ends a request over httpx's own transport after `seconds`. That has limits for each read
    alone: a server that sends a byte now and then could hold a request for ever."""

    def __init__(self, seconds: float) -> None:
        self._connection: socket.socket | None = None
        self._rang = False
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpx's `trace` extension: what happens to a request."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._connection = info["return_value"].get_extra_info("socket")
            if self._rang:
                self._ring()

    def _ring(self) -> None:
        self._rang = True
        if self._connection is not None:
            # A TLS socket's own `shutdown` must not run while another thread reads from it.
            with suppress(OSError):
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


def _invalid() -> TransportError:
    return TransportError("a header or URL that cannot be sent", "invalid")


def _too_slow() -> TransportError:
    return TransportError("the answer takes too long", "too_slow")


def _no_answer(error: Exception, deadline: float | None) -> TransportError:
    """What a transport raised, in our words; httpx wraps what its transport raised."""
    if deadline is not None and time.monotonic() >= deadline:
        return _too_slow()
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return TransportError("its certificate is not trusted", "untrusted")
        if type(cause).__module__.startswith("pyreqwest"):
            return _fast_error(cause)
        cause = cause.__cause__ or cause.__context__
    return _httpx_error(error)


def _httpx_error(error: Exception) -> TransportError:
    import httpx

    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        return TransportError("no connection", "unconnected")
    if isinstance(error, httpx.RemoteProtocolError):
        text = str(error)
        if "disconnected without sending" in text:
            return TransportError("the connection broke off", "broken")
        if "peer closed connection" in text:
            return TransportError("the answer broke off", "truncated")
        return TransportError("no HTTP", "malformed")
    is_timeout = isinstance(error, httpx.TimeoutException)
    return TransportError("timeout" if is_timeout else "the connection broke off", "broken")


def _certificates(roots: Path) -> str:
    """The certificates of a file, or of a directory's files, as PEM. Raises `OSError`."""
    files = sorted(roots.iterdir()) if roots.is_dir() else [roots]
    pem = "\n".join(file.read_text("ascii", "ignore") for file in files if not file.is_dir())
    if not pem:
        raise OSError(f"there is no certificate in {roots}")
    return pem


def _whole(seconds: float, body: Buffer | None) -> float:
    """How long a request may take that sends `body` besides."""
    return seconds + (len(body) / LEAST_BYTES_PER_SECOND if body is not None else 0.0)


def _pieces(body: Buffer) -> Iterator[bytes]:
    """A body as it goes out, without a copy of the whole."""
    view = memoryview(body)
    for at in range(0, len(view), READ_BYTES):
        liveness.note()
        yield bytes(view[at : at + READ_BYTES])


def _joined(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for written, value in fields:
        name = written.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
