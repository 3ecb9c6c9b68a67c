"""A TCP proxy on loopback that breaks connections: it knows bytes, and no protocol."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Self

CHUNK_BYTES = 256 << 10


class TcpProxy:
    """Forwards to `upstream`, which may be set once it is known.

    `reset_after`: a connection is reset once it has brought so many bytes. `bytes_per_second`: the
    pace of each. `brought` counts the bytes that clients were sent, `resets` what was broken.
    """

    def __init__(self, *, reset_after: int | None, bytes_per_second: float | None = None) -> None:
        self.upstream = ""
        self.brought = 0
        self.resets = 0
        self._reset_after = reset_after
        self._pace = bytes_per_second
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        host, _, port = self.upstream.rpartition(":")
        with client, socket.create_connection((host, int(port))) as server:
            up = threading.Thread(target=_copy, args=(client, server), daemon=True)
            up.start()
            with contextlib.suppress(OSError):
                self._bring(server, client)

    def _bring(self, server: socket.socket, client: socket.socket) -> None:
        began, count = time.monotonic(), 0
        while chunk := server.recv(CHUNK_BYTES):
            left = len(chunk) if self._reset_after is None else self._reset_after - count
            client.sendall(chunk[:left])
            count += len(chunk[:left])
            with self._lock:
                self.brought += len(chunk[:left])
            if left < len(chunk):
                self._reset(client)
                return
            if self._pace is not None:
                time.sleep(max(0.0, began + count / self._pace - time.monotonic()))
        client.shutdown(socket.SHUT_WR)

    def _reset(self, client: socket.socket) -> None:
        with self._lock:
            self.resets += 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.shutdown(socket.SHUT_RD)  # wakes the other thread, whose hold would delay the reset


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
