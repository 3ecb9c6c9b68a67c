"""The source's JSON API: listing, call, survey, signed recording URL.

Contract of `VoiceCallsClient`:
- Retries: 429, 5xx and broken connections are tried again with backoff (`Retry-After` is heard);
  everything else is raised at once. All requests are GETs.
- Errors: `SourceRefused` (401/403: the credentials or a scope), `SourceError` (unreachable, or not
  the API), `CallError` (one call's answer is of no use), `NoRecording`.
- Bounds: no answer is read beyond `MAX_JSON_BYTES`, no page twice, no listing without an end.
- Threads share a client.
"""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
import structlog

from archiver.clock import Clock
from archiver.errors import CallError, FormatError, NoRecording, SourceError, SourceRefused
from archiver.manifest import canonical
from archiver.metrics import stage
from archiver.model import Call, Window, format_time
from archiver.retry import Retry
from archiver.source.signed import SignedUrl

log = structlog.get_logger()

MAX_JSON_BYTES = 32 << 20
PAGE_SIZE = 100
MAX_PAGES = 100_000
IDLE_PAGES = 3
"""So many pages in a row that hold only repeats end a listing."""
ACCESS_SAMPLE = 5
"""Calls asked for a recording URL before work begins: the first may have no recording."""
_ABSENT = object()
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout)
"""An outage of the source; a connection that breaks off later may be one call's own matter."""
READ_SCOPE, AUDIO_SCOPE = "voice:read", "audio:download"


@dataclass(frozen=True)
class Filter:
    """What narrows the listing. `states` holds at least one state."""

    states: tuple[str, ...]
    campaign_id: str | None = None
    direction: str | None = None

    def document(self) -> dict[str, Any]:
        """As the window line tells it."""
        document: dict[str, Any] = {"state": list(self.states)}
        if self.campaign_id:
            document["campaign_id"] = self.campaign_id
        if self.direction:
            document["direction"] = self.direction
        return document

    def admits(self, call: Call) -> bool:
        """Whether a listed call is one that was asked for: a source may ignore a filter.

        A field that is missing, or spelt in other letters' case, is no reason to leave it out.
        """
        wanted = {
            "state": self.states,
            "campaignId": (self.campaign_id,),
            "direction": (self.direction,),
        }
        return all(
            _folded(call.text(field)) in (None, *map(_folded, values))
            for field, values in wanted.items()
            if any(values)
        )


@dataclass(frozen=True)
class Page:
    """One page of the listing of one state; `total` and `pages` are what the source says of it."""

    calls: tuple[Call, ...]
    total: int | None
    pages: int | None
    size: int
    """How many calls a full page has: what was asked for, or less where the source says so."""
    filter_state: str


@dataclass(frozen=True)
class Answer:
    """A JSON answer, out of its envelope."""

    body: Any
    pagination: Mapping[str, Any]
    request_id: str | None


