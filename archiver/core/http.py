"""The HTTP client for source and store: one port, two adapters.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
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
    from pyreqwest.request import Request
    from pyreqwest.response import SyncResponse

Transport = Literal["fast", "standard"]
Method = Literal["GET", "HEAD", "PUT"]
Kind = Literal[
    "invalid", "unconnected", "untrusted", "broken", "truncated", "malformed", "too_large",
    "too_slow",
]  # fmt: skip

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""A streaming response on whose connection nothing moves for so long has failed."""
ANSWER_SECONDS = 120.0
"""So long after a request was begun its whole answer is there."""
IDLE_SECONDS = 30.0
"""A connection that was idle for longer is not used again: a firewall may have forgotten it."""
LEAST_BYTES_PER_SECOND = 16 << 10
"""A request's body that is taken more slowly has failed."""
READ_BYTES = 256 << 10
_ENDS = ("end of file before message length", "unexpected EOF", "peer closed connection")
"""How hyper and rustls say that a connection was closed."""
_clients: WeakSet[HttpClient] = WeakSet()


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


class HttpResponse(NamedTuple):
    """A whole answer: `headers` by their names in small letters, repeated ones joined."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StreamingResponse:
    """An answer whose body is read as it is wanted. One thread uses it, and closes it. Reading
    raises `TransportError`, and what the client's `check` raises."""

    def __init__(
        self,
        status: int,
        fields: Iterable[tuple[str, str]],
        *,
        read: Callable[[], Any],
        close: Callable[[], object],
        check: Callable[[], None],
        deadline: float | None,
    ) -> None:
        """`read` returns the next piece of the body that has come, None or nothing at its end."""
        self.status = status
        self.headers = _joined(fields)
        self.close = close
        """A connection whose answer was not read to its end is not used again."""
        self._read = read
        self._check = check
        self._deadline = deadline
        self._unread = memoryview(b"")
        liveness.note()

    def readinto(self, view: memoryview) -> int:
        """Bytes that are there, at least one, into `view`; 0 at the body's end."""
        piece = self._unread or self._next()
        count = min(len(piece), len(view))
        view[:count] = piece[:count]
        self._unread = piece[count:]
        return count

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        """The rest of the body in pieces of at most `size` bytes."""
        while piece := self._unread or self._next():
            self._unread = piece[size:]
            yield bytes(piece[:size])

    def read_all(self, max_bytes: int) -> HttpResponse:
        """The rest of the body, and the response's end. A refusal (status 300 and above) with a
        larger body comes without it; of any other answer that is an error."""
        pieces, left = [], max_bytes
        try:
            while piece := self._unread or self._next():
                self._unread = memoryview(b"")
                left -= len(piece)
                if left < 0:
                    if self.status >= 300:
                        return HttpResponse(self.status, self.headers, b"")
                    raise TransportError("the answer is too large", "too_large")
                pieces.append(piece)
            return HttpResponse(self.status, self.headers, b"".join(pieces))
        finally:
            self.close()

    def _next(self) -> memoryview:
        """The next piece of the body, empty at its end."""
        self._check()
        try:
            piece = self._read()
        except Exception as error:
            raise _translated(error, self._deadline) from None
        liveness.note()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise _too_slow()  # whatever came: the alarm of `standard` looks like the body's end
        return memoryview(piece or b"")


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
    ) -> HttpResponse:
        """One request and its whole answer (`StreamingResponse.read_all`), within `seconds`; a body
        that goes out is given the time that `LEAST_BYTES_PER_SECOND` takes besides. Raises
        `TransportError`."""

    def stream(self, url: str, headers: Mapping[str, str]) -> StreamingResponse:
        """GET; returns once the answer's headers have come. Raises `TransportError`."""

    def close(self) -> None: ...


def make_client(
    transport: Transport,
    *,
    roots: Path | None = None,
    silence_seconds: float = SILENCE_SECONDS,
    check: Callable[[], None] = lambda: None,
    over_httpx: bool = False,
) -> HttpClient:
    """A client over the chosen transport; `over_httpx` asks by httpx over either of them.

    `roots` is a file of PEM certificates to trust; `fast` trusts the system's besides, `standard`
    trusts them alone. `check` is called before a request and for each piece of a body; what it
    raises ends the request. Raises `OSError` where `roots` cannot be read.
    """
    client: HttpClient
    if transport == "fast" and not over_httpx:
        client = _FastClient(roots, silence_seconds, check)
    else:
        client = _HttpxClient(transport, roots, silence_seconds, check)
    _clients.add(client)
    return client


def abort_requests() -> None:
    """End all requests of this process that go over `fast`, for a process that must end. Those over
    `standard` end by their own limits."""
    for client in tuple(_clients):
        client.close()


