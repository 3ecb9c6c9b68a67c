"""The API's client against the strict platform: authentication, paging, refusals, limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial

import pytest
from structlog.testing import capture_logs

from archiver.core.errors import CallError, NoRecording, SourceError, SourceRefused
from archiver.source.api import Filter, VoiceCallsClient
from archiver.source.json_api import BearerAuth, SignedKeyAuth
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import AUDIO, READ, Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import WINDOW, api_client

COMPLETED = Filter(("Completed",))


@pytest.fixture
def platform(clock: HandClock) -> Iterator[Platform]:
    calls = [a_call(f"vc_{n:03}", TEN + timedelta(seconds=10 * n)) for n in range(230)]
    with Platform(calls, clock=clock.now) as served:
        yield served
        assert served.violations == []


@pytest.fixture
def client(platform: Platform, clock: HandClock) -> Iterator[VoiceCallsClient]:
    made = api_client(platform, clock)
    yield made
    made.close()


def listed(client: VoiceCallsClient, filters: Filter = COMPLETED) -> list[str]:
    return [call.id for page in client.pages(WINDOW, filters) for call in page.calls]


def on(path: str, reply: Reply, times: int = 10**9) -> object:
    """A hook that gives `reply` to the first `times` requests whose path ends so."""
    left = [times]

    def hook(request: Request) -> Reply | None:
        if not request.path.endswith(path) or left[0] <= 0:
            return None
        left[0] -= 1
        return reply

    return hook


# --- listing


@pytest.mark.parametrize("enveloped", [True, False, "mixed"])
def test_every_page_is_read_bare_or_enveloped(
    platform: Platform, client: VoiceCallsClient, enveloped: bool | str
) -> None:
    platform.options.enveloped = enveloped
    assert sorted(set(listed(client))) == [call.id for call in platform.calls]


@pytest.mark.parametrize("cap", [1, 25, 99])
def test_a_clamped_page_size_changes_nothing(
    platform: Platform, client: VoiceCallsClient, cap: int
) -> None:
    for call in platform.calls[30:]:
        platform.remove(call.id)
    platform.options.page_size_cap = cap
    assert len(set(listed(client))) == 30


@pytest.mark.parametrize("enveloped", [True, False])
def test_a_source_that_answers_the_last_page_for_ever_ends(
    platform: Platform, client: VoiceCallsClient, enveloped: bool
) -> None:
    platform.options.clamp_pages = True
    platform.options.enveloped = enveloped
    assert len(set(listed(client))) == 230
    assert len(platform.served("api")) <= 5


def test_a_source_that_ignores_page_ends(platform: Platform, client: VoiceCallsClient) -> None:
    body = json.dumps([{"id": "vc_1"}, {"id": "vc_2"}]).encode()
    platform.hooks.append(on("/voice-calls", Reply(200, {}, body)))
    assert set(listed(client)) == {"vc_1", "vc_2"}
    assert len(platform.served("api")) == 2


@pytest.mark.parametrize(("count", "pages"), [(100, 9), (10**9, 10**7)])
def test_totals_that_lie_lose_nothing_and_end(
    platform: Platform, client: VoiceCallsClient, count: int, pages: int
) -> None:
    def lie(request: Request) -> Reply:
        reply = platform.answer(request)
        document = json.loads(reply.body)
        document["pagination"] |= {"totalCount": count, "totalPages": pages}
        return Reply(200, reply.headers, json.dumps(document).encode())

    platform.hooks.append(lie)
    assert len(set(listed(client))) == 230
    assert len(platform.served("api")) <= 4


def test_all_filters_are_sent(platform: Platform, client: VoiceCallsClient) -> None:
    platform.add(a_call("other", campaignId="camp_2"), a_call("in", direction="Inbound"))
    platform.add(a_call("failed", state="Failed"))
    everything = Filter(("Completed", "Failed"), "camp_1", "Outbound")
    found = set(listed(client, everything))
    assert "failed" in found
    assert not found & {"other", "in"}
    [first, *_] = platform.served("api")
    for part in ("state=Completed", "campaignId=camp_1", "direction=Outbound", "pageSize=100"):
        assert part in first.query
    assert "dateFrom=2024-01-15T10%3A00%3A00Z" in first.query


# --- authentication


def test_a_signed_key_is_accepted(platform: Platform, clock: HandClock) -> None:
    auth = SignedKeyAuth(lambda: platform.api_key, lambda: platform.api_secret, clock)
    platform.add(a_call("ü/../x y?&#%2e👋"))
    client = api_client(platform, clock, auth=auth)
    assert len(set(listed(client))) == 231
    assert client.call("ü/../x y?&#%2e👋")[0].id == "ü/../x y?&#%2e👋"
    client.close()


def test_a_secret_is_asked_for_at_each_request(platform: Platform, clock: HandClock) -> None:
    tokens = ["wrong"]
    client = api_client(platform, clock, auth=BearerAuth(lambda: tokens[0]))
    with pytest.raises(SourceRefused, match="ARCHIVER_API_TOKEN"):
        listed(client)
    tokens[0] = platform.token
    assert listed(client)
    client.close()


@pytest.mark.parametrize(("given", "missing"), [(READ, AUDIO), (AUDIO, READ)])
def test_a_missing_scope_is_named(
    platform: Platform, clock: HandClock, given: str, missing: str
) -> None:
    token = platform.token_for(given)
    client = api_client(platform, clock, auth=BearerAuth(lambda: token))
    with pytest.raises(SourceRefused, match=missing) as caught:
        client.check_access()
    assert token not in str(caught.value)
    assert clock.sleeps == []
    client.close()


def test_access_can_be_checked_on_an_empty_source(clock: HandClock) -> None:
    with Platform([]) as platform:
        client = api_client(platform, clock)
        client.check_access()
        token = platform.token_for(READ)
        weak = api_client(platform, clock, auth=BearerAuth(lambda: token))
        with pytest.raises(SourceRefused, match="audio:download"):
            weak.check_access()
        client.close()
        weak.close()


# --- trying again


def test_429_waits_as_long_as_it_was_asked_to(
    platform: Platform, client: VoiceCallsClient, clock: HandClock
) -> None:
    platform.hooks.append(on("vc_001", Reply(429, {"Retry-After": "7"}, b"{}"), times=2))
    client.call("vc_001")
    assert [int(slept) for slept in clock.sleeps] == [7, 7]


@pytest.mark.parametrize("value", ["²", "-5", "1e3", "soon", "99999999999", "Wed, 21 Oct 2015", ""])
def test_an_odd_retry_after_is_a_plain_retry(
    platform: Platform, client: VoiceCallsClient, clock: HandClock, value: str
) -> None:
    platform.hooks.append(on("vc_001", Reply(429, {"Retry-After": value}, b"{}"), times=1))
    assert client.call("vc_001")[0].id == "vc_001"
    assert clock.sleeps[0] < 2


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({}, b'{"error":{"retryAfter":9}}', 9),
        (
            {
                "Date": "Mon, 15 Jan 2024 10:00:00 GMT",
                "Retry-After": "Mon, 15 Jan 2024 10:00:12 GMT",
            },
            b"",
            12,
        ),
        ({}, b'{"error":{"retryAfter":1' + b"0" * 400 + b"}}", 0),
        ({}, b'{"error":{"retryAfter":-1}}', 0),
        ({}, b'{"error":{"retryAfter":true}}', 0),
    ],
)
def test_the_other_ways_to_ask_for_a_wait(
    platform: Platform, client: VoiceCallsClient, clock: HandClock,
    headers: dict[str, str], body: bytes, seconds: int,
) -> None:  # fmt: skip
    platform.hooks.append(on("vc_001", Reply(503, headers, body), times=1))
    client.call("vc_001")
    assert int(clock.sleeps[0]) == seconds


def test_a_retry_after_of_an_hour_ends_the_attempt(
    platform: Platform, client: VoiceCallsClient, clock: HandClock
) -> None:
    platform.hooks.append(on("vc_001", Reply(429, {"Retry-After": "3600"}, b"{}")))
    with pytest.raises(CallError) as caught:
        client.call("vc_001")
    assert caught.value.reason == "source_unavailable"
    assert clock.sleeps == []


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, {}, b"oops"),
        Reply(503, {}, b"<html>"),
        Reply(200, {}, b"[]", close_after=-1),
        Reply(200, {}, b'{"id":"vc_001"}', close_after=4),
        Reply(200, {}, b'{"id":"vc_001"}', close_after=4, reset=True),
        Reply(200, {}, [b'{"id":', b'"vc_0'], chunked=True, close_after=8),
    ],
)
def test_a_fault_that_passes_is_overcome(
    platform: Platform, client: VoiceCallsClient, reply: Reply
) -> None:
    platform.hooks.append(on("vc_001", reply, times=2))
    assert client.call("vc_001")[0].document["durationSeconds"] == 1


def test_a_listing_that_cannot_be_had_is_a_source_error(
    platform: Platform, client: VoiceCallsClient, clock: HandClock
) -> None:
    platform.hooks.append(on("/voice-calls", Reply(502, {}, b"bad gateway")))
    with pytest.raises(SourceError, match="502") as caught:
        listed(client)
    assert caught.value.exit_code == 3
    assert len(clock.sleeps) == 4 + 2, "the page's tries, and the control request's"


def test_an_unreachable_source_names_the_setting(platform: Platform, clock: HandClock) -> None:
    client = api_client(platform, clock, base_url="http://127.0.0.1:1/api/v1")
    for ask in (lambda: listed(client), lambda: client.call("x")):
        with pytest.raises(SourceError, match="ARCHIVER_API_BASE_URL"):
            ask()
    client.close()


# --- one call


def test_the_answers_about_one_call(platform: Platform, client: VoiceCallsClient) -> None:
    survey = {"state": "Completed", "calculatedScore": 4.5}
    platform.add(a_call("with", epa=survey), a_call("without", audio=None))
    call, request_id = client.call("with")
    assert call.document["epaResults"] == survey
    assert request_id is not None
    assert request_id.startswith("req_")
    assert client.document("with", "epa") == survey
    assert client.document("without", "epa") is None
    assert platform.blob_host in client.recording_url("with").url
    assert "sig" not in repr(client.recording_url("with"))
    with pytest.raises(NoRecording) as caught:
        client.recording_url("without")
    assert (caught.value.reason, caught.value.status) == ("not_found", 404)
    with pytest.raises(CallError) as missing:
        client.call("nowhere")
    assert missing.value.reason == "call_missing"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(404, {}, b"{}"), "not_found"),
        (Reply(410, {}, b"{}"), "gone"),
        (Reply(204), "no_url"),
        (Reply(200, {}, b""), "no_url"),
        (Reply(200, {}, b"\n"), "no_url"),
        (Reply(200, {}, b"null"), "no_url"),
        (Reply(200, {}, b'{"data":null}'), "no_url"),
        (Reply(200, {}, b"{}"), "no_url"),
        (Reply(200, {}, b'{"recordingUrl":null}'), "no_url"),
        (Reply(200, {}, b'{"data":{"recordingUrl":""}}'), "no_url"),
    ],
)
def test_the_ways_to_say_that_there_is_no_recording(
    platform: Platform, client: VoiceCallsClient, reply: Reply, reason: str
) -> None:
    platform.hooks.append(on("/recording-url", reply))
    with pytest.raises(NoRecording) as caught:
        client.recording_url("vc_001")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "body", [b'{"url":"x"}', b'{"status":"processing"}', b'{"error":{"code":"X"}}']
)
def test_an_answer_that_says_nothing_of_the_url_is_no_proof_of_absence(
    platform: Platform, client: VoiceCallsClient, body: bytes
) -> None:
    platform.hooks.append(on("/recording-url", Reply(200, {}, body)))
    with pytest.raises(CallError) as caught:
        client.recording_url("vc_001")
    assert caught.value.reason == "bad_document"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(200, {}, b"[]"), "bad_document"),
        (Reply(200, {}, b'{"recordingUrl":5}'), "bad_document"),
        (Reply(200, {}, b"<html>"), "bad_document"),
        (Reply(500, {}, b""), "source_unavailable"),
        (Reply(400, {}, b""), "source_unavailable"),
        (Reply(302, {"Location": "http://127.0.0.1:1/"}, b""), "source_unavailable"),
    ],
)
def test_an_answer_of_no_use_is_the_call_s_matter(
    platform: Platform, client: VoiceCallsClient, reply: Reply, reason: str
) -> None:
    platform.hooks.append(on("/recording-url", reply))
    with pytest.raises(CallError) as caught:
        client.recording_url("vc_001")
    assert caught.value.reason == reason
    assert not isinstance(caught.value, NoRecording)


EMPTY = [b"", b" \n", b"null", b'{"data":null}']
NONE = [*(Reply(200, {}, body) for body in EMPTY), *map(Reply, (204, 404, 410))]


@pytest.mark.parametrize(
    "reply", [*NONE, *(Reply(200, {}, body) for body in (b"{}", b"[]", b'{"data":{}}'))]
)
def test_an_empty_survey_is_none(
    platform: Platform, client: VoiceCallsClient, reply: Reply
) -> None:
    platform.hooks.append(on("/epa-results", reply))
    assert client.document("vc_001", "epa") is None


@pytest.mark.parametrize("reply", NONE)
def test_a_call_that_is_nothing_is_missing(
    platform: Platform, client: VoiceCallsClient, reply: Reply
) -> None:
    platform.hooks.append(on("/vc_001", reply))
    with pytest.raises(CallError) as caught:
        client.call("vc_001")
    assert (caught.value.reason, caught.value.status) == ("call_missing", reply.status)
    assert caught.value.body is None


def test_requests_are_paced(platform: Platform, clock: HandClock) -> None:
    client = api_client(platform, clock, requests_per_second=2.0)
    for _ in range(5):
        client.call("vc_001")
    assert clock.sleeps == [0.5] * 4
    client.close()


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        ("Mon, 15 Jan 2024 12:05:00 GMT", 300),
        ("Mon, 15 Jan 2024 12:05:00 -0000", 300),
        ("soon", None),
        ("", None),
        ("Mon, 99 Jan 99999 12:05:00 GMT", None),
    ],
)
def test_the_clock_s_skew(
    platform: Platform, client: VoiceCallsClient, date: str, skew: float | None
) -> None:
    assert client.latest_clock_skew_seconds() is None
    platform.hooks.append(lambda _: Reply(200, {"Date": date}, b"[]"))
    with suppress(CallError):
        client.call("vc_1")
    assert client.latest_clock_skew_seconds() == skew


def test_the_latest_answer_tells_the_source_s_time(
    platform: Platform, client: VoiceCallsClient, clock: HandClock
) -> None:
    """Whatever it is about, an error too, and without a request of its own."""
    ahead = {"Date": "Mon, 15 Jan 2024 12:10:00 GMT"}
    platform.hooks.append(on("vc_001", Reply(404, ahead, b"{}")))
    client.call("vc_000")
    assert client.latest_clock_skew_seconds() == 0
    with pytest.raises(CallError):
        client.call("vc_001")
    clock.forward(timedelta(minutes=1))
    asked = len(platform.served("api"))
    assert client.latest_clock_skew_seconds() == 600
    assert len(platform.served("api")) == asked
    platform.hooks.append(on("vc_002", Reply(404, {}, b"{}")))
    with pytest.raises(CallError):
        client.call("vc_002")
    assert client.latest_clock_skew_seconds() == 600, "an answer without a Date tells nothing new"


# --- credentials that expire, calls that are refused


def rotating(platform: Platform, clock: HandClock, value: list[str]) -> VoiceCallsClient:
    """A client whose token is `value[0]`, whatever that is at the moment."""
    auth = BearerAuth(lambda: value[0], may_change=True)
    return api_client(platform, clock, auth=auth)


def test_an_expired_token_is_waited_for(platform: Platform, clock: HandClock) -> None:
    value = [platform.token]
    client = rotating(platform, clock, value)
    client.call("vc_000")
    del platform.options.tokens[platform.token]
    fresh = platform.token_for(READ, AUDIO)
    clock.when_asleep(30, lambda: value.__setitem__(0, fresh))
    assert client.call("vc_001")[0].id == "vc_001"
    assert 30 <= sum(clock.sleeps) < 40


def test_it_is_not_waited_for_without_end(platform: Platform, clock: HandClock) -> None:
    client = rotating(platform, clock, [platform.token])
    client.call("vc_000")
    del platform.options.tokens[platform.token]
    with pytest.raises(SourceRefused, match="401"):
        client.call("vc_001")
    assert 180 <= sum(clock.sleeps) < 200


def test_of_many_that_wait_one_says_so(platform: Platform, clock: HandClock) -> None:
    value = [platform.token]
    client = rotating(platform, clock, value)
    client.call("vc_000")
    for _ in range(3):
        del platform.options.tokens[value[0]]
        fresh = platform.token_for(READ, AUDIO)
        clock.when_asleep(30, partial(value.__setitem__, 0, fresh))
        with capture_logs() as logs, ThreadPoolExecutor(8) as pool:
            list(pool.map(client.call, [f"vc_{n:03}" for n in range(8)]))
        told = [line["event"] for line in logs if line["event"].startswith("source.credentials")]
        assert told == ["source.credentials_expired", "source.credentials_replaced"]


def test_credentials_that_came_too_late_are_told_of_when_they_expire(
    platform: Platform, clock: HandClock
) -> None:
    value = [platform.token]
    client = rotating(platform, clock, value)
    for _ in range(2):
        client.call("vc_000")
        del platform.options.tokens[value[0]]
        with capture_logs() as logs, pytest.raises(SourceRefused):
            client.call("vc_001")
        assert [line["event"] for line in logs] == ["source.credentials_expired"]
        value[0] = platform.token_for(READ, AUDIO)


def test_a_token_that_never_worked_is_not_waited_for(platform: Platform, clock: HandClock) -> None:
    with pytest.raises(SourceRefused, match="401"):
        rotating(platform, clock, ["wrong"]).call("vc_000")
    assert clock.sleeps == []
