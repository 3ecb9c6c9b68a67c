"""HTTP/1.1, as much of it as an archiver needs: requests on connections that are kept.

The libraries' clients take three to fifteen times as long for a small request, all of it under the
interpreter's lock, for which the other workers queue (docs/adr/0014-a-wire-of-our-own.md). What is
fixed here, for everybody:

- Nothing is sent but what was asked for: no credentials, cookies, proxies or `.netrc`; a redirect
  is an answer. The path goes over the wire as it is given, and bodies come as they were sent.
- A head that is cut short is no answer, neither is a body that is shorter than announced. Heads
  and trailers have an end, and what two readers could take for two different things is refused:
  folded lines, two lengths, a length beside chunks (RFC 9112, sections 5 and 6).
- A PUT is sent once: who wants that asks again. GET and HEAD are sent once more where a kept
  connection turns out to be dead before it brought anything.
- A kept connection is not used again once anything has come on it: that is no answer to a request
  which was not sent yet. Neither is one that has lain idle: what stands between may have forgotten
  it without a word, and nobody would know before the timeout.
"""

from __future__ import annotations

import re
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from archiver.connection import Connection, Pace, Place
from archiver.fixity import Buffer
from archiver.heads import Head, NoAnswer

SILENCE_SECONDS = 30.0
"""A request on whose connection nothing moves for so long has failed."""
ANSWER_SECONDS = 120.0
"""So long after a request was sent its answer is all there, or its head where more is read as it is
wanted."""
IDLE_SECONDS = 30.0
TOGETHER_BYTES = 64 << 10
"""A body up to this size goes out in one piece with its head."""

Method = Literal["GET", "HEAD", "PUT"]
_URL = re.compile(r"((?i:https?))://([^/?#]+)(/[^#]*|\?[^#]*)?", re.ASCII)


class Answer(NamedTuple):
    """An answer: `headers` by their names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Asks servers. Threads share it; each request has a connection to itself."""

    def __init__(
        self,
        tls: ssl.SSLContext | None,
        *,
        silence_seconds: float = SILENCE_SECONDS,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Without `tls`, for plain HTTP alone. `check` is called for each piece of an answer, and
        now and then while one is waited for: what it raises ends the request."""
        self._tls = tls
        self._silence_seconds = silence_seconds
        self._check = check
        self._kept: dict[Place, deque[Connection]] = {}
        self._closing = weakref.finalize(self, _close, self._kept)

    def close(self) -> None:
        """Close the connections that are not in use, as happens to a wire that nobody has."""
        _close(self._kept)

    def ask(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None = None,
        *,
        max_bytes: int,
        seconds: float = ANSWER_SECONDS,
    ) -> Answer:
        """One request and its whole answer, of `max_bytes` at most, within `seconds` of its being
        sent. Of a refusal (status 300 and above) that is larger, the body is left out.

        Raises `NoAnswer`, and what `check` raises.
        """
        connection, head = self._send(method, url, headers, body, seconds)
        try:
            found = connection.body(head, method, max_bytes)
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return Answer(head.status, head.headers, found)

    def open(self, url: str, headers: Mapping[str, str]) -> Inflow:
        """GET; returns once the answer's head has come. Raises `NoAnswer`."""
        connection, head = self._send("GET", url, headers, None, ANSWER_SECONDS)
        return Inflow(connection, head, self._keep)

    def _send(
        self,
        method: Method,
        url: str,
        headers: Mapping[str, str],
        body: Buffer | None,
        seconds: float,
    ) -> tuple[Connection, Head]:
        """The connection on which an answer's head has come."""
        place, target = _place(url)
        request = _request(method, target, place, headers, body)
        kept = self._take(place)
        if kept is not None:
            try:
                return kept, self._exchange(kept, request, body, seconds)
            except NoAnswer:
                if method == "PUT" or not kept.was_dead:
                    raise
        connection = Connection(place, self._tls, self._silence_seconds, self._check)
        return connection, self._exchange(connection, request, body, seconds)

    def _exchange(
        self, connection: Connection, request: bytes, body: Buffer | None, seconds: float
    ) -> Head:
        try:
            connection.send(request, body if body and len(body) > TOGETHER_BYTES else None)
            return connection.head(Pace(seconds, self._check))
        except BaseException:
            connection.close()
            raise

    def _take(self, place: Place) -> Connection | None:
        """A kept connection, if there is a good one."""
        kept = self._kept.get(place)
        while kept:
            try:
                connection = kept.pop()
            except IndexError:
                break
            fresh = time.monotonic() - connection.idle_since < IDLE_SECONDS
            if fresh and connection.is_quiet():
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        """Have a connection used again, if its last answer was read to its end."""
        if not connection.is_reusable:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        self._kept.setdefault(connection.place, deque()).append(connection)


class Inflow:
    """One answer whose body is read as it is wanted. One thread uses it, and closes it."""

    def __init__(
        self, connection: Connection, head: Head, keep: Callable[[Connection], None]
    ) -> None:
        self._head = head
        self.status, self.headers = head.status, head.headers
        self._connection: Connection | None = connection
        self._keep = keep

    def readinto(self, view: memoryview) -> int:
        """Bytes that are there, at least one, into `view`; 0 at the body's end. Raises `NoAnswer`,
        for a body without a length too."""
        if self._connection is None:
            return 0
        return self._connection.body_into(view)

    def rest(self, max_bytes: int) -> bytes:
        """The body, whether it has a length or not, where nothing of it was read; the answer is
        closed then. Raises `NoAnswer`."""
        connection = self._connection
        if connection is None:
            return b""
        try:
            return connection.body(self._head, "GET", max_bytes)
        finally:
            self.close()

    def close(self) -> None:
        """A body that was not read to its end ends the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._keep(connection)


def _close(kept: Mapping[Place, deque[Connection]]) -> None:
    for connections in kept.values():
        while connections:
            connections.pop().close()


def _place(url: str) -> tuple[Place, str]:
    """Whom to ask for what."""
    match = _URL.fullmatch(url)
    if match is None or not url.isprintable() or " " in url:
        raise NoAnswer("no URL that can be asked", "invalid")
    scheme, authority, target = match[1].lower(), match[2].lower(), match[3] or "/"
    return Place.of(scheme, authority), target if target[0] == "/" else f"/{target}"


def _request(
    method: Method, target: str, place: Place, headers: Mapping[str, str], body: Buffer | None
) -> bytes:
    """The head as it goes over the wire, with a small body behind it."""
    lines = [f"{method} {target} HTTP/1.1"]
    if "host" not in headers:
        lines.append(f"Host: {place.name}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    text = "\r\n".join((*lines, "\r\n"))
    if not text.isascii() or not "".join(lines).isprintable():
        raise NoAnswer("a header or URL with characters that cannot be sent", "invalid")
    head = text.encode()
    return head + body if body and len(body) <= TOGETHER_BYTES else head
