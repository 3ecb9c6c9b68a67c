"""The documented Voice Calls API, read only, over calls held in memory; and strict about it.

What the documents leave open is an `Options` field, so that a client can be held against each
reading of them: which time the date filter reads, whether its end is inclusive, the order of a
page, envelopes, what lies past the last page.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import math
import re
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import unquote
from uuid import uuid4

from archiver.demo.calls import SimulatedCall
from archiver.demo.wire import Reply, Request

BASE_PATH = "/api/v1"
READ, AUDIO = "voice:read", "audio:download"
ALL_SCOPES = frozenset({READ, AUDIO})

_LISTING_PARAMETERS = frozenset(
    {"campaignId", "state", "direction", "dateFrom", "dateTo", "page", "pageSize"}
)
_CLOCK_SKEW_SECONDS = 300
_TIME = re.compile(r"\d{4}-\d\d-\d\d([Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d))?")


@dataclass
class Options:
    """How this platform reads what the documents leave open. Tests may change it while it runs.

    `tokens` maps bearer tokens to scopes; `api_keys` maps API keys to their secret and scopes.
    `whole_days` has the date filter look at dates only, both inclusive. `clamp_pages` answers a
    page past the end with the last one. `rate_per_second` answers 429 beyond that many requests
    within one second of the machine's clock. `tls` serves both ports over TLS. `frozen` promises
    that neither calls nor options change any more: a listing is then put together once, and not
    once for each of its pages.
    """

    enveloped: bool | Literal["mixed"] = True
    page_size_cap: int = 100
    filter_field: Literal["startTime", "createdAt", "endTime"] = "startTime"
    inclusive_end: bool = False
    whole_days: bool = False
    sort: Literal["startTime", "-startTime", "id", "given"] = "-startTime"
    clamp_pages: bool = False
    listing_has_transcripts: bool = False
    sas_ttl_seconds: int = 900
    rate_per_second: int | None = None
    tokens: dict[str, frozenset[str]] = field(default_factory=dict)
    api_keys: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    tls: ssl.SSLContext | None = None
    frozen: bool = False


class _Refusal(Exception):
    """An answer in the documented shape of an error."""

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_seconds = retry_after_seconds


class VoiceCallsApi:
    """Answers API requests; `sign` turns a call id into its URL and expiry. Thread-safe."""

    def __init__(
        self,
        options: Options,
        calls: Callable[[], Sequence[SimulatedCall]],
        find: Callable[[str], SimulatedCall | None],
        sign: Callable[[str], tuple[str, datetime]],
        violation: Callable[[str], None],
    ) -> None:
        self._options = options
        self._calls = calls
        self._find = find
        self._sign = sign
        self._violation = violation
        self._served = itertools.count()
        self._pace = _Pace()
        self._kept: tuple[dict[str, str], list[SimulatedCall]] = ({}, [])

    def answer(self, request: Request) -> Reply:
        request_id = f"req_{uuid4().hex[:16]}"
        common = {
            "Content-Type": "application/json; charset=utf-8",
            "Date": format_datetime(self._options.clock(), usegmt=True),
            "X-Request-Id": request_id,
        }
        try:
            self._pace.check(self._options.rate_per_second)
            data, pagination = self._route(request, self._authenticate(request))
        except _Refusal as refusal:
            return _refused(refusal, request_id, common)
        body = data if self._bare() else self._envelope(data, pagination, request_id)
        return Reply(200, common, _json(body))

    def _bare(self) -> bool:
        number = next(self._served)
        if self._options.enveloped == "mixed":
            return number % 2 == 1
        return not self._options.enveloped

    def _envelope(self, data: Any, pagination: Any, request_id: str) -> dict[str, Any]:
        timestamp = self._options.clock().astimezone(UTC).isoformat().replace("+00:00", "Z")
        meta = {"requestId": request_id, "timestamp": timestamp}
        body = {"data": data, "meta": meta}
        return body if pagination is None else {**body, "pagination": pagination}

    # Who asks

    def _authenticate(self, request: Request) -> frozenset[str]:
        bearer, key = request.headers.get("Authorization"), request.headers.get("X-Api-Key")
        if bearer is not None and key is not None:
            self._violation("both a bearer token and an API key sent")
            raise _Refusal(401, "unauthorized", "Send a bearer token or an API key, not both.")
        if key is not None:
            return self._signed(request, key)
        scheme, _, token = (bearer or "").partition(" ")
        for known, scopes in self._options.tokens.items():
            if scheme == "Bearer" and hmac.compare_digest(token.encode(), known.encode()):
                return scopes
        raise _Refusal(401, "unauthorized", "The bearer token is missing or unknown.")

    def _signed(self, request: Request, key: str) -> frozenset[str]:
        """The scopes of an API key whose signature covers time, method, path and body."""
        if key not in self._options.api_keys:
            raise _Refusal(401, "unauthorized", "The API key is unknown.")
        secret, scopes = self._options.api_keys[key]
        timestamp = request.headers.get("X-Timestamp", "")
        if not re.fullmatch(r"\d{1,12}", timestamp):
            raise _Refusal(401, "invalid_timestamp", "X-Timestamp is no Unix time in seconds.")
        if abs(self._options.clock().timestamp() - int(timestamp)) > _CLOCK_SKEW_SECONDS:
            raise _Refusal(401, "invalid_timestamp", "X-Timestamp is over 300 seconds off.")
        expected = sign_request(secret, timestamp, request.method, request.path, request.body)
        given = request.headers.get("X-Signature", "")
        if not hmac.compare_digest(expected.encode(), given.encode()):
            raise _Refusal(401, "invalid_signature", "X-Signature does not match the request.")
        return scopes

    # What is asked

    def _route(self, request: Request, scopes: frozenset[str]) -> tuple[Any, Any]:
        segments = _segments(request.path)
        match segments:
            case ["voice-calls"]:
                known, scope = _LISTING_PARAMETERS, READ
            case ["voice-calls", _] | ["voice-calls", _, "epa-results"]:
                known, scope = frozenset[str](), READ
            case ["voice-calls", _, "recording-url"]:
                known, scope = frozenset[str](), AUDIO
            case _:
                raise _Refusal(404, "not_found", "There is no such resource.")
        if request.method != "GET":
            self._violation(f"{request.method} sent to the API")
            raise _Refusal(405, "method_not_allowed", "Only GET is known here.")
        if scope not in scopes:
            raise _Refusal(403, "insufficient_scope", f"The credentials lack the scope {scope}.")
        parameters = _parameters(request, known)
        if len(segments) == 1:
            return self._list(parameters)
        return self._one(segments), None

    def _one(self, segments: list[str]) -> dict[str, Any]:
        call = self._find(segments[1])
        if call is None:
            raise _Refusal(404, "call_not_found", "There is no such call.")
        match segments[2:]:
            case ["recording-url"]:
                return self._recording_url(call)
            case ["epa-results"]:
                if call.epa is None:
                    raise _Refusal(404, "epa_results_not_found", "The call has no survey.")
                return call.epa
        return call.detail()

    def _recording_url(self, call: SimulatedCall) -> dict[str, Any]:
        if call.recording is None:
            raise _Refusal(404, "recording_not_found", "The call has no recording.")
        url, expiry = self._sign(call.id)
        return {"recordingUrl": url, "expiresAt": expiry.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def _list(self, parameters: dict[str, str]) -> tuple[Any, Any]:
        size = min(_number(parameters, "pageSize", 25), self._options.page_size_cap)
        page = _number(parameters, "page", 1)
        matching = self._listing(parameters)
        pages = max(1, math.ceil(len(matching) / size))
        if self._options.clamp_pages:
            page = min(page, pages)
        shown = matching[(page - 1) * size : page * size]
        full = self._options.listing_has_transcripts
        data = [call.detail() if full else call.summary() for call in shown]
        return data, {
            "page": page,
            "pageSize": size,
            "totalCount": len(matching),
            "totalPages": math.ceil(len(matching) / size),
        }

    def _listing(self, parameters: dict[str, str]) -> list[SimulatedCall]:
        """All calls of a listing, whichever page of it is asked for."""
        asked = {k: v for k, v in parameters.items() if k not in ("page", "pageSize")}
        known, calls = self._kept
        if self._options.frozen and calls and asked == known:
            return calls
        calls = self._matching(asked)
        if self._options.frozen:
            self._kept = (asked, calls)
        return calls

    def _matching(self, parameters: dict[str, str]) -> list[SimulatedCall]:
        wanted = {k: v for k, v in parameters.items() if k in ("campaignId", "state", "direction")}
        start, end = _when(parameters, "dateFrom"), _when(parameters, "dateTo")
        if start is not None and end is not None and end < start:
            raise _Refusal(400, "validation_error", "dateTo lies before dateFrom.")
        found = [
            call
            for call in self._calls()
            if all(call.document.get(name) == value for name, value in wanted.items())
            and self._within(call, start, end)
        ]
        return self._sorted(found)

    def _within(self, call: SimulatedCall, start: datetime | None, end: datetime | None) -> bool:
        if start is None and end is None:
            return True
        moment = _moment(call, self._options.filter_field)
        if moment is None:
            return False
        if self._options.whole_days:
            return (start is None or moment.date() >= start.date()) and (
                end is None or moment.date() <= end.date()
            )
        if end is not None and moment == end:
            return self._options.inclusive_end
        return (start is None or start <= moment) and (end is None or moment < end)

    def _sorted(self, calls: list[SimulatedCall]) -> list[SimulatedCall]:
        if self._options.sort == "given":
            return calls
        if self._options.sort == "id":
            return sorted(calls, key=lambda call: call.id)
        return sorted(
            calls,
            key=lambda call: _moment(call, "startTime") or datetime.max.replace(tzinfo=UTC),
            reverse=self._options.sort == "-startTime",
        )


class _Pace:
    """Counts the requests of the current second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._second, self._count = 0, 0

    def check(self, limit: int | None) -> None:
        if limit is None:
            return
        with self._lock:
            second = int(time.monotonic())
            self._count = self._count + 1 if second == self._second else 1
            self._second = second
            if self._count > limit:
                raise _Refusal(429, "rate_limited", "Too many requests.", retry_after_seconds=1)


