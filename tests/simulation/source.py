"""The ways to the source: its API and its blob store, with all that may befall a request."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from archiver.source.api import VoiceCallsClient
from archiver.source.recordings import RecordingClient
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_source import MemoryPlatform, MemoryWire, api_client, recording_client
from tests.fakes.platform import subject
from tests.simulation.wire import Process, Wire

STATUS = {"throttled": 429, "unavailable": 503, "internal": 500}
BODIES = {
    "error": b'{"error": {"code": "internal", "message": "try again"}}',
    "empty": b"",
    "page": b"<html><body>Please sign in</body></html>",
}
SILENT = -1
"""`close_after` of a reply that ends before its first byte."""
JSON = {"Content-Type": "application/json"}


@dataclass
class Front:
    """Stands before the platform, as one process sees it: a `MemoryPlatform` to the clients."""

    platform: MemoryPlatform
    wire: Wire
    process: Process
    chance: random.Random

    def respond(self, request: Request, client: str) -> Reply:
        api = request.server == "api"
        operation, key = subject(request)
        if not api:
            operation = "range" if request.headers.get("Range") else "fetch"
        side: Any = "api" if api else "blob"
        exchange, fault = self.wire.send(self.process, side, operation, key)
        if fault in ("unreachable", "out"):
            reply = Reply(0, close_after=SILENT)
        elif fault in STATUS:
            reply = self._busy(STATUS[fault])
        elif fault == "refused":
            reply = Reply(401 if api else 403, JSON, b"{}")
        elif fault is None:
            reply = self.platform.respond(request, client)
        else:
            # Nobody sees all of this answer: the platform is not to remember that it showed it.
            reply = self._bend(request, fault, self.platform.answer(request))
        outcome = "silence" if reply.close_after == SILENT else str(reply.status)
        self.wire.done(self.process, exchange, fault, outcome)
        return reply

    def _busy(self, status: int) -> Reply:
        wait = {"Retry-After": str(self.chance.randint(1, 5))}
        return Reply(status, {**JSON, **(wait if self.chance.random() < 0.5 else {})}, b"{}")

    def _bend(self, request: Request, fault: str | None, reply: Reply) -> Reply:
        body = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
        reply = replace(reply, body=body, content_length=reply.declared_length)
        if fault == "dropped":
            return replace(reply, close_after=SILENT)
        if fault in BODIES:
            return Reply(200, JSON, BODIES[fault])
        if fault == "cut":
            return replace(reply, close_after=self.chance.randrange(max(1, len(body))))
        if fault == "whole" and reply.status == 206:
            return self.platform.answer(_without_range(request))
        if fault == "corrupt" and reply.status < 300 and _says_what_it_is(reply):
            at = self.chance.randrange(len(body))
            reply.body = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
        return reply


def _without_range(request: Request) -> Request:
    headers: Any = {name: text for name, text in request.headers.items() if name != "Range"}
    return replace(request, headers=headers)


def _says_what_it_is(reply: Reply) -> bool:
    """Whether a client can find out that a byte is wrong."""
    return any(name.lower().endswith("content-md5") for name in reply.headers)


def api_of(front: Front) -> VoiceCallsClient:
    """The real API client of a process."""
    clock: Any = front.process.clock
    platform: Any = front
    http = MemoryWire(platform, front.process.name)
    return api_client(front.platform, clock, http=http)


def blobs_of(front: Front) -> RecordingClient:
    """The real download client of a process."""
    clock: Any = front.process.clock
    platform: Any = front
    return recording_client(platform, clock, front.process.name)
