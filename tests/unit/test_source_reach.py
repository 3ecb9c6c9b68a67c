"""What is bad for ever at the source harms only itself: an entry, a page, a call, a document."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from archiver.core.errors import CallError, Reach, SourceError, SourceRefused
from archiver.core.retry import Retry
from archiver.observability.metrics import REGISTRY
from archiver.source.api import Filter, VoiceCallsClient
from archiver.source.json_api import BearerAuth, JsonApi
from archiver.source.listing import Lister, WindowListing
from tests.fakes.clock import HandClock
from tests.fakes.errors import error_of
from tests.fakes.hooks import collect, id_in, json_reply, of_calls
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_source import API_URL, MemoryPlatform, MemoryWire, api_client
from tests.fakes.platform import AUDIO, READ, Hook
from tests.fakes.population import TEN, a_call, stamp
from tests.fakes.rig import HOUR, WINDOW

COMPLETED = Filter(("Completed",))
IDS = [f"vc_{n:02}" for n in range(40)]
BUT_THE_LAST = [*IDS[:39], "access-check"]
"""With the id that cannot exist, which the client asks for too."""


@pytest.fixture
def platform(clock: HandClock) -> MemoryPlatform:
    calls = [a_call(call_id, TEN + timedelta(minutes=n)) for n, call_id in enumerate(IDS)]
    return MemoryPlatform(calls, clock=clock.now, page_size_cap=10, sort="startTime")


@pytest.fixture
def client(platform: MemoryPlatform, clock: HandClock) -> VoiceCallsClient:
    return api_client(platform, clock)


@pytest.fixture
def listed(client: VoiceCallsClient, clock: HandClock) -> Callable[..., WindowListing]:
    def list_window(*states: str) -> WindowListing:
        return Lister(client, Filter(states or ("Completed",)), clock, HOUR).list(WINDOW)

    return list_window


def is_control(request: Request) -> bool:
    return request.path.endswith("/voice-calls") and "dateFrom" not in request.query


def of_window(reply: Reply, *pages: str) -> Hook:
    """`reply` to these pages of every window's listing, to all of them where none is named."""

    def hook(request: Request) -> Reply | None:
        lists_window = request.path.endswith("/voice-calls") and not is_control(request)
        return reply if lists_window and (not pages or request.query["page"] in pages) else None

    return hook


# --- entries

NO_CALLS: list[Any] = [
    None, {}, {"id": None}, {"id": ""}, {"id": True}, {"id": ["vc_1"]}, {"id": {}}, "vc_1", 7, [],
    [{}], {"callId": "vc_1"},
]  # fmt: skip


def show(
    platform: MemoryPlatform, rows: Callable[[str], list[Any]], pagination: dict[str, int] | None
) -> None:
    """Each page of each listing has `rows(page)`, bare where there is no pagination."""

    def answer(request: Request) -> Reply:
        shown = rows(request.query["page"])
        return json_reply({"data": shown, "pagination": pagination} if pagination else shown)

    platform.hooks.append(answer)


@pytest.mark.parametrize("entry", NO_CALLS, ids=json.dumps)
@pytest.mark.parametrize("pagination", [{"totalCount": 3, "totalPages": 1}, None])
@pytest.mark.parametrize("clamped", [True, False])
def test_an_entry_that_is_no_call_is_counted(platform, listed, entry, pagination, clamped):
    rows = [entry, {"id": "a", "startTime": stamp(TEN)}, entry]
    show(platform, lambda page: rows if clamped or page == "1" else [], pagination)
    before = REGISTRY.get_sample_value("archiver_unreadable_entries_total") or 0.0
    with capture_logs() as logs:
        found = listed()
    assert list(found.calls) == ["a"]
    assert found.stable
    assert found.complete
    assert found.listing.unreadable == 2
    told = [line for line in logs if line["event"] == "source.entries_unreadable"]
    assert [(line["count"], line["log_level"]) for line in told] == [(2, "warning")] * 2
    assert not [line for line in logs if line["event"] == "source.total_disagrees"]
    assert REGISTRY.get_sample_value("archiver_unreadable_entries_total") == before + 2


@pytest.mark.parametrize(("value", "text"), [(123, "123"), (0, "0"), (-5, "-5"), (1.5, "1.5")])
@pytest.mark.parametrize("enveloped", [True, False])
def test_a_number_is_an_id(platform, client, listed, value, text, enveloped):
    call = {"id": value, "startTime": stamp(TEN), "transcript": []}

    def answer(request: Request) -> Reply:
        listing = [call] if request.query.get("page") == "1" else []
        document = call if id_in(request) == text else listing
        return json_reply({"data": document} if enveloped else document)

    platform.hooks.append(answer)
    found = listed()
    assert list(found.calls) == [text]
    assert found.listing.unreadable == 0
    assert client.call(text)[0].document == call
    assert client.call(text)[0].id == text


