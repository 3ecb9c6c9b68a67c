"""An HTTP proxy in front of a real server that does harm to chosen requests.

It can fail *before* the server hears of a request and *after* the server has done it, which is
the difference that a create-once store has to live with.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from archiver.core import checksums
from tests.fakes.forwarding import Forwarding, Front, Headers

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


@dataclass
class Fault:
    """Does `harm` to the first `times` requests whose `METHOD /path?query` matches; those that are
    create-once end with ` if-none-match`."""

    harm: Harm
    pattern: str
    times: int = 1
    hits: int = 0


@dataclass
class FaultProxy(Front):
    """`with FaultProxy(upstream) as proxy`: `proxy.url` is what the client is told."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request in `seen`, by their names in small letters."""

    def __post_init__(self) -> None:
        self.handler = _Handler
        self._lock = threading.Lock()

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


class _Handler(Forwarding):
    front: FaultProxy

    def serve(self, body: bytes) -> None:
        once = " if-none-match" if "If-None-Match" in self.headers else ""
        headers = {name.lower(): value for name, value in self.headers.items()}
        harm = self.front.harm_for(f"{self.command} {self.path}{once}", headers)
        if harm == "reset":
            self._reset()
        elif harm in _INSTEAD:
            status, page = _INSTEAD[harm]
            self.answer(status, [("Content-Type", "text/html")], page)
        else:
            self._harm(harm, *self.ask(body))

    def _harm(self, harm: Harm | None, status: int, headers: Headers, data: bytes) -> None:
        """What the server has answered, or something else."""
        if harm == "swallow":
            self.close_connection = True
        elif harm == "reset-after":
            self._reset()
        elif harm == "empty":
            self.answer(200, [], b"")
        elif harm in ("lies of the size", "lies of the bytes"):
            self.answer(status, _untrue(harm, headers), data)
        else:
            self.answer(status, headers, data, cut=len(data) // 2 if harm == "truncate" else None)

    def _reset(self) -> None:
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()


def _untrue(harm: Harm, headers: Headers) -> Headers:
    told = {name.lower(): value for name, value in headers}
    if harm == "lies of the size":
        told["content-length"] = str(int(told["content-length"]) - 1)
    else:
        told["x-amz-checksum-sha256"] = checksums.hex_to_base64(checksums.sha256_hex(b"other"))
    return list(told.items())
