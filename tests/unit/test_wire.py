"""Requests over real sockets: what is sent, what passes for an answer, and what does not."""

from __future__ import annotations

import contextlib
import socket
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
    """Gives each connection its own answers, one to a request, and ends it after the last."""

    def __init__(self, *script: list[bytes]) -> None:
        super().__init__()
        self.script = list(script)
        self.requests: list[bytes] = []
        self.connections = 0

    def _serve(self, client: socket.socket) -> None:
        self.connections += 1
        with contextlib.suppress(OSError), client, client.makefile("rb") as asked:
            for answer in self.script.pop(0):
                self.requests.append(self._request(asked))
                client.sendall(answer)

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
    max_bytes: int = 1000, seconds: float | None = None,
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


@pytest.mark.parametrize("first", [WHOLE + b"more", OK + b"Connection: close\r\n" + WHOLE[17:]])
def test_a_connection_that_may_not_go_on_is_not_used_again(http: Wire, first: bytes) -> None:
    with Scripted([first], [WHOLE]) as server:
        assert [ask(http, server).body for _ in range(2)] == [b"body", b"body"]
        assert server.connections == 2


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
    ],
)
def test_what_is_no_http(http: Wire, answer: bytes) -> None:
    with Scripted([answer]) as server, pytest.raises(NoAnswer) as caught:
        ask(http, server)
    assert caught.value.kind == "malformed"


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


class Dripping(Proxy):
    """Sends the body a byte at a time."""

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.recv(1 << 16)
            client.sendall(OK + b"Content-Length: 900\r\n\r\n")
            while True:
                client.sendall(b"x")
                time.sleep(0.01)


def test_what_takes_too_long(http: Wire) -> None:
    with Dripping() as server, pytest.raises(NoAnswer) as caught:
        ask(http, server, seconds=0.1)
    assert caught.value.kind == "too_slow"


def test_what_asks_for_the_end_is_heard_between_pieces() -> None:
    class Ended(Exception):
        pass

    def check() -> None:
        raise Ended

    with Dripping() as server, pytest.raises(Ended):
        ask(Wire(TLS, check=check), server)


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
     "http://h:123456/", "http://%68/", "http://h/#f"],
)  # fmt: skip
def test_what_is_no_url(http: Wire, url: str) -> None:
    with pytest.raises(NoAnswer) as caught:
        http.ask("GET", url, {}, max_bytes=9)
    assert caught.value.kind == "invalid"


def test_no_header_hides_another(http: Wire) -> None:
    with Scripted([WHOLE]) as server, pytest.raises(ValueError, match="control character"):
        http.ask("GET", f"http://{server.address}/", {"A": "b\r\nHost: evil"}, max_bytes=9)
    assert server.requests == []


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
