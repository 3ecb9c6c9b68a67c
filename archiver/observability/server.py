"""Serves `/metrics`, `/healthz` and `/readyz` on one port, in threads of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from archiver.core.errors import UsageError
from archiver.observability.metrics import REGISTRY

Check = Callable[[], bool]


class _Server(ThreadingHTTPServer):
    """Listens on IPv6 and IPv4; where the system has no IPv6, on IPv4."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)  # HTTPServer's looks the machine's name up, which may hang


class Telemetry:
    """The server. `/healthz` returns 200 if `alive()` is true, else 503; `/readyz` and `ready()`
    likewise. Both are called on the server's threads."""

    def __init__(self, port: int, alive: Check, ready: Check) -> None:
        """Listen on all addresses of IPv6 and IPv4. Raises `UsageError` if the port cannot be
        listened on."""
        try:
            self._server = _Server(("", port), _handler(alive, ready))
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be listened on ({error.strerror}): set ARCHIVER_METRICS_PORT"
            ) from None
        self.port = self._server.server_address[1]
        # `shutdown` waits for one poll interval, and each command would end so much later.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="telemetry", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(alive: Check, ready: Check) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds: a client that sends nothing must not keep its thread

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(REGISTRY), CONTENT_TYPE_LATEST)
            elif path in ("/healthz", "/readyz"):
                holds = alive() if path == "/healthz" else ready()
                self._answer(200 if holds else 503, b"ok\n" if holds else b"no\n", "text/plain")
            else:
                self._answer(404, b"/metrics, /healthz or /readyz\n", "text/plain")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass  # a line for each probe and scrape would fill the log

    return Handler
