"""The Voice Calls REST API, as far as an archive needs it: listing, documents, recording URL.

How far a failure reaches:
- One request is refused or fails for good, and the control request (`JsonApi.control`) is answered:
  the failure is about its call (`CallError`), or its window (a page with an `error`).
- The control request fails too: the failure is about the source (`SourceError`, `SourceRefused`),
  and no call or window is blamed. The control request is sent at once for a listing's page and for
  an unreachable source, and for other failures of calls after many in a row (`diagnosis.py`).
- 403 to the request for a recording URL may be a missing scope: `diagnosis.py` decides.

Contract of `VoiceCallsClient`:
- Retries: built in (`json_api.py`). All requests are GETs.
- Errors: `SourceRefused` (401, 403: the credentials or a scope), `SourceError` (an outage),
  `CallError` (the answer for one call is unusable, or refused for that call), `NoRecording`. None
  of them is retryable.
- Limits: no page is read twice, and every listing ends.
- Thread-safe.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote_plus

import structlog

from archiver.core.errors import (
    CallError,
    ListingError,
    NoRecording,
    Reach,
    SourceError,
    SourceRefused,
)
from archiver.core.model import DOCUMENTS, Call, Window, format_time, parse_source_time
from archiver.manifest import canonical
from archiver.observability.metrics import stage
from archiver.source.diagnosis import IMPOSSIBLE_ID, OutageDetector, ScopeDetector
from archiver.source.json_api import (
    CONTROL_SCOPE,
    MAX_JSON_BYTES,
    MAX_KEPT_BYTES,
    JsonAnswer,
    JsonApi,
    SourceOut,
    UnusableAnswer,
)

log = structlog.get_logger()

PAGE_SIZE = 100
MAX_PAGES = 100_000
IDLE_PAGES = 3
"""A listing ends after this many pages in a row with repeats only."""
BAD_PAGES = 2
"""A listing ends after this many pages in a row that cannot be fetched. A single page may be bad,
and the pages behind it are still listed. Two in a row mean that the listing is bad, and each page
costs all its tries."""
EMPTY_PAGES = 2
"""So many pages in a row may be empty before the last one that the source announced, and others
still be looked for behind them."""
ACCESS_SAMPLE = 5
"""Calls whose recording URL is requested first: one may have no recording, or an odd host."""
READ_SCOPE, AUDIO_SCOPE = CONTROL_SCOPE, "audio:download"
NONE_STATUS = (204, 404, 410)
"""Statuses which say that there is none."""
REFUSED_PAGE_STATUS = (400, 416, 422)
NO_PAGE_STATUS = (*NONE_STATUS, *REFUSED_PAGE_STATUS)
"""Statuses which say that there is no such page, beyond the last one that the source announced."""
CAPPED_CALLS = 10_000
"""Search engines show the first 10,000 results (or another multiple of 1,000 above), give that
number as the total, and refuse the page behind it."""
_URL_TIME = re.compile(
    r"[?&](?:(st|se)|X-(?:Amz|Goog)-(Date|Expires))=([^&#]*)", re.ASCII | re.IGNORECASE
)
_ABSENT = object()


@dataclass(frozen=True)
class Filter:
    """What narrows the listing. `states` has at least one state."""

    states: tuple[str, ...]
    campaign_id: str | None = None
    direction: str | None = None

    @property
    def narrowing(self) -> dict[str, str]:
        """The campaign and the direction, as far as they are set, as query parameters."""
        both = {"campaignId": self.campaign_id, "direction": self.direction}
        return {name: value for name, value in both.items() if value}

    def document(self) -> dict[str, Any]:
        """As the window line stores it."""
        names = {"campaignId": "campaign_id"}
        narrowing = {names.get(name, name): value for name, value in self.narrowing.items()}
        return {"state": list(self.states), **narrowing}

    def admits(self, call: Call) -> bool:
        """Whether a listed call matches the filter: a source may ignore a filter.

        A call is kept if the field is missing, is no text, or differs in case only. A campaign that
        is a number is compared with a number alone: it may have a name as well.
        """
        wanted = {"state": self.states, **{k: (v,) for k, v in self.narrowing.items()}}
        for field, allowed in wanted.items():
            value = call.text(field)
            if field == "campaignId" and allowed[0].isdecimal():
                value = call.campaign_id
            if value is not None and value.casefold() not in map(str.casefold, allowed):
                return False
        return True


@dataclass(frozen=True)
class Page:
    """One page of the listing of one state. `total` and `pages` are the source's own numbers."""

    filter_state: str
    calls: tuple[Call, ...] = ()
    total: int | None = None
    pages: int | None = None
    size: int = 0
    """How many calls a full page has: the number requested, or less if the source says so."""
    unreadable: int = 0
    """Entries that are not calls."""
    error: ListingError | None = None
    """Why the page could not be fetched; such a page has no calls."""

    @property
    def last(self) -> int | None:
        """The number of the last page by the source's own numbers, the higher one if they differ;
        None if there are none."""
        by_total = None if self.total is None else -(-self.total // max(self.size, 1))
        return max((one for one in (by_total, self.pages) if one is not None), default=None)


@dataclass(frozen=True)
class SignedUrl:
    """The signed URL of a recording. Its query is a secret: never log it.

    `expires_at` is the earlier of the source's `expiresAt` and the URL's own expiry, `starts_at`
    the URL's own start (`signed_times`); None if there is none.
    """

    url: str
    request_id: str | None
    expires_at: datetime | None = None
    starts_at: datetime | None = None

    def __repr__(self) -> str:
        return "SignedUrl(…)"


class VoiceCallsClient:
    """The Voice Calls REST API."""

    def __init__(self, api: JsonApi) -> None:
        self.base_url = api.base_url
        self.latest_clock_skew_seconds = api.latest_clock_skew_seconds
        self.close = api.close
        self._api = api
        self._outages = OutageDetector(api.control)
        self._audio_scope = ScopeDetector(self._is_audio_answered, api.clock)

    # --- listing

    def pages(self, window: Window, filters: Filter) -> Iterator[Page]:
        """Yield the pages of one pass over the listing of a window, until there is nothing more.

        A page equal to the one before ends the listing (the source may ignore `page`, or clamp it),
        and so do `IDLE_PAGES` without a new id. A page that cannot be fetched comes with its
        `error`, and the next one is requested; `BAD_PAGES` of them end the state's listing. Empty
        pages before the last one that the source announced come as such an error if calls follow
        within `EMPTY_PAGES`; else the listing ends. Raises `SourceError` if the source is out,
        `SourceRefused` if it refuses every listing.
        """
        for state in filters.states:
            yield from self._pages(window, _listing_query(window, filters, state))

    def page(self, window: Window, filters: Filter, state: str, number: int) -> Page:
        """Fetch one page of the listing of a state. Its `error` and what is raised are as in
        `pages`."""
        query = {**_listing_query(window, filters, state), "page": str(number)}
        return self._page(window, query, number)

    def _pages(self, window: Window, query: dict[str, str]) -> Iterator[Page]:
        seen: set[str] = set()
        before: tuple[set[str], int] = set(), 0
        idle = bad = unreadable = 0
        announced: int | None = None
        total: int | None = None
        empty: list[int] = []
        """Numbers of the empty pages since the last one with entries."""
        for number in range(1, MAX_PAGES + 1):
            # After an empty page there may be no more, whatever was announced.
            known = (number - 1, None) if empty else (announced, total)
            page = self._page(window, {**query, "page": str(number)}, number, *known)
            if page.error is not None:
                yield page
                bad += 1
                if bad == BAD_PAGES:
                    return
                continue
            bad = 0
            ids = {call.id for call in page.calls}
            entries = len(page.calls) + page.unreadable
            announced, total = page.last or announced, page.total or total
            # An empty page before the last one is either the end of the listing, whose total is
            # too high, or a page that is missing: then more calls follow.
            is_before_last = announced is not None and number < announced
            if not entries and is_before_last and len(empty) < EMPTY_PAGES:
                empty.append(number)
                continue
            for missing in empty if entries else ():
                text = f"page {missing} (state {query['state']}) was empty, and others follow"
                yield Page(query["state"], error=_listing_error(window, text))
            empty = []
            # Full pages of unreadable entries may differ although their ids do not.
            repeats = (ids, page.unreadable) == before and (bool(ids) or entries < page.size)
            if repeats:
                page = replace(page, unreadable=0)
            unreadable += page.unreadable
            # A source that shows more than it announced announces nothing: some report the total
            # of the page alone.
            if entries and announced is not None and announced < number:
                announced = None
            idle = idle + 1 if ids <= seen else 0
            seen |= ids
            yield page
            # A page may have only repeats, and the next one new calls.
            if not entries or (idle and (repeats or idle == IDLE_PAGES)):
                return
            # The last page is trusted only if all numbers of the source agree and the page is not
            # full. Some sources report the total of the page alone, which would end every listing
            # at its first page. Unreadable entries count too.
            is_complete = page.total is not None and len(seen) + unreadable >= page.total
            is_last = page.pages is None or number >= page.pages
            if is_complete and is_last and entries < page.size:
                return
            before = ids, page.unreadable
        text = f"it goes on after {MAX_PAGES} pages"
        yield Page(query["state"], error=_listing_error(window, text))

    def _page(
        self,
        window: Window,
        query: Mapping[str, str],
        number: int,
        announced: int | None = None,
        total: int | None = None,
    ) -> Page:
        """Fetch a page.

        `announced` is the last page by the source's own numbers, `total` its number of calls.
        Beyond that page, `NO_PAGE_STATUS` and an empty answer mean that there is no more: an empty
        page. Before it they are failures, and so are `REFUSED_PAGE_STATUS` beyond it if the listing
        may be capped. If the source announced nothing, 404 to any page but the first means that
        there is no more. A `null` that comes with a total of 0 is an empty page, too.
        """
        state = query["state"]
        is_beyond = number > 1 and announced is not None and number > announced
        try:
            with stage("list"):
                answer = self._api.get("list", "/voice-calls", query, scope=READ_SCOPE)
                body = answer.body
                if body is None and (is_beyond or _count(answer.pagination.get("totalCount")) == 0):
                    body = []
                if not isinstance(body, list):
                    raise UnusableAnswer("the source answered a listing with what is no list")
        except SourceError as error:
            if _is_about_all(error):
                raise
            is_end = error.status == 404 and number > 1 and announced is None
            if is_beyond:
                is_end = error.status in NO_PAGE_STATUS or _is_empty(error)
            is_capped = error.status in REFUSED_PAGE_STATUS and _may_be_capped(total)
            if is_end and not is_capped:
                return Page(state)
            if error.status == 403 or _may_be_outage(error):
                self._api.control()
            if is_end:
                what = (
                    f"answered {error.status}: the source may show no more than the first "
                    f"{number - 1} pages, so use a shorter ARCHIVER_WINDOW"
                )
            elif error.status not in (None, 200):
                what = f"answered {error.status}"
            elif isinstance(error, UnusableAnswer):
                what = "was answered with what is no list of calls in JSON"
            else:
                what = "took too long" if error.reason == "too_slow" else "was not answered"
            text = f"page {number} (state {state}) {what}"
            return Page(state, error=_listing_error(window, text, error.status))
        entries = [_call(item) for item in body]
        calls = tuple(call for call in entries if call is not None)
        return Page(
            state,
            calls,
            total=_count(answer.pagination.get("totalCount")),
            pages=_count(answer.pagination.get("totalPages")),
            size=min(PAGE_SIZE, _count(answer.pagination.get("pageSize")) or PAGE_SIZE),
            unreadable=len(entries) - len(calls),
        )

    # --- one call

    def call(self, call_id: str) -> tuple[Call, str | None]:
        """Fetch the call with its transcript; returns it and the request's id.

        Raises `CallError`: `call_missing` if the source does not know the call, `bad_document` if
        the answer is not valid JSON (its bytes are in `body`) or another call.
        """
        with stage("call"):
            answer = self._get_of_call("call", call_id, "", max_bytes=MAX_KEPT_BYTES)
        if answer.body is None:
            raise CallError("listed, but not found", reason="call_missing", status=answer.status)
        if not isinstance(answer.body, dict) or _id_of(answer.body) != call_id:
            raise _bad_document("the answer is not this call")
        return Call(call_id, answer.body), answer.request_id

    def document(self, call_id: str, kind: str) -> dict[str, Any] | list[Any] | None:
        """Fetch a document of `OTHER_DOCUMENTS`, such as the survey (`epa`); None if the source has
        none.

        Raises `CallError`: `bad_document`, with the bytes in `body` if they are not valid JSON.
        """
        row = DOCUMENTS[kind]
        with stage(kind):
            answer = self._get_of_call(kind, call_id, row.path, max_bytes=MAX_KEPT_BYTES)
        if answer.body in (None, {}, []):
            return None
        document: dict[str, Any] | list[Any] = answer.body
        parts = document if isinstance(document, list) else [document]
        if not all(isinstance(part, dict) for part in parts):
            raise _bad_document(f"{row.noun} is no object or array of objects")
        return document

    def recording_url(self, call_id: str) -> SignedUrl:
        """Fetch a fresh signed URL, to be used at once. Raises `NoRecording` if there is none."""
        try:
            return self._recording_url(call_id)
        except SourceRefused as error:
            if _is_about_all(error):
                raise
            missing = self._audio_scope.is_missing(call_id)
            if missing:
                raise
            raise _refused_call(error, undecided=missing is None) from None

    def _recording_url(self, call_id: str) -> SignedUrl:
        """As `recording_url`, but every refusal is a `SourceRefused`."""
        with stage("sas"):
            answer = self._get_of_call("sas", call_id, "/recording-url", scope=AUDIO_SCOPE)
        body = answer.body
        if body is None or body == {}:
            reason = {404: "not_found", 410: "gone"}.get(answer.status, "no_url")
            raise NoRecording("the source has no recording", reason=reason, status=answer.status)
        if not isinstance(body, dict):
            raise _bad_document("the answer holds no recording URL")
        # A missing field is no proof of absence. If the source renamed the field, all its
        # recordings would be recorded as absent.
        url = body.get("recordingUrl", _ABSENT)
        if url is None or url == "":
            raise NoRecording("the source has no recording", reason="no_url", status=200)
        if not isinstance(url, str):
            raise _bad_document("the recording URL is no string")
        start, own_expiry = signed_times(url)
        expiries = parse_source_time(body.get("expiresAt")), own_expiry
        known = [moment for moment in expiries if moment is not None]
        return SignedUrl(url, answer.request_id, min(known, default=None), start)

    def _get_of_call(
        self,
        name: str,
        call_id: str,
        suffix: str,
        *,
        scope: str = READ_SCOPE,
        max_bytes: int = MAX_JSON_BYTES,
    ) -> JsonAnswer:
        """Fetch an answer about one call. Its `body` is None if the source says that there is none.

        Raises `CallError` for a failure about this call, `SourceError` for one about the source. A
        refusal with the audio scope is raised as `SourceRefused`, and the caller decides.
        """
        try:
            answer = self._api.get(
                name, _path(call_id, suffix), {}, scope=scope, max_bytes=max_bytes
            )
        except SourceRefused as error:
            if scope == AUDIO_SCOPE or _is_about_all(error):
                raise
            if (
                error.status == 403
            ):  # the scope to list also covers calls: check that it still holds
                self._api.control()
            self._outages.answered()
            raise _refused_call(error) from None
        except UnusableAnswer as error:
            if not _is_empty(error):
                if error.status is not None:
                    self._note_answer(call_id, scope)
                failure = CallError(str(error), reason="bad_document", status=error.status)
                # An answer with a signed URL is a secret, even if it cannot be parsed.
                failure.body = error.body if scope != AUDIO_SCOPE else None
                raise failure from None
            answer = JsonAnswer(None, {}, None)
        except SourceError as error:
            if _is_about_all(error):
                raise
            if error.status not in NONE_STATUS:
                if _may_be_outage(error):
                    self._outages.failed(call_id, unreachable=error.reason == "unreachable")
                else:
                    self._note_answer(call_id, scope)
                text, status = str(error), error.status
                raise CallError(text, reason="source_unavailable", status=status) from None
            answer = JsonAnswer(None, {}, None, error.status or 0)
        self._note_answer(call_id, scope)
        return answer

    def _note_answer(self, call_id: str, scope: str) -> None:
        """Note that the source answered a request about a call, and did not refuse it."""
        self._outages.answered()
        if scope == AUDIO_SCOPE:
            self._audio_scope.answered(call_id)

    # --- access

    def check_access(self) -> list[SignedUrl]:
        """Send a request with each scope before work begins. Returns a few recording URLs, so that
        their hosts can be checked.

        The audio scope is granted if the request for one call, or for an id that cannot exist, is
        not refused (401, 403). Any other fault of a call or of a listing entry is ignored. Raises
        `SourceRefused` or `SourceError`.
        """
        urls: list[SignedUrl] = []
        granted = False
        for number, call_id in enumerate(self._sample()):
            if number == ACCESS_SAMPLE and not granted:
                granted = self._is_audio_answered(IMPOSSIBLE_ID) is True
            if number >= ACCESS_SAMPLE and granted:
                break
            try:
                urls.append(self._recording_url(call_id))
            except SourceRefused as error:
                if _is_about_all(error):
                    raise
                log.debug("source.access_checked", answer="refused")
                continue
            except CallError as error:
                log.debug("source.access_checked", answer=error.reason)
            granted = True
        if not granted and self._is_audio_answered(IMPOSSIBLE_ID) is False:
            raise SourceRefused(
                "the source refused access to recordings, whichever call they are of: give the "
                f"token or key the scope {AUDIO_SCOPE}",
                status=403,
            )
        return urls

    def _sample(self) -> list[str]:
        """The ids on the first page of the plain listing."""
        query = {**self._api.plain_query, "pageSize": str(PAGE_SIZE)}
        try:
            answer = self._api.get("list", "/voice-calls", query, scope=READ_SCOPE)
        except SourceError as error:
            if error.status not in (400, 422):
                raise
            # The source may require dates, which the listings of windows send.
            log.warning("source.plain_listing_refused", status=error.status)
            return []
        if not isinstance(answer.body, list):
            log.warning("source.plain_listing_odd")
            return []
        return [call.id for call in map(_call, answer.body) if call is not None][:PAGE_SIZE]

    def _is_audio_answered(self, call_id: str) -> bool | None:
        """Whether a request with the audio scope is not refused; None if the source fails. Raises
        `SourceRefused` if the credentials are refused in general."""
        try:
            self._api.get("sas", _path(call_id, "/recording-url"), {}, scope=AUDIO_SCOPE)
        except SourceError as error:
            if _is_about_all(error):
                raise
            if isinstance(error, SourceRefused):
                return False
            if _may_be_outage(error) or error.status is None:
                return None
        return True


def _listing_query(window: Window, filters: Filter, state: str) -> dict[str, str]:
    return {
        "state": state,
        "dateFrom": format_time(window.start),
        "dateTo": format_time(window.end),
        "pageSize": str(PAGE_SIZE),
        **filters.narrowing,
    }


def _call(item: object) -> Call | None:
    """Read an entry of a listing as a call; None if it is not one."""
    call_id = _id_of(item)
    return Call(call_id, item) if call_id and isinstance(item, dict) else None


def signed_times(url: str) -> tuple[datetime | None, datetime | None]:
    """From when and until when a signed URL is valid, as its query says; None if it does not.

    - Azure's shared access signatures: the times `st` and `se`.
    - Signatures of AWS and Google, version 4: the basic ISO time `X-Amz-Date`, `X-Goog-Date`, and
      the seconds `X-Amz-Expires`, `X-Goog-Expires`.
    """
    parameters = {(a or b).lower(): unquote_plus(text) for a, b, text in _URL_TIME.findall(url)}
    start, expiry = parse_source_time(parameters.get("st")), parse_source_time(parameters.get("se"))
    with suppress(KeyError, ValueError, OverflowError):
        start = datetime.strptime(parameters["date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        expiry = start + timedelta(seconds=int(parameters["expires"][:9]))
    return start, expiry


def _id_of(item: object) -> str | None:
    """The id of a call, if it has one. A number counts as an id, as its JSON text."""
    value = item.get("id") if isinstance(item, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return canonical.dump(value).decode().strip()
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _path(call_id: str, suffix: str) -> str:
    """The path of a call, with the id as one segment. Raises `CallError` for `.` and `..`: clients
    and proxies resolve them (RFC 3986, section 5.2.4), so another URL would be requested."""
    if call_id in (".", ".."):
        raise CallError("an id that no URL can name", reason="bad_document")
    return f"/voice-calls/{quote(call_id, safe='', errors='surrogatepass')}{suffix}"


def _may_be_capped(total: int | None) -> bool:
    """Whether a listing may have more calls than its total says."""
    return total is not None and total >= CAPPED_CALLS and total % 1000 == 0


def _is_empty(error: SourceError) -> bool:
    """Whether the source answered with an empty body."""
    body = error.body if isinstance(error, UnusableAnswer) else None
    return body is not None and not body.removeprefix(BOM_UTF8).strip()


def _is_about_all(error: SourceError) -> bool:
    """Whether a failure is known to concern more than one request: the control request failed too,
    or no request can be sent at all."""
    if isinstance(error, SourceRefused):
        return error.status == 401 and error.reach is not Reach.ITEM
    return isinstance(error, SourceOut) or error.reason == "invalid"


def _may_be_outage(error: SourceError) -> bool:
    """Whether an outage may cause this failure: no answer, 5xx, throttled."""
    return error.retryable or error.reason == "unreachable"


def _refused_call(error: SourceRefused, *, undecided: bool = False) -> CallError:
    refused = CallError("the source refuses this call", reason="call_refused", status=error.status)
    refused.undecided = undecided
    refused.stage = error.stage
    return refused


def _bad_document(text: str) -> CallError:
    return CallError(text, reason="bad_document", status=200)


def _listing_error(window: Window, text: str, status: int | None = None) -> ListingError:
    return ListingError(
        f"the listing of {window} cannot be had in full: {text}. This window stays open; the "
        "others go on",
        reason="listing",
        status=status,
    )
