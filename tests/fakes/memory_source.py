"""The voice platform in this very process: the strict simulated API and blob store, no sockets.

`MemoryPlatform` answers the requests of the real clients, which get a `MemoryWire` of it for their
network: `api_client` and `recording_client`. What the clients send is
judged as `Platform` does it, and every call that a listing ever showed is remembered (`listed`).

What a source may do while somebody lists it is *drift*: `later("page", 2, change)` runs `change`
once the second listing page from now has been answered, so that it is seen by the third.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import urllib3

from archiver.demo.api import ALL_SCOPES, BASE_PATH, Options, VoiceCallsApi
from archiver.demo.calls import SimulatedCall
from archiver.demo.sas import BlobServer, SasKey, blob_path
from archiver.demo.wire import Reply, Request, ServerName
from archiver.heads import NoAnswer
from archiver.retry import Retry
from archiver.source.auth import BearerAuth
from archiver.source.client import VoiceCallsClient
from archiver.source.http import JsonApi
from archiver.source.recording import RecordingClient
from archiver.wire import Answer
from tests.fakes.clock import HandClock

API_HOST, BLOB_HOST = "api.test", "blobs.test"
API_URL = f"https://{API_HOST}{BASE_PATH}"

Hook = Callable[[Request], Reply | None]
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


class MemoryPlatform:
    """Calls, and what is said of them. Keyword arguments are the fields of `Options`.

    Of the ids in `hidden` no listing tells; those in `gone` are not known at all. Calls in
    `repeated` stand on every page of a listing that they belong to. `status["url"]` and
    `status["blob"]` map call ids to the status that is answered instead of a recording.
    """

    def __init__(
        self,
        calls: Iterable[SimulatedCall] = (),
        *,
        clock: Callable[[], datetime],
        ticks: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        self.options = Options(clock=clock, **options)
        self.quirks = Quirks()
        self.token = "a-token-for-tests"
        self.options.tokens[self.token] = ALL_SCOPES
        self.hooks: list[Hook] = []
        self.spoilt: Spoilt | None = None
        self.violations: list[str] = []
        self.hidden: set[str] = set()
        self.gone: set[str] = set()
        self.repeated: set[str] = set()
        self.status: dict[Literal["url", "blob"], dict[str, int]] = {"url": {}, "blob": {}}
        self.listed: dict[str, list[Sighting]] = {}
        self.served: dict[Moment, int] = {"page": 0, "pass": 0, "request": 0}
        self._ticks = ticks or itertools.count(1).__next__
        self._later: list[tuple[Moment, int, Change]] = []
        self._lock = threading.RLock()
        self._calls = {call.id: call for call in calls}
        self._key = SasKey()
        self._api = _Api(self)
        self._blobs = BlobServer(self.find, self._key, clock, self.violations.append)

    # --- the calls

    @property
    def calls(self) -> list[SimulatedCall]:
        """All calls that it knows, hidden ones too, in the order they were added."""
        with self._lock:
            return [call for call in self._calls.values() if call.id not in self.gone]

    @property
    def all(self) -> dict[str, SimulatedCall]:
        """By id; those that are gone too."""
        with self._lock:
            return dict(self._calls)

    @property
    def shown(self) -> list[SimulatedCall]:
        """Those that a listing may tell of."""
        return [call for call in self.calls if call.id not in self.hidden]

    def find(self, call_id: str) -> SimulatedCall | None:
        with self._lock:
            return None if call_id in self.gone else self._calls.get(call_id)

    def add(self, *calls: SimulatedCall) -> None:
        """Serve these from now on; one with a known id takes the other's place."""
        with self._lock:
            self._calls.update({call.id: call for call in calls})

    def change(self, call_id: str, **fields: Any) -> None:
        """Fields of a call's document; a survey by `epa`, a recording by `recording`. The call is
        made anew, so that what was listed before keeps what it told then."""
        with self._lock:
            call = self._calls[call_id]
            parts = {name: fields.pop(name) for name in ("epa", "recording") if name in fields}
            made = SimulatedCall({**call.document, **fields}, call.recording, call.epa)
            for name, value in parts.items():
                setattr(made, name, value)
            self._calls[call_id] = made

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
        due = [item for item in self._later if item[0] == moment and item[1] < self._past(moment)]
        self._later = [item for item in self._later if item not in due]
        for _, _, change in due:
            change()

    def _past(self, moment: Moment) -> int:
        """A pass is counted as it begins, the others when they are over."""
        return self.served[moment] + (moment != "pass")

    # --- requests

    def respond(self, request: Request, client: str = "client") -> Reply:
        """The answer to a request, what is due before it and after it included."""
        lists = request.server == "api" and request.path == f"{BASE_PATH}/voice-calls"
        if lists and request.query.get("page", "1") == "1":
            self._came("pass")
        hooked = (hook(request) for hook in tuple(self.hooks))
        reply = next((one for one in hooked if one is not None), None) or self.answer(request)
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
        if request.server == "api":
            *_, call_id, last = request.path.rsplit("/", 2)
            status = self.status["url"].get(unquote(call_id)) if last == "recording-url" else None
            return Reply(status) if status else self._api.answer(request)
        call_id = unquote(request.path.removeprefix("/recs/").removesuffix(".wav"))
        status = self.status["blob"].get(call_id)
        return Reply(status) if status else self._blobs.answer(request)

    def sign(self, call_id: str) -> tuple[str, datetime]:
        """A URL for a recording, and when it expires."""
        start = self.options.clock().replace(microsecond=0)
        expiry = start + timedelta(seconds=self.options.sas_ttl_seconds)
        path = blob_path(call_id)
        return f"https://{BLOB_HOST}{path}?{self._key.sign(path, start, expiry)}", expiry

    def _remember(self, request: Request, reply: Reply, client: str) -> None:
        page = self._api.take_page()
        if "dateFrom" not in request.query:
            return  # whoever only asks whether the source answers lists no window
        if self.spoilt is not None:
            seen = _ids(reply)  # the page may not have come as it was made
            page = [document for document in page if document["id"] in seen]
        for document in page:
            if (document.get("state") or "Completed").casefold() == "completed":
                seen = Sighting(
                    self._ticks(), self.options.clock(), client, document, request.query
                )
                self.listed.setdefault(document["id"], []).append(seen)