class VoiceCallsClient:
    """The Voice Calls REST API, as far as an archive needs it."""

    def __init__(
        self,
        base_url: str,
        auth: httpx.Auth,
        clock: Clock,
        *,
        retry: Retry,
        tls: ssl.SSLContext,
        connections: int = 16,
        requests_per_second: float | None = None,
        answer_seconds: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`answer_seconds` is how long the source may take over the body of one answer;
        `transport` takes the network's place."""
        self._answer_seconds = answer_seconds
        self.base_url = base_url.rstrip("/")
        self._clock = clock
        self._retry = retry
        self._pace = Pace(requests_per_second, clock)
        self._http = httpx.Client(
            auth=auth,
            verify=tls,
            trust_env=False,
            follow_redirects=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(30.0, connect=10.0),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def pages(self, window: Window, filters: Filter) -> Iterator[Page]:
        """One pass over the listing of a window, page by page, until there is nothing more.

        A page that is as the one before ends it (the source may ignore `page`, or clamp it), and
        so do a few in a row without a new id.
        """
        for state in filters.states:
            query = {
                "state": state,
                "dateFrom": format_time(window.start),
                "dateTo": format_time(window.end),
                "pageSize": str(PAGE_SIZE),
            }
            if filters.campaign_id:
                query["campaignId"] = filters.campaign_id
            if filters.direction:
                query["direction"] = filters.direction
            yield from self._pages(query)

    def _pages(self, query: dict[str, str]) -> Iterator[Page]:
        seen: set[str] = set()
        before: set[str] = set()
        idle = 0
        for number in range(1, MAX_PAGES + 1):
            page = self._page_or_end({**query, "page": str(number)}, number)
            ids = {call.id for call in page.calls}
            idle = idle + 1 if ids <= seen else 0
            seen |= ids
            yield page
            # A page may hold nothing but repeats, and the one after it something new.
            ends = idle and (not ids or ids == before or idle == IDLE_PAGES)
            if ends or _is_last(page, number, len(seen)):
                break
            before = ids
        else:
            raise SourceError(f"the source's listing goes on after {MAX_PAGES} pages")

    def _page_or_end(self, query: Mapping[str, str], number: int) -> Page:
        """A page; one that the source answers with 404 lies beyond the end, so it is empty."""
        try:
            with stage("list"):
                return self._page(query)
        except SourceError as error:
            if error.status != 404 or number == 1:
                raise
            return Page((), None, None, 0, query["state"])

    def _page(self, query: Mapping[str, str]) -> Page:
        answer = self._get("list", "/voice-calls", query, scope=READ_SCOPE)
        if not isinstance(answer.body, list):
            raise SourceError(
                "the source answered a listing with something else than a list: "
                "check ARCHIVER_API_BASE_URL"
            )
        calls = tuple(_call(item) for item in answer.body)
        told = (_count(answer.pagination.get(n)) for n in ("totalCount", "totalPages", "pageSize"))
        total, pages, size = told
        asked = int(query["pageSize"])
        return Page(calls, total, pages, min(asked, size or asked), query.get("state", ""))

    def call(self, call_id: str) -> tuple[Call, str | None]:
        """The call with its transcript, and the request's id.

        Raises `CallError` where the source does not know it or answers with another call.
        """
        with stage("call"):
            answer = self._get_of_call("call", f"/voice-calls/{_segment(call_id)}")
        if answer is None:
            raise CallError("listed, but not found", reason="call_missing", status=404)
        if not isinstance(answer.body, dict) or answer.body.get("id") != call_id:
            raise CallError("the answer is not this call", reason="bad_document")
        return Call(call_id, answer.body), answer.request_id

    def survey(self, call_id: str) -> dict[str, Any] | list[Any] | None:
        """The post-call survey, or None where the source has none."""
        with stage("epa"):
            answer = self._get_of_call("epa", f"/voice-calls/{_segment(call_id)}/epa-results")
        if answer is None or answer.body in (None, {}, []):
            return None
        rows = answer.body if isinstance(answer.body, list) else [answer.body]
        if not all(isinstance(row, dict) for row in rows):
            raise CallError("the survey is no object or array of objects", reason="bad_document")
        survey: dict[str, Any] | list[Any] = answer.body
        return survey

    def recording_url(self, call_id: str) -> SignedUrl:
        """A fresh signed URL, to be used at once. Raises `NoRecording` where there is none."""
        path = f"/voice-calls/{_segment(call_id)}/recording-url"
        with stage("sas"):
            answer = self._get_of_call("sas", path, scope=AUDIO_SCOPE)
        if answer is None:
            raise NoRecording("the source has no recording", reason="not_found", status=404)
        if not isinstance(answer.body, dict):
            raise CallError("the answer holds no recording URL", reason="bad_document")
        url = answer.body.get("recordingUrl", _ABSENT)
        if url is None or url == "":
            raise NoRecording("the source has no recording", reason="no_url", status=200)
        if not isinstance(url, str):
            raise CallError("the recording URL is no string", reason="bad_document")
        return SignedUrl.told(url, answer.request_id, answer.body.get("expiresAt"))

    def check_access(self) -> SignedUrl | None:
        """Ask once with each scope; raises `SourceRefused` or `SourceError`.

        The audio scope is tried on calls of the source's where it lists any, else on an id that
        it cannot know: 404 shows that the scope was not the obstacle. Returns a recording's URL
        if one came, for a look at its host.
        """
        page = self._page({"page": "1", "pageSize": str(ACCESS_SAMPLE)})
        for call_id in [call.id for call in page.calls] or ["access-check"]:
            try:
                return self.recording_url(call_id)
            except CallError as error:
                log.debug("source.access_checked", answer=error.reason)
        return None

    def clock_skew_seconds(self) -> float | None:
        """The source's `Date` less our time, or None where it sends none."""
        try:
            url = self.base_url + "/voice-calls?page=1&pageSize=1"
            with self._http.stream("GET", url) as response:
                served = parsedate_to_datetime(response.headers["Date"])
        except (httpx.HTTPError, KeyError, ValueError, OverflowError):
            return None
        if served.tzinfo is None:  # "-0000" says UTC, and that no zone is known
            served = served.replace(tzinfo=UTC)
        seconds: float = (served - self._clock.now()).total_seconds()
        return seconds

    def _get_of_call(self, name: str, path: str, scope: str = READ_SCOPE) -> Answer | None:
        """As `_get`, but what goes wrong is this call's matter; None for 404."""
        try:
            return self._get(name, path, {}, scope=scope)
        except SourceRefused:
            raise
        except SourceError as error:
            if error.reason == "unreachable":
                raise  # no matter of this call: going on would blame every call for an outage
            if error.status == 404:
                return None
            if error.status == 410 and name == "sas":
                raise NoRecording(
                    "the source has no recording", reason="gone", status=410
                ) from None
            reason = error.reason if error.reason == "bad_document" else "source_unavailable"
            raise CallError(str(error), reason=reason, status=error.status) from None

    def _get(self, name: str, path: str, query: Mapping[str, str], *, scope: str) -> Answer:
        return self._retry.call(name, lambda: self._get_once(path, query, scope))

    def _get_once(self, path: str, query: Mapping[str, str], scope: str) -> Answer:
        self._pace.wait()
        try:
            url = self.base_url + path
            with self._http.stream("GET", url, params=dict(query) or None) as response:
                body = self._read(response)
        except httpx.TransportError as error:
            raise _unreachable(error, self.base_url) from None
        except httpx.InvalidURL:
            raise SourceError("ARCHIVER_API_BASE_URL is not a URL that can be asked") from None
        if response.status_code != 200:
            raise _refusal(response, scope, body)
        return _unwrap(body, response)

    def _read(self, response: httpx.Response) -> bytes:
        """The body, within bounds of size and time: a timeout of httpx is one per read."""
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if response.status_code == 200 and encoding != "identity":
            raise SourceError(
                "the source answered with a Content-Encoding that was not asked for",
                reason="bad_document",
            )
        body, deadline = bytearray(), self._clock.monotonic() + self._answer_seconds
        for chunk in response.iter_raw():
            self._clock.check()
            body += chunk
            if len(body) > MAX_JSON_BYTES:
                raise SourceError(
                    f"the source answered with more than {MAX_JSON_BYTES >> 20} MiB of JSON",
                    reason="bad_document",
                    status=response.status_code,
                )
            if self._clock.monotonic() > deadline:
                raise SourceError(
                    f"the source took over {self._answer_seconds:g} s for one answer",
                    retryable=True,
                    reason="too_slow",
                )
        return bytes(body)


class Pace:
    """Spaces requests evenly: at most `per_second` from this process, None for no limit."""

    def __init__(self, per_second: float | None, clock: Clock) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        self._clock.check()
        if not self._interval:
            return
        with self._lock:
            now = self._clock.monotonic()
            at = max(self._next, now)
            self._next = at + self._interval
        if at > now:
            self._clock.sleep(at - now)


def _unreachable(error: httpx.TransportError, base_url: str) -> SourceError:
    """A certificate that is not trusted is no matter of trying again; all else may be."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return SourceError(
            f"the source's TLS certificate is not trusted ({cause.verify_message}): set "
            "SSL_CERT_FILE to its root",
            reason="unreachable",
        )
    return SourceError(
        f"the source is unreachable ({type(error).__name__}): check ARCHIVER_API_BASE_URL "
        f"({_host(base_url)}) and the network",
        retryable=True,
        reason="unreachable" if isinstance(error, _NO_CONNECTION) else "broken_off",
    )


def _folded(text: str | None) -> str | None:
    return text.casefold() if text is not None else None


def _is_last(page: Page, number: int, seen: int) -> bool:
    """Believe the source that this was its last page only where all its numbers agree, and the
    page is not full: totals that speak of the page alone would end every listing at its first."""
    if not page.calls:
        return True
    if page.total is None or len(page.calls) >= page.size:
        return False
    return seen >= page.total and (page.pages is None or number >= page.pages)


def _call(item: object) -> Call:
    call_id = item.get("id") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(call_id, str) or not call_id:
        raise SourceError("the source lists a call without an id: nothing can be told of it")
    return Call(call_id, item)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _segment(call_id: str) -> str:
    """The id as one path segment. `.` and `..` would be eaten by URL normalisation."""
    if call_id in (".", ".."):
        return call_id.replace(".", "%2E")
    return quote(call_id, safe="", errors="surrogatepass")


def _unwrap(body: bytes, response: httpx.Response) -> Answer:
    """Accept an answer bare, or in the envelope `{"data", "meta", "pagination"}`."""
    try:
        document = canonical.load(body)
    except FormatError as error:
        kind = response.headers.get("Content-Type", "no content type").partition(";")[0][:40]
        raise SourceError(
            f"the source answered {kind} that cannot be read as JSON ({error}): "
            "check ARCHIVER_API_BASE_URL",
            reason="bad_document",
            status=200,
        ) from None
    meta: object = {}
    pagination: object = {}
    if (
        isinstance(document, dict)
        and document.get("error")
        and document.keys() <= {"error", "meta", "success"}
    ):
        raise SourceError(
            "the source answered an error with status 200", reason="bad_document", status=200
        )
    if isinstance(document, dict) and "data" in document and "id" not in document:
        meta, pagination = document.get("meta"), document.get("pagination")
        document = document["data"]
    request_id = meta.get("requestId") if isinstance(meta, dict) else None
    request_id = request_id or response.headers.get("X-Request-Id")
    return Answer(
        document,
        pagination if isinstance(pagination, dict) else {},
        request_id[:128] if isinstance(request_id, str) else None,
    )


def _refusal(response: httpx.Response, scope: str, body: bytes) -> SourceError:
    status = response.status_code
    if status == 401:
        return SourceRefused(
            "the source refused the credentials (401): check ARCHIVER_API_TOKEN, or "
            "ARCHIVER_API_KEY with ARCHIVER_API_HMAC_SECRET, and this machine's clock",
            status=status,
        )
    if status == 403:
        return SourceRefused(
            f"the source refused access (403): give the token or key the scope {scope}",
            status=status,
        )
    retryable = status in (408, 425, 429) or status >= 500
    return SourceError(
        f"the source answered {status}: check ARCHIVER_API_BASE_URL and the source's state",
        retryable=retryable,
        reason="throttled" if status == 429 else "status_5xx" if status >= 500 else "status",
        retry_after_seconds=_retry_after(response, body) if retryable else None,
        status=status,
    )


def _retry_after(response: httpx.Response, body: bytes) -> float | None:
    """Seconds, as the header (a number or a date) or the error's body asks; a little more, so that
    a crowd is spread out."""
    text = response.headers.get("Retry-After", "")
    seconds: object = int(text) if text.isdecimal() and len(text) <= 6 else None
    if seconds is None and text:
        seconds = _seconds_until(text, response.headers.get("Date", ""))
    if seconds is None:
        try:
            error = canonical.load_object(body).get("error")
            seconds = error.get("retryAfter") if isinstance(error, dict) else None
        except FormatError:
            return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    if not 0 <= seconds < 10**6:
        return None
    return seconds + random.uniform(0, 0.5)  # noqa: S311  (jitter, no secret)


def _seconds_until(date: str, now: str) -> float | None:
    """Between two dates of HTTP headers, by the source's own clock."""
    try:
        seconds: float = (parsedate_to_datetime(date) - parsedate_to_datetime(now)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds


def _host(url: str) -> str:
    return httpx.URL(url).host
