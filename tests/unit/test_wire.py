"""Requests over real sockets: what is sent, what passes for an answer, and what does not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import pytest

from archiver import wire
from archiver.connection import HEAD_BYTES
from archiver.heads import NoAnswer, parse_head
from archiver.tls import client_context
from archiver.wire import TOGETHER_BYTES, Answer, Method, Wire
from tests.system.tcp_proxy import Proxy, reset

OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 4\r\n\r\nbody"
TLS = client_context()


class Scripted(Proxy):
    """Gives each connection its own answers, one to a request. After the last it `ends` the
    connection, or else waits for the client to do so: then nothing but the client's own judgement
    keeps it from being used again, and the test hangs up on it."""

    def __init__(
        self, *script: list[bytes], ends: bool = True, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__()
        self.script = list(script)
        self.requests: list[bytes] = []
        self.connections = 0
        self._ends = ends
        self._tls = tls

    def _serve(self, client: socket.socket) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            client = self._tls.wrap_socket(client, server_side=True) if self._tls else client
            with client, client.makefile("rb") as asked:
                for answer in self.script.pop(0):
                    self.requests.append(self._request(asked))
                    client.sendall(answer)
                if not self._ends and (more := self._request(asked)):
                    self.requests.append(b"unexpected: " + more)

    def _request(self, asked: object) -> bytes:
        lines: list[bytes] = []
        while (line := asked.readline()) not in (b"", b"\r\n"):  # type: ignore[attr-defined]
            lines.append(line)
        length = next((int(x.split()[1]) for x in lines if x.lower().startswith(b"content-l")), 0)
        return b"".join(lines) + asked.read(length)  # type: ignore[attr-defined]


@pytest.fixture
def http() -> Iterator[Wire]:
    made = Wire(TLS, silence_seconds=5)
    yield made
    made.close()


def ask(
    http: Wire, server: Proxy, method: Method = "GET", body: bytes | None = None,
    max_bytes: int = 1000, seconds: float = 30.0,
) -> Answer:  # fmt: skip
    url = f"http://{server.address}/a/../b%2Fc?d=e"
    return http.ask(method, url, {"X-A": "1"}, body, max_bytes=max_bytes, seconds=seconds)


def test_what_goes_over_the_wire(http: Wire) -> None:
    with Scripted([WHOLE, WHOLE, OK + b"content-length: 9\r\nETag: x\r\n\r\n"]) as server:
        assert ask(http, server) == (200, {"content-length": "4"}, b"body")
        ask(http, server, "PUT", b"data")
        head = ask(http, server, "HEAD")
        host = server.address.encode()
    get, put, _ = server.requests
    assert get == b"GET /a/../b%2Fc?d=e HTTP/1.1\r\nHost: " + host + b"\r\nX-A: 1\r\n"
    assert put.endswith(b"\r\nX-A: 1\r\nContent-Length: 4\r\ndata")
    assert head == (200, {"content-length": "9", "etag": "x"}, b"")
    assert server.connections == 1


def test_a_large_body_goes_out_whole(http: Wire) -> None:
    body = bytes(range(256)) * (TOGETHER_BYTES // 256 + 9)
    with Scripted([WHOLE]) as server:
        ask(http, server, "PUT", body)
    assert server.requests[0].endswith(body)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK + b"Content-Length: 0\r\n\r\n", b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\n\r\n",
         b"abc0123456789"),
        (OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\nTrailer: x\r\n\r\n", b"a"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\n" + WHOLE, b"body"),
        (b"HTTP/1.1 204\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", b""),
        (OK + b"Transfer-Encoding: identity\r\nContent-Length: 4\r\n\r\nbody", b"body"),
        (OK + b"X: \r\nY:z\t\r\nContent-Length:4 \r\n\r\nbody", b"body"),
    ],
)  # fmt: skip
def test_bodies(http: Wire, answer: bytes, body: bytes) -> None:
    with Scripted([answer, WHOLE]) as server:
        assert ask(http, server).body == body
        assert ask(http, server).body == b"body"
        assert server.connections == 1


def test_what_ends_with_its_connection(http: Wire) -> None:
    with Scripted([OK + b"\r\nall there is"], [b"HTTP/1.0 200 OK\r\n\r\nold"]) as server:
        assert ask(http, server).body == b"all there is"
        assert ask(http, server).body == b"old"


LEFT_OVER = [
    WHOLE + b"more",
    WHOLE + b"\r\n",
    WHOLE + WHOLE,
    OK + b"Connection: close\r\n" + WHOLE[len(OK) :],
    b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody",
]


@pytest.mark.parametrize("first", LEFT_OVER)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_connection_that_may_not_go_on_is_not_used_again(
    http: Wire, first: bytes, method: Method
) -> None:
    with Scripted([first], [WHOLE], ends=False) as server:
        for _ in range(2):
            assert ask(http, server, method).body == b"body"
            time.sleep(0.05)
        assert (server.connections, len(server.requests)) == (2, 2)


def test_what_came_too_much_may_lie_in_the_last_record_of_a_body(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """There it has been read and deciphered, and no socket tells of it."""
    long = OK + b"Content-Length: 20000\r\n\r\n" + b"x" * 20000
    http = Wire(tls[1], silence_seconds=5)
    with Scripted([long + WHOLE], [WHOLE], ends=False, tls=tls[0]) as server:
        url = f"https://{server.address}/"
        for length in (20000, 4):
            assert len(http.ask("GET", url, {}, max_bytes=1 << 20).body) == length
        assert (server.connections, len(server.requests)) == (2, 2)
    http.close()


@pytest.mark.parametrize("first", LEFT_OVER)
def test_neither_is_one_whose_body_was_read_as_it_was_wanted(http: Wire, first: bytes) -> None:
    with Scripted([first], [WHOLE], ends=False) as server:
        for _ in range(2):
            assert read(http, server, 4) == b"body"
            time.sleep(0.05)
        assert (server.connections, len(server.requests)) == (2, 2)


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_an_answer_that_came_before_its_request_is_none(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], method: Method
) -> None:
    """In one TLS record with the answer before it, where no `poll` sees it."""
    http = Wire(tls[1])
    with Scripted([WHOLE + WHOLE.replace(b"body", b"odd!")], [WHOLE], tls=tls[0]) as server:
        url = f"https://{server.address}/"
        inflow = http.open(url, {})
        assert inflow.readinto(memoryview(bytearray(4))) == 4
        inflow.close()
        assert (
            http.ask(method, url, {}, b"" if method == "PUT" else None, max_bytes=9).body == b"body"
        )
        assert server.connections == 2
    http.close()


def test_without_trust_nothing_goes_to_a_place_with_tls() -> None:
    with Scripted([WHOLE]) as server, pytest.raises(NoAnswer) as caught:
        Wire(None).ask("GET", f"https://{server.address}/", {}, max_bytes=9)
    assert (caught.value.kind, server.connections) == ("untrusted", 0)


def test_over_tls_too(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    http, body = Wire(tls[1]), bytes(range(256)) * 9000
    answer = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with Scripted([WHOLE, answer, WHOLE, answer], tls=tls[0]) as server:
        url = f"https://{server.address}/"
        assert http.ask("PUT", url, {}, body, max_bytes=9).body == b"body"
        assert http.ask("GET", url, {}, max_bytes=len(body)).body == body
        assert http.ask("GET", url, {}, max_bytes=4).status == 200
        inflow, found = http.open(url, {}), bytearray(len(body))
        count = 0
        while got := inflow.readinto(memoryview(found)[count:]):
            count += got
        inflow.close()
        assert found == body
        assert server.requests[0].endswith(body)
        assert server.connections == 1
    http.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"a b: c\r\n\r\n",
        OK + b"A : b\r\n\r\n",
        OK + b"A: b\r\n folded\r\n\r\n",
        OK + b"A: b\nContent-Length: 3\r\n\r\nabc",
        OK + b"A: b\0\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 1_0\r\n\r\n",
        OK + b"Content-Length: +4\r\n\r\nbody",
        OK + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
        OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * (HEAD_BYTES // 3),
        OK + b"a: b\r\n" * (HEAD_BYTES // 3),
        OK + b"a" * (2 * HEAD_BYTES),
        OK + b"A:" + b" " * 60_000 + b"\0\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * (HEAD_BYTES // 9),
    ],
)
def test_what_is_no_http(http: Wire, answer: bytes) -> None:
    began = time.monotonic()
    with Scripted([answer]) as server, pytest.raises(NoAnswer) as caught:
        ask(http, server)
    assert caught.value.kind == "malformed"
    assert time.monotonic() - began < 5, "whatever is sent, it is soon found out"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTT", "broken"),
        (OK + b"A: b\r\n", "broken"),
        (OK + b"Content-Length: 4\r\n\r\nbod", "truncated"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbod", "truncated"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n", "broken"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", "broken"),
    ],
)
def test_what_breaks_off(http: Wire, answer: bytes, kind: str) -> None:
    with Scripted([answer]) as server, pytest.raises(NoAnswer) as caught:
        ask(http, server)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001,
        OK + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        OK + b"\r\n" + b"x" * 100_000,
    ],
)
def test_what_is_too_large(http: Wire, answer: bytes) -> None:
    with Scripted([answer]) as server, pytest.raises(NoAnswer) as caught:
        ask(http, server)
    assert caught.value.kind == "too_large"


def test_a_refusal_may_say_too_much(http: Wire) -> None:
    """What proxies put before a store says it in 100 kB."""
    page = b"HTTP/1.1 403 Forbidden\r\n%s\r\n\r\n" + b"x" * 2000
    chunks = page % b"Transfer-Encoding: chunked"
    with Scripted(
        [page % b"Content-Length: 2000"], [chunks.replace(b"x", b"7d0\r\nx", 1)]
    ) as server:
        for _ in range(2):
            assert ask(http, server)[::2] == (403, b"")
        assert server.connections == 2


class Dripping(Proxy):
    """Sends `head`, then `drop` again and again."""

    def __init__(self, head: bytes, drop: bytes) -> None:
        super().__init__()
        self._head, self._drop = head, drop

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.recv(1 << 16)
            client.sendall(self._head)
            while True:
                client.sendall(self._drop)
                time.sleep(0.01)


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "body": (OK + b"Content-Length: 900\r\n\r\n", b"x"),
    "head": (OK + b"A: ", b"x"),
    "interim heads": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "chunks": (CHUNKED, b"1\r\nx\r\n"),
    "a chunk's first line": (CHUNKED + b"1;", b"x"),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n"),
    "what has no length": (OK + b"\r\n", b"x"),
}


@pytest.mark.parametrize("drip", DRIPS)
def test_what_takes_too_long(http: Wire, drip: str) -> None:
    with Dripping(*DRIPS[drip]) as server, pytest.raises(NoAnswer) as caught:
        ask(http, server, seconds=0.1, max_bytes=1 << 20)
    assert caught.value.kind == "too_slow"


@pytest.mark.parametrize("drip", ["head", "interim heads"])
def test_so_has_the_head_of_what_is_read_as_it_is_wanted(
    http: Wire, drip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "ANSWER_SECONDS", 0.1)
    with Dripping(*DRIPS[drip]) as server, pytest.raises(NoAnswer) as caught:
        http.open(f"http://{server.address}/", {})
    assert caught.value.kind == "too_slow"


@pytest.mark.parametrize("drip", DRIPS)
def test_what_asks_for_the_end_is_heard_between_pieces(drip: str) -> None:
    class Ended(Exception):
        pass

    def check() -> None:
        raise Ended

    with Dripping(*DRIPS[drip]) as server, pytest.raises(Ended):
        ask(Wire(TLS, check=check), server)


def test_who_takes_a_body_too_slowly_is_given_up() -> None:
    class Stuck(Proxy):
        def _serve(self, client: socket.socket) -> None:
            time.sleep(5)
            client.close()

    began = time.monotonic()
    with Stuck() as server, pytest.raises(NoAnswer, match="timeout") as caught:
        ask(Wire(TLS, silence_seconds=0.2), server, "PUT", bytes(32 << 20))
    assert caught.value.kind == "broken"
    assert time.monotonic() - began < 4


class Silent(Proxy):
    """Begins an answer, and says no more."""

    connections = 0

    def _serve(self, client: socket.socket) -> None:
        self.connections += 1
        with contextlib.suppress(OSError), client:
            client.recv(1 << 16)
            client.sendall(b"HTTP/1.1 ")
            client.recv(1)


def test_a_silent_server_is_given_up() -> None:
    with Silent() as server:
        with pytest.raises(NoAnswer, match="timeout") as caught:
            ask(Wire(TLS, silence_seconds=0.1), server)
        assert (caught.value.kind, server.connections) == ("broken", 1)


# --- kept connections


def test_a_get_is_not_sent_again_after_a_timeout() -> None:
    with Scripted([WHOLE, b""], [WHOLE], ends=False) as server:
        http = Wire(TLS, silence_seconds=0.2)
        ask(http, server)
        with pytest.raises(NoAnswer, match="timeout"):
            ask(http, server)
        assert server.connections == 1


def test_nor_after_half_an_answer(http: Wire) -> None:
    with Scripted([WHOLE, b"HTTP/1.1 2"], [WHOLE]) as server:
        ask(http, server)
        with pytest.raises(NoAnswer, match="broke off"):
            ask(http, server)
        assert server.connections == 1


def test_a_dead_one_is_no_failure_of_a_get(http: Wire) -> None:
    with Scripted([WHOLE], [WHOLE]) as server:
        assert [ask(http, server).body for _ in range(2)] == [b"body", b"body"]
        assert server.connections == 2


def test_a_put_is_sent_once(http: Wire) -> None:
    """Its answer may be lost: whether it was carried out is for the caller to find out."""

    class Swallowing(Scripted):
        def _serve(self, client: socket.socket) -> None:
            with contextlib.suppress(OSError), client, client.makefile("rb") as asked:
                self.requests.append(self._request(asked))
                client.sendall(WHOLE)
                self.requests.append(self._request(asked))

    with Swallowing() as server:
        ask(http, server, "PUT", b"1")
        with pytest.raises(NoAnswer) as caught:
            ask(http, server, "PUT", b"2")
        assert caught.value.kind == "broken"
        assert [one[-1:] for one in server.requests] == [b"1", b"2"]


def test_a_put_finds_out_that_one_is_dead(http: Wire) -> None:
    with Scripted([WHOLE], [WHOLE]) as server:
        ask(http, server, "PUT", b"1")
        time.sleep(0.1)
        ask(http, server, "PUT", b"2")
        assert len(server.requests) == server.connections == 2


def test_one_that_was_idle_is_closed(http: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "IDLE_SECONDS", -1.0)
    with Scripted([WHOLE], [WHOLE]) as server:
        ask(http, server)
        ask(http, server)
        assert server.connections == 2


def test_who_refuses_a_body_before_its_end_is_heard(http: Wire) -> None:
    class Refusing(Proxy):
        def _serve(self, client: socket.socket) -> None:
            with contextlib.suppress(OSError), client:
                client.recv(1000)
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 20):
                    pass

    with Refusing() as server:
        assert ask(http, server, "PUT", bytes(8 << 20)).status == 403


def test_no_connection(http: Wire) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", "http://host.invalid/"):
        with pytest.raises(NoAnswer) as caught:
            http.ask("GET", url, {}, max_bytes=9)
        assert caught.value.kind == "unconnected"


@pytest.mark.parametrize(
    "url",
    ["ftp://h/", "http:///x", "http://u@h/", "http://h\\@e/", "http://h/ x", "http://h/\n", "h",
     "http://h:123456/", "http://h:65536/", "http://%68/", "http://h/#f", "http://h/\u00fc"],
)  # fmt: skip
def test_what_is_no_url(http: Wire, url: str) -> None:
    with pytest.raises(NoAnswer) as caught:
        http.ask("GET", url, {}, max_bytes=9)
    assert caught.value.kind == "invalid"


def test_no_header_hides_another(http: Wire) -> None:
    for value in ("b\r\nHost: evil", "b\nHost: evil", "\u00fc", "\0"):
        with Scripted([WHOLE]) as server, pytest.raises(NoAnswer) as caught:
            http.ask("GET", f"http://{server.address}/", {"A": value}, max_bytes=9)
        assert (caught.value.kind, server.requests) == ("invalid", [])


def test_repeated_headers_are_joined() -> None:
    head = parse_head("HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\na: 3")
    assert head == (200, {"a": "1, 3", "b": "2"}, True)


# --- a body that is read as it is wanted


def read(http: Wire, server: Proxy, step: int) -> bytes:
    inflow = http.open(f"http://{server.address}/", {})
    buffer, found = memoryview(bytearray(step)), b""
    try:
        while count := inflow.readinto(buffer):
            found += buffer[:count]
        return found
    finally:
        inflow.close()


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_any_step_gives_the_whole(http: Wire, step: int) -> None:
    body = bytes(range(251)) * 20
    answer = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with Scripted([answer, answer]) as server:
        assert read(http, server, step) == read(http, server, step) == body
        assert server.connections == 1


def test_a_connection_that_will_end_brings_a_whole_body(http: Wire) -> None:
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody"
    with Scripted([answer], [answer]) as server:
        assert [read(http, server, 9) for _ in range(2)] == [b"body", b"body"]


@pytest.mark.parametrize(
    ("end", "kind"), [(lambda _: None, "truncated"), (reset, "broken")], ids=["end", "reset"]
)
def test_what_came_before_the_break_is_given_first(
    http: Wire, end: Callable[[socket.socket], object], kind: str
) -> None:
    class Breaking(Proxy):
        def _serve(self, client: socket.socket) -> None:
            client.recv(1 << 16)
            client.sendall(OK + b"Content-Length: 99999\r\n\r\n" + b"x" * 40_000)
            time.sleep(0.1)  # a reset takes back what has not been read
            end(client)
            client.close()

    with Breaking() as server:
        inflow = http.open(f"http://{server.address}/", {})
        buffer, count = memoryview(bytearray(1 << 20)), 0
        while count < 40_000:
            count += inflow.readinto(buffer)
        with pytest.raises(NoAnswer) as caught:
            inflow.readinto(buffer)
        inflow.close()
    assert (count, caught.value.kind) == (40_000, kind)


def test_a_body_without_a_length_is_refused(http: Wire) -> None:
    answer = OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    with Scripted([answer]) as server, pytest.raises(NoAnswer) as caught:
        read(http, server, 9)
    assert caught.value.kind == "malformed"
