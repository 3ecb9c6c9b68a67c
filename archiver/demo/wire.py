"""A small, strict HTTP/1.1 server whose answers can be bent: cut, reset, mislabelled, drip-fed.

One thread per connection, connections kept alive. What a request is answered with is decided by
one function from `Request` to `Reply`, so that everything about the wire stays in this module.
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

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The query's parameters, decoded, in their order, repeated ones too."""
        return parse_qsl(self.raw_query, keep_blank_values=True)

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters, decoded; of a repeated one the last."""
        return dict(self.pairs)


@dataclass
class Reply:
    """An answer, and how to bend it.

    `content_length` overrides the honest length of `body`; a body that is no `bytes` needs it, or
    else goes out delimited by the end of the connection, or `chunked`. `close_after` cuts the
    connection after so many bytes of body, 0 is after the headers and -1 is before any answer;
    `reset` cuts with a RST.
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
    """The reply asks for the connection to end here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    wbufsize = 1 << 16
    server: WireServer

    def setup(self) -> None:
        if self.server.tls is not None:
            self.request.settimeout(self.timeout)
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()
        self.server.track(self.connection)

    def finish(self) -> None:
        self.server.forget(self.connection)
        with contextlib.suppress(OSError):
            super().finish()
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing: who runs this reads `Platform.requests`."""

    def version_string(self) -> str:
        return f"simulated-{self.server.name}"

    def _serve(self) -> None:
        body = self._read_body()
        if body is None:
            return
        path, _, query = self.path.partition("?")
        message = Request(self.server.name, self.command, path, query, self.headers, body)
        try:
            reply = self.server.respond(message)
        except Exception as error:
            # Said before the connection closes: who sees it close can look here.
            self.server.broken(f"{self.server.name}: {error!r}")
            self.close_connection = True
            return
        try:
            self._send(reply)
        except _Cut:
            self._cut(reset=reply.reset)

    def __getattr__(self, name: str) -> Callable[[], None]:
        # The base class looks for `do_<METHOD>`; whatever the method, it is ours to judge.
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _read_body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            self.send_error(411)
        elif int(length) > MAX_BODY_BYTES:
            self.send_error(413)
        else:
            return self.rfile.read(int(length))
        self.close_connection = True
        return None

    def _send(self, reply: Reply) -> None:
        if reply.close_after is not None and reply.close_after < 0:
            raise _Cut
        length = reply.declared_length
        if self.command == "HEAD" or reply.status in (204, 304):
            self._send_head(reply, length)
            return
        if length is None and not reply.chunked:
            self.close_connection = True
        self._send_head(reply, length)
        sent = self._send_body(reply)
        if length is not None and sent != length:
            self.close_connection = True

    def _send_head(self, reply: Reply, length: int | None) -> None:
        self.send_response_only(reply.status)
        for name, value in {"Server": self.version_string(), **reply.headers}.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _send_body(self, reply: Reply) -> int:
        sent = 0
        drip = not isinstance(reply.body, bytes)
        for chunk in [reply.body] if isinstance(reply.body, bytes) else reply.body:
            left = None if reply.close_after is None else reply.close_after - sent
            part = chunk[:left] if left is not None else chunk
            self._write(part, chunked=reply.chunked)
            sent += len(part)
            if left is not None and left <= len(chunk):
                raise _Cut
            if drip:
                self.wfile.flush()
        if reply.close_after is not None:
            raise _Cut
        if reply.chunked:
            self.wfile.write(b"0\r\n\r\n")
        return sent

    def _write(self, part: bytes, *, chunked: bool) -> None:
        if not chunked:
            self.wfile.write(part)
        elif part:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))

    def _cut(self, *, reset: bool) -> None:
        """End the connection under the client: by RST, or orderly but too early."""
        self.close_connection = True
        self.wfile.flush()
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # Past the socket object: its close() waits for rfile and wfile, and sends a FIN first.
            os.close(self.connection.detach())


class WireServer(ThreadingHTTPServer):
    """Listens on `(host, port)` at once, answers after `start`; port 0 takes a free one.

    A client that goes away, or fails its TLS handshake, is not an error. Anything else that breaks
    a handler goes to `broken`, because a fake that fails silently proves nothing.
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
        broken: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name: ServerName = name
        self.respond = respond
        self.tls = tls
        self.broken = broken
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    @property
    def port(self) -> int:
        return self.server_port

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for this host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def start(self) -> None:
        """Answer from a thread of its own, until `stop`."""
        threading.Thread(
            target=self.serve_forever, args=(0.01,), name=f"simulated-{self.name}", daemon=True
        ).start()

    def stop(self) -> None:
        """Stop listening and cut every connection, also in the middle of an answer."""
        self.shutdown()
        self.server_close()
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def track(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # ssl.SSLError is one, and so is a connection gone
            self.broken(f"{self.name}: {error!r}")