def test_numbers_of_unreadable_entries_that_differ_are_no_unrest(platform, listed):
    counts = iter([3, 1, 7])
    show(platform, lambda page: [{"id": "a"}, *[None] * next(counts)] if page == "1" else [], None)
    found = listed()
    assert found.stable
    assert (found.listing.passes, found.listing.unreadable) == (2, 1)


@pytest.mark.parametrize("pagination", [{"totalCount": 300, "totalPages": 3}, None])
def test_pages_full_of_what_cannot_be_read_do_not_end_a_listing(platform, listed, pagination):
    pages = {"1": [None] * 100, "2": [None] * 100, "3": [*[None] * 99, {"id": "a"}]}
    show(platform, lambda page: pages.get(page, []), pagination)
    found = listed()
    assert list(found.calls) == ["a"]
    assert found.listing.unreadable == 299


@pytest.mark.parametrize("row", [None, {"id": "a"}])
def test_a_source_that_repeats_unreadable_entries_for_ever_ends(platform, listed, row):
    show(platform, lambda _: [None, row], None)
    assert listed().listing.unreadable == (1 if row else 2)
    assert platform.served["page"] <= 2 * 2


# --- pages

BAD_PAGES = {
    "500": Reply(500, {}, b"{}"),
    "503": Reply(503, {}, b""),
    "429": Reply(429, {"Retry-After": "1"}, b"{}"),
    "429 for an hour": Reply(429, {"Retry-After": "3600"}, b"{}"),
    "400": Reply(400, {}, b"{}"),
    "401": Reply(401, {}, b"{}"),
    "403": Reply(403, {}, b"{}"),
    "405": Reply(405, {}, b"{}"),
    "422": Reply(422, {}, b"{}"),
    "302": Reply(302, {"Location": "https://evil.example/"}, b""),
    "204": Reply(204),
    "object": Reply(200, {}, b'{"calls":[]}'),
    "null": Reply(200, {}, b"null"),
    "scalar": Reply(200, {}, b"5"),
    "empty": Reply(200, {}, b""),
    "html": Reply(200, {}, b"<html>"),
    "nan": Reply(200, {}, b'[{"id":"a","x":NaN}]'),
    "error": Reply(200, {}, b'{"error":{"code":"X"}}'),
    "encoded": Reply(200, {"Content-Encoding": "gzip"}, b"[]"),
    "huge": Reply(200, {}, b" " * (33 << 20)),
    "silent": Reply(200, {}, b"[]", close_after=-1),
    "cut": Reply(200, {}, b"[]", close_after=1),
    "unconnected": Reply(0),
}


@pytest.mark.parametrize("bad", BAD_PAGES)
@pytest.mark.parametrize("number", ["1", "2", "3", "4"])
def test_a_page_that_cannot_be_had_is_passed_over(platform, listed, bad, number):
    platform.hooks.append(of_window(BAD_PAGES[bad], number))
    lost = IDS[10 * int(number) - 10 : 10 * int(number)]
    with capture_logs() as logs:
        found = listed()
    assert found.calls.keys() == set(IDS) - set(lost)
    assert (found.complete, found.stable, found.listing.passes) == (False, False, 1)
    assert found.error is not None
    assert (found.error.reach, found.error.exit_code) == (Reach.WINDOW, 3)
    message = str(found.error)
    for part in (str(WINDOW), f"page {number} ", "this window stays open", "the others go on"):
        assert part.casefold() in message.casefold()
    assert "\n" not in message
    assert ("answered" in message) or bad in ("silent", "cut", "unconnected")
    errors = [line["event"] for line in logs if line["log_level"] == "error"]
    assert errors == ["listing.incomplete"]


@pytest.mark.parametrize("bad", [*BAD_PAGES, "404"])
def test_a_window_that_cannot_be_listed_at_all_raises_nothing(platform, client, listed, clock, bad):
    platform.hooks.append(of_window(BAD_PAGES.get(bad, Reply(404, {}, b"{}"))))
    asked = collect(platform, lambda request: not is_control(request))
    found = listed()
    assert (found.calls, found.complete, found.stable) == ({}, False, False)
    assert {request.query["page"] for request in asked} == {"1", "2"}
    assert Lister(client, COMPLETED, clock, HOUR).list_once(WINDOW) == {}


