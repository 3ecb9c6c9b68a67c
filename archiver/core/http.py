"""The HTTP client for source and store: one port, two adapters.

`fast` is pyreqwest (reqwest, hyper and rustls, outside the interpreter's lock); `standard` is httpx
on OpenSSL. `HTTP_TRANSPORT` selects one. Both guarantee:

- Only the given request is sent: no cookies, no credentials from `.netrc`, no redirects, no
  retries. Bodies are returned as sent, whatever their `Content-Encoding`.
- A request is sent once. If no answer came, the server may have acted on it all the same.
- The memory of a request's body may be reused once `request` has returned.
- Every request ends, however slowly a server answers.
- A body that is shorter than announced is an error (`truncated`).
- Bytes that come on a connection after an answer are never read as the next answer (RFC 9112,
  section 6.3). httpcore would read them so, so `standard` opens a connection for each request.
- Proxies (`HTTPS_PROXY`, `NO_PROXY`) and private roots (`SSL_CERT_FILE`) come from the environment
  (`core/network.py`).
"""

from __future__ import annotations

import math
import random
import socket
import ssl
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakSet

from archiver.core import liveness, network
from archiver.core.checksums import Buffer
from archiver.core.errors import UsageError

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
"""A streaming response has failed if nothing moves on its connection for so long."""
ANSWER_SECONDS = 120.0
"""The default limit for a request with its whole answer."""
IDLE_SECONDS = 30.0
"""A connection that was idle for longer is not reused: a firewall may have dropped it."""
LEAST_BYTES_PER_SECOND = 16 << 10
"""A request's body may take as long as this rate allows, on top of the request's limit."""
READ_BYTES = 256 << 10
JITTER_SECONDS = 0.5
"""A pause that a server asks for is longer by up to this, so that the workers do not return
together."""
_ENDS = ("end of file before message length", "unexpected EOF", "peer closed connection")
"""How hyper and rustls report that a connection was closed."""
_clients: WeakSet[HttpClient] = WeakSet()


class TransportError(Exception):
    """No complete answer came. The message has a few words, and nothing that was sent or read.

    `kind`: `invalid`, the URL or a header cannot be sent; `unconnected`, no connection, including
    TLS, could be made; `untrusted`, for the server's certificate; `broken`, the connection was
    reset, fell silent or ended before the body; `truncated`, the body ended early; `malformed`, not
    HTTP; `too_large` and `too_slow`, beyond the given limits.
    """

    def __init__(self, what: str, kind: Kind) -> None:
        super().__init__(what)
        self.kind = kind


class HttpResponse(NamedTuple):
    """A complete answer. `headers` are by lower-case name; repeated ones are joined."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StreamingResponse:
    """An answer whose body is read on demand. Not thread-safe; the caller closes it. Reading raises
    `TransportError`, and what the client's `check` raises."""

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
        """`read` returns the next piece of the body; None or nothing at its end."""
        self.status = status
        self.headers = _joined(fields)
        self.close = close
        """A connection whose answer was not read to its end is not reused."""
        self._read = read
        self._check = check
        self._deadline = deadline
        self._unread = memoryview(b"")
        liveness.note()

    def readinto(self, view: memoryview) -> int:
        """Copy the bytes that have come, at least one, into `view`; returns their number, 0 at the
        end."""
        piece = self._unread or self._next()
        count = min(len(piece), len(view))
        view[:count] = piece[:count]
        self._unread = piece[count:]
        return count

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        """Yield the rest of the body in pieces of at most `size` bytes."""
        while piece := self._unread or self._next():
            self._unread = piece[size:]
            yield bytes(piece[:size])

    def read_all(self, max_bytes: int) -> HttpResponse:
        """Read the rest of the body, and close the response. If the body is larger than
        `max_bytes`, a refusal (status 300 and above) is returned without it; any other answer
        raises `TransportError`."""
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
        """The next piece of the body; empty at its end."""
        self._check()
        try:
            piece = self._read()
        except Exception as error:
            raise _translated(error, self._deadline) from None
        liveness.note()
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise _too_slow()  # also at the body's end: the alarm of `standard` looks like it
        return memoryview(piece or b"")


class _Request(NamedTuple):
    """A request. `seconds` is its limit without the time to send the body, `whole_seconds` with it.
    Both are None if the answer is read on demand."""

    method: Method
    url: str
    headers: Mapping[str, str]
    body: Buffer | None = None
    seconds: float | None = None
    whole_seconds: float | None = None
    deadline: float | None = None
    """By the monotonic clock. It is set first: no alarm of a client may go off before it."""


