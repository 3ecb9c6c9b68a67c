"""Small HTTP servers on loopback that misbehave, byte for byte: traps for an HTTP client."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Self

from tests.system.tcp_proxy import Proxy

OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 4\r\n\r\nbody"
LAST = OK + b"Content-Length: 4\r\nConnection: close\r\n\r\nbody"
"""As `WHOLE`, and says that the connection ends: else a client may send on it as it is closed."""
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Connection:
    """One connection of a client, as its server has it. Each request that is read is added to
    `requests`."""

    def __init__(self, connected: socket.socket, requests: list[bytes]) -> None:
        self.socket = connected
        self._file = connected.makefile("rb")
        self._requests = requests

    def request(self) -> bytes:
        """The next one, without the empty line; empty where none comes."""
        lines = self._lines()
        if b"100-continue" in b"".join(lines):
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = next((int(x.split()[1]) for x in lines if x.lower().startswith(b"content-l")), 0)
        return self._noted(b"".join(lines) + self._file.read(length))

    def head(self) -> bytes:
        """As `request`, with the body left unread."""
        return self._noted(b"".join(self._lines()))

    def _lines(self) -> list[bytes]:
        lines: list[bytes] = []
        while (line := self._file.readline()) not in (b"", b"\r\n"):
            lines.append(line)
        return lines

    def _noted(self, request: bytes) -> bytes:
        if request:
            self._requests.append(request)
        return request

    def read(self, count: int) -> bytes:
        """So many bytes, fewer at the end."""
        return self._file.read(count)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self._file.close()
        self.socket.close()


class Trap(Proxy):
    """Serves each connection by `serve`, and closes it then. `connections` counts them."""

    def __init__(
        self,
        serve: Callable[[Self, Connection], None],
        *,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__()
        self.connections = 0
        self.requests: list[bytes] = []
        self.ended = threading.Semaphore(0)
        """Released once for each connection that has ended."""
        self._serve_one = serve
        self._tls = tls
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://{self.address}/"

    def _serve(self, client: socket.socket) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, ValueError), client:
            connected = self._tls.wrap_socket(client, server_side=True) if self._tls else client
            connection = Connection(connected, self.requests)
            try:
                self._serve_one(self, connection)
            finally:
                connection.close()
        self.ended.release()


def scripted(*script: list[bytes], ends: bool = True, tls: ssl.SSLContext | None = None) -> Trap:
    """Gives each connection its own answers, one to a request. After the last it `ends` the
    connection, or else waits for the client to do so: then nothing but the client's own judgement
    keeps it from being used again."""
    answers = list(script)

    def serve(_: Trap, connection: Connection) -> None:
        for answer in answers.pop(0):
            connection.request()
            connection.send(answer)
        if not ends:
            connection.request()

    return Trap(serve, tls=tls)


def answering(answer: bytes) -> Trap:
    """Gives every request the same answer."""

    def serve(_: Trap, connection: Connection) -> None:
        while connection.request():
            connection.send(answer)

    return Trap(serve)


def dripping(head: bytes, drop: bytes) -> Trap:
    """Sends `head`, then `drop` again and again."""

    def serve(_: Trap, connection: Connection) -> None:
        connection.head()
        connection.send(head)
        while True:
            connection.send(drop)
            time.sleep(0.01)

    return Trap(serve)


def silent(begun: bytes = b"") -> Trap:
    """Begins an answer, and says no more."""

    def serve(_: Trap, connection: Connection) -> None:
        connection.head()
        connection.send(begun)
        connection.read(1)

    return Trap(serve)


def slow(bytes_per_second: int, tls: ssl.SSLContext | None = None) -> Trap:
    """Takes a request's body so fast; not at all where that is 0."""

    def serve(_: Trap, connection: Connection) -> None:
        head = connection.head()
        if not bytes_per_second:
            time.sleep(10)
            return
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        began, count = time.monotonic(), 0
        while count < length:
            count += len(connection.read(min(32 << 10, length - count)))
            time.sleep(max(0.0, began + count / bytes_per_second - time.monotonic()))
        connection.send(LAST)

    return Trap(serve, tls=tls, receive_buffer=64 << 10)