class _Api(VoiceCallsApi):
    """The strict API, with quirks, and with a memory of the page that it made last."""

    def __init__(self, platform: MemoryPlatform) -> None:
        super().__init__(
            platform.options,
            lambda: platform.shown,
            platform.find,
            platform.sign,
            platform.violations.append,
        )
        self._platform = platform
        self._page = threading.local()

    def take_page(self) -> list[dict[str, Any]]:
        """What the page of this thread's last listing showed."""
        page: list[dict[str, Any]] = getattr(self._page, "shown", [])
        self._page.shown = []
        return page

    def _list(self, parameters: dict[str, str]) -> tuple[Any, Any]:
        quirks = self._platform.quirks
        if quirks.ignores_page:
            parameters = {**parameters, "page": "1"}
        if quirks.ignores_filter:
            parameters = {name: v for name, v in parameters.items() if name != "state"}
        data, pagination = super()._list(parameters)
        if data and self._platform.repeated:
            there = {document["id"] for document in data}
            again = self._platform.repeated - there
            data += [c.summary() for c in self._matching(parameters) if c.id in again]
        self._page.shown = data
        return data, _told(pagination, quirks.totals, len(data))


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


def _told(pagination: dict[str, int], totals: Totals, shown: int) -> dict[str, int] | None:
    right = pagination["totalCount"]
    if totals == "absent":
        return None
    if totals == "page":
        return {**pagination, "totalCount": shown, "totalPages": 1}
    wrong = {"right": right, "less": max(0, right - 1), "more": right + 1}
    return {**pagination, "totalCount": wrong[totals]}


# --- the clients' network


class Asked(Request):
    """A request whose query is parsed at most once."""

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        return super().pairs

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(self.pairs)


class MemoryWire:
    """The network of a client: stands for `archiver.wire.Wire`. A reply of status 0 is a connection
    that is refused, or with `reset` one that breaks; -1 is an answer that does not come in time."""

    def __init__(self, platform: MemoryPlatform, client: str = "client") -> None:
        self._platform = platform
        self._client = client

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        max_bytes: int,
        seconds: float | None = None,
    ) -> Answer:
        assert url.startswith(f"https://{API_HOST}/"), "a request to another host"
        answer = self._send("api", method, url, headers)
        body = bytearray(len(answer.body) + 1)
        count = 0
        while got := answer.readinto(memoryview(body)[count:]):
            count += got
        if count > max_bytes and answer.status < 300:
            raise NoAnswer("the answer is too large", "too_large")
        return Answer(answer.status, answer.headers, bytes(body[:count]))

    def open(self, url: str, headers: Mapping[str, str]) -> MemoryInflow:
        assert url.startswith(f"https://{BLOB_HOST}/"), "a request to another host"
        return self._send("blob", "GET", url, headers)

    def _send(
        self, server: ServerName, method: str, url: str, headers: Mapping[str, str]
    ) -> MemoryInflow:
        parts = urlsplit(url)
        sent: Any = urllib3.HTTPHeaderDict(headers)
        asked = Asked(server, method, parts.path, parts.query, sent, b"")
        reply = self._platform.respond(asked, self._client)
        if reply.status == 0 and not reply.reset:
            raise NoAnswer("connection refused", "unconnected")
        if reply.status < 0:
            raise NoAnswer("no answer in time", "too_slow")
        if reply.close_after is not None and reply.close_after < 0:
            raise NoAnswer("no answer", "broken")
        return MemoryInflow(reply)

    def close(self) -> None:
        pass


@dataclass
class Drip:
    """The body of a reply that goes on for ever, a byte at a time. `wait` passes the time."""

    wait: Callable[[float], object]

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


class MemoryInflow:
    """A reply as it is read: it may break off before it has all come."""

    def __init__(self, reply: Reply) -> None:
        self.status = reply.status
        self.headers = {name.lower(): value for name, value in _headers(reply).items()}
        self._drip = reply.body if isinstance(reply.body, Drip) else None
        self.body = _whole(reply)[: reply.close_after]
        self._length = int(self.headers.get("content-length", len(_whole(reply))))
        self._at = 0

    def readinto(self, view: memoryview) -> int:
        if self._drip is not None:
            self._drip.wait(5.0)
            view[:1] = b"x"
            return 1
        count = min(len(view), len(self.body) - self._at)
        if not count and self._at < self._length:
            raise NoAnswer("the answer broke off", "truncated")
        view[:count] = self.body[self._at : self._at + count]
        self._at += count
        return count

    def close(self) -> None:
        pass


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
