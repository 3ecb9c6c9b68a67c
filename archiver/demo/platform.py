"""A simulated voice-bot platform: the documented API and the blob store behind its signed URLs.

Strict and stateful: it checks every signature, scope, parameter and expiry, and writes down what
no client may do (`Platform.violations`). The demo archives from it; tests bend it with hooks.

    with Platform(make_calls(60, start, end)) as platform:
        ...  # platform.api_url, platform.token, platform.blob_host

`python -m archiver.demo.platform --calls N` serves one by itself; its first line on stdout is a
JSON object with the addresses and credentials.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import ssl
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from archiver.demo.api import ALL_SCOPES, AUDIO, BASE_PATH, READ, Options, VoiceCallsApi
from archiver.demo.calls import SimulatedCall, make_calls
from archiver.demo.sas import BlobServer, SasKey, blob_path
from archiver.demo.voices import BytesRecording, Recording, VoiceRecording
from archiver.demo.wire import Reply, Request, ServerName, WireServer

__all__ = [
    "ALL_SCOPES",
    "AUDIO",
    "READ",
    "BytesRecording",
    "Options",
    "Platform",
    "Recording",
    "Reply",
    "Request",
    "Served",
    "SimulatedCall",
    "VoiceRecording",
    "make_calls",
]

Hook = Callable[[Request], Reply | None]

_REMEMBERED = 200_000


@dataclass(frozen=True)
class Served:
    """One request and the status that it was answered with; `path` without the query."""

    server: ServerName
    method: str
    path: str
    query: str
    status: int


class Platform:
    """Both servers, on loopback, from the start of the `with` block to its end.

    Keyword arguments are the fields of `Options`, which stay changeable as `options`. Beside any
    tokens given there, `token` and the pair `api_key` and `api_secret` have both scopes.

    `hooks` run in order before the normal handling, on the thread of the connection; the first
    `Reply` wins. A hook may sleep, and may ask `answer(request)` for the normal reply and bend it.
    `violations` holds what no client may do, `requests` what was answered (an answer is there
    before the client has it), `sas_issued` how many URLs were signed for each call id.
    """

    def __init__(
        self,
        calls: Iterable[SimulatedCall] = (),
        *,
        host: str = "127.0.0.1",
        api_port: int = 0,
        blob_port: int = 0,
        **options: Any,
    ) -> None:
        self.options = Options(**options)
        self.token = f"demo-{secrets.token_urlsafe(24)}"
        self.api_key = f"ak_live_{secrets.token_hex(12)}"
        self.api_secret = secrets.token_urlsafe(32)
        self.options.tokens[self.token] = ALL_SCOPES
        self.options.api_keys[self.api_key] = (self.api_secret, ALL_SCOPES)
        self.hooks: list[Hook] = []
        self.violations: list[str] = []
        self.requests: deque[Served] = deque(maxlen=_REMEMBERED)
        self.sas_issued: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._calls = {call.id: call for call in calls}
        self._key = SasKey()
        self._wire(host, api_port, blob_port)

    def _wire(self, host: str, api_port: int, blob_port: int) -> None:
        self._api = VoiceCallsApi(
            self.options, lambda: self.calls, self.find, self._sign, self.violations.append
        )
        self._blobs = BlobServer(self.find, self._key, self._now, self.violations.append)
        tls, broken = self.options.tls, self.violations.append
        self._servers = (
            WireServer("api", (host, api_port), self._respond, tls=tls, broken=broken),
            WireServer("blob", (host, blob_port), self._respond, tls=tls, broken=broken),
        )
        self.api_host, self.blob_server = (f"{host}:{server.port}" for server in self._servers)
        self.blob_host = self.blob_server
        self._scheme = "http" if tls is None else "https"

    def _now(self) -> datetime:
        return self.options.clock()

    @property
    def api_url(self) -> str:
        """The base URL, `…/api/v1`."""
        return f"{self._scheme}://{self.api_host}{BASE_PATH}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for server in self._servers:
            server.start()

    def stop(self) -> None:
        """Stop listening and cut what is in flight. It cannot be started again."""
        for server in self._servers:
            server.stop()

    # The calls

    @property
    def calls(self) -> list[SimulatedCall]:
        """All calls, in the order they were added."""
        with self._lock:
            return list(self._calls.values())

    def find(self, call_id: str) -> SimulatedCall | None:
        with self._lock:
            return self._calls.get(call_id)

    def add(self, *calls: SimulatedCall) -> None:
        """Serve these from now on; one with a known id takes the other's place."""
        with self._lock:
            self._calls.update({call.id: call for call in calls})

    def remove(self, call_id: str) -> None:
        with self._lock:
            del self._calls[call_id]

    # Credentials

    def token_for(self, *scopes: str) -> str:
        """A new bearer token with these scopes only."""
        token = f"demo-{secrets.token_urlsafe(24)}"
        self.options.tokens[token] = frozenset(scopes)
        return token

    def recording_url(self, call_id: str) -> str:
        """A signed URL as the API would answer it now; not counted in `sas_issued`."""
        return self._signed_url(call_id)[0]

    def void_recording_urls(self) -> None:
        """Have every URL signed so far answered with 403."""
        self._key.rotate()

    def _sign(self, call_id: str) -> tuple[str, datetime]:
        with self._lock:
            self.sas_issued[call_id] += 1
        return self._signed_url(call_id)

    def _signed_url(self, call_id: str) -> tuple[str, datetime]:
        start = self.options.clock().astimezone(UTC).replace(microsecond=0)
        expiry = start + timedelta(seconds=self.options.sas_ttl_seconds)
        path = blob_path(call_id)
        query = self._key.sign(path, start, expiry)
        return f"{self._scheme}://{self.blob_host}{path}?{query}", expiry

    # Requests

    def answer(self, request: Request) -> Reply:
        """The normal reply to a request, hooks aside."""
        if request.server == "api":
            return self._api.answer(request)
        return self._blobs.answer(request)

    def served(
        self,
        server: ServerName | None = None,
        *,
        path_contains: str = "",
        status: int | None = None,
    ) -> list[Served]:
        """The requests answered so far that match."""
        return [
            one
            for one in list(self.requests)
            if server in (None, one.server)
            and path_contains in one.path
            and status in (None, one.status)
        ]

    def _respond(self, request: Request) -> Reply:
        reply = self._hooked(request) or self.answer(request)
        self.requests.append(
            Served(request.server, request.method, request.path, request.raw_query, reply.status)
        )
        return reply

    def _hooked(self, request: Request) -> Reply | None:
        for hook in list(self.hooks):
            reply = hook(request)
            if reply is not None:
                return reply
        return None


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    asked = _parser().parse_args(arguments)
    calls = make_calls(asked.calls, asked.start, asked.end, asked.seed, short=asked.short)
    calls += [_huge(number, asked) for number in range(asked.huge)]
    if asked.truth is not None:
        asked.truth.write_text("".join(map(_truth, calls)), encoding="utf-8")
    tls = None
    if asked.tls_cert is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(asked.tls_cert, asked.tls_key)
    enveloped = {"yes": True, "no": False, "mixed": "mixed"}[asked.enveloped]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Platform(
        calls, host=asked.host, enveloped=enveloped, sas_ttl_seconds=asked.sas_ttl, tls=tls
    ) as platform:
        platform.blob_host = asked.blob_via or platform.blob_host
        sys.stdout.write(json.dumps(_addresses(platform)) + "\n")
        sys.stdout.flush()
        stop.wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m archiver.demo.platform")
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument(
        "--from", dest="start", type=_moment, default=midnight - timedelta(days=2), metavar="T"
    )
    parser.add_argument("--to", dest="end", type=_moment, default=midnight, metavar="T")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--short", action="store_true", help="recordings of 1 to 4 s only")
    parser.add_argument("--huge", type=int, default=0, help="so many calls more, of --huge-bytes")
    parser.add_argument("--huge-bytes", type=int, default=250_000_000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--enveloped", choices=("yes", "no", "mixed"), default="yes")
    parser.add_argument("--sas-ttl", type=int, default=900, metavar="SECONDS")
    parser.add_argument(
        "--blob-via", metavar="HOST:PORT", help="what recording URLs name: a proxy before the blobs"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM")
    parser.add_argument("--tls-key", type=Path, metavar="PEM")
    parser.add_argument(
        "--truth", type=Path, metavar="FILE", help="write what is served, a JSON object per call"
    )
    return parser


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC)


def _huge(number: int, asked: argparse.Namespace) -> SimulatedCall:
    """A call whose recording takes about `--huge-bytes`, made up as it is read."""
    [call] = make_calls(1, asked.start, asked.end, f"{asked.seed} huge {number}", short=True)
    seconds = asked.huge_bytes // 16_000
    call.recording = VoiceRecording(call.id, seconds, content_md5=False)
    call.document["durationSeconds"] = seconds
    return call


def _truth(call: SimulatedCall) -> str:
    recording = call.recording
    told = None
    if recording is not None:
        told = {"bytes": recording.length, "sha256": recording.sha256()}
    line = {"id": call.id, "document": call.detail(), "epa": call.epa, "recording": told}
    return json.dumps(line, ensure_ascii=False) + "\n"


def _addresses(platform: Platform) -> dict[str, Any]:
    return {
        "api_url": platform.api_url,
        "blob_host": platform.blob_host,
        "blob_server": platform.blob_server,
        "token": platform.token,
        "voice_read_token": platform.token_for(READ),
        "api_key": platform.api_key,
        "api_secret": platform.api_secret,
        "calls": len(platform.calls),
    }


if __name__ == "__main__":
    sys.exit(main())