def test_two_bad_pages_that_are_not_in_a_row_end_nothing(platform, client, listed):
    platform.hooks.append(of_window(Reply(500), "1", "3"))
    found = listed()
    assert len(found.calls) == 20
    assert "page 1 " in str(found.error)
    lacking = [page.error is not None for page in client.pages(WINDOW, COMPLETED)]
    assert lacking[:4] == [True, False, True, False]


def test_one_state_that_cannot_be_listed_leaves_the_others(platform, listed):
    platform.add(a_call("failed", state="Failed"))
    platform.hooks.append(
        lambda r: Reply(422, {}, b"{}") if r.query.get("state") == "Completed" else None
    )
    found = listed("Completed", "Failed")
    assert list(found.calls) == ["failed"]
    assert not found.complete
    assert "(state Completed)" in str(found.error)


def test_a_page_that_fails_in_a_later_pass_is_told_of_too(platform, listed):
    bad = of_window(Reply(500), "2")
    platform.hooks.append(lambda r: bad(r) if platform.served["pass"] > 1 else None)
    found = listed()
    assert len(found.calls) == 40, "what the first pass saw is kept"
    assert (found.complete, found.stable) == (False, False)


def test_a_neighbour_that_cannot_be_listed_harms_nobody_here(platform, listed):
    """The source lists a call here that started in the next window, whose own listing is bad."""
    platform.options.inclusive_end = True
    platform.add(a_call("next", WINDOW.end))
    start = stamp(WINDOW.end)
    platform.hooks.append(lambda r: Reply(500) if r.query.get("dateFrom") == start else None)
    found = listed()
    assert (found.complete, found.stable) == (True, True)
    assert len(found.calls) == 41, "nobody else may ever list it"


# --- an outage, or one bad thing

OUTAGES = {
    "500": Reply(500),
    "429": Reply(429),
    **{name: BAD_PAGES[name] for name in ("503", "silent", "cut", "unconnected")},
}


@pytest.mark.parametrize("bad", OUTAGES)
def test_an_outage_while_one_lists_blames_no_window(platform, listed, bad):
    platform.hooks.append(lambda _: OUTAGES[bad])
    error = error_of(SourceError, listed)
    assert (error.reach, error.retryable) == (Reach.SOURCE, False)


ASKS: dict[str, Callable[[VoiceCallsClient, str], object]] = {
    "": VoiceCallsClient.call,
    "/epa-results": lambda client, call_id: client.document(call_id, "epa"),
    "/recording-url": VoiceCallsClient.recording_url,
}


@pytest.mark.parametrize("bad", OUTAGES)
@pytest.mark.parametrize("suffix", ASKS)
def test_a_call_whose_requests_fail_for_ever_is_its_own_matter(platform, client, bad, suffix):
    platform.hooks.append(of_calls(OUTAGES[bad], suffix))
    for call_id in IDS[:30]:
        error = error_of(CallError, ASKS[suffix], client, call_id)
        assert (error.reason, error.retryable) == ("source_unavailable", False)


@pytest.mark.parametrize("bad", OUTAGES)
def test_an_outage_blames_no_call(platform, client, bad):
    """Where no connection comes about, not a single one; else those that failed before it shows."""
    platform.hooks.append(lambda _: OUTAGES[bad])
    found = in_threads(1, client.call, IDS[:15] * 2)
    blamed = found.count("source_unavailable")
    assert set(found) <= {"source_unavailable", "SourceOut"}
    assert blamed == (0 if bad == "unconnected" else 9)


def test_one_call_alone_is_no_outage_however_often_it_fails(platform, client):
    platform.hooks.append(lambda _: Reply(500))
    assert in_threads(1, client.call, ["vc_00"] * 30) == ["source_unavailable"] * 30


def test_an_answer_between_ends_a_row_of_failures(platform, client):
    controls = collect(platform, is_control)
    platform.hooks.append(of_calls(Reply(500), "", BUT_THE_LAST))
    for number, call_id in enumerate(IDS[:30]):
        error_of(CallError, client.call, call_id)
        if number % 9 == 8:
            client.call("vc_39")
    assert controls == []


@pytest.mark.parametrize("workers", [1, 8])
def test_workers_share_a_control_request(platform, client, clock, workers):
    controls = collect(platform, is_control)
    platform.hooks.append(
        lambda r: None if is_control(r) else Reply(429, {"Retry-After": "3600"}, b"")
    )
    assert in_threads(workers, client.call, IDS) == ["source_unavailable"] * 40
    assert len(controls) == 1, "no time has passed"
    clock.forward(timedelta(seconds=2))
    in_threads(workers, client.call, IDS)
    assert len(controls) == 2


