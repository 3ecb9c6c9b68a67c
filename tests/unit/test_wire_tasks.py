"""The wire under many tasks on one thread: all wait at once, and none for another."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from archiver import hub
from archiver.heads import NoAnswer
from archiver.hub import Hub
from archiver.store.aside import Aside
from archiver.wire import Wire
from tests.system.tcp_proxy import Proxy

TASKS = 8
BODY = secrets.token_bytes(3_000_001)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Together(Proxy):
    """Answers nobody before `count` have asked; then all of them with `BODY`."""

    def __init__(self, count: int, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self.meeting = threading.Barrier(count, timeout=10)
        self.digests: list[str] = []
        self._tls = tls

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client = self._tls.wrap_socket(client, server_side=True) if self._tls else client
            with client, client.makefile("rb") as asked:
                length = 0
                while (line := asked.readline()) not in (b"", b"\r\n"):
                    if line.lower().startswith(b"content-length"):
                        length = int(line.split()[1])
                self.meeting.wait()
                self.digests.append(hashlib.sha256(asked.read(length)).hexdigest())
                client.sendall(OK % len(BODY) + BODY)


class Silent(Proxy):
    """Takes what it is sent and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._clients: list[socket.socket] = []

    def _serve(self, client: socket.socket) -> None:
        self._clients.append(client)
        with contextlib.suppress(OSError), client:
            while client.recv(1 << 16):
                pass

    def hang_up(self) -> None:
        for client in self._clients:
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tasks() -> Iterator[Hub]:
    made = Hub(TASKS)
    yield made
    end = threading.Thread(target=made.shutdown, daemon=True)
    end.start()
    end.join(10)
    assert not end.is_alive()


@pytest.fixture(params=["plain", "TLS"])
def scheme(request: pytest.FixtureRequest) -> str:
    return "http" if request.param == "plain" else "https"


def read(http: Wire, url: str) -> str:
    """The SHA-256 of a body that is read as a recording is."""
    inflow, digest = http.open(url, {}), hashlib.sha256()
    buffer = memoryview(bytearray(256 << 10))
    while count := inflow.readinto(buffer):
        digest.update(buffer[:count])
    inflow.close()
    return digest.hexdigest()


def test_all_tasks_ask_and_read_at_once(
    tasks: Hub, tls: tuple[ssl.SSLContext, ssl.SSLContext], scheme: str
) -> None:
    server, client = tls
    http = Wire(client, silence_seconds=10)
    with Together(TASKS, server if scheme == "https" else None) as place:
        url = f"{scheme}://{place.address}/"
        found = [tasks.submit(read, http, url) for _ in range(TASKS)]
        assert {one.result(20) for one in found} == {hashlib.sha256(BODY).hexdigest()}
    http.close()


def test_all_tasks_send_at_once(
    tasks: Hub, tls: tuple[ssl.SSLContext, ssl.SSLContext], scheme: str
) -> None:
    """No server reads a body before all have begun to send: so each waits with half of it sent."""
    server, client = tls
    http = Wire(client, silence_seconds=10)
    bodies = [secrets.token_bytes(9_000_001) for _ in range(TASKS)]
    with Together(TASKS, server if scheme == "https" else None) as place:
        url = f"{scheme}://{place.address}/"
        found = [
            tasks.submit(http.ask, "PUT", url, {}, body, max_bytes=len(BODY)) for body in bodies
        ]
        assert all(one.result(20).body == BODY for one in found)
        assert sorted(place.digests) == sorted(hashlib.sha256(body).hexdigest() for body in bodies)
    http.close()


