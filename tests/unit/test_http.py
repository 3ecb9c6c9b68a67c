"""The HTTP port over real sockets, by each transport: what is sent, what passes for an answer, what
does not, and how long it may take."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme

from archiver.core import http as port
from archiver.core.http import (
    HttpClient,
    HttpResponse,
    StreamingResponse,
    TransportError,
    make_client,
)
from archiver.observability import logs
from tests.fakes.traps import (
    CHUNKED,
    OK,
    WHOLE,
    Connection,
    Trap,
    dripping,
    scripted,
    silent,
    slow,
)
from tests.system.tcp_proxy import reset

Make = Callable[..., HttpClient]
Ask = Callable[[HttpClient, str], HttpResponse]

FAST, STANDARD, API = "fast", "standard", "httpx over fast"
KINDS: dict[str, Make] = {
    FAST: lambda **options: make_client("fast", **options),
    STANDARD: lambda **options: make_client("standard", **options),
    API: lambda **options: make_client("fast", over_httpx=True, **options),
}
"""`standard` is httpx, whoever asks."""
MAX_BYTES = 1000


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str) -> Iterator[Make]:
    """Makes clients: `make(silence_seconds=…)`."""
    with contextlib.ExitStack() as stack:

        def made(**options: Any) -> HttpClient:
            client = KINDS[kind](**{"silence_seconds": 5.0, **options})
            stack.callback(client.close)
            return client

        yield made


_SHARED: dict[str, HttpClient] = {}


@pytest.fixture
def http(kind: str, root: Path) -> HttpClient:
    """One that the tests share, because to read a system's roots takes a while."""
    if kind not in _SHARED:
        _SHARED[kind] = KINDS[kind](silence_seconds=5.0, roots=root)
    return _SHARED[kind]


def request(http: HttpClient, url: str) -> HttpResponse:
    return http.request("GET", url, {"X-A": "1"}, max_bytes=MAX_BYTES, seconds=60)


def streamed(http: HttpClient, url: str) -> HttpResponse:
    return http.stream(url, {"X-A": "1"}).read_all(MAX_BYTES)


both_ways = pytest.mark.parametrize("ask", [request, streamed])


def put(
    http: HttpClient, url: str, body: port.Buffer = b"data", seconds: float = 60
) -> HttpResponse:
    return http.request("PUT", url, {}, body, max_bytes=MAX_BYTES, seconds=seconds)


def failure(function: Callable[[], object]) -> TransportError:
    with pytest.raises(TransportError) as caught:
        function()
    return caught.value


# --- what is sent


def sent_by(http: HttpClient, server: Trap, path: str) -> tuple[bytes, dict[bytes, bytes]]:
    """The first line and the headers of a GET's request."""
    http.request("GET", server.url + path[1:], {"X-A": "1"}, max_bytes=MAX_BYTES)
    first, *lines = server.requests[-1].split(b"\r\n")[:-1]
    fields = [line.partition(b": ") for line in lines]
    assert len(fields) == len({name.lower() for name, _, _ in fields}), "none is sent twice"
    return first, {name.lower(): value for name, _, value in fields}


def test_a_get(http: HttpClient) -> None:
    with scripted([WHOLE]) as server:
        first, headers = sent_by(http, server, "/a?b=c")
        assert headers.pop(b"host") == server.address.encode()
    assert first == b"GET /a?b=c HTTP/1.1"
    assert headers.pop(b"x-a") == b"1"
    assert headers.pop(b"accept-encoding", b"identity") == b"identity"
    assert headers.keys() <= {b"accept", b"connection", b"user-agent"}, "and nothing else"


def test_what_is_asked_for_is_not_sent_beside_what_the_library_would_send(http: HttpClient) -> None:
    own = {"User-Agent": "mine", "Accept": "application/json", "Accept-Encoding": "identity"}
    with scripted([WHOLE]) as server:
        http.request("GET", server.url, own, max_bytes=MAX_BYTES)
    sent = server.requests[0].lower()
    for name, value in own.items():
        assert sent.count(f"\r\n{name.lower()}: {value}\r\n".encode()) == 1
        assert sent.count(f"\r\n{name.lower()}:".encode()) == 1


@pytest.mark.parametrize("body", [b"", b"data", bytes(range(256)) * 12_000])
def test_a_put(http: HttpClient, body: bytes) -> None:
    with scripted([WHOLE]) as server:
        assert put(http, server.url, memoryview(body)) == (200, {"content-length": "4"}, b"body")
    [sent] = server.requests
    head = sent.removesuffix(body)
    assert len(sent) == len(head) + len(body)
    assert head.startswith(b"PUT / HTTP/1.1\r\n")
    assert head.count(b"\r\nContent-Length: %d\r\n" % len(body)) == 1
    assert b"ransfer-" not in head, "S3 takes no chunks"