def in_threads(workers: int, ask: Callable[[str], object], call_ids: list[str]) -> list[str | None]:
    """How each call ended: None, the reason of a `CallError`, or the name of another error."""

    def end(call_id: str) -> str | None:
        try:
            ask(call_id)
        except CallError as error:
            return f"{error.reason}?" if error.undecided else error.reason
        except SourceError as error:
            return type(error).__name__
        return None

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(end, call_ids))


def test_the_control_request_is_narrowed_as_every_listing_is(platform, clock):
    """Credentials may be good for one campaign alone."""

    def own_campaign(request: Request) -> Reply | None:
        lists = request.path.endswith("/voice-calls")
        return Reply(403) if lists and request.query.get("campaignId") != "camp_1" else None

    platform.hooks += [own_campaign, of_window(Reply(503, {}, b""), "1")]
    client = api_client(platform, clock, narrowing={"campaignId": "camp_1"})
    assert len(client.check_access()) == 5
    filters = Filter(("Completed",), campaign_id="camp_1")
    assert len(Lister(client, filters, clock, HOUR).list(WINDOW).calls) == 30


# --- refusals


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("suffix", ASKS)
@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("every", [1, 2, 39])
def test_calls_that_are_refused_for_themselves_harm_no_other(
    platform, client, status, suffix, workers, order, every
):
    """Whatever the order and the number of workers; a call before them all may be refused too."""
    ids = IDS[::order]
    refused = set(ids[::every])
    platform.hooks.append(of_calls(Reply(status), suffix, refused))
    found = in_threads(workers, lambda call_id: ASKS[suffix](client, call_id), ids)
    assert found == ["call_refused" if call_id in refused else None for call_id in ids]


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("order", [1, -1])
def test_a_source_that_hides_what_it_does_not_know_is_understood(platform, client, workers, order):
    """It answers 403 for ids that cannot exist too; calls of which one cannot say more are not
    blamed, and the scope is called missing by no order of the calls."""
    ids = IDS[::order]
    platform.hooks.append(of_calls(Reply(403), "/recording-url", [*ids[:9], "access-check"]))
    found = in_threads(workers, client.recording_url, ids)
    assert set(found[:9]) <= {"call_refused", "call_refused?"}
    assert set(found[9:]) == {None}
    assert set(in_threads(workers, client.recording_url, ids[:9])) == {"call_refused"}


def allow(platform: MemoryPlatform, *scopes: str) -> None:
    """The token has these scopes from now on."""
    platform.options.tokens[platform.token] = frozenset(scopes)


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("is_taken_away", [False, True])
def test_a_scope_for_audio_that_is_missing_blames_no_call_and_ends_the_run(
    platform, client, clock, workers, is_taken_away
):
    if is_taken_away:
        client.recording_url("vc_39")
    allow(platform, READ)
    clock.forward(timedelta(seconds=31))
    found = in_threads(workers, client.recording_url, IDS)
    assert set(found) <= {"SourceRefused", "call_refused?"}
    assert found.count("call_refused?") <= 9
    with pytest.raises(SourceRefused, match="audio:download"):
        client.recording_url("vc_00")
    allow(platform, READ, AUDIO)
    client.recording_url("vc_00")


def test_a_refusal_is_told_of_with_its_stage(platform, client):
    platform.hooks.append(of_calls(Reply(403), "/recording-url"))
    assert error_of(CallError, client.recording_url, "vc_00").stage == "sas"


def test_the_same_call_over_and_over_proves_no_missing_scope(platform, client):
    allow(platform, READ)
    assert set(in_threads(1, client.recording_url, ["vc_00"] * 30)) == {"call_refused?"}


def test_an_example_is_asked_for_again_now_and_then_only(platform, client, clock):
    client.recording_url("vc_39")
    platform.hooks.append(of_calls(Reply(403), "/recording-url", BUT_THE_LAST))
    examples = collect(platform, lambda request: id_in(request) == "vc_39")
    for call_id in IDS[:30]:
        assert not error_of(CallError, client.recording_url, call_id).undecided
        clock.forward(timedelta(seconds=10))
    assert 8 <= len(examples) <= 10


