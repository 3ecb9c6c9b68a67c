"""A simulated voice-bot platform: the documented API, and the blob store behind its signed URLs.

It is stateful and strict: it checks every signature, scope, parameter and expiry, and writes down
what no client may do (`violations`). What the documents leave open is a field of `Options`, so that
a client can be held against each reading of them. Hooks bend any answer.

`VoicePlatform` is the platform without a network. `Platform` serves it over HTTP on loopback:

    with Platform(make_calls(60, start, end)) as platform:
        ...  # platform.api_url, platform.token, platform.blob_host

`python -m tests.fakes.platform --calls N` serves one as a process of its own. The first line on its
stdout is a JSON object with the addresses and credentials. Nothing here imports the archiver.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import itertools
import json
import math
import re
import secrets
import signal
import ssl
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, unquote, urlencode
from uuid import uuid4

from tests.fakes.calls import APART, NoiseRecording, Recording, SimulatedCall, make_calls
from tests.fakes.http_server import BendableServer, Reply, Request, ServerName

BASE_PATH = "/api/v1"
READ, AUDIO = "voice:read", "audio:download"
ALL_SCOPES = frozenset({READ, AUDIO})

_LISTING_PARAMETERS = frozenset(
    {"campaignId", "state", "direction", "dateFrom", "dateTo", "page", "pageSize"}
)
_CLOCK_SKEW_SECONDS = 300
_TIME = re.compile(r"\d{4}-\d\d-\d\d([Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d))?")
_BLOB_VERSION = "2024-11-04"
_SIGNED_FIELDS = ("sv", "sr", "sp", "st", "se")
_CREDENTIALS = ("Authorization", "X-Api-Key", "X-Signature", "X-Timestamp", "Cookie")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_REMEMBERED_REQUESTS = 200_000

Hook = Callable[[Request], Reply | None]
TimesAs = Literal[
    "rfc3339", "no zone", "no seconds", "rfc1123", "epoch", "epoch ms", "epoch text"
]  # fmt: skip
_TIME_FIELDS = ("startTime", "endTime", "createdAt", "expiresAt")


@dataclass
class Options:
    """How this platform reads what the documents leave open. Tests may change it while it runs.

    `filter_field` is the time that the date filter reads; `whole_days` has it look at dates only,
    both inclusive. `clamp_pages` answers a page past the end with the last one. `rate_per_second`
    answers 429 beyond that many requests within one second of the machine's clock. `tokens` maps
    bearer tokens to scopes, `api_keys` maps API keys to their secret and scopes. `frozen` promises
    that neither calls nor options change any more: a listing is then put together once, and not
    once for each of its pages. `past_end` answers a page beyond the last one, `absent` what a call
    lacks (survey, recording): a status, or a body. `times` writes the times in answers another way,
    `bom` puts a byte order mark before each body. `quota` answers 429 beyond so many requests in
    so many seconds of `clock`, with the seconds to the next such span as `Retry-After`, or as a
    date where `retry_date` is set.
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
    frozen: bool = False
    past_end: int | bytes | None = None
    absent: int | bytes = 404
    times: TimesAs = "rfc3339"
    bom: bool = False
    quota: tuple[int, int] | None = None
    retry_date: bool = False


class _Refusal(Exception):
    """An answer of the API in the documented shape of an error."""

    def __init__(self, status: int, code: str, message: str, **more: int) -> None:
        super().__init__(message)
        self.status = status
        self.body: bytes | None = None
        self.error: dict[str, Any] = {"code": code, "message": message, **more}