class HttpClient(ABC):
    """Sends requests. Thread-safe."""

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
        """Send one request and read its whole answer (`StreamingResponse.read_all`), within
        `seconds`; a body adds the time that `LEAST_BYTES_PER_SECOND` allows. Raises
        `TransportError`."""
        whole = with_upload_seconds(seconds, body)
        deadline = time.monotonic() + whole
        request = _Request(method, url, headers, body, seconds, whole, deadline)
        with liveness.waiting(whole), _naming_proxy(url):
            return self._exchange(request, max_bytes)

    def stream(self, url: str, headers: Mapping[str, str]) -> StreamingResponse:
        """GET; returns when the headers of the answer have come. Raises `TransportError`."""
        with _naming_proxy(url):
            return self._open(_Request("GET", url, headers))

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _exchange(self, request: _Request, max_bytes: int) -> HttpResponse: ...

    @abstractmethod
    def _open(self, request: _Request) -> StreamingResponse: ...


def make_client(
    transport: Transport,
    *,
    roots: Path | None = None,
    silence_seconds: float = SILENCE_SECONDS,
    check: Callable[[], None] = lambda: None,
    over_httpx: bool = False,
) -> HttpClient:
    """Return a client over the chosen transport; `over_httpx` uses httpx with either of them.

    `roots`: a file of PEM certificates to trust. `fast` trusts them in addition to the system's,
    `standard` trusts them only. `check` is called before a request and for each piece of a body; if
    it raises, the request ends. Raises `OSError` if `roots` cannot be read, and `UsageError` if the
    environment names a malformed proxy or roots that cannot be read.
    """
    network.check()
    client: HttpClient
    if transport == "fast" and not over_httpx:
        client = _FastClient(roots, silence_seconds, check)
    else:
        client = _HttpxClient(transport, roots, silence_seconds, check)
    _clients.add(client)
    return client


@contextmanager
def _naming_proxy(url: str) -> Iterator[None]:
    """If no connection can be made, say whether a proxy was to make it."""
    try:
        yield
    except TransportError as error:
        if error.kind != "unconnected" or (variable := network.proxy_variable(url)) is None:
            raise
        raise TransportError(f"{error}, through the proxy of {variable}", error.kind) from None


def abort_requests() -> None:
    """End all requests of this process over `fast`, because the process must end. Requests over
    `standard` end by their own limits."""
    for client in tuple(_clients):
        client.close()


# --- fast: pyreqwest


