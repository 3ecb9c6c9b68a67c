"""The source's API as JSON answers: one GET at a time, authenticated, retried, with limits.

- Retries: 429, 5xx and broken connections, with backoff; `Retry-After` is respected. An answer that
  cannot be parsed is requested once more.
- A `Retry-After` that the control request gets as well is a pause of the source: all workers share
  it, up to `longest_pause_seconds`. Beyond, the source is out. A request that is throttled alone
  waits alone, for a minute at most.
- The *control request* decides whether a failure is about one request or about the source. It is
  the plain listing with one entry. If it is answered, the source is up and the credentials are
  valid.
- Credentials that worked before and are refused now (401), by the control request too, have
  expired. If they come from files, all workers wait for new ones, so a rotation fails nothing.
- Limits: at most `MAX_JSON_BYTES` are parsed, at most `MAX_KEPT_BYTES` are read, and each answer
  has a deadline.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import math
import threading
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode, urlsplit

import structlog

from archiver.core.clock import Clock, RemoteClock
from archiver.core.concurrency import THROTTLED_STATUS
from archiver.core.errors import FormatError, Reach, SourceError, SourceRefused
from archiver.core.http import (
    JITTER_SECONDS,
    HttpClient,
    HttpResponse,
    TransportError,
    retry_after_seconds,
)
from archiver.core.retry import Retry
from archiver.manifest import canonical
from archiver.observability.metrics import RETRIES
from archiver.source.content_encoding import codings
from archiver.source.pause import Pause

log = structlog.get_logger()

MAX_JSON_BYTES = 32 << 20
MAX_KEPT_BYTES = 64 << 20
"""A call's document that is not valid JSON, or too large to be parsed, is kept up to this size: as
much as the pipeline reads of a sidecar."""
CONTROL_PATH, CONTROL_SCOPE = "/voice-calls", "voice:read"
CONTROL_TRIES = 3
"""Fewer than for other requests, because one has just failed after all of its tries."""
CONTROL_SECONDS = 1.0
"""How long the result of a control request is valid. Workers share it."""
ROTATION_SECONDS = 180.0
"""How long to wait for new credentials. Kubernetes replaces a file within two minutes."""
LONGEST_PAUSE_SECONDS = 900.0
"""How long a backfill waits where the source asks for it: quotas are counted by the minute, the
quarter of an hour, the hour or the day."""
UNREADABLE_SECONDS = 1.0
"""The pause before an answer that cannot be parsed is requested again."""
_HEADERS = {
    "Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "call-archiver"
}  # fmt: skip
_NO_BODY = base64.b64encode(hashlib.sha256(b"").digest()).decode()

Secret = Callable[[], str]
"""Returns the present value of a secret, so that a rotated file is read without a restart."""


class Credentials(Protocol):
    """What requests are signed with."""

    may_change: bool
    """Whether new ones may come while we run."""

    def secrets(self) -> tuple[str, ...]:
        """The present values of the secrets."""

    def headers(self, method: str, path: str) -> dict[str, str]:
        """The headers of a request without a body. `path`: percent-encoded, without query."""


@dataclass(repr=False)
class BearerAuth:
    """`Authorization: Bearer <token>`."""

    token: Secret
    may_change: bool = False

    def secrets(self) -> tuple[str, ...]:
        return (self.token(),)

    def headers(self, method: str, path: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()}"}


@dataclass(repr=False)
class SignedKeyAuth:
    """An API key with a signature over time, method, path (no host, no query) and body."""

    key: Secret
    secret: Secret
    clock: Clock
    may_change: bool = False

    def secrets(self) -> tuple[str, ...]:
        return self.key(), self.secret()

    def headers(self, method: str, path: str) -> dict[str, str]:
        timestamp = str(int(self.clock.now().timestamp()))
        message = f"{timestamp}.{method}.{path}.{_NO_BODY}"
        digest = hmac.digest(self.secret().encode(), message.encode(), "sha256")
        signature = base64.b64encode(digest).decode()
        return {"X-Api-Key": self.key(), "X-Timestamp": timestamp, "X-Signature": signature}


@dataclass(frozen=True)
class JsonAnswer:
    """A JSON answer without its envelope."""

    body: Any
    pagination: Mapping[str, Any]
    request_id: str | None
    status: int = 200


class UnusableAnswer(SourceError):
    """An answer that no client can use. `body` has its bytes, unless they are valid JSON after all
    (an error with status 200), are incomplete, or are too many."""

    def __init__(
        self, message: str, *, status: int | None = 200, body: bytes | None = None
    ) -> None:
        super().__init__(message, reason="bad_document", status=status)
        self.body = body


class SourceOut(SourceError):
    """The control request failed too, so no call and no window is blamed."""


class _Control(NamedTuple):
    """The result of a control request."""

    number: int
    """Its position among all requests."""
    at: float
    secrets: tuple[str, ...]
    """The credentials with which it was sent."""
    error: SourceError | None

    def raise_error(self) -> None:
        """Raise a new copy of its error, for each worker that shares it. Not retryable."""
        if isinstance(self.error, SourceRefused):
            raise SourceRefused(str(self.error), status=self.error.status) from None
        if self.error is not None:
            error = self.error
            raise SourceOut(str(error), reason=error.reason, status=error.status) from None


@dataclass(eq=False, repr=False)
class JsonApi:
    """The source's API. Thread-safe."""

    base_url: str
    auth: Credentials
    clock: Clock
    client: HttpClient
    _: KW_ONLY
    retry: Retry
    requests_per_second: float | None = None
    answer_seconds: float = 120.0
    """How long the source may take for one answer."""
    narrowing: Mapping[str, str] = field(default_factory=dict)
    """The query of the plain listing, because credentials may be valid for one campaign only."""
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS
    on_pause: Callable[[float], None] = lambda seconds: None
    """Receives the seconds of each pause as it begins."""
    _worked: bool = field(default=False, init=False)
    """Whether the credentials were accepted at least once."""
    _latest_control: _Control | None = field(default=None, init=False)
    _throttled_at: float = field(default=-math.inf, init=False)
    """When a throttled answer last took a number: those that come soon after it share its control
    request."""
    _throttled_number: int = field(default=0, init=False)
    _expired: tuple[str, ...] | None = field(default=None, init=False)
    """The expired credentials that were last logged, while the workers wait for new ones."""

    def __post_init__(self) -> None:
        self.base_url = self.base_url.rstrip("/")
        parts = urlsplit(self.base_url)
        self._origin, self._root = f"{parts.scheme}://{parts.netloc}", parts.path
        self.plain_query = {**self.narrowing, "page": "1", "pageSize": "1"}
        self._control_retry = Retry(self.clock, attempts=CONTROL_TRIES)
        self._single_try = Retry(self.clock, attempts=1)
        self._pause = Pause(self.clock, self.on_pause)
        self._answered = 0
        self._rate_limit = RateLimit(self.requests_per_second, self.clock)
        self._remote = RemoteClock(self.clock)
        self._numbers = itertools.count(1)
        # Held during a control request, so that other workers wait for its result.
        self._control_lock = threading.RLock()
        self._expiry_lock = threading.Lock()

    def close(self) -> None:
        self.client.close()

    def get(
        self,
        name: str,
        path: str,
        query: Mapping[str, str],
        *,
        scope: str,
        max_bytes: int = MAX_JSON_BYTES,
    ) -> JsonAnswer:
        """Send a GET, with retries. `name` is the stage in the metric of retries.

        Raises `SourceRefused` for 401 and 403 (it reaches one item if the control request is
        answered with the same credentials), `UnusableAnswer`, and `SourceError` otherwise, with the
        answer's status.
        """

        def ask() -> JsonAnswer:
            while True:
                self._pause.wait()
                sent_at, answered = self.clock.monotonic(), self._answered
                try:
                    return self._get(path, query, scope, max_bytes)
                except SourceError as error:
                    if not self._is_paused(error, sent_at):
                        raise
                    error.retry_after_seconds = None  # the shared pause is waited for instead
                    # Of many workers few get through under a small quota. As long as others do,
                    # the try of this one does not count.
                    if self._answered == answered:
                        raise
                    RETRIES.labels(name, error.reason).inc()
                    if self.retry.concurrency_limit is not None:
                        self.retry.concurrency_limit.on_throttled()

        try:
            return self.retry.call(name, ask)
        except UnusableAnswer:
            # It may be a proxy's page or an empty body. The second is the source's own answer.
            RETRIES.labels(name, "bad_document").inc()
        self.clock.sleep(UNREADABLE_SECONDS)
        return self.retry.call(name, ask)

    def control(self) -> None:
        """Send the control request, or use a recent result. Returns if the source answers it.

        Any answer counts, parsable or not. Raises `SourceRefused` for 401 and 403, `SourceOut` for
        429, 5xx and no answer. Neither is retryable: the control request has its own retries.
        """
        self._control(after=0).raise_error()

    def latest_clock_skew_seconds(self) -> float | None:
        """The source's clock minus ours, by its latest answer with a `Date`; None before any."""
        return self._remote.skew_seconds()

    # --- the control request

    def _control(self, after: int, retry: Retry | None = None) -> _Control:
        """Return the latest result, or send a new control request.

        The latest result is reused if it is recent, was sent with the same credentials, and is
        either an error or younger than the request with the number `after`. A failure with another
        `retry` than the usual one is not kept: it has not had all tries.
        """

        def ask() -> None:
            self._pause.wait()
            sent_at = self.clock.monotonic()
            try:
                self._get_once(CONTROL_PATH, self.plain_query, CONTROL_SCOPE, MAX_JSON_BYTES)
            except SourceError as error:
                # Of the whole source: nobody else need be asked. It is waited for at the next try.
                seconds, is_usual = error.retry_after_seconds, retry is None
                if is_usual and seconds is not None and error.status in THROTTLED_STATUS:
                    error.retry_after_seconds = None
                    if not self._pause.covers(sent_at):
                        self._begin_pause(seconds, error.status)
                raise

        with self._control_lock:
            known, secrets = self._latest_control, self.auth.secrets()
            if (
                known is not None
                and known.secrets == secrets
                and self.clock.monotonic() - known.at < CONTROL_SECONDS
                and (known.error is not None or known.number > after)
            ):
                return known
            number, failure = next(self._numbers), None
            try:
                (retry or self._control_retry).call("list", ask)
            except SourceError as error:
                status = error.status
                is_out = status is None or status == 429 or status >= 500
                if is_out or isinstance(error, SourceRefused):
                    failure = error
            self._worked = self._worked or failure is None
            # If the credentials were replaced meanwhile, it is unknown which ones were sent.
            same = self.auth.secrets() == secrets
            found = _Control(number, self.clock.monotonic(), secrets if same else (), failure)
            if retry is None or failure is None:
                self._latest_control = found if same else None
            return found

    def _is_paused(self, error: SourceError, sent_at: float) -> bool:
        """After an answer to a request of that monotonic time: whether the source as a whole asks
        for a pause. If so, it has begun.

        1. If there was a pause since, the answer is about that one.
        2. Otherwise the control request tells whether only this request is throttled.
        3. Raise `SourceOut` if the pause would be too long.
        """
        if error.retry_after_seconds is None or error.status not in THROTTLED_STATUS:
            return False
        with self._control_lock:
            if self._pause.covers(sent_at):  # 1
                return True
            # A result from before the first throttled answer would say nothing about it. Those that
            # come soon after it share one result.
            now = self.clock.monotonic()
            if now - self._throttled_at >= CONTROL_SECONDS:
                self._throttled_at, self._throttled_number = now, next(self._numbers)
            control = self._control(self._throttled_number, self._single_try).error  # 2
            if control is None or control.status not in THROTTLED_STATUS:
                return False
            seconds = max(error.retry_after_seconds, control.retry_after_seconds or 0.0)
            self._begin_pause(seconds, control.status)  # 3
            return True

    def _begin_pause(self, seconds: float, status: int | None) -> None:
        """Begin a pause of the whole source. Raises `SourceOut` if it would be too long."""
        if seconds > self.longest_pause_seconds + JITTER_SECONDS:
            raise SourceOut(
                f"the source asks for a pause of {seconds:.0f} s ({status}), and "
                f"{self.longest_pause_seconds:.0f} s are waited for at most: come back then, "
                "or ask the platform for a higher quota",
                reason="throttled",
                status=status,
            )
        self._pause.begin(seconds, status)

    # --- one request

    def _get(self, path: str, query: Mapping[str, str], scope: str, max_bytes: int) -> JsonAnswer:
        """Send a GET, and again if the credentials were replaced meanwhile.

        1. Send the request with the present credentials.
        2. After a 401, check the control request with the same credentials, unless these were
           replaced. If it is answered, the refusal is about this request alone. If it fails in
           another way, the source is out.
        3. If it is refused too, wait for new credentials, if the old ones worked and may be
           replaced.
        4. Send the request once more.
        """
        for is_last in (False, True):
            used, number = self.auth.secrets(), next(self._numbers)
            try:
                answer = self._get_once(path, query, scope, max_bytes)  # 1, 4
            except SourceRefused as error:
                if error.status != 401:
                    raise
                control = self._control(after=number)  # 2
                if control.secrets == used == self.auth.secrets():
                    if control.error is None:
                        raise SourceRefused(str(error), status=401, reach=Reach.ITEM) from None
                    if control.error.status != 401:
                        control.raise_error()
                if is_last or not self._were_replaced(used):  # 3
                    raise
            else:
                break
        self._worked = True
        return answer

    def _were_replaced(self, used: tuple[str, ...]) -> bool:
        """Wait until the credentials differ from `used`, if those worked and may be replaced. One
        of the waiting workers logs it."""
        if not (self._worked and self.auth.may_change):
            return False
        end = self.clock.monotonic() + ROTATION_SECONDS
        while self.auth.secrets() == used:
            if self.clock.monotonic() >= end:
                return False
            with self._expiry_lock:
                is_news, self._expired = self._expired != used, used
            if is_news:
                log.warning("source.credentials_expired", waiting_seconds=ROTATION_SECONDS)
            self.clock.sleep(1.0)
        with self._expiry_lock:
            is_news, self._expired = self._expired is not None, None
        if is_news:
            log.info("source.credentials_replaced")
        return True

    def _get_once(
        self, path: str, query: Mapping[str, str], scope: str, max_bytes: int
    ) -> JsonAnswer:
        """Send one request. The path is sent as it was signed: nothing is encoded again."""
        self._pause.wait()
        self._rate_limit.wait()
        path = self._root + path
        url = self._origin + (f"{path}?{urlencode(query)}" if query else path)
        headers = {**_HEADERS, **self.auth.headers("GET", path)}
        try:
            response = self.client.request(
                "GET", url, headers, max_bytes=max_bytes, seconds=self.answer_seconds
            )
        except TransportError as error:
            raise self._no_answer(error, max_bytes) from None
        self._remote.note_date(response.headers.get("date"))
        if response.status not in THROTTLED_STATUS:
            self._answered += 1
        if response.status != 200:
            raise _refusal(response, scope, self.clock)
        if codings(response.headers.get("content-encoding")):
            raise UnusableAnswer(
                "the source answered with a Content-Encoding that was not asked for",
                body=response.body,
            )
        return _unwrap(response)

    def _no_answer(self, error: TransportError, max_bytes: int) -> SourceError:
        """The error if no complete answer came.

        An untrusted certificate is not worth a retry; everything else may be. A failed connection
        is an outage of the source. A connection that breaks later may be about one call.
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
            text = f"the source's answer is no HTTP ({error}): check ARCHIVER_API_BASE_URL"
            return UnusableAnswer(text, status=None)
        if error.kind == "too_large":
            return UnusableAnswer(f"the source answered with more than {max_bytes >> 20} MiB")
        if error.kind == "too_slow":
            text = f"the source took over {self.answer_seconds:g} s for one answer"
            return SourceError(text, retryable=True, reason="too_slow")
        return SourceError(
            f"the source is unreachable ({error}): check ARCHIVER_API_BASE_URL "
            f"({self._origin}) and the network",
            retryable=True,
            reason="unreachable" if error.kind == "unconnected" else "broken_off",
        )


class RateLimit:
    """Spaces requests evenly: at most `per_second` from this process; None means no limit."""

    def __init__(self, per_second: float | None, clock: Clock) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Wait until this request may be sent. Raises `Interrupted`."""
        self._clock.check()
        if not self._interval:
            return
        with self._lock:
            now = self._clock.monotonic()
            at = max(self._next, now)
            self._next = at + self._interval
        if at > now:
            self._clock.sleep(at - now)


