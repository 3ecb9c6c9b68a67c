"""JSON over HTTP from the source: one GET at a time, tried again, within bounds, in our words.

- Retries: 429, 5xx and broken connections, with backoff; `Retry-After` is heard. An answer that
  cannot be read is asked for once more.
- Credentials that worked once and are refused now (401) have expired: where they come from files,
  everybody waits a little for new ones, so that a rotation is no failure of anything.
- Nothing but what stands here is sent, kept or followed: no cookies, redirects, proxies, `.netrc`.
- Bounds: no answer beyond `MAX_JSON_BYTES`, none that takes longer than it may.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol
from urllib.parse import urlencode, urlsplit

import structlog

from archiver import wire
from archiver.clock import Clock
from archiver.errors import FormatError, SourceError, SourceRefused
from archiver.heads import NoAnswer
from archiver.manifest import canonical
from archiver.metrics import RETRIES
from archiver.retry import Retry
from archiver.source.auth import Credentials

log = structlog.get_logger()

MAX_JSON_BYTES = 32 << 20
ROTATION_SECONDS = 180.0
"""How long new credentials are waited for: Kubernetes takes up to two minutes to swap a file."""
UNREADABLE_SECONDS = 1.0
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "call-archiver",
}


class Http(Protocol):
    """Who asks: `archiver.wire.Wire`. Raises `NoAnswer`."""

    def ask(
        self,
        method: Literal["GET"],
        url: str,
        headers: Mapping[str, str],
        *,
        max_bytes: int,
        seconds: float = ...,
    ) -> wire.Answer: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A JSON answer, out of its envelope."""

    body: Any
    pagination: Mapping[str, Any]
    request_id: str | None


class MalformedJson(SourceError):
    """An answer with status 200 that is no proper JSON; `body` is what came."""

    body = b""