class VoicePlatform:
    """The calls of a platform, and what it answers about them. Thread-safe.

    Keyword arguments are the fields of `Options`, which stay changeable as `options`. `token` and
    the pair `api_key` and `api_secret` have both scopes. `violations` holds what no client may do;
    `sas_issued` counts the URLs that the API signed, by call id.

    `hooks` run in order before the normal handling, on the thread that asks; the first `Reply`
    wins. A hook may sleep, and may ask `answer(request)` for the normal reply and bend it.
    """

    scheme = "https"
    blob_host = ""

    def __init__(self, calls: Iterable[SimulatedCall] = (), **options: Any) -> None:
        self.options = Options(**options)
        self.token = self.token_for(*ALL_SCOPES)
        self.api_key = f"ak_live_{secrets.token_hex(12)}"
        self.api_secret = secrets.token_urlsafe(32)
        self.options.api_keys[self.api_key] = (self.api_secret, ALL_SCOPES)
        self.hooks: list[Hook] = []
        self.violations: list[str] = []
        self.sas_issued: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._calls = {call.id: call for call in calls}
        self._signing_key = secrets.token_bytes(32)
        self._answered = itertools.count()
        self._second, self._requests_in_second = 0, 0
        self._span_end, self._requests_in_span = 0.0, 0
        self._frozen_listing: tuple[dict[str, str], list[SimulatedCall]] | None = None

    # --- the calls

    @property
    def calls(self) -> list[SimulatedCall]:
        """All calls, in the order they were added."""
        with self._lock:
            return list(self._calls.values())

    def listable(self) -> list[SimulatedCall]:
        """The calls that a listing may show."""
        return self.calls

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

    # --- credentials

    def token_for(self, *scopes: str) -> str:
        """A new bearer token with these scopes only."""
        token = f"token-{secrets.token_urlsafe(24)}"
        self.options.tokens[token] = frozenset(scopes)
        return token

    def recording_url(self, call_id: str) -> str:
        """A signed URL as the API would answer it now; not counted in `sas_issued`."""
        return self.sign(call_id)[0]

    def void_recording_urls(self) -> None:
        """Answer every URL signed so far with 403."""
        self._signing_key = secrets.token_bytes(32)

    def sign(self, call_id: str) -> tuple[str, datetime]:
        """A URL that opens the recording of a call, from now to the expiry, both to the second."""
        start = self.options.clock().astimezone(UTC).replace(microsecond=0)
        expiry = start + timedelta(seconds=self.options.sas_ttl_seconds)
        path = f"/recs/{quote(call_id, safe='')}.wav"
        values = (_BLOB_VERSION, "b", "r", _seconds(start), _seconds(expiry))
        fields = dict(zip(_SIGNED_FIELDS, values, strict=True))
        query = urlencode({**fields, "sig": self._signature(path, fields)}, quote_via=quote)
        return f"{self.scheme}://{self.blob_host}{path}?{query}", expiry

    def _signature(self, path: str, fields: Mapping[str, str]) -> str:
        text = "\n".join((unquote(path), *(fields[name] for name in _SIGNED_FIELDS)))
        return base64.b64encode(hmac.digest(self._signing_key, text.encode(), "sha256")).decode()

    # --- requests

    def answer(self, request: Request) -> Reply:
        """The normal reply to a request, hooks aside."""
        if request.server == "api":
            return self._answer_api(request)
        reply = self._answer_blob(request)
        reply.headers = {
            "Date": format_datetime(self.options.clock(), usegmt=True),
            "x-ms-request-id": str(uuid4()),
            "x-ms-version": _BLOB_VERSION,
            **reply.headers,
        }
        return reply

    def answer_with_hooks(self, request: Request) -> Reply:
        for hook in tuple(self.hooks):
            reply = hook(request)
            if reply is not None:
                return reply
        return self.answer(request)

    # --- the API

    def _answer_api(self, request: Request) -> Reply:
        now = self.options.clock()
        request_id = f"req_{uuid4().hex[:16]}"
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Date": format_datetime(now, usegmt=True),
            "X-Request-Id": request_id,
        }
        try:
            self._check_rate()
            self._check_quota()
            body, pagination = self._route(request, self._authenticate(request))
        except _Refusal as refusal:
            error = {**refusal.error, "requestId": request_id}
            if "retryAfter" in error:
                until = now + timedelta(seconds=error["retryAfter"])
                date = format_datetime(until, usegmt=True)
                headers["Retry-After"] = (
                    date if self.options.retry_date else str(error["retryAfter"])
                )
            if refusal.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            body = _json({"error": error}) if refusal.body is None else refusal.body
            return Reply(refusal.status, headers, body)
        body = self.written(body)
        number, enveloped = next(self._answered), self.options.enveloped
        if number % 2 == 0 if enveloped == "mixed" else enveloped:
            timestamp = now.astimezone(UTC).isoformat().replace("+00:00", "Z")
            body = {"data": body, "meta": {"requestId": request_id, "timestamp": timestamp}}
            if pagination is not None:
                body["pagination"] = pagination
        return Reply(200, headers, b"\xef\xbb\xbf" * self.options.bom + _json(body))

    def written(self, body: Any) -> Any:
        """A document, or a list of them, with its times as this platform writes them."""
        if self.options.times == "rfc3339":
            return body
        if isinstance(body, list):
            return [self.written(one) for one in body]
        return {
            name: self._time(value) if name in _TIME_FIELDS and value else value
            for name, value in body.items()
        }

    def _time(self, text: str) -> str | float:
        moment = _parse(text)
        assert moment is not None
        seconds = moment.timestamp()
        whole = int(seconds) if seconds.is_integer() else seconds
        match self.options.times:
            case "no zone":
                return moment.replace(tzinfo=None).isoformat()
            case "no seconds":
                return f"{moment:%Y-%m-%dT%H:%MZ}"
            case "rfc1123":
                return format_datetime(moment, usegmt=True)
            case "epoch":
                return whole
            case "epoch ms":
                return round(seconds * 1000)
            case _:
                return str(whole)

    def _check_quota(self) -> None:
        if self.options.quota is None:
            return
        most, span = self.options.quota
        with self._lock:
            now = self.options.clock().timestamp()
            if now >= self._span_end:
                self._span_end, self._requests_in_span = now + span, 0
            self._requests_in_span += 1
            if self._requests_in_span > most:
                left = math.ceil(self._span_end - now)
                raise _Refusal(429, "rate_limited", "Too many requests.", retryAfter=left)

    def _nothing(self, says: int | bytes, code: str, message: str) -> _Refusal:
        """How this platform says that there is none."""
        refusal = _Refusal(200 if isinstance(says, bytes) else says, code, message)
        refusal.body = says if isinstance(says, bytes) else b"" if says == 204 else None
        return refusal

    def _check_rate(self) -> None:
        if self.options.rate_per_second is None:
            return
        with self._lock:
            second = int(time.monotonic())
            same = second == self._second
            self._second = second
            self._requests_in_second = self._requests_in_second + 1 if same else 1
            if self._requests_in_second > self.options.rate_per_second:
                raise _Refusal(429, "rate_limited", "Too many requests.", retryAfter=1)

    def _authenticate(self, request: Request) -> frozenset[str]:
        """The scopes of whoever asks: by bearer token, or by API key and signature."""
        bearer, key = request.headers.get("Authorization"), request.headers.get("X-Api-Key")
        if bearer is not None and key is not None:
            self.violations.append("both a bearer token and an API key sent")
            raise _Refusal(401, "unauthorized", "Send a bearer token or an API key, not both.")
        if key is None:
            scheme, _, token = (bearer or "").partition(" ")
            if scheme != "Bearer" or token not in self.options.tokens:
                raise _Refusal(401, "unauthorized", "The bearer token is missing or unknown.")
            return self.options.tokens[token]
        if key not in self.options.api_keys:
            raise _Refusal(401, "unauthorized", "The API key is unknown.")
        secret, scopes = self.options.api_keys[key]
        timestamp = request.headers.get("X-Timestamp", "")
        if not re.fullmatch(r"\d{1,12}", timestamp):
            raise _Refusal(401, "invalid_timestamp", "X-Timestamp is not a Unix time in seconds.")
        if abs(self.options.clock().timestamp() - int(timestamp)) > _CLOCK_SKEW_SECONDS:
            raise _Refusal(401, "invalid_timestamp", "X-Timestamp is over 300 seconds off.")
        expected = sign_request(secret, timestamp, request.method, request.path, request.body)
        given = request.headers.get("X-Signature", "")
        if not hmac.compare_digest(expected.encode(), given.encode()):
            raise _Refusal(401, "invalid_signature", "X-Signature does not match the request.")
        return scopes

    def _route(self, request: Request, scopes: frozenset[str]) -> tuple[Any, Any]:
        """The body of an answer, and its pagination if it is a listing."""
        segments = _segments(request.path)
        known: frozenset[str] = frozenset()
        match segments:
            case ["voice-calls"]:
                known, scope = _LISTING_PARAMETERS, READ
            case ["voice-calls", _]:
                scope = READ
            case ["voice-calls", _, part] if part in APART.values():
                scope = READ
            case ["voice-calls", _, "recording-url"]:
                scope = AUDIO
            case _:
                raise _Refusal(404, "not_found", "There is no such resource.")
        if request.method != "GET":
            self.violations.append(f"{request.method} sent to the API")
            raise _Refusal(405, "method_not_allowed", "Only GET is known here.")
        if scope not in scopes:
            raise _Refusal(403, "insufficient_scope", f"The credentials lack the scope {scope}.")
        if len(request.pairs) != len(request.query) or not request.query.keys() <= known:
            raise _Refusal(400, "validation_error", f"Unknown or repeated: {request.raw_query}")
        if len(segments) == 1:
            return self._list(request.query)
        return self._get(segments[1], segments[2:]), None

    def _get(self, call_id: str, part: list[str]) -> dict[str, Any]:
        call = self.find(call_id)
        if call is None:
            raise _Refusal(404, "call_not_found", "There is no such call.")
        for kind, name in APART.items():
            if part == [name]:
                document = call.apart().get(kind)
                if document is None:
                    raise self._nothing(
                        self.options.absent, f"{kind}_not_found", "No such document."
                    )
                return document
        if part == ["recording-url"]:
            if call.recording is None:
                raise self._nothing(self.options.absent, "recording_not_found", "No recording.")
            with self._lock:
                self.sas_issued[call.id] += 1
            url, expiry = self.sign(call.id)
            return {"recordingUrl": url, "expiresAt": _seconds(expiry)}
        return call.detail()

    def _list(self, parameters: dict[str, str]) -> tuple[list[dict[str, Any]], Any]:
        """The entries of one page, and the pagination."""
        size = min(_number(parameters, "pageSize", 25), self.options.page_size_cap)
        page = _number(parameters, "page", 1)
        matching = self._matching(parameters)
        pages = math.ceil(len(matching) / size)
        if self.options.clamp_pages:
            page = min(page, max(1, pages))
        if page > max(1, pages) and self.options.past_end is not None:
            raise self._nothing(self.options.past_end, "no_such_page", "There is no such page.")
        shown = matching[(page - 1) * size : page * size]
        full = self.options.listing_has_transcripts
        return [call.detail() if full else call.entry() for call in shown], {
            "page": page,
            "pageSize": size,
            "totalCount": len(matching),
            "totalPages": pages,
        }

    def _matching(self, parameters: dict[str, str]) -> list[SimulatedCall]:
        """All calls of a listing in its order, whichever page of it is asked for."""
        filters = {k: v for k, v in parameters.items() if k not in ("page", "pageSize")}
        if self._frozen_listing is not None and self._frozen_listing[0] == filters:
            return self._frozen_listing[1]
        start, end = _when(filters, "dateFrom"), _when(filters, "dateTo")
        if start is not None and end is not None and end < start:
            raise _Refusal(400, "validation_error", "dateTo lies before dateFrom.")
        fields = {k: v for k, v in filters.items() if k not in ("dateFrom", "dateTo")}
        found = [
            call
            for call in self.listable()
            if all(call.document.get(name) == value for name, value in fields.items())
            and self._is_within(call, start, end)
        ]
        if self.options.sort == "id":
            found.sort(key=lambda call: call.id)
        elif self.options.sort != "given":
            last = datetime.max.replace(tzinfo=UTC)
            found.sort(
                key=lambda call: _moment(call, "startTime") or last,
                reverse=self.options.sort == "-startTime",
            )
        if self.options.frozen:
            self._frozen_listing = (filters, found)
        return found

    def _is_within(self, call: SimulatedCall, start: datetime | None, end: datetime | None) -> bool:
        if start is None and end is None:
            return True
        moment = _moment(call, self.options.filter_field)
        if moment is None:
            return False
        if self.options.whole_days:
            return (start is None or moment.date() >= start.date()) and (
                end is None or moment.date() <= end.date()
            )
        if end is not None and moment == end:
            return self.options.inclusive_end
        return (start is None or start <= moment) and (end is None or moment < end)

    # --- the blob store, as Azure's: its signed URLs, its headers, its errors in XML

    def _answer_blob(self, request: Request) -> Reply:
        sent = [name for name in _CREDENTIALS if name in request.headers]
        if sent:
            self.violations.append(f"{', '.join(sent)} sent to the blob host")
            return _blob_error(400, "InvalidHeaderValue", "A signed URL needs no credentials.")
        if request.method not in ("GET", "HEAD"):
            self.violations.append(f"{request.method} sent to the blob host")
            return _blob_error(405, "UnsupportedHttpVerb", "The blob doesn't support this verb.")
        refusal = self._why_url_is_refused(request)
        if refusal is not None:
            return _blob_error(403, "AuthenticationFailed", "No access.", refusal)
        call = self.find(unquote(request.path).removeprefix("/recs/").removesuffix(".wav"))
        if call is None or call.recording is None or call.blob_missing:
            return _blob_error(404, "BlobNotFound", "The specified blob does not exist.")
        recording = call.recording
        etag = call.etag or recording.etag
        if request.headers.get("If-Match", "*") not in (etag, "*"):
            return _blob_error(412, "ConditionNotMet", "The condition is not met.")
        headers = {
            "Content-Type": recording.content_type,
            "ETag": etag,
            "Last-Modified": format_datetime(_last_modified(call), usegmt=True),
            "Accept-Ranges": "bytes",
            "x-ms-blob-type": "BlockBlob",
        }
        asked = request.headers.get("Range")
        if recording.content_md5:
            # Of a range Content-MD5 would speak of that range alone.
            name = "Content-MD5" if asked is None else "x-ms-blob-content-md5"
            headers[name] = base64.b64encode(recording.md5()).decode()
        if asked is not None:
            return _range(asked, headers, recording)
        return Reply(200, headers, recording.blocks(), content_length=recording.length)

    def _why_url_is_refused(self, request: Request) -> str | None:
        """None if the URL opens its blob now: expiry is judged when a request starts."""
        fields = request.query
        if sorted(name for name, _ in request.pairs) != sorted((*_SIGNED_FIELDS, "sig")):
            return "The query is not the one that was signed"
        if not hmac.compare_digest(
            fields["sig"].encode(), self._signature(request.path, fields).encode()
        ):
            return "Signature did not match"
        now = _seconds(self.options.clock())
        if not fields["st"] <= now < fields["se"]:
            return (
                "Signature not valid in the specified time frame: "
                f"Start [{fields['st']}] - Expiry [{fields['se']}] - Current [{now}]"
            )
        return None