# --- fast: pyreqwest


def _pyreqwest_client(
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
        builder = builder.with_middleware(_drop_unreadable_headers)
    if roots is not None:
        _tls_context(roots)  # the library would pass in silence by what is no certificate
        builder = builder.add_root_certificate_pem(_certificates(roots).encode())
    return builder.build()


class _FastClient:
    """Over pyreqwest. Bodies and TLS are handled outside of the interpreter's lock."""

    def __init__(
        self, roots: Path | None, silence_seconds: float, check: Callable[[], None]
    ) -> None:
        # The library's read timeout covers the sending of a request's body too, however well that
        # goes on. So whole answers have a limit of their own, by the size of what is sent.
        self._whole = _pyreqwest_client(roots, silence_seconds, uploads=True)
        self._streaming = _pyreqwest_client(roots, silence_seconds)
        self._check = check

    def close(self) -> None:
        self._whole.close()
        self._streaming.close()

    def request(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None = None,
        *,
        max_bytes: int,
        seconds: float = ANSWER_SECONDS,
    ) -> HttpResponse:
        seconds = _with_upload(seconds, body)
        view = None if body is None else memoryview(body)
        try:
            with liveness.waiting(seconds):
                response = self._send(self._whole, method, url, headers, view, seconds)
                return response.read_all(max_bytes)
        except TransportError as error:
            if error.kind == "invalid":
                view = None  # nothing is sent
            raise
        finally:
            # After an answer that came early, and after a timeout, the library goes on sending in
            # the background, until all is sent or the connection breaks; the kernel ends one that
            # takes nothing. Until then it holds on to the caller's memory.
            while view is not None:
                try:
                    view.release()
                    break
                except BufferError:
                    self._check()
                    time.sleep(0.01)

    def stream(self, url: str, headers: Mapping[str, str]) -> StreamingResponse:
        return self._send(self._streaming, "GET", url, headers)

    def _send(
        self,
        client: SyncClient,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: memoryview | None = None,
        seconds: float | None = None,
    ) -> StreamingResponse:
        from pyreqwest.exceptions import PyreqwestError

        self._check()
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            if body is not None:  # the library leaves out the length of an empty one
                headers = {**headers, "Content-Length": str(len(body))}
            builder = client.request(method, url).headers(dict(headers))
            if body is not None:
                builder = builder.body_bytes(body)
            if seconds is not None:
                builder = builder.timeout(timedelta(seconds=seconds))
            else:
                # Without this the library would gather 64 KiB, however slowly they come, before it
                # gives any of them, and lose them where the connection breaks meanwhile.
                builder = builder.streamed_read_buffer_limit(0)
            request = builder.build_streamed()
        except ValueError:
            raise _invalid() from None
        try:
            response = request.__enter__()
        except PyreqwestError as error:
            raise _translated(error, deadline) from None
        return StreamingResponse(
            response.status,
            _readable(response.headers),
            # What is there. `read(n)` would wait for n bytes, however slowly they come.
            read=response.body_reader.read_chunk,
            close=lambda: request.__exit__(None, None, None),
            check=self._check,
            deadline=deadline,
        )


def _drop_unreadable_headers(request: Request, handler: SyncNext) -> SyncResponse:
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


def _from_pyreqwest(error: BaseException) -> TransportError:
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
            return _untrusted()
        return TransportError(causes[-1].partition(": ")[0], "unconnected")
    if isinstance(error, TimeoutError):
        return TransportError("timeout", "broken")
    if any(end in words for end in _ENDS) and "reading a body" in words:
        return TransportError("the answer broke off", "truncated")
    if isinstance(error, exceptions.DecodeError) or "chunk" in words:
        return TransportError("no HTTP", "malformed")
    return TransportError("the connection broke off", "broken")


# --- httpx: its own transport on OpenSSL, or pyreqwest's


class _HttpxClient:
    """Over httpx, with either transport."""

    def __init__(
        self,
        transport: Transport,
        roots: Path | None,
        silence_seconds: float,
        check: Callable[[], None],
    ) -> None:
        import httpx

        self._check = check
        self._is_fast = transport == "fast"
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        if self._is_fast:
            from pyreqwest.compatibility.httpx import SyncHttpxTransport

            over = SyncHttpxTransport(_pyreqwest_client(roots, silence_seconds, for_httpx=True))
            self._client = httpx.Client(transport=over, cookies=no_cookies)
        else:
            self._client = httpx.Client(
                verify=_tls_context(roots),
                cookies=no_cookies,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
                timeout=httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS),
            )
        self.close = self._client.close

    def request(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None = None,
        *,
        max_bytes: int,
        seconds: float = ANSWER_SECONDS,
    ) -> HttpResponse:
        import httpx

        whole = _with_upload(seconds, body)
        deadline = time.monotonic() + whole
        timeout: httpx.Timeout | None = None
        if self._is_fast:
            # The transport takes the sum of httpx's limits for one that covers the whole request.
            timeout = httpx.Timeout(None, read=whole)
        elif body is not None:
            # The kernel takes megabytes ahead, which then go out slowly.
            timeout = httpx.Timeout(whole, connect=CONNECT_SECONDS, write=seconds)
        with liveness.waiting(whole), self._alarm(whole) as alarm:
            response = self._send(method, url, headers, body, alarm, timeout, deadline)
            return response.read_all(max_bytes)

    def stream(self, url: str, headers: Mapping[str, str]) -> StreamingResponse:
        import httpx

        timeout = httpx.Timeout(None) if self._is_fast else None
        with self._alarm(ANSWER_SECONDS) as alarm:  # until the headers have come
            return self._send("GET", url, headers, None, alarm, timeout, None)

    def _alarm(self, seconds: float) -> AbstractContextManager[_Alarm | None]:
        return nullcontext() if self._is_fast else _Alarm(seconds)

    def _send(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None,
        alarm: _Alarm | None,
        timeout: httpx.Timeout | None,
        deadline: float | None,
    ) -> StreamingResponse:
        import httpx

        self._check()
        headers = {"Accept-Encoding": "identity", **headers}
        content: bytes | Iterator[bytes] | None = None
        if body is not None:
            # `fast` may go on reading in the background: see `_FastClient.request`.
            content = bytes(body) if self._is_fast else _pieces(body)
            headers["Content-Length"] = str(len(body))
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        if alarm is not None:
            options["extensions"] = {"trace": alarm.trace}
        try:
            request = self._client.build_request(
                method, url, headers=headers, content=content, **options
            )
            response = self._client.send(request, stream=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, ValueError):
            raise _invalid() from None
        except Exception as error:  # httpx's, and some of pyreqwest's that its adapter lets pass
            raise _translated(error, deadline) from None
        pieces = response.iter_raw()
        return StreamingResponse(
            response.status_code,
            response.headers.multi_items(),
            read=lambda: next(pieces, None),
            close=response.close,
            check=self._check,
            deadline=deadline,
        )