def _pyreqwest_client(
    roots: Path | None, silence_seconds: float, *, uploads: bool = False, for_httpx: bool = False
) -> SyncClient:
    """A client of the library with our settings. `for_httpx`: httpx reads its answers.

    `silence_seconds` limits the time from the request's first byte to the answer's headers, and
    between two pieces of its body; with `uploads`, the time between two acknowledgements of what is
    sent. Raises `OSError` if `roots` cannot be read.
    """
    # pyreqwest 0.15 crashes the process after the thread that imported it has ended.
    if "pyreqwest" not in sys.modules and threading.current_thread() != threading.main_thread():
        raise RuntimeError("the main thread must make the first HTTP client")
    from pyreqwest.client import SyncClientBuilder
    from pyreqwest.exceptions import BuilderError
    from pyreqwest.proxy import ProxyBuilder

    builder = (
        SyncClientBuilder()
        .proxy(ProxyBuilder.custom(lambda url: network.proxy_for(str(url))))
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
        _tls_context(roots)  # checks the file: the library ignores what is not a certificate
        builder = builder.add_root_certificate_pem(_certificates(roots).encode())
    try:
        return builder.build()
    except BuilderError:  # the library needs the system's roots, whether they are used or not
        text = "no root certificates are installed: install ca-certificates, or set SSL_CERT_FILE"
        raise UsageError(text) from None


class _FastClient(HttpClient):
    """Uses pyreqwest. Bodies and TLS are processed outside the interpreter's lock."""

    def __init__(
        self, roots: Path | None, silence_seconds: float, check: Callable[[], None]
    ) -> None:
        # The library's read timeout also covers the time to send a body, even while it makes
        # progress. So requests with whole answers have their own limit, by the body's size.
        self._whole = _pyreqwest_client(roots, silence_seconds, uploads=True)
        self._streaming = _pyreqwest_client(roots, silence_seconds)
        self._check = check

    def close(self) -> None:
        self._whole.close()
        self._streaming.close()

    def _exchange(self, request: _Request, max_bytes: int) -> HttpResponse:
        view = None if request.body is None else memoryview(request.body)
        try:
            return self._send(self._whole, request._replace(body=view)).read_all(max_bytes)
        except TransportError as error:
            if error.kind == "invalid":
                view = None  # nothing is sent
            raise
        finally:
            # After an early answer or a timeout, the library goes on sending in the background
            # until everything is sent or the connection breaks; the kernel ends a connection that
            # accepts nothing. Until then it refers to the caller's memory.
            while view is not None:
                try:
                    view.release()
                    break
                except BufferError:
                    self._check()
                    time.sleep(0.01)

    def _open(self, request: _Request) -> StreamingResponse:
        return self._send(self._streaming, request)

    def _send(self, client: SyncClient, request: _Request) -> StreamingResponse:
        from pyreqwest.exceptions import PyreqwestError

        self._check()
        deadline, headers = request.deadline, dict(request.headers)
        try:
            if request.body is not None:  # the library leaves out the length of an empty one
                headers["Content-Length"] = str(len(request.body))
            builder = client.request(request.method, request.url).headers(headers)
            if request.body is not None:
                builder = builder.body_bytes(request.body)
            if (seconds := request.whole_seconds) is not None:
                builder = builder.timeout(timedelta(seconds=seconds))
            else:
                # By default the library collects 64 KiB, however slowly they come, before it
                # returns any, and loses them if the connection breaks.
                builder = builder.streamed_read_buffer_limit(0)
            sending = builder.build_streamed()
        except ValueError:
            raise _invalid() from None
        try:
            response = sending.__enter__()
        except PyreqwestError as error:
            raise _translated(error, deadline) from None
        return StreamingResponse(
            response.status,
            _readable(response.headers),
            # Returns what has come. `read(n)` would wait for n bytes, however slowly they come.
            read=response.body_reader.read_chunk,
            close=lambda: sending.__exit__(None, None, None),
            check=self._check,
            deadline=deadline,
        )


def _drop_unreadable_headers(request: Request, handler: SyncNext) -> SyncResponse:
    """Middleware that drops headers that are not text: httpx fails for one."""
    response = handler.run(request)
    readable = {name for name, _ in _readable(response.headers)}
    for name in set(response.headers) - readable:
        del response.headers[name]
    return response


def _readable(headers: HeaderMap) -> Iterator[tuple[str, str]]:
    """The fields whose values are text; the library raises for others (such as Latin-1)."""
    for name in dict.fromkeys(headers):
        with suppress(ValueError):
            for value in headers.getall(name):
                yield name, value


def _from_pyreqwest(error: BaseException) -> TransportError:
    """Translate an error by its class, and by the messages of reqwest, hyper and rustls, which have
    no other mark (pyreqwest 0.15). An unknown error counts as a broken connection, after which the
    server may have acted on the request."""
    from pyreqwest import exceptions

    details = getattr(error, "details", None) or {}
    causes = [str(cause["message"]) for cause in details.get("causes") or ()]
    causes = [cause for cause in causes if " for url (" not in cause]  # the URL has foreign words
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


class _HttpxClient(HttpClient):
    """Uses httpx, with either transport."""

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
        self._mutex = threading.Lock()
        self._by_proxy: dict[str | None, httpx.Client] = {}
        """httpx binds a client to one proxy. `fast` has one client, which finds its proxies by
        itself."""
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        if self._is_fast:
            from pyreqwest.compatibility.httpx import SyncHttpxTransport

            over = SyncHttpxTransport(_pyreqwest_client(roots, silence_seconds, for_httpx=True))
            self._by_proxy[None] = httpx.Client(transport=over, cookies=no_cookies)
        else:
            self._make = partial(
                httpx.Client,
                verify=_tls_context(roots),
                trust_env=False,
                cookies=no_cookies,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
                timeout=httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS),
            )

    def close(self) -> None:
        with self._mutex:
            for client in self._by_proxy.values():
                client.close()

    def _client_for(self, url: str) -> httpx.Client:
        proxy = None if self._is_fast else network.proxy_for(url)
        with self._mutex:
            if proxy not in self._by_proxy:
                self._by_proxy[proxy] = self._make(proxy=proxy)
            return self._by_proxy[proxy]

    def _exchange(self, request: _Request, max_bytes: int) -> HttpResponse:
        with self._alarm(request.whole_seconds or 0.0) as alarm:
            return self._send(request, alarm).read_all(max_bytes)

    def _open(self, request: _Request) -> StreamingResponse:
        with self._alarm(ANSWER_SECONDS) as alarm:  # until the headers have come
            return self._send(request, alarm)

    def _alarm(self, seconds: float) -> AbstractContextManager[_Alarm | None]:
        return nullcontext() if self._is_fast else _Alarm(seconds)

    def _send(self, request: _Request, alarm: _Alarm | None) -> StreamingResponse:
        import httpx

        self._check()
        deadline, whole, body = request.deadline, request.whole_seconds, request.body
        headers = {"Accept-Encoding": "identity", **request.headers}
        content: bytes | Iterator[bytes] | None = None
        if body is not None:
            # `fast` may go on reading in the background: see `_FastClient._exchange`.
            content = bytes(body) if self._is_fast else _pieces(body)
            headers["Content-Length"] = str(len(body))
        options: dict[str, Any] = {}
        if self._is_fast:
            # The transport adds up httpx's limits into one for the whole request.
            options["timeout"] = httpx.Timeout(None, read=whole)
        elif body is not None:
            # The kernel buffers megabytes, which then go out slowly.
            options["timeout"] = httpx.Timeout(
                whole, connect=CONNECT_SECONDS, write=request.seconds
            )
        if alarm is not None:
            options["extensions"] = {"trace": alarm.trace}
        try:
            client = self._client_for(request.url)
            sending = client.build_request(
                request.method, request.url, headers=headers, content=content, **options
            )
            response = client.send(sending, stream=True)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, ValueError):
            raise _invalid() from None
        except Exception as error:  # httpx's, and some of pyreqwest's that its adapter passes on
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
    """Ends a request over httpx's own transport after `seconds`. httpx limits each read only, so a
    server that sends a byte now and then could hold a request for ever."""

    def __init__(self, seconds: float) -> None:
        self._connection: socket.socket | None = None
        self._expired = False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> _Alarm:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpx's `trace` extension: receives the events of a request."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._connection = info["return_value"].get_extra_info("socket")
            if self._expired:
                self._expire()

    def _expire(self) -> None:
        self._expired = True
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
    """Yield a body in pieces, without a copy of the whole."""
    view = memoryview(body)
    for at in range(0, len(view), READ_BYTES):
        liveness.note()
        yield bytes(view[at : at + READ_BYTES])