def _range(asked: str, headers: dict[str, str], recording: Recording) -> Reply:
    match = _RANGE.fullmatch(asked)
    if match is None:
        return _blob_error(400, "InvalidHeaderValue", "Only one range bytes=A-B is understood.")
    start = int(match[1])
    end = min(int(match[2]) + 1 if match[2] else recording.length, recording.length)
    if start >= end:
        reply = _blob_error(416, "InvalidRange", "The range is invalid for the size of the blob.")
        reply.headers = {**reply.headers, "Content-Range": f"bytes */{recording.length}"}
        return reply
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{recording.length}"
    return Reply(206, headers, recording.blocks(start, end), content_length=end - start)


def _blob_error(status: int, code: str, message: str, detail: str | None = None) -> Reply:
    more = f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>" if detail else ""
    text = (
        '\ufeff<?xml version="1.0" encoding="utf-8"?>'
        f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    )
    headers = {"Content-Type": "application/xml", "x-ms-error-code": code}
    return Reply(status, headers, text.encode())


def sign_request(secret: str, timestamp: str, method: str, path: str, body: bytes) -> str:
    """The documented X-Signature; `path` has no host and no query."""
    body_hash = base64.b64encode(hashlib.sha256(body).digest()).decode()
    text = f"{timestamp}.{method}.{path}.{body_hash}"
    return base64.b64encode(hmac.digest(secret.encode(), text.encode(), "sha256")).decode()


