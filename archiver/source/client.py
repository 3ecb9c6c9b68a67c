"""The source's JSON API: listing, call, survey, signed recording URL.

Contract of `VoiceCallsClient`:
- Retries: within (`http.py`). All requests are GETs.
- Errors: `SourceRefused` (401/403: the credentials or a scope), `SourceError` (unreachable, or not
  the API), `CallError` (one call's answer is of no use, or refused for it alone), `NoRecording`.
- Bounds: no page is read twice, no listing is without an end.
- Threads share a client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import structlog

from archiver.errors import CallError, NoRecording, SourceError, SourceRefused
from archiver.metrics import stage
from archiver.model import Call, Window, format_time
from archiver.source.http import Answer, JsonApi
from archiver.source.signed import SignedUrl

log = structlog.get_logger()

PAGE_SIZE = 100
MAX_PAGES = 100_000
IDLE_PAGES = 3
"""So many pages in a row that hold only repeats end a listing."""
ACCESS_SAMPLE = 5
"""Calls asked for a recording URL before work begins: the first may have no recording."""
_ABSENT = object()
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


class VoiceCallsClient:
    """The Voice Calls REST API, as far as an archive needs it."""

    def __init__(self, api: JsonApi) -> None:
        self._api = api
        self.base_url = api.base_url
        self._proved: dict[str, str] = {}
        """What was answered last, by the name of the request: to tell one call from all."""

    def close(self) -> None:
        self._api.close()

    def clock_skew_seconds(self) -> float | None:
        """The source's `Date` less our time, or None where it sends none."""
        return self._api.clock_skew_seconds()

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
        answer = self._api.get("list", "/voice-calls", query, scope=READ_SCOPE)
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
        try:
            with stage("epa"):
                answer = self._get_of_call("epa", f"/voice-calls/{_segment(call_id)}/epa-results")
        except CallError as error:
            if error.status == 204 or error.body == b"":
                return None
            raise
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

    def _get_of_call(self, name: str, path: str, scope: str = READ_SCOPE) -> Answer | None:
        """As `JsonApi.get`, but what goes wrong is this call's matter; None for 404."""
        try:
            answer = self._api.get(name, path, {}, scope=scope)
        except SourceRefused as error:
            if error.status != 403 or not self._is_about_one_call(name, scope):
                raise
            raise CallError(
                "the source refuses this call", reason="call_refused", status=403
            ) from None
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
            call_error = CallError(str(error), reason=reason, status=error.status)
            call_error.body = getattr(error, "body", None)
            raise call_error from None
        self._proved[name] = path
        return answer

    def _is_about_one_call(self, name: str, scope: str) -> bool:
        """Whether what was answered for another call is so still: then we have the scope."""
        path = self._proved.get(name)
        if path is None:
            return False
        try:
            self._api.get(name, path, {}, scope=scope)
        except SourceRefused:
            return False
        except SourceError as error:
            return error.status == 404
        return True


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