# --- both


def _translated(error: Exception, deadline: float | None) -> TransportError:
    """Translate an exception of a transport; httpx wraps those of its transport. Raises `error`
    itself if it is not from a transport."""
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
    """TLS 1.2 or newer, with certificate and host name verified. The certificates of `roots`, or
    else of `SSL_CERT_FILE` and `SSL_CERT_DIR`, replace the system's. Raises `OSError` if `roots`
    cannot be read."""
    # OpenSSL looks in a directory for names made of hashes only, which mounted files do not have.
    roots = roots or network.openssl_bundle()
    context = ssl.create_default_context(cadata=None if roots is None else _certificates(roots))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _certificates(roots: Path) -> str:
    """The text of a file of PEM certificates; other content is ignored. Raises `OSError`."""
    pem = roots.read_text("ascii", "ignore")
    if not pem:
        raise OSError(f"there is no certificate in {roots}")
    return pem


def with_upload_seconds(seconds: float, body: Buffer | None) -> float:
    """How long a request may take, including the time to send `body`."""
    return seconds + (len(body) / LEAST_BYTES_PER_SECOND if body is not None else 0.0)


def _joined(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for written, value in fields:
        name = written.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def retry_after_seconds(
    headers: Mapping[str, str], now: datetime | None = None, *, at_most: float = math.inf
) -> float | None:
    """The pause that `Retry-After` asks for (a number of seconds, or a date by the server's clock,
    by `now` if it tells none), with up to `JITTER_SECONDS` more; None without one."""
    text, date = headers.get("retry-after", ""), headers.get("date")
    if text.isdecimal() and len(text) <= 6:
        seconds = float(text)
    else:
        try:
            since = now if date is None and now is not None else parsedate_to_datetime(date or "")
            seconds = (parsedate_to_datetime(text) - since).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    if not 0 <= seconds < 10**6:
        return None
    jitter = random.uniform(0, JITTER_SECONDS)  # noqa: S311  (no secret)
    return min(seconds + jitter, at_most)