def test_a_head(http: HttpClient) -> None:
    with scripted([OK + b"content-length: 9\r\nETag: x\r\n\r\n", WHOLE], [WHOLE]) as server:
        head = http.request("HEAD", server.url, {}, max_bytes=MAX_BYTES)
        assert head == (200, {"content-length": "9", "etag": "x"}, b"")
        assert put(http, server.url).body == b"body"


@pytest.mark.parametrize(
    "path",
    [
        "/a%2Fc%2fd?d=e",
        "/a//b/",
        "/%41%7e~!$&'()*+,;=:@",
        "/a%20b.wav?sv=2020&sp=r&sig=Ab%2F%2B3%3D",
        "/?",
        "/x?a=b?c/../d",
        "/?a=1&&b",
    ],
)
def test_a_url_is_sent_as_it_is(http: HttpClient, path: str) -> None:
    """A signature stands and falls with it."""
    with scripted([WHOLE]) as server:
        assert sent_by(http, server, path)[0] == b"GET %s HTTP/1.1" % path.encode()


def test_neither_cookies_nor_what_netrc_has_are_sent(
    http: HttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    cookie = OK + b"Set-Cookie: a=b; Path=/\r\nSet-Cookie: c=d\r\nContent-Length: 0\r\n\r\n"
    with scripted([cookie, WHOLE], [WHOLE]) as server:
        assert request(http, server.url).headers["set-cookie"] == "a=b; Path=/, c=d"
        request(http, server.url)
    for sent in filter(None, server.requests):
        assert b"cookie" not in sent.lower()
        assert b"authorization" not in sent.lower()


@both_ways
def test_redirects_are_not_followed(http: HttpClient, ask: Ask) -> None:
    for status in (301, 302, 303, 307, 308):
        answer = b"HTTP/1.1 %d X\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n" % status
        with scripted([answer, WHOLE], [WHOLE]) as server:
            assert ask(http, server.url) == (status, {"location": "/x", "content-length": "0"}, b"")
            assert len(server.requests) == 1


def test_no_header_hides_another(http: HttpClient) -> None:
    for headers in ({"A": "b\r\nHost: evil"}, {"A": "b\nc: d"}, {"A": "\0"}, {"A\r\nb": "c"}):
        with scripted([WHOLE]) as server:
            error = failure(lambda h=headers, s=server: put_with(http, s.url, h))
        assert (error.kind, server.requests) == ("invalid", [])


def put_with(http: HttpClient, url: str, headers: dict[str, str]) -> HttpResponse:
    return http.request("PUT", url, headers, bytearray(9), max_bytes=MAX_BYTES)


@pytest.mark.parametrize("ask", [request, streamed, put])
def test_what_is_no_url(http: HttpClient, ask: Ask) -> None:
    for url in ("ftp://h/", "h", "", "data:x", "http://[::1", "https://"):
        assert failure(lambda u=url: ask(http, u)).kind == "invalid"


# --- answers


IS_WHOLE = {
    "no body": (OK + b"Content-Length: 0\r\n\r\n", b""),
    "chunks": (CHUNKED + b"3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789"),
    "a trailer": (CHUNKED + b"1\r\na\r\n0\r\nTrailer: x\r\n\r\n", b"a"),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\n" + WHOLE,
        b"body",
    ),
    "white space": (OK + b"X: \r\nY:z\t\r\nContent-Length:4 \r\n\r\nbody", b"body"),
    "lines end as Unix's do": (b"HTTP/1.1 200 OK\nContent-Length: 4\n\nbody", b"body"),
    "one length twice": (OK + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody", b"body"),
    "it ends with its connection": (OK + b"\r\nall there is", b"all there is"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nold", b"old"),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold", b"old"),
    "a large header": (OK + b"A: " + b"x" * 60_000 + b"\r\nContent-Length: 1\r\n\r\nx", b"x"),
    # RFC 9112, section 6.3: chunks outweigh a length. Neither transport loses what came, or takes
    # the length for the end.
    "a small length beside chunks": (
        OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n",
        b"abcdef",
    ),
    "a large length beside chunks": (
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n",
        b"abcdef",
    ),
}


@pytest.mark.parametrize("case", IS_WHOLE)
@both_ways
def test_bodies(http: HttpClient, case: str, ask: Ask) -> None:
    answer, body = IS_WHOLE[case]
    with scripted([answer]) as server:
        assert ask(http, server.url)[::2] == (200, body)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified\r\nContent-Length: 4"])
def test_answers_that_have_no_body(http: HttpClient, status: bytes) -> None:
    with scripted([b"HTTP/1.1 " + status + b"\r\n\r\n"]) as server:
        assert request(http, server.url).body == b""


@both_ways
def test_a_content_encoding_is_passed_through(http: HttpClient, ask: Ask) -> None:
    answer = OK + b"Content-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnot gzip"
    with scripted([answer]) as server:
        assert ask(http, server.url).body == b"not gzip"


@pytest.mark.parametrize("name", ["J\u00fcrgen".encode("latin-1"), "J\u00fcrgen \u540d".encode()])
@both_ways
def test_a_name_in_a_header_does_not_make_an_answer_unreadable(
    http: HttpClient, name: bytes, ask: Ask
) -> None:
    """`fast` leaves such a field out."""
    answer = b"HTTP/1.1 200 \xd6K\r\nX-Name: %s\r\nX-Ok: 1\r\nContent-Length: 4\r\n\r\nbody" % name
    with scripted([answer]) as server:
        status, headers, body = ask(http, server.url)
    assert (status, headers["x-ok"], headers["content-length"], body) == (200, "1", "4", b"body")


def test_repeated_headers_are_joined(http: HttpClient) -> None:
    with scripted([OK + b"A: 1\r\nB: 2\r\na: 3\r\nContent-Length: 0\r\n\r\n"]) as server:
        headers = request(http, server.url).headers
    assert headers == {"a": "1, 3", "b": "2", "content-length": "0"}


NO_HTTP = {
    "another protocol": b"SSH-2.0-OpenSSH\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "a short status": b"HTTP/1.1 20\r\n\r\n",
    "digits that are none": b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
    "no colon": OK + b"no colon\r\n\r\n",
    "a blank in a name": OK + b"a b: c\r\n\r\n",
    "a blank behind a name": OK + b"A : b\r\n\r\n",
    "a zero byte": OK + b"A: b\0\r\n\r\n",
    "a zero byte behind blanks": OK + b"A:" + b" " * 1000 + b"\0\r\n\r\n",
    "a negative length": OK + b"Content-Length: -1\r\n\r\n",
    "a length in Python's words": OK + b"Content-Length: 1_0\r\n\r\n0123456789",
    "a length with a sign": OK + b"Content-Length: +4\r\n\r\nbody",
    "a length beyond all": OK + b"Content-Length: 99999999999999999999999\r\n\r\nbody",
    "two lengths": OK + b"Content-Length: 4\r\nContent-Length: 3\r\n\r\nbody",
    "two lengths, the small one first": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nbody",
    "two lengths in one field": OK + b"Content-Length: 4, 3\r\n\r\nbody",
    "no chunk": CHUNKED + b"xyz\r\n",
    "a negative chunk": CHUNKED + b"-1\r\n",
    "a chunk that is longer": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "trailers without end": CHUNKED + b"0\r\n" + b"a: b\r\n" * 50_000,
    "headers without end": OK + b"a: b\r\n" * 50_000,
    "a huge header": OK + b"A: " + b"x" * 2_000_000 + b"\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("case", NO_HTTP)
@both_ways
def test_what_is_no_http(http: HttpClient, case: str, ask: Ask) -> None:
    began = time.monotonic()
    with scripted([NO_HTTP[case]]) as server:
        assert failure(lambda: ask(http, server.url)).kind == "malformed"
    assert time.monotonic() - began < 10, "whatever is sent, it is soon found out"


def test_a_folded_header_is_joined_or_refused(http: HttpClient, kind: str) -> None:
    with scripted([OK + b"A: b\r\n folded\r\nContent-Length: 4\r\n\r\nbody"]) as server:
        if kind == STANDARD:
            assert request(http, server.url).headers["a"] == "b folded"
        else:
            assert failure(lambda: request(http, server.url)).kind == "malformed"


BREAKS = {
    "nothing": (b"", "broken"),
    "half a line": (b"HTT", "broken"),
    "half a head": (OK + b"A: b\r\n", "broken"),
    "half a body": (OK + b"Content-Length: 4\r\n\r\nbod", "truncated"),
    "half a chunk": (CHUNKED + b"4\r\nbod", "truncated"),
    "no last chunk": (CHUNKED + b"4\r\nbody\r\n", "truncated"),
    "half a last chunk": (CHUNKED + b"0\r\n", "truncated"),
    "as long as announced, but for the chunks": (
        OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nbody",
        "truncated",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
@pytest.mark.parametrize("secured", [False, True])
@both_ways
def test_what_breaks_off(http: HttpClient, tls: Any, case: str, ask: Ask, secured: bool) -> None:
    """Over TLS without the notice that belongs to the end of a connection, too."""
    answer, kind = BREAKS[case]
    with scripted([answer], tls=tls[0] if secured else None) as server:
        assert failure(lambda: ask(http, server.url)).kind == kind


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001,
        CHUNKED + b"ffffff\r\n" + b"x" * 100_000,
        OK + b"\r\n" + b"x" * 100_000,
    ],
)
@both_ways
def test_what_is_too_large(http: HttpClient, answer: bytes, ask: Ask) -> None:
    with scripted([answer], ends=answer.startswith(OK + b"\r\n")) as server:
        assert failure(lambda: ask(http, server.url)).kind == "too_large"


@both_ways
def test_a_refusal_may_say_too_much(http: HttpClient, ask: Ask) -> None:
    """What proxies put before a store says it in 100 kB."""
    page = b"HTTP/1.1 403 Forbidden\r\n%s\r\n\r\n" + b"x" * 2000
    chunks = page % b"Transfer-Encoding: chunked"
    answers = (
        [page % b"Content-Length: 2000"],
        [chunks.replace(b"x", b"7d0\r\nx", 1) + b"\r\n0\r\n\r\n"],
    )
    for answer in answers:
        with scripted(answer) as server:
            assert ask(http, server.url)[::2] == (403, b"")


# --- connections


def test_a_connection_is_used_again(http: HttpClient, kind: str) -> None:
    with scripted([WHOLE] * 3, [WHOLE], [WHOLE]) as server:
        for ask in (request, put, request):
            ask(http, server.url)
        assert server.connections == (3 if kind == STANDARD else 1)


def test_so_is_one_whose_body_was_read_to_its_last_byte() -> None:
    http = make_client("fast")
    answer = OK + b"Content-Length: 300000\r\n\r\n" + bytes(300_000)
    with scripted([answer] * 3) as server:
        for _ in range(3):
            stream, view, count = http.stream(server.url, {}), memoryview(bytearray(300_000)), 0
            while count < len(view):
                count += stream.readinto(view[count:])
            stream.close()
        assert server.connections == 1


LEFT_OVER = {
    "bytes": WHOLE + b"more",
    "an empty line": WHOLE + b"\r\n",
    "an answer": WHOLE + WHOLE.replace(b"body", b"odd!"),
    "an answer behind chunks": CHUNKED
    + b"4\r\nbody\r\n0\r\n\r\n"
    + WHOLE.replace(b"body", b"odd!"),
    "an announced end": OK + b"Connection: close\r\n" + WHOLE[len(OK) :],
    "an old protocol": b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody",
}


@pytest.mark.parametrize("case", LEFT_OVER)
@pytest.mark.parametrize("ask", [streamed, put])
@pytest.mark.parametrize("secured", [False, True])
def test_what_comes_behind_an_answer_is_never_the_next_one(
    http: HttpClient, tls: Any, case: str, ask: Ask, secured: bool
) -> None:
    """Over TLS it lies in one record with the answer, where no `poll` sees it."""
    script = [LEFT_OVER[case]], [WHOLE]
    with scripted(*script, ends=False, tls=tls[0] if secured else None) as server:
        for _ in range(2):
            assert ask(http, server.url).body == b"body"
            time.sleep(0.05)
        assert (server.connections, len(list(filter(None, server.requests)))) == (2, 2)


def test_nor_is_it_where_it_comes_late(http: HttpClient) -> None:
    late = threading.Event()

    def serve(trap: Trap, connection: Connection) -> None:
        connection.request()
        connection.send(WHOLE)
        if trap.connections == 1:
            time.sleep(0.05)
            connection.send(WHOLE.replace(b"body", b"odd!"))
            late.set()
            connection.read(1)

    with Trap(serve) as server:
        request(http, server.url)
        late.wait(5)
        time.sleep(0.05)
        assert put(http, server.url).body == b"body"
        assert server.connections == 2


def test_an_idle_connection_that_the_server_closed_is_replaced(http: HttpClient) -> None:
    with scripted([WHOLE], [WHOLE], [WHOLE]) as server:
        for ask in (put, put, request):
            assert ask(http, server.url).body == b"body"
            assert server.ended.acquire(timeout=5)
            time.sleep(0.2)  # the client hears of it on a thread of its own
        assert len(server.requests) == server.connections == 3


def test_one_that_was_idle_for_long_is_not_used_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "IDLE_SECONDS", 0.1)
    http = make()
    with scripted([WHOLE, WHOLE], [WHOLE]) as server:
        put(http, server.url)
        time.sleep(0.3)
        put(http, server.url)
        assert server.connections == 2


def test_threads_share_a_client(http: HttpClient) -> None:
    def serve(_: Trap, connection: Connection) -> None:
        while asked := connection.request():
            body = asked.rpartition(b"\r\n")[2]
            connection.send(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def echo(number: int) -> bool:
        body = b"%d " % number * (1 + number % 200)
        return put(http, server.url, body).body == body

    with Trap(serve) as server, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(echo, range(200)))


def test_requests_that_are_under_way_can_be_aborted() -> None:
    with silent() as server:
        program = (
            "import threading\n"
            "from archiver.core.http import TransportError, abort_requests, make_client\n"
            "client = make_client('fast')\n"
            "threading.Timer(0.3, abort_requests).start()\n"
            f"try: client.request('GET', '{server.url}', {{}}, max_bytes=1)\n"
            "except TransportError as error: print(error.kind)\n"
        )
        assert output_of(program) == "broken\n"


def test_the_main_thread_must_load_the_fast_transport() -> None:
    """Else the process would crash later, when the thread that loaded it had ended."""
    program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from archiver.core.http import make_client\n"
        "print(ThreadPoolExecutor(1).submit(make_client, 'fast').exception())\n"
        "make_client('fast')\n"
        "for _ in range(3): ThreadPoolExecutor(1).submit(make_client, 'fast').result().close()\n"
    )
    assert output_of(program) == "the main thread must make the first HTTP client\n"