class JsonApi:
    """The source's API as JSON answers. Threads share it."""

    def __init__(
        self,
        base_url: str,
        auth: Credentials,
        clock: Clock,
        http: Http,
        *,
        retry: Retry,
        requests_per_second: float | None = None,
        answer_seconds: float = 120.0,
    ) -> None:
        """`answer_seconds` is how long the source may take over one answer."""
        self.base_url = base_url.rstrip("/")
        self._auth = auth
        self._clock = clock
        self._retry = retry
        self._answer_seconds = answer_seconds
        self._pace = Pace(requests_per_second, clock)
        self._worked = False
        self._expired: tuple[str, ...] | None = None
        """Credentials that new ones are waited for, as the log was told."""
        self._lock = threading.Lock()
        self._http = http
        place = urlsplit(self.base_url)
        self._origin, self._root = f"{place.scheme}://{place.netloc}", place.path

    def close(self) -> None:
        self._http.close()

    def get(self, name: str, path: str, query: Mapping[str, str], *, scope: str) -> Answer:
        """Raises `SourceRefused` for 401 and 403, else `SourceError`, with the answer's status."""

        def ask() -> Answer:
            return self._get(path, query, scope)

        try:
            return self._retry.call(name, ask)
        except SourceError as error:
            if error.reason != "bad_document":
                raise
        # A proxy's page or an empty body passes; what comes twice is the source's own word.
        RETRIES.labels(name, "bad_document").inc()
        self._clock.sleep(UNREADABLE_SECONDS)
        return self._retry.call(name, ask)

    def clock_skew_seconds(self) -> float | None:
        """The source's `Date` less our time, or None where it sends none."""
        try:
            answer = self._ask("/voice-calls", {"page": "1", "pageSize": "1"})
            served = parsedate_to_datetime(answer.headers["date"])
        except (NoAnswer, KeyError, ValueError, OverflowError):
            return None
        if served.tzinfo is None:  # "-0000" says UTC, and that no zone is known
            served = served.replace(tzinfo=UTC)
        seconds: float = (served - self._clock.now()).total_seconds()
        return seconds

    def _get(self, path: str, query: Mapping[str, str], scope: str) -> Answer:
        """One answer; a second one where the credentials were replaced meanwhile."""
        used = self._auth.secrets()
        try:
            answer = self._get_once(path, query, scope)
        except SourceRefused as error:
            if error.status != 401 or not self._were_replaced(used):
                raise
            return self._get_once(path, query, scope)
        self._worked = True
        return answer

    def _were_replaced(self, used: tuple[str, ...]) -> bool:
        """Wait for other credentials than `used`, if they worked and may be replaced."""
        if not (self._worked and self._auth.may_change):
            return False
        end = self._clock.monotonic() + ROTATION_SECONDS
        while self._auth.secrets() == used:
            if self._clock.monotonic() >= end:
                return False
            self._say_expired(used)
            self._clock.sleep(1.0)
        self._say_expired(None)
        return True

    def _say_expired(self, expired: tuple[str, ...] | None) -> None:
        """Once for all that wait, and once more when they need not any longer."""
        with self._lock:
            before, self._expired = self._expired, expired
        if expired is not None and before != expired:
            log.warning("source.credentials_expired", waiting_seconds=ROTATION_SECONDS)
        elif expired is None and before is not None:
            log.info("source.credentials_replaced")

    def _get_once(self, path: str, query: Mapping[str, str], scope: str) -> Answer:
        self._pace.wait()
        try:
            response = self._ask(path, query)
        except NoAnswer as error:
            raise self._unanswered(error) from None
        encoding = response.headers.get("content-encoding", "identity").lower()
        if response.status == 200 and encoding != "identity":
            raise SourceError(
                "the source answered with a Content-Encoding that was not asked for",
                reason="bad_document",
            )
        if response.status != 200:
            raise _refusal(response, scope)
        return _unwrap(response)

    def _ask(self, path: str, query: Mapping[str, str]) -> wire.Answer:
        """The path is sent as it was signed: it has nothing to be encoded."""
        path = self._root + path
        url = self._origin + (f"{path}?{urlencode(query)}" if query else path)
        headers = {**_HEADERS, **self._auth.headers("GET", path)}
        return self._http.ask(
            "GET", url, headers, max_bytes=MAX_JSON_BYTES, seconds=self._answer_seconds
        )

    def _unanswered(self, error: NoAnswer) -> SourceError:
        """A certificate that is not trusted is no matter of trying again; all else may be.

        No connection is an outage of the source; one that breaks off later may be one call's.
        """
        if error.kind == "invalid":
            return SourceError(
                "ARCHIVER_API_BASE_URL is not a URL that can be asked, or the credentials are none "
                f"that can be sent ({error})"
            )
        if error.kind == "untrusted":
            return SourceError(
                f"the source's TLS certificate is not trusted ({error}): set SSL_CERT_FILE to "
                "its root",
                reason="unreachable",
            )
        if error.kind == "malformed":
            return SourceError(
                f"the source's answer is no HTTP ({error}): check ARCHIVER_API_BASE_URL",
                reason="bad_document",
            )
        if error.kind == "too_large":
            return SourceError(
                f"the source answered with more than {MAX_JSON_BYTES >> 20} MiB of JSON",
                reason="bad_document",
            )
        if error.kind == "too_slow":
            return SourceError(
                f"the source took over {self._answer_seconds:g} s for one answer",
                retryable=True,
                reason="too_slow",
            )
        return SourceError(
            f"the source is unreachable ({error}): check ARCHIVER_API_BASE_URL "
            f"({self._origin}) and the network",
            retryable=True,
            reason="unreachable" if error.kind == "unconnected" else "broken_off",
        )


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


def _unwrap(response: wire.Answer) -> Answer:
    """Accept an answer bare, or in the envelope `{"data", "meta", "pagination"}`."""
    try:
        document = canonical.load(response.body)
    except FormatError as error:
        kind = response.headers.get("content-type", "no content type").partition(";")[0][:40]
        kind = kind if kind.isprintable() else "something"
        malformed = MalformedJson(
            f"the source answered {kind} that cannot be read as JSON ({error}): "
            "check ARCHIVER_API_BASE_URL",
            reason="bad_document",
            status=200,
        )
        malformed.body = response.body
        raise malformed from None
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
    request_id = request_id or response.headers.get("x-request-id")
    return Answer(
        document,
        pagination if isinstance(pagination, dict) else {},
        request_id[:128] if isinstance(request_id, str) else None,
    )


def _refusal(response: wire.Answer, scope: str) -> SourceError:
    status = response.status
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
        retry_after_seconds=_retry_after(response) if retryable else None,
        status=status,
    )


def _retry_after(response: wire.Answer) -> float | None:
    """Seconds, as the header (a number or a date) or the error's body asks; a little more, so that
    a crowd is spread out."""
    text = response.headers.get("retry-after", "")
    seconds: object = int(text) if text.isdecimal() and len(text) <= 6 else None
    if seconds is None and text:
        seconds = _seconds_until(text, response.headers.get("date", ""))
    if seconds is None:
        try:
            error = canonical.load_object(response.body).get("error")
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