def _unwrap(response: HttpResponse) -> JsonAnswer:
    """Read an answer, bare or in the envelope `{"data", "meta", "pagination"}`."""
    if len(response.body) > MAX_JSON_BYTES:
        text = f"the source answered with more than {MAX_JSON_BYTES >> 20} MiB of JSON"
        raise UnusableAnswer(text, body=response.body)
    try:
        # A BOM is no JSON (RFC 8259, section 8.1), yet .NET's writers put one before it.
        document = canonical.load(response.body.removeprefix(BOM_UTF8))
    except FormatError as error:
        kind = response.headers.get("content-type", "no content type").partition(";")[0][:40]
        kind = kind if kind.isprintable() else "something"
        raise UnusableAnswer(
            f"the source answered {kind} that cannot be read as JSON ({error}): "
            "check ARCHIVER_API_BASE_URL",
            body=response.body,
        ) from None
    meta: object = None
    pagination: object = None
    if isinstance(document, dict):
        if document.get("error") and document.keys() <= {"error", "meta", "success"}:
            raise UnusableAnswer("the source answered an error with status 200")
        # With an id it is a call that has a field `data` of its own, not an envelope.
        if "data" in document and "id" not in document:
            meta, pagination = document.get("meta"), document.get("pagination")
            document = document["data"]
    request_id = meta.get("requestId") if isinstance(meta, dict) else None
    request_id = request_id or response.headers.get("x-request-id")
    return JsonAnswer(
        document,
        pagination if isinstance(pagination, dict) else {},
        request_id[:128] if isinstance(request_id, str) else None,
    )


