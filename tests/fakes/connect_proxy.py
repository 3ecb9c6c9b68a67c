"""A forwarding proxy as companies have them: CONNECT only, with a password if one is set."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading

from tests.system.tcp_proxy import Proxy


class ConnectProxy(Proxy):
    """`tunnels` has each host and port that a tunnel was made to, in their order; `refused` counts
    the requests that were none, or had no or another password."""

    def __init__(self, userinfo: str = "") -> None:
        """`userinfo`: `name:password`, not percent-encoded."""
        super().__init__()
        self.tunnels: list[str] = []
        self.refused = 0
        self._wanted = f"Basic {base64.b64encode(userinfo.encode()).decode()}" if userinfo else None

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            method, target, given = self._asked(client)
            if method != "CONNECT" or given != self._wanted:
                with self._lock:
                    self.refused += 1
                status = "405 No" if method != "CONNECT" else "407 No"
                client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
                return
            host, _, port = target.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port))) as server:
                with self._lock:
                    self.tunnels.append(target)
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                back = threading.Thread(target=copy, args=(server, client), daemon=True)
                back.start()
                copy(client, server)
                back.join()

    def _asked(self, client: socket.socket) -> tuple[str, str, str | None]:
        """Method, target and the value of Proxy-Authorization."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := client.recv(1)):
                raise ValueError("a request that is cut")
            head += byte
        first, *fields = head.decode("ascii").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in fields)
        }
        return method, target, headers.get("proxy-authorization")


def copy(source: socket.socket, target: socket.socket) -> None:
    """Bytes one way, until one of the two ends it."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
