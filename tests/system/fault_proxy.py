"""A proxy before an HTTP server that does harm at random, to the bytes of some exchanges.

It streams. Of HTTP it knows where an exchange begins and ends, so that harm comes to requests, and
not to connections: clients keep theirs for long.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tests.system.tcp_proxy import CHUNK_BYTES, Proxy, reset

Harm = Literal["reset", "truncate", "stall", "corrupt", "throttle", "swallow"]
Kind = Literal["api", "blobs", "store"]

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>%s</Code><Message>Please reduce your request rate.</Message></Error>"
)
_LIMITED = b'{"error": {"code": "rate_limited", "message": "Too many requests.", "retryAfter": 1}}'
_THROTTLED: Mapping[Kind, tuple[bytes, bytes]] = {
    "api": (b"429 Too Many Requests\r\nRetry-After: 1", _LIMITED),
    "blobs": (b"503 Service Unavailable", _SLOW_DOWN % b"ServerBusy"),
    "store": (b"503 Slow Down", _SLOW_DOWN % b"SlowDown"),
}
_DIGESTS: Mapping[Kind, tuple[str, ...]] = {
    "api": (),
    "blobs": ("content-md5", "x-ms-blob-content-md5"),
    "store": ("x-amz-checksum-sha256",),
}
"""Bytes are corrupted only where a header allows the receiver to see it: in the answers of a blob
store, in the requests to an S3 store. Elsewhere nobody but TLS could tell."""


@dataclass(frozen=True)
class Weather:
    """How often each harm is done, of a thousand requests, and how.

    - `reset`: the connection is reset, before the server hears of the request or within its answer.
    - `truncate`: the connection ends within the answer, as if that were all.
    - `stall`: the answer stops on its way, for `stall_seconds`; one in ten for `silence_seconds`,
      which no client waits for.
    - `corrupt`: one bit is flipped, where a digest goes along.
    - `throttle`: the answer is 503 (of an API 429), and the server hears nothing.
    - `swallow`: the server did it, and instead of its answer comes a reset.
    """

    reset: float = 0.0
    truncate: float = 0.0
    stall: float = 0.0
    corrupt: float = 0.0
    throttle: float = 0.0
    swallow: float = 0.0
    stall_seconds: float = 4.0
    silence_seconds: float = 4.0

    def draw(self, chance: random.Random) -> Harm | None:
        at = chance.random() * 1000
        for harm in HARMS:
            at -= getattr(self, harm)
            if at < 0:
                return harm
        return None


HARMS: tuple[Harm, ...] = ("reset", "truncate", "stall", "corrupt", "throttle", "swallow")
FAIR = Weather()


class FaultProxy(Proxy):
    """`weather` may be changed at any time; `done` counts what harm was done, `requests` all.

    `kind` is what stands behind. `most`: a path is harmed so often and not again, for clients that
    must get through in the end.
    """

    def __init__(self, kind: Kind, weather: Weather, seed: str, most: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.weather = weather
        self.requests = 0
        self.done: Counter[Harm] = Counter()
        self.most = most
        self._chance = random.Random(f"{seed} {kind}")
        self._harmed: Counter[bytes] = Counter()
        self._stopped = threading.Event()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._stopped.set()  # nobody goes on stalling

    def draw(self, head: Head) -> Harm | None:
        """Count a request, and what is to be done to it."""
        with self._lock:
            self.requests += 1
            harm = self.weather.draw(self._chance)
            if harm is not None and self.most is not None:
                self._harmed[head.path] += 1
                if self._harmed[head.path] > self.most:
                    return None
            return harm

    def forget(self) -> None:
        """Every path may be harmed again."""
        with self._lock:
            self._harmed.clear()

    def did(self, harm: Harm) -> None:
        with self._lock:
            self.done[harm] += 1

    def part(self) -> float:
        """Where within an exchange harm is done, from 0 to 1."""
        with self._lock:
            return self._chance.random()

    def pause(self) -> None:
        """A stall, or now and then a silence."""
        long = self.part() < 0.1
        weather = self.weather
        self._stopped.wait(weather.silence_seconds if long else weather.stall_seconds * self.part())

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with (
            contextlib.suppress(OSError, _Ended),
            client,
            client.makefile("rb") as reader,
            _Upstream(self) as upstream,
        ):
            while True:
                _Exchange(self, client, reader, upstream).run()


class _Ended(Exception):
    """The connection to the client is to be closed."""


class _Upstream:
    """The connection to the server behind, made when it is needed and kept."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._socket: socket.socket | None = None
        self.reader: io.BufferedReader

    def __enter__(self) -> _Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
            self.reader.close()

    def connected(self) -> socket.socket:
        """A connection that the server has not given up meanwhile."""
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            self.__exit__()
            self._socket = None
        if self._socket is None:
            self._socket = self._proxy._connect()
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.reader = self._socket.makefile("rb")
        return self._socket