class Dripping(Proxy):
    """Answers over TLS, and has the record of the answer come a byte at a time."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__()
        self._tls = tls

    def _serve(self, client: socket.socket) -> None:
        came, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self._tls.wrap_bio(came, sent, server_side=True)
        with contextlib.suppress(OSError), client:
            for step in (server.do_handshake, lambda: server.read(1 << 14)):
                self._until_done(client, came, sent, step)
            server.write(OK % 4000 + b"x" * 4000)
            for byte in sent.read():
                client.sendall(bytes([byte]))
                time.sleep(0.1)

    @staticmethod
    def _until_done(
        client: socket.socket, came: ssl.MemoryBIO, sent: ssl.MemoryBIO, step: Callable[[], object]
    ) -> None:
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                client.sendall(sent.read())
                came.write(client.recv(1 << 14))
            else:
                client.sendall(sent.read())
                return


@pytest.mark.parametrize("as_task", [True, False], ids=["task", "thread"])
def test_a_record_that_comes_in_drops_is_silence(
    tasks: Hub, tls: tuple[ssl.SSLContext, ssl.SSLContext], as_task: bool
) -> None:
    server, client = tls
    http = Wire(client, silence_seconds=0.5)
    with Dripping(server) as place:
        url = f"https://{place.address}/"
        asks = partial(read, http, url)
        if as_task:
            asks = partial(tasks.submit(asks).result, 10)
        with pytest.raises(NoAnswer, match="timeout"):
            asks()
    http.close()


def test_a_handshake_that_stalls_stops_nobody_else(
    tasks: Hub, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server, client = tls
    http = Wire(client)
    with Silent() as silent, Together(1, server) as place:
        stalls = tasks.submit(read, http, f"https://{silent.address}/")
        assert tasks.submit(read, http, f"https://{place.address}/").result(10)
        assert not stalls.done()
        silent.hang_up()
        with pytest.raises(NoAnswer, match="no TLS handshake"):
            stalls.result(10)
    http.close()


def test_what_nobody_takes_is_waited_with_and_costs_nothing(
    tasks: Hub, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """TLS 1.3's tickets lie unread all the while: to wait until there is something to read would be
    no wait."""
    server, client = tls
    http = Wire(client)
    with Together(2, server) as place:
        url = f"https://{place.address}/"
        sends = tasks.submit(http.ask, "PUT", url, {}, bytes(9_000_000), max_bytes=len(BODY))
        time.sleep(0.3)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.2
        assert not sends.done()
        assert tasks.submit(read, http, url).result(10)
        assert sends.result(10).body == BODY
    http.close()


def test_who_reads_without_a_wait_lets_others_on(tasks: Hub) -> None:
    """64 MB come faster than they are hashed here."""
    body = bytes(64_000_000)
    http, naps, done = Wire(None), [0], []

    class Fast(Proxy):
        def _serve(self, client: socket.socket) -> None:
            with contextlib.suppress(OSError), client:
                client.recv(1 << 14)
                client.sendall(OK % len(body))
                client.sendall(body)

    def reads(url: str) -> None:
        inflow, digest = http.open(url, {}), hashlib.md5(usedforsecurity=False)
        buffer = memoryview(bytearray(256 << 10))
        while count := inflow.readinto(buffer):
            digest.update(buffer[:count])
        inflow.close()
        done.append(digest.hexdigest())

    def naps_meanwhile() -> None:
        while not done:
            hub.sleep(0.001)
            naps[0] += 1

    with Fast() as place:
        both = [tasks.submit(naps_meanwhile), tasks.submit(reads, f"http://{place.address}/")]
        for one in both:
            one.result(20)
    assert done == [hashlib.md5(body, usedforsecurity=False).hexdigest()]
    assert naps[0] > 5
    http.close()


def test_a_silent_place_ends_its_own_request_and_no_other(tasks: Hub) -> None:
    http = Wire(None, silence_seconds=0.3)
    with Silent() as silent, Together(1, None) as place:
        waits = tasks.submit(read, http, f"http://{silent.address}/")
        sends = tasks.submit(http.ask, "PUT", f"http://{silent.address}/", {}, b"x", max_bytes=1)
        assert tasks.submit(read, http, f"http://{place.address}/").result(10)
        for one in (waits, sends):
            with pytest.raises(NoAnswer, match="timeout"):
                one.result(10)
    http.close()


def test_botocore_is_asked_beside_the_tasks(tasks: Hub) -> None:
    """Each of its requests ends when all have begun."""
    meeting = threading.Barrier(TASKS, timeout=10)

    class Blocking:
        limit = 7

        def put_object_tagging(self, *, key: int) -> int:
            meeting.wait()
            return key

        def get_object(self) -> dict[str, object]:
            return {"ETag": "x", "Body": self}

        def iter_chunks(self, size: int) -> Iterator[bytes]:
            for _ in range(3):
                meeting.wait()
                yield b"x" * size

        def close(self) -> None:
            pass

    client = Aside(Blocking())
    put = [tasks.submit(client.put_object_tagging, key=n) for n in range(TASKS)]
    assert [one.result(10) for one in put] == list(range(TASKS))
    assert client.limit == 7

    def whole() -> bytes:
        body = client.get_object()["Body"]
        try:
            return b"".join(body.iter_chunks(2))
        finally:
            body.close()

    read_all = [tasks.submit(whole) for _ in range(TASKS)]
    assert {one.result(10) for one in read_all} == {b"xxxxxx"}