def _refusal(response: HttpResponse, scope: str, clock: Clock) -> SourceError:
    status = response.status
    if status == 401:
        return SourceRefused(
            "the source refused the credentials (401): check ARCHIVER_API_TOKEN, or "
            "ARCHIVER_API_KEY with ARCHIVER_API_HMAC_SECRET, and this machine's clock",
            status=status,
        )
    if status == 403:
        text = f"the source refused access (403): give the token or key the scope {scope}"
        return SourceRefused(text, status=status)
    retryable = status in (408, 425, 429) or status >= 500
    check = "check ARCHIVER_API_BASE_URL and the source's state"
    if status == 429:
        check = "its quota is used up: lower ARCHIVER_API_RATE, or ask the platform for more"
    return SourceError(
        f"the source answered {status}: {check}",
        retryable=retryable,
        reason="throttled" if status == 429 else "status_5xx" if status >= 500 else "status",
        retry_after_seconds=_retry_after(response, clock) if retryable else None,
        status=status,
    )


def _retry_after(response: HttpResponse, clock: Clock) -> float | None:
    """The pause in seconds that the header or the error's body asks for, with jitter."""
    if (asked := retry_after_seconds(response.headers, clock.now())) is not None:
        return asked
    try:
        error = canonical.load_object(response.body.removeprefix(BOM_UTF8)).get("error")
    except FormatError:
        return None
    seconds = error.get("retryAfter") if isinstance(error, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return retry_after_seconds({"retry-after": str(math.ceil(seconds))})
