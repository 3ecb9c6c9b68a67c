"""The voice platform in this very process: the strict simulated API and blob store, no sockets.

`MemoryPlatform` answers the requests of the real clients, which get a `MemoryWire` of it for their
network: `api_client` and `recording_client`. What the clients send is judged as `Platform` judges
it, and every call that a listing ever showed is remembered (`listed`).

What a source may do while somebody lists it is *drift*: `later("page", 2, change)` runs `change`
once the second listing page from now has been answered, so that it is seen by the third.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import urllib3

from archiver.core.http import HttpResponse, StreamingResponse, TransportError
from archiver.core.retry import Retry
from archiver.source.api import VoiceCallsClient
from archiver.source.json_api import BearerAuth, JsonApi
from archiver.source.recordings import RecordingClient
from tests.fakes.calls import SimulatedCall
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request, ServerName
from tests.fakes.platform import BASE_PATH, VoicePlatform, subject

API_HOST, BLOB_HOST = "api.test", "blobs.test"
API_URL = f"https://{API_HOST}{BASE_PATH}"

Spoilt = Callable[[Request, Callable[[], Reply]], Reply]
"""The answer to a request, given the right one: what is bad for ever (`harm.py`)."""
Change = Callable[[], None]
Moment = Literal["page", "pass", "request"]
Totals = Literal["right", "absent", "less", "more", "page"]


@dataclass
class Quirks:
    """What no documents speak of at all. Tests may change it while the platform serves.

    `totals`: what a listing says of its own length; `less` and `more` are one off, `page` speaks of
    the page alone, as if there were no other. `ignores_page` answers every page with the first,
    `ignores_filter` lists calls of every state.
    """

    totals: Totals = "right"
    ignores_page: bool = False
    ignores_filter: bool = False


@dataclass(frozen=True)
class Sighting:
    """A call on a page of a listing: what `client` was shown of it, and when."""

    number: int
    at: datetime
    client: str
    document: dict[str, Any]
    asked: dict[str, str]


class MemoryPlatform(VoicePlatform):
    """The platform without sockets, which drifts and has quirks.

    Of the ids in `hidden` no listing tells; those in `gone` are not known at all. Calls in
    `repeated` stand on every page of a listing that they belong to. `status["url"]` and
    `status["blob"]` map call ids to the status that is answered instead of a recording. `listed`
    has what every listing of a window showed of each call.
    """

    blob_host = BLOB_HOST

    def __init__(
        self,
        calls: Iterable[SimulatedCall] = (),
        *,
        clock: Callable[[], datetime],
        ticks: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(calls, clock=clock, **options)
        self.quirks = Quirks()
        self.spoilt: Spoilt | None = None
        self.hidden: set[str] = set()
        self.gone: set[str] = set()
        self.repeated: set[str] = set()
        self.status: dict[Literal["url", "blob"], dict[str, int]] = {"url": {}, "blob": {}}
        self.listed: dict[str, list[Sighting]] = {}
        self.served: dict[Moment, int] = {"page": 0, "pass": 0, "request": 0}
        self._ticks = ticks or itertools.count(1).__next__
        self._later: list[tuple[Moment, int, Change]] = []
        self._page = threading.local()

    # --- the calls

    @property
    def calls(self) -> list[SimulatedCall]:
        """All calls that it knows, hidden ones too, in the order they were added."""
        return [call for call in super().calls if call.id not in self.gone]

    @property
    def all(self) -> dict[str, SimulatedCall]:
        """By id; those that are gone too."""
        with self._lock:
            return dict(self._calls)

    def listable(self) -> list[SimulatedCall]:
        return [call for call in self.calls if call.id not in self.hidden]

    def find(self, call_id: str) -> SimulatedCall | None:
        return None if call_id in self.gone else super().find(call_id)

    def change(self, call_id: str, **fields: Any) -> None:
        """Fields of a call's document; a survey by `epa`, documents by `others`, a recording by
        `recording`. The call is made anew, so that what was listed before keeps what it showed."""
        with self._lock:
            call = self._calls[call_id]
            own = ("epa", "others", "recording")
            parts = {name: fields.pop(name, getattr(call, name)) for name in own}
            self._calls[call_id] = SimulatedCall({**call.document, **fields}, **parts)

    # --- drift

    def later(self, moment: Moment, count: int, change: Change) -> None:
        """Run `change` after the next `count` pages or requests, or before the pass after them."""
        self._later.append((moment, self.served[moment] + count, change))

    def calm(self) -> None:
        """Nothing that was put off happens any more."""
        self._later.clear()

    def _came(self, moment: Moment) -> None:
        self.served[moment] += 1
        if not self._later:
            return
        # A pass is counted as it begins, the others when they are over.
        past = self.served[moment] + (moment != "pass")
        due = [item for item in self._later if item[0] == moment and item[1] < past]
        self._later = [item for item in self._later if item not in due]
        for _, _, change in due:
            change()

    # --- requests

    def respond(self, request: Request, client: str = "client") -> Reply:
        """The answer to a request, what is due before it and after it included."""
        lists = request.server == "api" and request.path == f"{BASE_PATH}/voice-calls"
        if lists and request.query.get("page", "1") == "1":
            self._came("pass")
        reply = self.answer_with_hooks(request)
        if lists:
            self._remember(request, reply, client)
            self._came("page")
        self._came("request")
        return reply

    def answer(self, request: Request) -> Reply:
        """The normal answer, hooks and drift aside; what is bad for ever is in it."""
        if self.spoilt is not None:
            return self.spoilt(request, lambda: self._right(request))
        return self._right(request)

    def _right(self, request: Request) -> Reply:
        if any(self.status.values()):
            operation, call_id = subject(request)
            status = self.status.get(operation, {}).get(call_id)  # type: ignore[call-overload]
            if status:
                return Reply(status)
        return super().answer(request)

    def _list(self, parameters: dict[str, str]) -> tuple[list[dict[str, Any]], Any]:
        quirks = self.quirks
        if quirks.ignores_page:
            parameters = {**parameters, "page": "1"}
        if quirks.ignores_filter:
            parameters = {name: v for name, v in parameters.items() if name != "state"}
        entries, pagination = super()._list(parameters)
        if entries and self.repeated:
            again = self.repeated - {entry["id"] for entry in entries}
            entries += [c.entry() for c in self._matching(parameters) if c.id in again]
        self._page.shown = entries
        right = pagination["totalCount"]
        totals = {"right": right, "less": max(0, right - 1), "more": right + 1}
        if quirks.totals == "absent":
            return entries, None
        if quirks.totals == "page":
            return entries, {**pagination, "totalCount": len(entries), "totalPages": 1}
        return entries, {**pagination, "totalCount": totals[quirks.totals]}

    def _remember(self, request: Request, reply: Reply, client: str) -> None:
        """Note what the page of this thread's last listing showed."""
        page: list[dict[str, Any]] = getattr(self._page, "shown", [])
        self._page.shown = []
        if "dateFrom" not in request.query:
            return  # whoever only asks whether the source answers lists no window
        if self.spoilt is not None:
            seen = _ids(reply)  # the page may not have come as it was made
            page = [document for document in page if document["id"] in seen]
        for document in page:
            if (document.get("state") or "Completed").casefold() == "completed":
                sighting = Sighting(
                    self._ticks(), self.options.clock(), client, document, request.query
                )
                self.listed.setdefault(document["id"], []).append(sighting)


