"""Answers over HTTP whose head must be whole, and the connections that bring them.

`http.client` takes the end of a connection for the end of an answer's head. So of a head that was
cut short, what is missing was never sent, it seems: a version id, a lock, a length. Here such an
answer is a broken connection, which is asked again.

A connection that has lain idle is not used again: what stands between may have forgotten it without
a word, and nobody would know before the timeout.
"""

from __future__ import annotations

import math
import ssl
import time
from http.client import HTTPResponse, RemoteDisconnected, parse_headers
from typing import IO, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NewConnectionError

IDLE_SECONDS = 30.0


class _Lines:
    """A stream whose lines must not end before the head does."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readline(self, limit: int = -1) -> bytes:
        line = self._stream.readline(limit)
        if not line:
            raise RemoteDisconnected("the connection ended within an answer's head")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class WholeHead(HTTPResponse):
    """For a connection's `response_class`."""

    def begin(self) -> None:
        stream: Any = self.fp
        lines: Any = _Lines(stream)
        if getattr(self, "headers", None) is None:
            self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:
                self.fp = stream

    def readinto1(self, buffer: Any) -> int:
        """What is there of the body, as much as one read of the socket gives, without a copy."""
        if self.length is None or self.isclosed():
            return super().readinto1(buffer)
        count = int(self.fp.readinto1(memoryview(buffer)[: self.length]))
        self.length -= count
        if not self.length:
            self.close()
        return count

    def _read_and_discard_trailer(self) -> None:
        """What follows the last chunk: `http.client` would read on without end."""
        lines: Any = _Lines(self.fp)
        parse_headers(lines)


class _Connection(HTTPConnection):
    response_class = WholeHead
    idle_since = math.inf


class _TlsConnection(HTTPSConnection):
    response_class = WholeHead
    idle_since = math.inf

    def connect(self) -> None:
        """Without a handshake there is no connection; of what breaks off, urllib3 tells the same
        before it and after it."""
        try:
            super().connect()
        except ssl.SSLError:
            raise
        except OSError as error:
            raise NewConnectionError(self, f"no TLS handshake: {error}") from error


class _Fresh:
    """For a pool: connects anew in place of a connection that was idle for too long."""

    def _put_conn(self, connection: Any) -> None:
        if connection is not None:
            connection.idle_since = time.monotonic()
        super()._put_conn(connection)  # type: ignore[misc]

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]
        if time.monotonic() - connection.idle_since > IDLE_SECONDS:
            connection.close()
        return connection


class _Pool(_Fresh, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(_Fresh, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def receive(response: urllib3.BaseHTTPResponse, buffer: memoryview) -> int:
    """Bytes of an answer's body that are there, straight into `buffer`; 0 at its end.

    urllib3 has no such thing: its `read1` takes three times the CPU time. The answer has a length
    and no encoding, and nobody else has read of it.
    """
    return int(response._fp.readinto1(buffer))  # type: ignore[attr-defined]


POOLS: dict[str, type[HTTPConnectionPool]] = {"http": _Pool, "https": _TlsPool}
"""For urllib3, by scheme."""
