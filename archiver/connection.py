"""One HTTP/1.1 connection: requests out, heads and bodies in, each within bounds."""

from __future__ import annotations

import contextlib
import math
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from archiver import hub, liveness
from archiver.fixity import Buffer
from archiver.heads import Head, NoAnswer, parse_head

CONNECT_SECONDS = 10.0
HEAD_BYTES = 64 << 10
"""Of an answer's head, a chunk's first line, and trailers, at most."""
PIECE_BYTES = 512 << 10
"""Of a body that goes out, at a time."""
LEAST_BYTES_PER_SECOND = 16 << 10
"""A body that is taken more slowly has failed."""
RECORD_BYTES = 16 << 10
"""What a TLS record holds at most: one read gives no more."""
UNBROKEN_BYTES = 4 << 20
"""So much may be moved without a wait before other tasks are let on: some milliseconds."""
LOOK_SECONDS = 1.0
"""While it waits for a socket it looks so often whether it is to end, and shows that it lives."""
_UNCHECKED_SECONDS = 1.0
"""So long a stream may go on before its reader has a look."""
_NOT_YET = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)
_EVENTS: dict[type[OSError], int] = {
    ssl.SSLWantReadError: select.POLLIN,
    ssl.SSLWantWriteError: select.POLLOUT,
}
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(;[^\r\n]*)?")
_MAX_PORT = 65535
_AUTHORITY = re.compile(r"([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")


class Place(NamedTuple):
    """Where a connection leads; `name` is for the `Host` header."""

    host: str
    port: int
    tls: bool
    name: str

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, scheme: str, authority: str) -> Place:
        """Raises `NoAnswer` for what is no `host` or `host:port`."""
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            raise NoAnswer("no URL that can be asked", "invalid")
        tls = scheme == "https"
        standard = 443 if tls else 80
        port = int(match[2]) if match[2] else standard
        if port > _MAX_PORT:
            raise NoAnswer("no URL that can be asked", "invalid")
        name = match[1] if port == standard else f"{match[1]}:{port}"
        return cls(match[1].strip("[]"), port, tls, name)


class Pace:
    """How long an answer may take from now on; who may end it."""

    def __init__(self, seconds: float, check: Callable[[], None]) -> None:
        self._deadline = time.monotonic() + seconds
        self._check = check

    def keep(self) -> None:
        """Once for each piece that comes. Raises `NoAnswer`, and what `check` raises."""
        liveness.note()
        self._check()
        if time.monotonic() > self._deadline:
            raise NoAnswer("the answer takes too long", "too_slow")


