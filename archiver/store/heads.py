"""Answers to boto3 whose head must be whole.

`http.client` takes the end of a connection for the end of an answer's head. So of a head that was
cut short, what is missing was never sent, it seems: a version id, a lock, a length. Here such an
answer is a broken connection, which is asked again.
"""

from __future__ import annotations

from http.client import HTTPResponse, RemoteDisconnected, parse_headers
from typing import IO, Any


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

    def _read_and_discard_trailer(self) -> None:
        """What follows the last chunk: `http.client` would read on without end."""
        lines: Any = _Lines(self.fp)
        parse_headers(lines)
