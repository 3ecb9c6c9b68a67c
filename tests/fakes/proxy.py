"""An HTTP proxy in front of a real server that does harm to chosen requests.

It can fail *before* the server hears of a request and *after* the server has done it, which is
the difference that a create-once store has to live with.
"""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

from archiver import fixity

Harm = Literal[
    "swallow",  # the server did it; the answer never arrives
    "reset",  # the connection is reset before the server hears of it
    "reset-after",  # … after the server did it
    "truncate",  # half of the answer's body, then the end
    "unavailable",  # 503 SlowDown, the server hears nothing
    "crowded",  # 429 TooManyRequests, the server hears nothing
    "conflict",  # 409 ConditionalRequestConflict, the server hears nothing
    "damaged",  # 400 BadDigest, the server hears nothing
    "denied",  # 403 AccessDenied, the server hears nothing
    "elsewhere",  # 400 AuthorizationHeaderMalformed, as from another region's S3
    "html",  # 200 with a page of HTML, the server hears nothing
    "empty",  # the server did it, the answer is 200 and empty
    "lies of the size",  # what the server says of an object, but one byte less
    "lies of the bytes",  # … but another checksum
]
_INSTEAD: dict[Harm, tuple[int, bytes]] = {
    "unavailable": (503, b"<Error><Code>SlowDown</Code><Message>Please wait.</Message></Error>"),
    "crowded": (429, b"<Error><Code>TooManyRequests</Code></Error>"),
    "conflict": (409, b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
    "damaged": (400, b"<Error><Code>BadDigest</Code></Error>"),
    "denied": (403, b"<Error><Code>AccessDenied</Code></Error>"),
    "elsewhere": (400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>"),
    "html": (200, b"<!doctype html><title>Sign in</title><p>Welcome to this network.</p>"),
}
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass
class Fault:
    """Does `harm` to the first `times` requests whose `METHOD /path?query` matches; those that are
    create-once end with ` if-none-match`."""

    harm: Harm
    pattern: str
    times: int = 1
    hits: int = 0


@dataclass
class FaultProxy:
    """`with FaultProxy(upstream) as proxy`: `proxy.url` is what the client is told."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request in `seen`, by their names in small letters."""

    def __enter__(self) -> FaultProxy:
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def harming(self, harm: Harm, pattern: str, times: int = 1) -> Iterator[Fault]:
        """Harm while inside; fails where no request came that could be harmed."""
        fault = Fault(harm, pattern, times)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)
        assert fault.hits, f"no request matched {pattern}"

    def harm_for(self, line: str, headers: dict[str, str]) -> Harm | None:
        with self._lock:
            self.seen.append(line)
            self.headers.append(headers)
            for fault in self.faults:
                if fault.hits < fault.times and re.search(fault.pattern, line):
                    fault.hits += 1
                    return fault.harm
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        once = " if-none-match" if "If-None-Match" in self.headers else ""
        headers = {name.lower(): value for name, value in self.headers.items()}
        harm = self.server.proxy.harm_for(f"{self.command} {self.path}{once}", headers)
        if harm == "reset":
            return self._reset()
        if harm in _INSTEAD:
            status, page = _INSTEAD[harm]
            return self._answer(status, [("Content-Type", "text/html")], page)
        return self._forward(body, harm)

    def _forward(self, body: bytes, harm: Harm | None) -> None:
        address = urlsplit(self.server.proxy.upstream)
        connection = http.client.HTTPConnection(address.netloc, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if harm == "swallow":
            self.close_connection = True
        elif harm == "reset-after":
            self._reset()
        elif harm == "empty":
            self._answer(200, [], b"")
        elif harm == "lies of the size":
            length = str(int(answer.headers["Content-Length"]) - 1)
            self._answer(answer.status, answer.getheaders(), b"", length=length)
        elif harm == "lies of the bytes":
            other = ("x-amz-checksum-sha256", fixity.hex_to_base64(fixity.sha256_hex(b"other")))
            told = [pair for pair in answer.getheaders() if pair[0].lower() != other[0]]
            self._answer(
                answer.status, [*told, other], b"", length=answer.headers["Content-Length"]
            )
        else:
            cut = len(data) // 2 if harm == "truncate" else None
            length = answer.headers.get("Content-Length", str(len(data)))
            self._answer(answer.status, answer.getheaders(), data, length=length, cut=cut)

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        length: str | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        self.close_connection = self.close_connection or cut is not None

    def _reset(self) -> None:
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815