def _ids(reply: Reply) -> set[str]:
    """The ids in the listing that a client gets."""
    try:
        told = json.loads(_whole(reply))
    except ValueError:
        return set()
    rows = told.get("data") if isinstance(told, dict) else told
    if reply.status != 200 or not isinstance(rows, list):
        return set()
    return {str(row["id"]) for row in rows if isinstance(row, dict) and row.get("id")}


# --- the clients' network


class MemoryWire:
    """The network of a client: stands for `core.http.HttpClient`.

    A reply of status 0 is a connection that is refused, or with `reset` one that breaks; -1 is an
    answer that does not come in time.
    """

    def __init__(self, platform: MemoryPlatform, client: str = "client") -> None:
        self._platform = platform
        self._client = client

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        max_bytes: int,
        seconds: float | None = None,
    ) -> HttpResponse:
        assert url.startswith(f"https://{API_HOST}/"), "a request to another host"
        return self._send("api", method, url, headers).read_all(max_bytes)

    def stream(self, url: str, headers: Mapping[str, str]) -> StreamingResponse:
        assert url.startswith(f"https://{BLOB_HOST}/"), "a request to another host"
        return self._send("blob", "GET", url, headers)

    def _send(
        self, server: ServerName, method: str, url: str, headers: Mapping[str, str]
    ) -> StreamingResponse:
        parts = urlsplit(url)
        sent: Any = urllib3.HTTPHeaderDict(headers)
        asked = Request(server, method, parts.path, parts.query, sent, b"")
        reply = self._platform.respond(asked, self._client)
        if reply.status == 0 and not reply.reset:
            raise TransportError("connection refused", "unconnected")
        if reply.status < 0:
            raise TransportError("no answer in time", "too_slow")
        if reply.close_after is not None and reply.close_after < 0:
            raise TransportError("no answer", "broken")
        pieces = _pieces(reply)
        return StreamingResponse(
            reply.status,
            _headers(reply).items(),
            read=lambda: next(pieces, None),
            close=lambda: None,
            check=lambda: None,
            deadline=None,
        )

    def close(self) -> None:
        pass


@dataclass
class Drip:
    """The body of a reply that goes on for ever, a byte at a time. `wait` passes the time."""

    wait: Callable[[float], object]

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


def _pieces(reply: Reply) -> Iterator[bytes]:
    """The body as it comes: it may break off before it has all come."""
    while isinstance(reply.body, Drip):
        reply.body.wait(5.0)
        yield b"x"
    whole = _whole(reply)
    body = whole[: reply.close_after]
    if body:
        yield body
    length = reply.declared_length
    if len(body) < (len(whole) if length is None else length):
        raise TransportError("the answer broke off", "truncated")


def _whole(reply: Reply) -> bytes:
    return reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)


def _headers(reply: Reply) -> dict[str, str]:
    length = reply.declared_length
    if reply.chunked:
        return {**reply.headers, "Transfer-Encoding": "chunked"}
    return {**reply.headers, **({} if length is None else {"Content-Length": str(length)})}


def api_client(
    platform: MemoryPlatform, clock: HandClock, client: str = "client", **options: Any
) -> VoiceCallsClient:
    """The real API client on a platform in memory."""
    auth = BearerAuth(lambda: platform.token)
    http = options.pop("http", None) or MemoryWire(platform, client)
    options = {"retry": Retry(clock), **options}
    return VoiceCallsClient(JsonApi(API_URL, auth, clock, http, **options))


def recording_client(
    platform: MemoryPlatform, clock: HandClock, client: str = "client", **options: Any
) -> RecordingClient:
    """The real download client on a platform in memory."""
    return RecordingClient([BLOB_HOST], clock, MemoryWire(platform, client), **options)
