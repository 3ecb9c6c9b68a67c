"""An HTTP server in front of a real one: what those that judge requests and those that harm them
have in common."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

Headers = list[tuple[str, str]]
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
"""Of one connection each."""


class Front:
    """Serves from the start of the `with` block to its end; `handler` finds it as `self.front`."""

    upstream: str
    handler: type[Forwarding]

    def __enter__(self) -> Self:
        handler = type("Handler", (self.handler,), {"front": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away before it was answered is no news."""


class Forwarding(BaseHTTPRequestHandler):
    """`serve` is told the request's body, and answers; `ask` has the real server answer."""

    front: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def serve(self, body: bytes) -> None:
        raise NotImplementedError

    def ask(self, body: bytes) -> tuple[int, Headers, bytes]:
        """Status, headers and body."""
        connection = http.client.HTTPConnection(urlsplit(self.front.upstream).netloc, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), data

    def answer(self, status: int, headers: Headers, body: bytes, *, cut: int | None = None) -> None:
        """The length is the one among the headers where there is one; of the body no more than
        `cut` bytes are sent, and then nothing."""
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in _HOP:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815