@pytest.mark.parametrize("suffix", ["", "/epa-results"])
def test_a_scope_for_reading_that_is_taken_away_is_everybodys(platform, client, suffix):
    allow(platform, AUDIO)
    with pytest.raises(SourceRefused, match="voice:read"):
        ASKS[suffix](client, "vc_00")


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_may_list_nothing_are_refused(platform, listed, status):
    platform.hooks.append(lambda _: Reply(status))
    error = error_of(SourceRefused, listed)
    assert (error.status, error.reach) == (status, Reach.SOURCE)


def rotating(
    platform: MemoryPlatform, clock: HandClock, token: Callable[[], str]
) -> VoiceCallsClient:
    """A client whose token may change, and has worked once."""
    auth = BearerAuth(token, may_change=True)
    api = JsonApi(API_URL, auth, clock, MemoryWire(platform), retry=Retry(clock))
    client = VoiceCallsClient(api)
    client.call("vc_00")
    return client


def test_one_call_that_answers_401_is_not_waited_for(platform, clock):
    """Credentials that rotate would be, for three minutes."""
    client = rotating(platform, clock, lambda: platform.token)
    platform.hooks.append(of_calls(Reply(401), "/vc_01"))
    error = error_of(CallError, client.call, "vc_01")
    assert (error.reason, error.status) == ("call_refused", 401)
    assert clock.sleeps == []


def test_credentials_that_were_replaced_in_between_are_no_call_s_matter(platform, clock):
    """The request went out with the old ones; the control request would go out with the new."""
    value, fresh, lock = [platform.token], "a-new-token-for-tests", threading.Lock()
    client = rotating(platform, clock, lambda: value[0])

    def rotate(_: Request) -> None:
        with lock:
            if platform.options.tokens.pop(platform.token, None):
                platform.options.tokens[fresh] = frozenset({READ, AUDIO})
            else:
                value[0] = fresh

    platform.hooks.append(rotate)
    assert client.call("vc_01")[0].id == "vc_01"


# --- documents

BAD_JSON = {
    "html": b"<!doctype html><p>",
    "surrogate": b'{"id":"vc_01","x":"\\ud800"}',
    "nan": b'{"id":"vc_01","x":NaN}',
    "overflow": b'{"id":"vc_01","x":1e999}',
    "duplicate": b'{"id":"vc_01","x":1,"x":2}',
    "deep": b'{"id":"vc_01","x":' + b"[" * 99 + b"]" * 99 + b"}",
    "cut": b'{"id":"vc_01",',
    "latin": b'{"id":"vc_01","x":"\xe4"}',
    "bom of UTF-16": '{"id":"vc_01"}'.encode("utf-16"),
    "enveloped": b'{"data":{"id":"vc_01","x":NaN}}',
    "huge": b'{"id":"vc_01","x":"' + b"x" * (34 << 20) + b'"}',
}
"""It comes as its bytes."""
NO_DOCUMENT = {
    "error": b'{"error":{"code":"X"}}',
    "other call": b'{"id":"vc_02"}',
    "no id": b'{"x":1}',
    "text": b'"vc_01"',
    "list": b'["vc_01"]',
    "number": b"5",
    "false": b"false",
    "endless": b" " * (65 << 20),
}
"""There are no bytes to keep."""


@pytest.mark.parametrize(
    ("suffix", "bad"),
    [
        (suffix, bad)
        for suffix in ("", "/epa-results")
        for bad in (*BAD_JSON, *NO_DOCUMENT)
        if not (suffix and bad in ("other call", "no id"))
    ],
)
def test_a_bad_document(platform, client, suffix, bad):
    body = {**BAD_JSON, **NO_DOCUMENT}[bad]
    platform.hooks.append(of_calls(Reply(200, {}, body), f"/vc_01{suffix}"))
    error = error_of(CallError, ASKS[suffix], client, "vc_01")
    assert error.reason == "bad_document"
    assert error.body == BAD_JSON.get(bad)
    assert error.status == 200 or bad in NO_DOCUMENT


def test_a_document_that_passes_the_second_time_is_none_of_these(platform, client):
    replies = [Reply(200, {}, b"<html>")]
    platform.hooks.append(lambda _: replies.pop() if replies else None)
    assert client.call("vc_01")[0].id == "vc_01"


def test_an_answer_with_a_signed_url_is_never_kept(platform, client):
    body = b'{"recordingUrl":"https://blobs.test/a?sig=secret",}'
    platform.hooks.append(of_calls(Reply(200, {}, body), "/recording-url"))
    error = error_of(CallError, client.recording_url, "vc_01")
    assert (error.reason, error.body) == ("bad_document", None)
    assert "secret" not in str(error)