class _Alarm:
    """Ends a request over httpx's own transport after `seconds`. That has limits for each read
    alone: a server that sends a byte now and then could hold a request for ever."""

    def __init__(self, seconds: float) -> None:
        self._connection: socket.socket | None = None
        self._rang = False
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True

    def __enter__(self) -> _Alarm:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
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


def _from_httpx(error: Exception) -> TransportError:
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


def _pieces(body: Buffer) -> Iterator[bytes]:
    """A body as it goes out, without a copy of the whole."""
    view = memoryview(body)
    for at in range(0, len(view), READ_BYTES):
        liveness.note()
        yield bytes(view[at : at + READ_BYTES])


# --- both


def _translated(error: Exception, deadline: float | None) -> TransportError:
    """What a transport raised, in our words; httpx wraps what its transport raised. Raises what is
    no transport's."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    theirs = [one for one in chain if type(one).__module__.startswith("pyreqwest")]
    if not theirs and not type(error).__module__.startswith("httpx"):
        raise error
    if deadline is not None and time.monotonic() >= deadline:
        return _too_slow()
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
        return _untrusted()
    return _from_pyreqwest(theirs[0]) if theirs else _from_httpx(error)


def _invalid() -> TransportError:
    return TransportError("a header or URL that cannot be sent", "invalid")


def _untrusted() -> TransportError:
    return TransportError("its certificate is not trusted", "untrusted")


def _too_slow() -> TransportError:
    return TransportError("the answer takes too long", "too_slow")


def _tls_context(roots: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer, certificate and host name verified; with the certificates of `roots` in the
    place of the system's, which OpenSSL takes from `SSL_CERT_FILE` where that is set. Raises
    `OSError` where they cannot be read."""
    context = ssl.create_default_context(cadata=None if roots is None else _certificates(roots))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _certificates(roots: Path) -> str:
    """A file of PEM certificates, whatever else is in it. Raises `OSError`."""
    pem = roots.read_text("ascii", "ignore")
    if not pem:
        raise OSError(f"there is no certificate in {roots}")
    return pem


def _with_upload(seconds: float, body: Buffer | None) -> float:
    """How long a request may take that sends `body` besides."""
    return seconds + (len(body) / LEAST_BYTES_PER_SECOND if body is not None else 0.0)


def _joined(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for written, value in fields:
        name = written.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