def sign_request(secret: str, timestamp: str, method: str, path: str, body: bytes) -> str:
    """The documented X-Signature; `path` has no host and no query."""
    body_hash = base64.b64encode(hashlib.sha256(body).digest()).decode()
    text = f"{timestamp}.{method}.{path}.{body_hash}"
    return base64.b64encode(hmac.digest(secret.encode(), text.encode(), "sha256")).decode()


def _segments(path: str) -> list[str]:
    if not path.startswith(f"{BASE_PATH}/"):
        return []
    try:
        return [unquote(part, errors="strict") for part in path[len(BASE_PATH) + 1 :].split("/")]
    except UnicodeDecodeError:
        raise _Refusal(400, "validation_error", "The path is no UTF-8.") from None


def _parameters(request: Request, known: frozenset[str]) -> dict[str, str]:
    names = [name for name, _ in request.pairs]
    for name in names:
        if name not in known:
            raise _Refusal(400, "validation_error", f"Unknown query parameter {name!r}.")
    if len(names) != len(set(names)):
        raise _Refusal(400, "validation_error", "A query parameter is given twice.")
    return request.query


def _number(parameters: dict[str, str], name: str, default: int) -> int:
    text = parameters.get(name, str(default))
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise _Refusal(400, "validation_error", f"{name} is no positive number.")
    return int(text)


