"""JSON over HTTP from the source: one GET at a time, tried again, within bounds, in our words.

- Retries: 429, 5xx and broken connections, with backoff; `Retry-After` is heard. An answer that
  cannot be read is asked for once more.
- Whether a failure is about one request or about the source is decided by the *control request*:
  the plain listing, one entry of it. Where that is answered, the source is up and the credentials
  hold.
- Credentials that worked once and are refused now (401), by the control request too, have expired:
  where they come from files, everybody waits a little for new ones, so that a rotation is no
  failure of anything.
- Nothing but what stands here is sent, kept or followed: no cookies, redirects, proxies, `.netrc`.
- Bounds: nothing beyond `MAX_JSON_BYTES` is parsed, nothing beyond `MAX_KEPT_BYTES` is read, and no
  answer takes longer than it may.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol
from urllib.parse import urlencode, urlsplit

import structlog

from archiver import hub, wire
from archiver.clock import Clock, RemoteClock
from archiver.errors import FormatError, Reach, SourceError, SourceRefused
from archiver.heads import NoAnswer
from archiver.manifest import canonical
from archiver.metrics import RETRIES
from archiver.retry import Retry
from archiver.source.auth import Credentials

log = structlog.get_logger()

MAX_JSON_BYTES = 32 << 20
MAX_KEPT_BYTES = 64 << 20
"""A document of a call that is no proper JSON, or too large to be parsed, is kept up to this size:
as much as the pipeline reads of a sidecar."""
CONTROL_PATH, CONTROL_SCOPE = "/voice-calls", "voice:read"
CONTROL_TRIES = 3
"""Fewer than for other requests: one has just failed after all of its tries."""
CONTROL_SECONDS = 1.0
"""How long the result of a control request holds: workers whose requests fail together share it."""
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
    status: int = 200


class Unreadable(SourceError):
    """An answer that no client can use. `body` holds the bytes that came, unless they are JSON
    after all (an error with status 200), did not all come, or are too many."""

    def __init__(
        self, message: str, *, status: int | None = 200, body: bytes | None = None
    ) -> None:
        super().__init__(message, reason="bad_document", status=status)
        self.body = body


class SourceOut(SourceError):
    """The control request failed too: no call and no window is to be blamed."""


@dataclass(frozen=True)
class _Control:
    """A control request: when it was made, with which credentials, and how it failed, if it did.
    `number` is its place among all requests."""

    number: int
    at: float
    secrets: tuple[str, ...]
    error: SourceError | None


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
        narrowing: Mapping[str, str] | None = None,
    ) -> None:
        """`answer_seconds` is how long the source may take over one answer. `narrowing` is what the
        plain listing is asked with: credentials may be good for one campaign alone."""
        self.base_url = base_url.rstrip("/")
        self._auth = auth
        self.clock = self._clock = clock
        self._retry = retry
        self._answer_seconds = answer_seconds
        self._pace = Pace(requests_per_second, clock)
        self._worked = False
        self._expired: tuple[str, ...] | None = None
        """Credentials that new ones are waited for, as the log was told."""
        self._lock = threading.Lock()
        self._http = http
        self.plain_query = {**(narrowing or {}), "page": "1", "pageSize": "1"}
        self._control_retry = Retry(clock, attempts=CONTROL_TRIES)
        self._control_lock = hub.Lock()  # held during a control request: others wait for its result
        self._controlled: _Control | None = None
        self._numbers = itertools.count(1)
        self._remote = RemoteClock(clock)
        place = urlsplit(self.base_url)
        self._origin, self._root = f"{place.scheme}://{place.netloc}", place.path

    def close(self) -> None:
        self._http.close()

    def get(
        self,
        name: str,
        path: str,
        query: Mapping[str, str],
        *,
        scope: str,
        max_bytes: int = MAX_JSON_BYTES,
    ) -> Answer:
        """GET, tried again where that may help.

        Raises `SourceRefused` for 401 and 403 (its reach is an item where the control request is
        answered with the same credentials), `Unreadable`, and `SourceError` for all else, with the
        answer's status.
        """

        def ask() -> Answer:
            return self._get(path, query, scope, max_bytes)

        try:
            return self._retry.call(name, ask)
        except Unreadable:
            # A proxy's page or an empty body passes; what comes twice is the source's own word.
            RETRIES.labels(name, "bad_document").inc()
        self._clock.sleep(UNREADABLE_SECONDS)
        return self._retry.call(name, ask)

    def control(self) -> None:
        """Send the control request: returns where the source answers it.

        Any answer will do, readable or not. Raises `SourceRefused` for 401 and 403, `SourceOut` for
        429, 5xx and no answer. Neither is retryable: its tries are behind it.
        """
        _raise_control(self._control(after=0).error)

    def _control(self, after: int) -> _Control:
        """One that was made a short while ago, and was not answered before the request of the
        number `after` was sent; else a new one."""
        with self._control_lock:
            known, secrets = self._controlled, self._auth.secrets()
            now = self._clock.monotonic()
            if (
                known is not None
                and known.secrets == secrets
                and now - known.at < CONTROL_SECONDS
                and (known.error is not None or known.number > after)
            ):
                return known
            number = next(self._numbers)
            error = self._control_error()
            # Credentials that were replaced meanwhile leave open which ones were sent.
            same = self._auth.secrets() == secrets
            found = _Control(number, self._clock.monotonic(), secrets if same else (), error)
            self._controlled = found if same else None
            return found

    def _control_error(self) -> SourceError | None:
        def ask() -> None:
            self._get_once(CONTROL_PATH, self.plain_query, CONTROL_SCOPE, MAX_JSON_BYTES)

        try:
            self._control_retry.call("list", ask)
        except SourceRefused as error:
            return error
        except SourceError as error:
            if error.status is None or error.status == 429 or error.status >= 500:
                return error
        self._worked = True
        return None

    def clock_skew_seconds(self) -> float | None:
        """The source's `Date` less our time, or None where it sends none."""
        try:
            answer = self._ask(CONTROL_PATH, self.plain_query, MAX_JSON_BYTES)
        except NoAnswer:
            return None
        return self.latest_clock_skew_seconds() if "date" in answer.headers else None

    def latest_clock_skew_seconds(self) -> float | None:
        """The same by the latest answer, whatever it was to: nothing is asked for this."""
        return self._remote.skew_seconds()

    def _get(self, path: str, query: Mapping[str, str], scope: str, max_bytes: int) -> Answer:
        """One answer; a second one where the credentials were replaced meanwhile."""
        for is_last in (False, True):
            used, number = self._auth.secrets(), next(self._numbers)
            try:
                answer = self._get_once(path, query, scope, max_bytes)
            except SourceRefused as error:
                if error.status != 401:
                    raise
                self._check_credentials(used, number, error)
                if is_last or not self._were_replaced(used):
                    raise
            else:
                break
        self._worked = True
        return answer

    def _check_credentials(
        self, used: tuple[str, ...], number: int, refusal: SourceRefused
    ) -> None:
        """After a 401 to the request of this number, sent with the credentials `used`: returns
        where these are refused in general, or were replaced meanwhile. Raises `SourceRefused` with
        the reach of an item where the control request is answered with them, and what that fails
        with otherwise."""
        control = self._control(after=number)
        if control.secrets != used or self._auth.secrets() != used:
            return
        if control.error is None:
            raise SourceRefused(str(refusal), status=401, reach=Reach.ITEM) from None
        if control.error.status != 401:
            _raise_control(control.error)

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

    def _get_once(self, path: str, query: Mapping[str, str], scope: str, max_bytes: int) -> Answer:
        self._pace.wait()
        try:
            response = self._ask(path, query, max_bytes)
        except NoAnswer as error:
            raise self._unanswered(error, max_bytes) from None
        encoding = response.headers.get("content-encoding", "identity").lower()
        if response.status == 200 and encoding != "identity":
            raise Unreadable(
                "the source answered with a Content-Encoding that was not asked for",
                body=response.body,
            )
        if response.status != 200:
            raise _refusal(response, scope)
        return _unwrap(response)

    def _ask(self, path: str, query: Mapping[str, str], max_bytes: int) -> wire.Answer:
        """The path is sent as it was signed: it has nothing to be encoded."""
        path = self._root + path
        url = self._origin + (f"{path}?{urlencode(query)}" if query else path)
        headers = {**_HEADERS, **self._auth.headers("GET", path)}
        answer = self._http.ask(
            "GET", url, headers, max_bytes=max_bytes, seconds=self._answer_seconds
        )
        self._remote.tells(answer.headers.get("date"))
        return answer

    def _unanswered(self, error: NoAnswer, max_bytes: int) -> SourceError:
        """A certificate that is not trusted is no matter of trying again; all else may be.

        No connection is an outage of the source; one that breaks off later may be one call's.
        """
        if error.kind == "invalid":
            return SourceError(
                "ARCHIVER_API_BASE_URL is not a URL that can be asked, or the credentials are none "
                f"that can be sent ({error})",
                reason="invalid",
            )
        if error.kind == "untrusted":
            return SourceError(
                f"the source's TLS certificate is not trusted ({error}): set SSL_CERT_FILE to "
                "its root",
                reason="unreachable",
            )
        if error.kind == "malformed":
            return Unreadable(
                f"the source's answer is no HTTP ({error}): check ARCHIVER_API_BASE_URL",
                status=None,
            )
        if error.kind == "too_large":
            return Unreadable(f"the source answered with more than {max_bytes >> 20} MiB")
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


def _raise_control(error: SourceError | None) -> None:
    """How a control request failed, anew for each who waited for it."""
    if isinstance(error, SourceRefused):
        raise SourceRefused(str(error), status=error.status) from None
    if error is not None:
        raise SourceOut(str(error), reason=error.reason, status=error.status) from None


def _unwrap(response: wire.Answer) -> Answer:
    """Accept an answer bare, or in the envelope `{"data", "meta", "pagination"}`."""
    if len(response.body) > MAX_JSON_BYTES:
        raise Unreadable(
            f"the source answered with more than {MAX_JSON_BYTES >> 20} MiB of JSON",
            body=response.body,
        )
    try:
        document = canonical.load(response.body)
    except FormatError as error:
        kind = response.headers.get("content-type", "no content type").partition(";")[0][:40]
        kind = kind if kind.isprintable() else "something"
        raise Unreadable(
            f"the source answered {kind} that cannot be read as JSON ({error}): "
            "check ARCHIVER_API_BASE_URL",
            body=response.body,
        ) from None
    meta: object = {}
    pagination: object = {}
    if (
        isinstance(document, dict)
        and document.get("error")
        and document.keys() <= {"error", "meta", "success"}
    ):
        raise Unreadable("the source answered an error with status 200")
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
