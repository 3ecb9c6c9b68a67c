"""A strict HTTP/1.1 server whose answers can be bent: cut, reset, mislabelled, sent drop by drop.

It decides nothing: one function makes a `Reply` of each `Request`. Every connection has a thread of
its own and is kept alive.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl

ServerName = Literal["api", "blob"]

MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request as it came in.

    `path` and `raw_query` are as sent, still percent-encoded; `headers` ignores case.
    """

    server: ServerName
    method: str
    path: str
    raw_query: str
    headers: Message
    body: bytes

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """The query's parameters, decoded, in their order, repeated ones too."""
        return parse_qsl(self.raw_query, keep_blank_values=True)

    @cached_property
    def query(self) -> dict[str, str]:
        """The query's parameters, decoded; of a repeated one the last."""
        return dict(self.pairs)


@dataclass
class Reply:
    """An answer, and how to bend it.

    `content_length` overrides the true length of `body`. A body that is not `bytes` needs it;
    without it the end of the connection ends the body, or `chunked` does. `close_after` cuts the
    connection after so many bytes of body: 0 is after the headers, -1 before any answer. `reset`
    cuts with a RST.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] = b""
    content_length: int | None = None
    close_after: int | None = None
    reset: bool = False
    chunked: bool = False

    @property
    def declared_length(self) -> int | None:
        """What Content-Length will say; None leaves it out."""
        if self.content_length is None and isinstance(self.body, bytes):
            return len(self.body)
        return self.content_length


class _Cut(Exception):
    """The reply wants the connection to end here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    wbufsize = 1 << 16
    server: BendableServer

    def setup(self) -> None:
        if self.server.tls is not None:
            self.request.settimeout(self.timeout)
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Print nothing: `Platform.requests` has the requests."""

    def __getattr__(self, name: str) -> Callable[[], None]:
        # The base class looks for `do_<METHOD>`. The platform judges every method itself.
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            return self._refuse(411)
        if int(length) > MAX_BODY_BYTES:
            return self._refuse(413)
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(length))
        request = Request(self.server.name, self.command, path, query, self.headers, body)
        try:
            reply = self.server.respond(request)
        except Exception as error:
            # Reported before the connection closes: a test that sees it close can look here.
            self.server.report(f"{self.server.name}: {error!r}")
            self.close_connection = True
            return None
        try:
            self._send(reply)
        except _Cut:
            self._cut(reset=reply.reset)
        return None

    def _refuse(self, status: int) -> None:
        self.close_connection = True
        self.send_error(status)

    def _send(self, reply: Reply) -> None:
        if reply.close_after == -1:
            raise _Cut
        length = reply.declared_length
        has_body = self.command != "HEAD" and reply.status not in (204, 304)
        if has_body and length is None and not reply.chunked:
            self.close_connection = True
        self.send_response_only(reply.status)
        for name, value in {"Server": f"simulated-{self.server.name}", **reply.headers}.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if has_body and self._send_body(reply) != length and length is not None:
            self.close_connection = True

    def _send_body(self, reply: Reply) -> int:
        """Returns how many bytes went out."""
        sent = 0
        whole = isinstance(reply.body, bytes)
        for chunk in [reply.body] if isinstance(reply.body, bytes) else reply.body:
            left = None if reply.close_after is None else reply.close_after - sent
            part = chunk[:left]
            if reply.chunked and part:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            else:
                self.wfile.write(part)
            sent += len(part)
            if left is not None and left <= len(chunk):
                raise _Cut
            if not whole:
                self.wfile.flush()
        if reply.close_after is not None:
            raise _Cut
        if reply.chunked:
            self.wfile.write(b"0\r\n\r\n")
        return sent

    def _cut(self, *, reset: bool) -> None:
        """End the connection in the middle of an answer: with a RST, or with a FIN."""
        self.close_connection = True
        self.wfile.flush()
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # Past the socket object: its close() waits for rfile and wfile, and sends a FIN first.
            os.close(self.connection.detach())


class BendableServer(ThreadingHTTPServer):
    """Listens on `address` at once, answers after `start`; port 0 takes a free one.

    A client that goes away, or fails its TLS handshake, is not an error. `report` is told of
    everything else that breaks a handler: a fake that fails in silence proves nothing.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(
        self,
        name: ServerName,
        address: tuple[str, int],
        respond: Callable[[Request], Reply],
        *,
        tls: ssl.SSLContext | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name: ServerName = name
        self.respond = respond
        self.tls = tls
        self.report = report
        self.open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for this host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def start(self) -> None:
        """Answer from a thread of its own, until `stop`."""
        name = f"simulated-{self.name}"
        threading.Thread(target=self.serve_forever, args=(0.01,), name=name, daemon=True).start()

    def stop(self) -> None:
        """Stop listening and cut every connection, also in the middle of an answer."""
        self.shutdown()
        self.server_close()
        for connection in self.open.copy():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # ssl.SSLError is one, and so is a connection gone
            self.report(f"{self.name}: {error!r}")