def subject(request: Request) -> tuple[str, str]:
    """What a request asks for, and the id of the call: `call`, a kind of `APART`, `url` or `blob`.
    Of a listing it is `list`, and the start of its range."""
    if request.server == "blob":
        return "blob", unquote(request.path).removeprefix("/recs/").removesuffix(".wav")
    rest = request.path.removeprefix(f"{BASE_PATH}/voice-calls").strip("/")
    if not rest:
        return "list", request.query.get("dateFrom", "")
    call_id, _, last = rest.partition("/")
    names = {"": "call", "recording-url": "url", **{name: kind for kind, name in APART.items()}}
    return names.get(last, last), unquote(call_id)


def _segments(path: str) -> list[str]:
    if not path.startswith(f"{BASE_PATH}/"):
        return []
    try:
        return [unquote(part, errors="strict") for part in path[len(BASE_PATH) + 1 :].split("/")]
    except UnicodeDecodeError:
        raise _Refusal(400, "validation_error", "The path is not UTF-8.") from None


def _number(parameters: dict[str, str], name: str, default: int) -> int:
    text = parameters.get(name, str(default))
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise _Refusal(400, "validation_error", f"{name} is not a positive number.")
    return int(text)


def _when(parameters: dict[str, str], name: str) -> datetime | None:
    text = parameters.get(name)
    if text is None:
        return None
    moment = _parse(text) if _TIME.fullmatch(text) else None
    if moment is None:
        raise _Refusal(400, "validation_error", f"{name} is not a date or RFC 3339 time.")
    return moment