class Head:
    """The first lines of a request or an answer, up to the empty one."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        pairs = (line.partition(b":") for line in lines[1:-1])
        self.fields = {name.decode().lower(): value.strip().decode() for name, _, value in pairs}

    @classmethod
    def read(cls, reader: io.BufferedReader) -> Head:
        """Raises `_Ended` where nothing comes any more."""
        lines: list[bytes] = []
        while not lines or lines[-1] != b"\r\n":
            line = reader.readline(1 << 16)
            if not line:
                raise _Ended
            lines.append(line)
        return cls(lines)

    @property
    def method(self) -> bytes:
        return self.lines[0].split(b" ")[0]

    @property
    def path(self) -> bytes:
        """Without the query: signatures change it with every try."""
        return self.lines[0].split(b" ")[1].partition(b"?")[0]

    @property
    def status(self) -> int:
        return int(self.lines[0].split(b" ")[1])

    @property
    def length(self) -> int:
        return int(self.fields.get("content-length", "0"))

    def without(self, name: str) -> bytes:
        start = name.encode() + b":"
        return b"".join(line for line in self.lines if not line.lower().startswith(start))

    def __bytes__(self) -> bytes:
        return b"".join(self.lines)


class _Exchange:
    """One request and its answer, with or without harm. Raises `_Ended` or `OSError` where no other
    may follow on the client's connection."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: socket.socket,
        reader: io.BufferedReader,
        upstream: _Upstream,
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._reader = reader
        self._upstream = upstream
        self._request = Head.read(reader)
        self._harm = proxy.draw(self._request)
        self._where = proxy.part()

    def run(self) -> None:
        if self._request.fields.get("expect", "").lower() == "100-continue":
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._harm == "throttle":
            self._throttle()
        elif self._harm == "reset" and self._where < 0.3:
            self._reset()
        else:
            self._forward()

    def _throttle(self) -> None:
        for _ in _exactly(self._reader, self._request.length):
            pass
        status, body = _THROTTLED[self._proxy.kind]
        head = b"HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
        sent = b"" if self._request.method == b"HEAD" else body
        self._client.sendall(head % (status, len(body)) + sent)
        self._proxy.did("throttle")

    def _reset(self) -> None:
        self._proxy.did("reset")
        reset(self._client)
        raise _Ended

    def _forward(self) -> None:
        server = self._upstream.connected()
        server.sendall(self._request.without("expect"))
        body = _exactly(self._reader, self._request.length)
        for chunk in self._corrupted(self._request, body, "store"):
            server.sendall(chunk)
        answer = Head.read(self._upstream.reader)
        if self._harm == "swallow":
            for _ in self._body(answer):
                pass
            self._proxy.did("swallow")
            reset(self._client)
            raise _Ended
        self._bring(answer)
        if answer.fields.get("connection", "").lower() == "close":
            raise _Ended

    def _bring(self, answer: Head) -> None:
        """Send the answer on, as far as it is to go."""
        body = self._corrupted(answer, self._body(answer), "blobs")
        if self._harm not in ("reset", "truncate", "stall"):
            self._client.sendall(bytes(answer))
            for chunk in body:
                self._client.sendall(chunk)
            return
        left = int(self._where * (len(bytes(answer)) + answer.length))
        for chunk in itertools.chain([bytes(answer)], body):
            self._client.sendall(chunk[: max(0, left)])
            if left < len(chunk):
                self._break()
                self._client.sendall(chunk[max(0, left) :])
                left = 1 << 62
            left -= len(chunk)

    def _break(self) -> None:
        """Comes back from a stall only."""
        if self._harm == "reset":
            self._reset()
        self._proxy.did(self._harm or "stall")
        if self._harm == "truncate":
            raise _Ended
        self._proxy.pause()

    def _body(self, answer: Head) -> Iterator[bytes]:
        """The bytes after an answer's head, however their end is told."""
        reader = self._upstream.reader
        if self._request.method == b"HEAD" or answer.status in (204, 304):
            return
        if answer.fields.get("transfer-encoding", "").lower() == "chunked":
            yield from _chunked(reader)
        elif "content-length" in answer.fields:
            yield from _exactly(reader, answer.length)
        else:
            while chunk := reader.read1(CHUNK_BYTES):
                yield chunk
            raise _Ended

    def _corrupted(self, head: Head, body: Iterator[bytes], kind: Kind) -> Iterator[bytes]:
        """The body, with one bit flipped where that is due and the receiver can see it."""
        seen = any(name in head.fields for name in _DIGESTS[kind])
        if self._harm != "corrupt" or self._proxy.kind != kind or not seen or not head.length:
            yield from body
            return
        at = int(self._where * head.length)
        for chunk in body:
            if 0 <= at < len(chunk):
                changed = bytearray(chunk)
                changed[at] ^= 1 << at % 8
                self._proxy.did("corrupt")
                yield bytes(changed)
            else:
                yield chunk
            at -= len(chunk)


def _exactly(reader: io.BufferedReader, length: int) -> Iterator[bytes]:
    """Raises `_Ended` where fewer bytes come."""
    while length:
        chunk = reader.read1(min(length, CHUNK_BYTES))
        if not chunk:
            raise _Ended
        length -= len(chunk)
        yield chunk


def _chunked(reader: io.BufferedReader) -> Iterator[bytes]:
    """Chunks as they came, with their framing."""
    while True:
        line = reader.readline(1 << 16)
        size = int(line.partition(b";")[0], 16)
        yield line
        yield from _exactly(reader, size + 2)  # no trailers: the last chunk is an empty line
        if not size:
            return