class Connection:
    """To one place. One thread uses it at a time, for one request after the other."""

    def __init__(
        self,
        place: Place,
        tls: ssl.SSLContext | None,
        silence_seconds: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect; without `tls`, to no place that has it. `check` is called while it waits: what
        it raises ends the request. Raises `NoAnswer`."""
        self.place = place
        self.idle_since = math.inf
        self.was_dead = False
        """Whether the connection's end was all that came after the last request."""
        self._socket = hub.offload(_connect, place, tls)
        self._socket.setblocking(False)
        self._silence_seconds = silence_seconds
        self._check = check
        self._wanted = select.POLLIN
        self._unbroken = 0
        self._quiet = select.poll()
        self._quiet.register(self._socket, select.POLLIN)
        self._buffer = bytearray(16 << 10)
        self._at = self._end = 0  # of what was read into `_buffer` and not yet taken
        self._left: int | None = 0
        """Bytes of the body to come; None where its end is not known."""
        self._persists = True
        self._silent = True  # since the last request
        self._failure: NoAnswer | None = None
        self._pace = Pace(0.0, lambda: None)

    def close(self) -> None:
        self._persists = False
        self._socket.close()

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer, not even the end. What has, is no answer
        to a request that was not sent yet (RFC 9112, section 6.3)."""
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return False
        return not self._quiet.poll(0)

    @property
    def is_reusable(self) -> bool:
        """Whether the last answer was read to its end, and nothing came after it."""
        return self._persists and self._left == 0 and self._at == self._end

    # --- out

    def send(self, request: bytes, body: Buffer | None) -> None:
        """Send a head, and a body that is not in it already."""
        self._silent = True
        try:
            self._send(memoryview(request))
            if body is not None:
                self._send(memoryview(body))
        except OSError:
            return  # who ends a request early may have said why

    def _send(self, data: memoryview) -> None:
        """All of it, a piece at a time: a timeout is one per piece."""
        end = time.monotonic() + CONNECT_SECONDS + len(data) / LEAST_BYTES_PER_SECOND
        at = 0
        while at < len(data):
            try:
                count = self._socket.send(data[at : at + PIECE_BYTES])
            except _NOT_YET as error:
                self._wait(_EVENTS.get(type(error), select.POLLOUT), self._silence_seconds)
                count = 0
            at += count
            self._moved(count)
            if time.monotonic() > end and at < len(data):
                raise NoAnswer("the request is taken too slowly", "broken")

    # --- in

    def head(self, pace: Pace) -> Head:
        """The next answer's, interim ones passed by. Raises `NoAnswer`."""
        self._pace, left = pace, HEAD_BYTES
        if self._at == self._end:
            # A look would find nothing yet, and that costs more.
            self._wait(select.POLLIN, self._silence_seconds)
        while True:
            text = self._until(b"\r\n\r\n", "the answer's head broke off")
            found, left = parse_head(text.decode("latin-1")), left - len(text)
            if found.status >= 200:
                break
            if left < 0:
                raise NoAnswer("interim answers without an end", "malformed")
        length = found.headers.get("content-length")
        self._left = None if length is None else int(length)
        self._persists = found.persists
        return found

    def body(self, head: Head, method: str, max_bytes: int) -> bytes:
        """All of an answer's body; of a refusal that has too much to say, nothing. Raises
        `NoAnswer`."""
        try:
            return self._body(head, method, max_bytes)
        except NoAnswer as error:
            if error.kind != "too_large" or head.status < 300:
                raise
            return b""  # what is not read to its end is not used again

    def _body(self, head: Head, method: str, max_bytes: int) -> bytes:
        found = b""
        if method == "HEAD" or head.status in (204, 304):
            pass
        elif "transfer-encoding" in head.headers:
            found = self._chunks(max_bytes)
        elif self._left is None:
            return self._to_the_end(max_bytes)
        elif self._left > max_bytes:
            raise NoAnswer("the answer is too large", "too_large")
        else:
            found = self._exactly(self._left)
        self._left = 0
        return found

    def body_into(self, view: memoryview) -> int:
        """Bytes of a body with a length, at least one; 0 at its end. More than one read gives only
        while they come in full records. Raises `NoAnswer`, once what came before it is taken."""
        left = self._left
        if self._failure is not None:
            raise self._failure
        if left is None:
            raise NoAnswer("an answer without a length", "malformed")
        wanted = min(left, len(view))
        if not wanted:
            return 0
        if self._at < self._end:
            count = min(wanted, self._end - self._at)
            view[:count] = self._taken(count)
        else:
            count = self._stream(view[:wanted])
        self._left = left - count
        return count

    def _stream(self, view: memoryview) -> int:
        end = time.monotonic() + _UNCHECKED_SECONDS
        filled = self._receive(view)
        try:
            while filled < len(view) and time.monotonic() < end:
                count = self._there(view[filled:])
                if count is None:
                    break
                filled += self._some(count)
        except NoAnswer as error:
            self._failure = error
        self._moved(filled)
        return filled

    def _exactly(self, count: int) -> bytes:
        if count <= self._end - self._at:
            return bytes(self._taken(count))
        found = bytearray(count)
        view = memoryview(found)
        filled = self._end - self._at
        view[:filled] = self._taken(filled)
        while filled < count:
            self._pace.keep()
            filled += self._receive(view[filled:])
        return bytes(found)

    def _to_the_end(self, max_bytes: int) -> bytes:
        """What ends with the connection: it may have been cut, which its reader has to see."""
        found = bytearray(self._taken(self._end - self._at))
        while self._fill():
            self._pace.keep()
            found += self._taken(self._end - self._at)
            if len(found) > max_bytes:
                raise NoAnswer("the answer is too large", "too_large")
        return bytes(found)

    def _chunks(self, max_bytes: int) -> bytes:
        found = bytearray()
        while True:
            self._pace.keep()
            match = _CHUNK.fullmatch(self._until(b"\r\n", "the answer broke off"))
            if match is None:
                raise NoAnswer("a chunk without its size", "malformed")
            size = int(match[1], 16)
            if len(found) + size > max_bytes:
                raise NoAnswer("the answer is too large", "too_large")
            if not size:
                self._trailers()
                return bytes(found)
            found += self._exactly(size)
            if self._until(b"\r\n", "the answer broke off"):
                raise NoAnswer("a chunk of another size", "malformed")

    def _trailers(self) -> None:
        left = HEAD_BYTES
        while line := self._until(b"\r\n", "the answer broke off"):
            left -= len(line)
            if left < 0:
                raise NoAnswer("trailers without an end", "malformed")

    def _until(self, mark: bytes, broken: str) -> bytes:
        """What comes before the next `mark`, which is passed over."""
        searched = self._at
        while (found := self._buffer.find(mark, searched, self._end)) < 0:
            searched = max(self._at, self._end - len(mark) + 1) - self._at
            if self._end - self._at >= HEAD_BYTES:
                raise NoAnswer("a head without an end", "malformed")
            if not self._fill():
                self.was_dead = self._silent
                raise NoAnswer("no answer" if self._silent else broken, "broken")
            self._pace.keep()
            searched += self._at
        text = bytes(self._buffer[self._at : found])
        self._at = found + len(mark)
        return text

    def _fill(self) -> int:
        """Read more into the buffer: how many bytes, 0 at the connection's end."""
        if self._at == self._end:
            self._at = self._end = 0
        elif self._end == len(self._buffer):
            kept = self._buffer[self._at : self._end]
            self._buffer[: len(kept)] = kept
            self._at, self._end = 0, len(kept)
            if len(kept) == len(self._buffer):
                self._buffer += bytes(len(self._buffer))
        with memoryview(self._buffer) as view:
            count = self._recv(view[self._end :])
        self._end += count
        return count

    def _taken(self, count: int) -> bytearray:
        start, self._at = self._at, self._at + count
        return self._buffer[start : self._at]

    def _receive(self, view: memoryview) -> int:
        return self._some(self._recv(view))

    def _some(self, count: int) -> int:
        if not count:
            raise NoAnswer("the answer broke off", "truncated")
        return count

    def _recv(self, view: memoryview) -> int:
        """Bytes that came, at least one; 0 at the connection's end. Of a TLS record that comes in
        drops nothing is there until it is whole."""
        end = time.monotonic() + self._silence_seconds
        while (count := self._there(view)) is None:
            self._wait(self._wanted, end - time.monotonic())
        return count

    def _there(self, view: memoryview) -> int | None:
        """Bytes that are there; None where none are, and `_wanted` says what to wait for."""
        try:
            count = self._socket.recv_into(view)
        except _NOT_YET as error:
            self._wanted = _EVENTS.get(type(error), select.POLLIN)
            return None
        except OSError:
            self.was_dead = self._silent
            raise NoAnswer("the connection broke off", "broken") from None
        if count:
            self._silent = False
        return count

    def _wait(self, event: int, seconds: float) -> None:
        """For the socket, as long as the other side may be silent: a wait with an end, so it is no
        standstill of ours."""
        self._unbroken = 0
        end = time.monotonic() + seconds
        left = max(0.0, seconds)
        while not hub.wait(self._socket.fileno(), event, min(left, LOOK_SECONDS)):
            left = end - time.monotonic()
            if left <= 0:
                raise NoAnswer("timeout", "broken")
            liveness.note()
            self._check()

    def _moved(self, count: int) -> None:
        """Who moves much without ever having to wait lets others go on in between."""
        liveness.note()
        self._unbroken += count
        if self._unbroken >= UNBROKEN_BYTES:
            self._unbroken = 0
            hub.give_way()


def _connect(place: Place, tls: ssl.SSLContext | None) -> socket.socket:
    if place.tls and tls is None:
        raise NoAnswer("nobody said whom to trust", "untrusted")
    try:
        made = socket.create_connection((place.host, place.port), CONNECT_SECONDS)
    except UnicodeError:
        raise NoAnswer("no URL that can be asked", "invalid") from None
    except OSError as error:
        raise NoAnswer(_words(error), "unconnected") from None
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is None or not place.tls:
        return made
    try:
        return tls.wrap_socket(made, server_hostname=place.host)
    except ssl.SSLCertVerificationError as error:
        made.close()
        raise NoAnswer(error.verify_message, "untrusted") from None
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            made.close()
        raise NoAnswer("no TLS handshake", "unconnected") from None


def _words(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host's name is not known"
    return "timeout" if isinstance(error, TimeoutError) else (error.strerror or "no way there")