def _moment(call: SimulatedCall, name: str) -> datetime | None:
    """The time that places a call: the one asked for, else another that the call has."""
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


def _last_modified(call: SimulatedCall) -> datetime:
    if call.last_modified is not None:
        return call.last_modified
    ended_at = call.document.get("endTime")
    moment = _parse(ended_at) if isinstance(ended_at, str) else None
    return moment + timedelta(seconds=5) if moment else datetime(2024, 1, 1, tzinfo=UTC)


def _seconds(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(value: Any) -> bytes:
    # As the platform's own serialiser might: no sorting, and lone surrogates kept as escapes.
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


# --- over HTTP


@dataclass(frozen=True)
class Served:
    """One request and the status of its answer; `path` without the query."""

    server: ServerName
    method: str
    path: str
    query: str
    status: int


class Platform(VoicePlatform):
    """The platform on two ports of loopback, from the start of the `with` block to its end.

    `requests` holds what was answered; an answer is there before the client has it. `blob_host` is
    what recording URLs name; tests may put a proxy there. `tls` serves both ports over TLS.
    """

    def __init__(
        self,
        calls: Iterable[SimulatedCall] = (),
        *,
        tls: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(calls, **options)
        self.scheme = "http" if tls is None else "https"
        self.requests: deque[Served] = deque(maxlen=_REMEMBERED_REQUESTS)
        names: tuple[ServerName, ServerName] = ("api", "blob")
        self._servers = [
            BendableServer(
                name, ("127.0.0.1", 0), self._respond, tls=tls, report=self.violations.append
            )
            for name in names
        ]
        self.api_host, self.blob_server = (f"127.0.0.1:{one.server_port}" for one in self._servers)
        self.blob_host = self.blob_server

    @property
    def api_url(self) -> str:
        """The base URL, `…/api/v1`."""
        return f"{self.scheme}://{self.api_host}{BASE_PATH}"

    def __enter__(self) -> Self:
        for server in self._servers:
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.stop()

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
        reply = self.answer_with_hooks(request)
        self.requests.append(
            Served(request.server, request.method, request.path, request.raw_query, reply.status)
        )
        return reply


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    options = _parser().parse_args()
    calls = make_calls(options.calls, options.start, options.end, options.seed, short=options.short)
    for number in range(options.huge):
        # About `--huge-bytes` of audio, made as it is read.
        seed = f"{options.seed} huge {number}"
        [call] = make_calls(1, options.start, options.end, seed, short=True)
        seconds = options.huge_bytes // 16_000
        call.recording = NoiseRecording(call.id, seconds, content_md5=False)
        call.document["durationSeconds"] = seconds
        calls.append(call)
    if options.truth is not None:
        lines = [json.dumps(call.truth(), ensure_ascii=False) + "\n" for call in calls]
        options.truth.write_text("".join(lines), encoding="utf-8")
    enveloped = {"yes": True, "no": False, "mixed": "mixed"}[options.enveloped]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Platform(calls, enveloped=enveloped, sas_ttl_seconds=options.sas_ttl) as platform:
        platform.blob_host = options.blob_via or platform.blob_host
        addresses = {
            "api_url": platform.api_url,
            "blob_host": platform.blob_host,
            "blob_server": platform.blob_server,
            "token": platform.token,
        }
        print(json.dumps(addresses), flush=True)
        stop.wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    def moment(text: str) -> datetime:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=found.tzinfo or UTC)

    parser = argparse.ArgumentParser(prog="python -m tests.fakes.platform")
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    before = midnight - timedelta(days=2)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--from", dest="start", type=moment, default=before, metavar="T")
    parser.add_argument("--to", dest="end", type=moment, default=midnight, metavar="T")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--short", action="store_true", help="recordings of 1 to 4 s only")
    parser.add_argument("--huge", type=int, default=0, help="so many more calls, of --huge-bytes")
    parser.add_argument("--huge-bytes", type=int, default=250_000_000)
    parser.add_argument("--enveloped", choices=("yes", "no", "mixed"), default="yes")
    parser.add_argument("--sas-ttl", type=int, default=900, metavar="SECONDS")
    parser.add_argument("--blob-via", metavar="HOST:PORT", help="a proxy that recording URLs name")
    parser.add_argument("--truth", type=Path, metavar="FILE", help="a JSON object for each call")
    return parser


if __name__ == "__main__":
    sys.exit(main())
