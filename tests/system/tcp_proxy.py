"""A TCP proxy on loopback that breaks connections: it knows bytes, and no protocol."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Self

CHUNK_BYTES = 256 << 10


class Proxy:
    """Listens on loopback, from the start of the `with` block to its end.

    Forwards to `upstream` (`HOST:PORT`), which may be set once it is known. How is a subclass's
    matter: it serves each connection in a thread of its own.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        """`host`: `::1` listens on IPv6."""
        self.upstream = ""
        self._lock = threading.Lock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Until one of the two ends it; `client` is this method's to close."""
        raise NotImplementedError

    def _connect(self) -> socket.socket:
        """A new connection to the server behind."""
        host, _, port = self.upstream.rpartition(":")
        return socket.create_connection((host, int(port)))


def reset(connection: socket.socket) -> None:
    """Have the other side see a reset once this one is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads, whose hold would delay it


class TcpProxy(Proxy):
    """`reset_after`: a connection is reset once it has brought so many bytes. `bytes_per_second`:
    the pace of each. `brought` counts the bytes that clients were sent, `resets` what was broken.
    While `flows` is not set, no byte goes either way, and nobody is told.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        reset_after: int | None = None,
        bytes_per_second: float | None = None,
    ) -> None:
        super().__init__(host)
        self.brought = 0
        self.resets = 0
        self.flows = threading.Event()
        self.flows.set()
        self._reset_after = reset_after
        self._pace = bytes_per_second

    def _serve(self, client: socket.socket) -> None:
        with client, self._connect() as server:
            up = threading.Thread(target=self._copy, args=(client, server), daemon=True)
            up.start()
            with contextlib.suppress(OSError):
                self._bring(server, client)

    def _bring(self, server: socket.socket, client: socket.socket) -> None:
        began, count = time.monotonic(), 0
        while chunk := server.recv(CHUNK_BYTES):
            self.flows.wait()
            left = len(chunk) if self._reset_after is None else self._reset_after - count
            client.sendall(chunk[:left])
            count += len(chunk[:left])
            with self._lock:
                self.brought += len(chunk[:left])
            if left < len(chunk):
                with self._lock:
                    self.resets += 1
                reset(client)
                return
            if self._pace is not None:
                time.sleep(max(0.0, began + count / self._pace - time.monotonic()))
        client.shutdown(socket.SHUT_WR)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                self.flows.wait()
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)
