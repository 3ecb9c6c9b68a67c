"""The API's client against the strict platform: authentication, paging, refusals, limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from archiver.core.errors import CallError, NoRecording, SourceError, SourceRefused
from archiver.source.api import Filter, VoiceCallsClient
from archiver.source.json_api import BearerAuth, SignedKeyAuth
from tests.fakes.clock import HandClock
from tests.fakes.errors import error_of
from tests.fakes.hooks import on
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import AUDIO, READ, Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import WINDOW, api_client

Connect = Callable[..., VoiceCallsClient]


@pytest.fixture
def platform(served: Platform) -> Platform:
    served.add(*(a_call(f"vc_{n:03}", TEN + timedelta(seconds=10 * n)) for n in range(230)))
    return served


@pytest.fixture
def connect(platform: Platform, clock: HandClock) -> Iterator[Connect]:
    """Makes clients; `token` gives what one shows of itself at that moment."""
    with ExitStack() as stack:

        def make(token: Callable[[], str] | None = None, **options: Any) -> VoiceCallsClient:
            may_change = options.pop("may_change", False)
            if token is not None:
                options["auth"] = BearerAuth(token, may_change=may_change)
            return stack.enter_context(closing(api_client(platform, clock, **options)))

        yield make


@pytest.fixture
def client(connect: Connect) -> VoiceCallsClient:
    return connect()


def listed(client: VoiceCallsClient, *states: str, **narrow: str) -> list[str]:
    filters = Filter(states or ("Completed",), **narrow)
    return [call.id for page in client.pages(WINDOW, filters) for call in page.calls]


# --- listing


@pytest.mark.parametrize("enveloped", [True, False, "mixed"])
def test_every_page_is_read_bare_or_enveloped(platform, client, enveloped):
    platform.options.enveloped = enveloped
    assert sorted(set(listed(client))) == [call.id for call in platform.calls]


@pytest.mark.parametrize("enveloped", [True, False])
def test_a_source_that_answers_the_last_page_for_ever_ends(platform, client, enveloped):
    platform.options.clamp_pages = True
    platform.options.enveloped = enveloped
    assert len(set(listed(client))) == 230
    assert len(platform.served("api")) <= 5


def test_a_source_that_ignores_page_ends(platform, client):
    platform.hooks.append(on("/voice-calls", Reply(body=b'[{"id":"vc_1"},{"id":"vc_2"}]')))
    assert set(listed(client)) == {"vc_1", "vc_2"}
    assert len(platform.served("api")) == 2


@pytest.mark.parametrize(("count", "pages"), [(100, 9), (10**9, 10**7)])
def test_totals_that_lie_lose_nothing_and_end(platform, client, count, pages):
    def lie(request: Request) -> Reply:
        reply = platform.answer(request)
        document = json.loads(reply.body)
        document["pagination"] |= {"totalCount": count, "totalPages": pages}
        return Reply(200, reply.headers, json.dumps(document).encode())

    platform.hooks.append(lie)
    assert len(set(listed(client))) == 230
    assert len(platform.served("api")) == 6, "three empty pages in a row are the end"


def test_all_filters_are_sent(platform, client):
    platform.add(a_call("other", campaignId="camp_2"), a_call("in", direction="Inbound"))
    platform.add(a_call("failed", state="Failed"))
    narrow = {"campaign_id": "camp_1", "direction": "Outbound"}
    found = set(listed(client, "Completed", "Failed", **narrow))
    assert "failed" in found
    assert not found & {"other", "in"}
    [first, *_] = platform.served("api")
    for part in ("state=Completed", "campaignId=camp_1", "direction=Outbound", "pageSize=100"):
        assert part in first.query
    assert "dateFrom=2024-01-15T10%3A00%3A00Z" in first.query


# --- authentication


def test_a_signed_key_is_accepted(platform, connect, clock):
    client = connect(
        auth=SignedKeyAuth(lambda: platform.api_key, lambda: platform.api_secret, clock)
    )
    platform.add(a_call("ü/../x y?&#%2e👋"))
    assert len(set(listed(client))) == 231
    assert client.call("ü/../x y?&#%2e👋")[0].id == "ü/../x y?&#%2e👋"


def test_a_secret_is_asked_for_at_each_request(platform, connect):
    tokens = ["wrong"]
    client = connect(lambda: tokens[0])
    with pytest.raises(SourceRefused, match="ARCHIVER_API_TOKEN"):
        listed(client)
    tokens[0] = platform.token
    assert listed(client)


@pytest.mark.parametrize(("given", "missing"), [(READ, AUDIO), (AUDIO, READ)])
def test_a_missing_scope_is_named(platform, connect, clock, given, missing):
    token = platform.token_for(given)
    error = error_of(SourceRefused, connect(lambda: token).check_access)
    assert missing in str(error)
    assert token not in str(error)
    assert clock.sleeps == []


def test_access_can_be_checked_on_an_empty_source(platform, connect):
    for call in platform.calls:
        platform.remove(call.id)
    connect().check_access()
    token = platform.token_for(READ)
    with pytest.raises(SourceRefused, match="audio:download"):
        connect(lambda: token).check_access()


# --- trying again


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(429, {"Retry-After": "7"}, b"{}"), 7),
        *(
            (Reply(429, {"Retry-After": odd}, b"{}"), 0)
            for odd in ("²", "-5", "1e3", "soon", "99999999999", "Wed, 21 Oct 2015", "")
        ),
        (
            Reply(
                503,
                {
                    "Date": "Mon, 15 Jan 2024 10:00:00 GMT",
                    "Retry-After": "Mon, 15 Jan 2024 10:00:12 GMT",
                },
            ),
            12,
        ),
        (Reply(503, {}, b'{"error":{"retryAfter":9}}'), 9),
        (Reply(503, {}, b'{"error":{"retryAfter":1' + b"0" * 400 + b"}}"), 0),
        (Reply(503, {}, b'{"error":{"retryAfter":-1}}'), 0),
        (Reply(503, {}, b'{"error":{"retryAfter":true}}'), 0),
    ],
)
def test_the_ways_to_ask_for_a_wait(platform, client, clock, reply, seconds):
    """What is none of them is a plain retry."""
    platform.hooks.append(on("vc_001", reply, times=2 if seconds else 1))
    assert client.call("vc_001")[0].id == "vc_001"
    assert [int(slept) for slept in clock.sleeps] == ([seconds] * 2 if seconds else [0])


def test_a_retry_after_of_an_hour_ends_the_attempt(platform, client, clock):
    platform.hooks.append(on("vc_001", Reply(429, {"Retry-After": "3600"}, b"{}")))
    assert error_of(CallError, client.call, "vc_001").reason == "source_unavailable"
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
def test_a_fault_that_passes_is_overcome(platform, client, reply):
    platform.hooks.append(on("vc_001", reply, times=2))
    assert client.call("vc_001")[0].document["durationSeconds"] == 1


def test_a_listing_that_cannot_be_had_is_a_source_error(platform, client, clock):
    platform.hooks.append(on("/voice-calls", Reply(502, {}, b"bad gateway")))
    error = error_of(SourceError, listed, client)
    assert "502" in str(error)
    assert error.exit_code == 3
    assert len(clock.sleeps) == 4 + 2, "the page's tries, and the control request's"


def test_an_unreachable_source_names_the_setting(connect):
    client = connect(base_url="http://127.0.0.1:1/api/v1")
    for ask in (lambda: listed(client), lambda: client.call("x")):
        with pytest.raises(SourceError, match="ARCHIVER_API_BASE_URL"):
            ask()


# --- one call


def test_the_answers_about_one_call(platform, client):
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
    missing = error_of(NoRecording, client.recording_url, "without")
    assert (missing.reason, missing.status) == ("not_found", 404)
    assert error_of(CallError, client.call, "nowhere").reason == "call_missing"


URL_ANSWERS = {
    "there is none": {
        "not_found": [Reply(404, {}, b"{}")],
        "gone": [Reply(410, {}, b"{}")],
        "no_url": [
            Reply(204),
            *map(
                partial(Reply, 200, {}),
                [
                    b"", b"\n", b"null", b'{"data":null}', b"{}", b'{"recordingUrl":null}',
                    b'{"data":{"recordingUrl":""}}',
                ],
            ),
        ],
    },
    "it says nothing of the URL, or is of no use": {
        "bad_document": map(
            partial(Reply, 200, {}),
            [
                b'{"url":"x"}', b'{"status":"processing"}', b'{"error":{"code":"X"}}', b"[]",
                b'{"recordingUrl":5}', b"<html>",
            ],
        ),
        "source_unavailable": [
            Reply(500), Reply(400), Reply(302, {"Location": "http://127.0.0.1:1/"}),
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "says", "reason"),
    [
        (reply, says, reason)
        for says, reasons in URL_ANSWERS.items()
        for reason, replies in reasons.items()
        for reply in replies
    ],
)
def test_the_answers_without_a_recording_url(platform, client, reply, says, reason):
    """Only one that says so proves that there is no recording."""
    platform.hooks.append(on("/recording-url", reply))
    error = error_of(CallError, client.recording_url, "vc_001")
    assert error.reason == reason
    assert isinstance(error, NoRecording) == (says == "there is none")


EMPTY = [b"", b" \n", b"null", b'{"data":null}']
NONE = [*(Reply(200, {}, body) for body in EMPTY), *map(Reply, (204, 404, 410))]


@pytest.mark.parametrize(
    "reply", [*NONE, *(Reply(200, {}, body) for body in (b"{}", b"[]", b'{"data":{}}'))]
)
def test_an_empty_survey_is_none(platform, client, reply):
    platform.hooks.append(on("/epa-results", reply))
    assert client.document("vc_001", "epa") is None


@pytest.mark.parametrize("reply", NONE)
def test_a_call_that_is_nothing_is_missing(platform, client, reply):
    platform.hooks.append(on("/vc_001", reply))
    error = error_of(CallError, client.call, "vc_001")
    assert (error.reason, error.status, error.body) == ("call_missing", reply.status, None)


def test_requests_are_paced(connect, clock):
    client = connect(requests_per_second=2.0)
    for _ in range(5):
        client.call("vc_001")
    assert clock.sleeps == [0.5] * 4


def test_the_latest_answer_tells_the_source_s_time(platform, client, clock):
    """Whatever it is about, an error too, and without a request of its own."""
    assert client.latest_clock_skew_seconds() is None
    ahead = {"Date": "Mon, 15 Jan 2024 12:10:00 GMT"}
    platform.hooks.append(on("vc_001", Reply(404, ahead, b"{}")))
    client.call("vc_000")
    assert client.latest_clock_skew_seconds() == 0
    error_of(CallError, client.call, "vc_001")
    clock.forward(timedelta(minutes=1))
    asked = len(platform.served("api"))
    assert client.latest_clock_skew_seconds() == 600
    assert len(platform.served("api")) == asked
    platform.hooks.append(on("vc_002", Reply(404, {}, b"{}")))
    error_of(CallError, client.call, "vc_002")
    assert client.latest_clock_skew_seconds() == 600, "an answer without a Date tells nothing new"


# --- credentials that expire


class Token:
    """A token that was replaced now and then, and a client that shows whatever it is."""

    def __init__(self, platform: Platform, connect: Connect) -> None:
        self._platform = platform
        self.value = platform.token
        self.client = connect(lambda: self.value, may_change=True)
        self.client.call("vc_000")

    def expire(self) -> None:
        del self._platform.options.tokens[self.value]

    def renew(self) -> None:
        self.value = self._platform.token_for(READ, AUDIO)


@pytest.fixture
def token(platform: Platform, connect: Connect) -> Token:
    """One that has worked once."""
    return Token(platform, connect)


def test_an_expired_token_is_waited_for(token, clock):
    token.expire()
    clock.when_asleep(30, token.renew)
    assert token.client.call("vc_001")[0].id == "vc_001"
    assert 30 <= sum(clock.sleeps) < 40


def test_it_is_not_waited_for_without_end(token, clock):
    token.expire()
    with pytest.raises(SourceRefused, match="401"):
        token.client.call("vc_001")
    assert 180 <= sum(clock.sleeps) < 200


def test_of_many_that_wait_one_says_so(token, clock):
    for _ in range(3):
        token.expire()
        clock.when_asleep(30, token.renew)
        with capture_logs() as logs, ThreadPoolExecutor(8) as pool:
            list(pool.map(token.client.call, [f"vc_{n:03}" for n in range(8)]))
        told = [line["event"] for line in logs if line["event"].startswith("source.credentials")]
        assert told == ["source.credentials_expired", "source.credentials_replaced"]


def test_credentials_that_came_too_late_are_told_of_when_they_expire(token):
    for _ in range(2):
        token.client.call("vc_000")
        token.expire()
        with capture_logs() as logs, pytest.raises(SourceRefused):
            token.client.call("vc_001")
        assert [line["event"] for line in logs] == ["source.credentials_expired"]
        token.renew()


def test_a_token_that_never_worked_is_not_waited_for(connect, clock):
    with pytest.raises(SourceRefused, match="401"):
        connect(lambda: "wrong", may_change=True).call("vc_000")
    assert clock.sleeps == []