def _when(parameters: dict[str, str], name: str) -> datetime | None:
    text = parameters.get(name)
    if text is None:
        return None
    moment = _parse(text) if _TIME.fullmatch(text) else None
    if moment is None:
        raise _Refusal(400, "validation_error", f"{name} is no date or RFC 3339 time.")
    return moment


def _moment(call: SimulatedCall, name: str) -> datetime | None:
    """The time that places a call: the filter's field, else another that it has."""
    if call.listed_at is not None:
        return call.listed_at
    for field_name in (name, "startTime", "createdAt", "endTime"):
        text = call.document.get(field_name)
        moment = _parse(text) if isinstance(text, str) else None
        if moment is not None:
            return moment
    return None


@lru_cache(maxsize=1 << 17)
def _parse(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)


def _refused(refusal: _Refusal, request_id: str, headers: dict[str, str]) -> Reply:
    error: dict[str, Any] = {
        "code": refusal.code,
        "message": refusal.message,
        "requestId": request_id,
    }
    if refusal.retry_after_seconds is not None:
        error["retryAfter"] = refusal.retry_after_seconds
        headers = {**headers, "Retry-After": str(refusal.retry_after_seconds)}
    if refusal.status == 401:
        headers = {**headers, "WWW-Authenticate": "Bearer"}
    return Reply(refusal.status, headers, _json({"error": error}))


def _json(value: Any) -> bytes:
    # As the platform's own serialiser might: no sorting, and lone surrogates kept as escapes.
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