def output_of(program: str) -> str:
    run = [sys.executable, "-c", program]
    return subprocess.run(run, check=True, capture_output=True, text=True, timeout=60).stdout


# --- a PUT is sent once


Act = Callable[[Connection], object]
SENT_ONCE: dict[str, Act] = {
    "closed at once": lambda connection: connection.close(),
    "reset at once": lambda connection: reset(connection.socket),
    "closed after the head": lambda connection: connection.head(),
    "reset after the head": lambda connection: (connection.head(), reset(connection.socket)),
    "closed within the body": lambda connection: (connection.head(), connection.read(2)),
    "closed after all": lambda connection: connection.request(),
    "reset after all": lambda connection: (connection.request(), reset(connection.socket)),
    "half an answer": lambda connection: (connection.request(), connection.send(b"HTTP/1.1 2")),
    "no answer": lambda connection: (connection.request(), connection.read(1)),
}


@pytest.mark.parametrize("case", SENT_ONCE)
@pytest.mark.parametrize("size", [4, 5 << 20])
@pytest.mark.parametrize("is_kept", [False, True])
def test_a_put_is_sent_once(
    http: HttpClient, case: str, size: int, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer may be lost: whether it was carried out is for the caller to find out. On a
    connection that was used before, too."""
    monkeypatch.setattr(port, "LEAST_BYTES_PER_SECOND", 16 << 20)

    def serve(trap: Trap, connection: Connection) -> None:
        if is_kept and not trap.requests:
            connection.request()
            connection.send(WHOLE)
        SENT_ONCE[case](connection)

    with Trap(serve) as server:
        if is_kept:
            request(http, server.url)
        seconds = 0.6 if case == "no answer" else 10.0
        error = failure(lambda: put(http, server.url, bytes(size), seconds=seconds))
        time.sleep(0.05)
        puts = [one for one in server.requests if one.startswith(b"PUT ")]
    if case.endswith("at once"):
        assert len(puts) == 0
    else:
        assert len(puts) == 1
        assert error.kind in ("broken", "too_slow"), "it may have happened"


@pytest.mark.parametrize("status", [403, 412])
@pytest.mark.parametrize("end", ["reads on", "closes", "resets"])
def test_an_early_refusal_is_heard(http: HttpClient, status: int, end: str) -> None:
    def serve(_: Trap, connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status)
        if end == "reads on":
            connection.read(5 << 20)
            return
        time.sleep(0.2)  # an end takes back what has not been read
        if end == "resets":
            reset(connection.socket)

    with Trap(serve) as server:
        assert put(http, server.url, bytes(5 << 20)) == (status, {"content-length": "2"}, b"no")


# --- the memory of what is sent


@pytest.mark.parametrize("kind", [FAST, STANDARD])
def test_a_body_is_sent_without_a_copy_of_the_whole(http: HttpClient) -> None:
    body = bytearray(64 << 20)
    with slow(1 << 40) as server:
        put(http, server.url, memoryview(body)[:9])
        Path("/proc/self/clear_refs").write_text("5")
        before = kilobytes("VmRSS")
        put(http, server.url, memoryview(body))
        assert kilobytes("VmHWM") - before < 16 << 10


def kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", 20.0), (WHOLE, 20.0), (b"", 0.2)],
)
def test_its_memory_may_be_used_again(
    http: HttpClient, answer: bytes, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the answer came early, or not at all: `fast` sends the rest in the background."""
    monkeypatch.setattr(port, "LEAST_BYTES_PER_SECOND", 1 << 30)
    got = bytearray()

    def serve(_: Trap, connection: Connection) -> None:
        connection.head()
        connection.send(answer)
        while len(got) < len(body) and (data := connection.read(1 << 16)):
            got.extend(data)
            time.sleep(0.005)

    body = bytearray(8 << 20)
    with Trap(serve, receive_buffer=64 << 10) as server:
        with contextlib.suppress(TransportError):
            put(http, server.url, memoryview(body), seconds=seconds)
        body[:] = b"z" * len(body)
        assert server.ended.acquire(timeout=20)
    assert b"z" not in got


# --- how long it may take


DRIPS = {
    "a body": (OK + b"Content-Length: 900\r\n\r\n", b"x"),
    "a head": (OK + b"A: ", b"x"),
    "interim answers": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "chunks": (CHUNKED, b"1\r\nx\r\n"),
    "a chunk's first line": (CHUNKED + b"1;", b"x"),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n"),
    "what has no length": (OK + b"\r\n", b"x"),
}


@pytest.mark.parametrize("drip", DRIPS)
def test_what_takes_too_long(http: HttpClient, drip: str) -> None:
    began = time.monotonic()
    with dripping(*DRIPS[drip]) as server:
        error = failure(lambda: http.request("GET", server.url, {}, max_bytes=1 << 20, seconds=0.2))
    assert error.kind == "too_slow"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("drip", ["a head", "interim answers"])
def test_so_has_the_head_of_a_streamed_answer(
    make: Make, drip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "ANSWER_SECONDS", 0.3)
    http = make(silence_seconds=0.3)
    began = time.monotonic()
    with dripping(*DRIPS[drip]) as server:
        assert failure(lambda: http.stream(server.url, {})).kind == "broken"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("drip", ["a body", "chunks", "what has no length"])
@pytest.mark.parametrize("kind", [FAST, STANDARD])
def test_a_streamed_body_is_given_as_it_comes(http: HttpClient, drip: str) -> None:
    """Whoever reads it measures its pace, and ends it."""
    with dripping(*DRIPS[drip]) as server:
        began = time.monotonic()
        answer = http.stream(server.url, {})
        counts = [answer.readinto(memoryview(bytearray(1000))) for _ in range(3)]
        answer.close()
    assert time.monotonic() - began < 10
    assert max(counts) < 900


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 ", OK + b"Content-Length: 5\r\n\r\nab"])
def test_a_silent_server_is_given_up(make: Make, begun: bytes, kind: str) -> None:
    http = make(silence_seconds=0.2)
    with silent(begun) as server:
        error = failure(lambda: streamed(http, server.url))
        assert (error.kind, str(error)) == ("broken", "timeout")
        seconds = 0.4 if kind == FAST else 10.0
        error = failure(
            lambda: http.request("GET", server.url, {}, max_bytes=MAX_BYTES, seconds=seconds)
        )
        assert error.kind == ("too_slow" if kind == FAST else "broken")
        assert len(server.requests) == server.connections == 2, "and is not asked again"


@pytest.mark.parametrize("secured", [False, True])
@pytest.mark.parametrize("kind", [FAST, STANDARD])
def test_a_body_may_be_taken_slowly(
    make: Make, tls: Any, root: Path, secured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than silence may last, and than an answer may take."""
    monkeypatch.setattr(port, "LEAST_BYTES_PER_SECOND", 256 << 10)
    http = make(silence_seconds=1.5, roots=root)
    with slow(2 << 20, tls[0] if secured else None) as server:
        began = time.monotonic()
        assert put(http, server.url, bytes(4 << 20), seconds=1.0).body == b"body"
        assert time.monotonic() - began > 1.5


@pytest.mark.parametrize(("rate", "size"), [(0, 16 << 20), (512 << 10, 1 << 20)])
@pytest.mark.parametrize("kind", [FAST, STANDARD])
def test_but_not_more_slowly_than_is_allowed(
    make: Make, rate: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "LEAST_BYTES_PER_SECOND", 4 << 20)
    http = make(silence_seconds=0.5)
    began = time.monotonic()
    with slow(rate) as server:
        assert failure(lambda: put(http, server.url, bytes(size), seconds=0.5)).kind in (
            "broken",
            "too_slow",
        )
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("ask", [request, streamed])
@pytest.mark.parametrize("drip", ["a body", "chunks", "what has no length"])
def test_what_asks_for_the_end_is_heard_between_pieces(make: Make, ask: Ask, drip: str) -> None:
    class Ended(Exception):
        pass

    def check() -> None:
        if asked:
            raise Ended
        asked.append(True)

    asked: list[bool] = []
    head, _ = DRIPS[drip]
    piece = b"1000\r\n" + b"x" * 4096 + b"\r\n" if drip == "chunks" else b"x" * 4096
    with dripping(head.replace(b"900", b"90000000"), piece) as server, pytest.raises(Ended):
        ask(make(check=check), server.url)


def test_it_is_heard_before_anything_is_sent(make: Make) -> None:
    def check() -> None:
        raise InterruptedError

    with scripted([WHOLE]) as server:
        for ask in (request, streamed, put):
            with pytest.raises(InterruptedError):
                ask(make(check=check), server.url)
        assert server.connections == 0


# --- a body that is read as it is wanted


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_any_step_gives_the_whole(http: HttpClient, step: int) -> None:
    body = bytes(range(251)) * 20
    answer = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with scripted([answer] * 2, [answer]) as server:
        stream, buffer, found = http.stream(server.url, {}), memoryview(bytearray(step)), b""
        while count := stream.readinto(buffer):
            found += buffer[:count]
        stream.close()
        assert found == body
        stream = http.stream(server.url, {})
        chunks = list(stream.iter_chunks(step))
        stream.close()
    assert b"".join(chunks) == body
    assert 0 < max(map(len, chunks)) <= step


@pytest.mark.parametrize("count", [1000, 40_000, 400_000])
@pytest.mark.parametrize(
    ("end", "reason"), [(lambda _: None, "truncated"), (reset, "broken")], ids=["end", "reset"]
)
@pytest.mark.parametrize("kind", [FAST, STANDARD])
def test_what_came_before_the_break_is_given_first(
    http: HttpClient, count: int, end: Callable[[socket.socket], object], reason: str
) -> None:
    def serve(_: Trap, connection: Connection) -> None:
        connection.request()
        connection.send(OK + b"Content-Length: 999999\r\n\r\n" + b"x" * count)
        taken.wait(5)  # a reset takes back what has not been read
        end(connection.socket)

    taken = threading.Event()
    with Trap(serve) as server:
        answer: StreamingResponse = http.stream(server.url, {})
        buffer, got = memoryview(bytearray(1 << 20)), 0
        while got < count:
            got += answer.readinto(buffer)
        taken.set()
        error = failure(lambda: answer.readinto(buffer))
        answer.close()
    assert (got, error.kind) == (count, reason)


# --- who is asked: TLS


def context_of(authority: trustme.CA, name: str = "127.0.0.1", **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **options).configure_cert(context)
    return context


@pytest.mark.parametrize("form", ["file", "bundle"])
def test_own_roots(
    make: Make, authority: trustme.CA, root: Path, tmp_path: Path, form: str
) -> None:
    own, other = root.read_bytes(), trustme.CA().cert_pem.bytes()
    roots = root
    if form == "bundle":
        roots = tmp_path / "bundle.pem"
        roots.write_bytes(b"# J\xfcrgen's\n" + other + b"\n# ours\n" + own)
    with scripted([WHOLE], tls=context_of(authority)) as server:
        assert request(make(roots=roots), server.url).body == b"body"


def test_a_root_of_the_environment(
    make: Make, authority: trustme.CA, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    with scripted([WHOLE], tls=context_of(authority)) as server:
        assert request(make(), server.url).body == b"body"


@both_ways
def test_nothing_is_sent_to_whom_is_not_trusted(
    make: Make, authority: trustme.CA, root: Path, tmp_path: Path, ask: Ask
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with scripted([WHOLE], [WHOLE], tls=context_of(authority)) as server:
        for roots in (None, other):
            assert failure(lambda r=roots, s=server: ask(make(roots=r), s.url)).kind == "untrusted"
        assert server.requests == []
    for context in (
        context_of(authority, "example.com"),
        context_of(authority, not_before=YEARS_AGO, not_after=YEARS_AGO.replace(year=2021)),
    ):
        with scripted([WHOLE], tls=context) as server:
            error = failure(lambda s=server: ask(make(roots=root), s.url))
            assert (error.kind, server.requests) == ("untrusted", [])


YEARS_AGO = datetime(2020, 1, 1)  # noqa: DTZ001  (as trustme takes it)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "is_taken"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_old_tls_is_refused(
    make: Make, authority: trustme.CA, root: Path, version: ssl.TLSVersion, is_taken: bool
) -> None:
    context = context_of(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    http = make(roots=root)
    with scripted([WHOLE], tls=context) as server:
        if is_taken:
            assert request(http, server.url).body == b"body"
        else:
            assert failure(lambda: request(http, server.url)).kind == "unconnected"


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        None,
    ],
)
def test_roots_that_are_none(make: Make, tmp_path: Path, content: bytes | None) -> None:
    roots = tmp_path / "roots"
    if content is not None:
        roots.write_bytes(content)
    with pytest.raises(OSError, match=r"certificate|No such file"):
        make(roots=roots)


def test_no_connection(http: HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
    for url in (f"http://127.0.0.1:{number}/", "http://host.invalid/", NAMES % number):
        assert failure(lambda u=url: request(http, u)).kind == "unconnected"


NAMES = "http://127.0.0.1:%d/certificate/chunk"
"""Words that are a library's own in its errors."""


NO_TLS: dict[str, Act] = {
    "closes": lambda connection: connection.read(1),
    "resets": lambda connection: (connection.read(1), reset(connection.socket)),
    "speaks HTTP": lambda connection: (connection.read(1), connection.send(WHOLE)),
}


@pytest.mark.parametrize("case", NO_TLS)
def test_who_speaks_no_tls(http: HttpClient, case: str) -> None:
    def serve(_: Trap, connection: Connection) -> None:
        NO_TLS[case](connection)

    with Trap(serve) as server:
        url = f"https://{server.address}/"
        assert failure(lambda: request(http, url)).kind == "unconnected"


# --- who is asked: proxies


def tunnelling(refuses: bool = False) -> Trap:
    """A proxy: sends on what it is asked for by CONNECT; answers all else itself."""

    def serve(_: Trap, connection: Connection) -> None:
        asked = connection.request()
        if not asked.startswith(b"CONNECT "):
            connection.send(WHOLE.replace(b"body", b"prox"))
            return
        if refuses:
            connection.send(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            return
        host, _, number = asked.split()[1].decode().rpartition(":")
        with socket.create_connection((host, int(number))) as upstream:
            connection.send(b"HTTP/1.1 200 Go on\r\n\r\n")
            back = threading.Thread(target=copied, args=(upstream, connection.socket), daemon=True)
            back.start()
            copied(connection.socket, upstream)
            back.join(5)

    return Trap(serve)


def copied(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the variables of proxies, and no others are set."""
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for name in (*names, *map(str.upper, names)):
        monkeypatch.delenv(name, raising=False)

    def set_to(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_to


@both_ways
def test_a_proxy_tunnels(
    make: Make, tls: Any, root: Path, environment: Callable[..., None], ask: Ask
) -> None:
    with tunnelling() as proxy, scripted([WHOLE], tls=tls[0]) as server:
        environment(HTTPS_PROXY=f"http://{proxy.address}")
        assert ask(make(roots=root), server.url).body == b"body"
        assert proxy.requests[0].startswith(b"CONNECT " + server.address.encode())
        assert b"GET / HTTP/1.1" in server.requests[0]


def test_a_proxy_of_plain_http(make: Make, environment: Callable[..., None]) -> None:
    with tunnelling() as proxy, scripted([WHOLE]) as server:
        environment(HTTP_PROXY=f"http://{proxy.address}", http_proxy=f"http://{proxy.address}")
        assert request(make(), server.url).body == b"prox"
        assert proxy.requests[0].startswith(b"GET " + server.url.encode())
        assert server.connections == 0


@pytest.mark.parametrize("exempt", ["localhost", "example.com,localhost", "*"])
def test_no_proxy_is_heard(
    make: Make, tls: Any, root: Path, environment: Callable[..., None], exempt: str
) -> None:
    environment(HTTPS_PROXY="http://127.0.0.1:1", NO_PROXY=exempt)
    with scripted([WHOLE], tls=tls[0]) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert request(make(roots=root), url).body == b"body"


def test_a_proxy_that_refuses(make: Make, environment: Callable[..., None]) -> None:
    with tunnelling(refuses=True) as proxy:
        environment(HTTPS_PROXY=f"http://{proxy.address}")
        assert failure(lambda: request(make(), "https://host.invalid/")).kind == "unconnected"


# --- secrets


@pytest.fixture
def _restored() -> Iterator[None]:
    """The logs are as they were."""
    base = logging.getLogger()
    before = (base.handlers[:], base.level)
    yield
    structlog.reset_defaults()
    base.handlers[:], base.level = before


@pytest.mark.parametrize("answer", [WHOLE, b"SSH-2.0\r\n\r\n", WHOLE[:-1], b""])
@pytest.mark.usefixtures("_restored")
def test_the_query_of_a_url_is_in_no_message_and_no_log(
    http: HttpClient, answer: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("debug")
    said, secret, script = "", "s3cr3t", [[answer] for _ in range(4)]
    with scripted(*script) as server:
        for url in (server.url, "https://127.0.0.1:1/", "http://host.invalid/", "https://[/"):
            for ask in (request, streamed):
                try:
                    ask(http, f"{url}a.wav?sig={secret}")
                except TransportError as error:
                    said += "".join(traceback.format_exception(error)) + repr(error)
    assert secret not in said + "".join(capfd.readouterr())
