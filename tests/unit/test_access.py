"""What is asked before work begins: both scopes, and where the recordings lie. One odd call, entry
or URL is no obstacle, wherever in the listing it stands."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from archiver.core.errors import Reach, SourceError, SourceRefused, UsageError
from archiver.source.api import SignedUrl, VoiceCallsClient
from archiver.source.recordings import RecordingClient
from archiver.wiring import check_hosts
from tests.fakes.clock import HandClock
from tests.fakes.hooks import collect, id_in, json_reply, of_calls, on
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_source import MemoryPlatform, MemoryWire, api_client, recording_client
from tests.fakes.platform import READ
from tests.fakes.population import TEN, a_call

HOST = "recs.example.com"
NEWEST = [f"vc_{n:03}" for n in range(119, -1, -1)]
"""The calls as the plain listing has them, two pages."""


@pytest.fixture
def platform(clock: HandClock) -> MemoryPlatform:
    calls = [a_call(f"vc_{n:03}", TEN + timedelta(seconds=n)) for n in range(120)]
    return MemoryPlatform(calls, clock=clock.now)


@pytest.fixture
def client(platform: MemoryPlatform, clock: HandClock) -> VoiceCallsClient:
    return api_client(platform, clock)


def is_for_a_url(request: Request) -> bool:
    return request.path.endswith("/recording-url")


def test_a_few_calls_are_asked(platform, client):
    asked = collect(platform, is_for_a_url)
    assert len(client.check_access()) == 5
    assert list(map(id_in, asked)) == NEWEST[:5]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(400, {}, b"{}"),
        Reply(401, {}, b"{}"),
        Reply(403, {}, b"{}"),
        Reply(404, {}, b"{}"),
        Reply(410, {}, b"{}"),
        Reply(204),
        Reply(500, {}, b""),
        Reply(429, {"Retry-After": "3600"}, b""),
        Reply(200, {}, b""),
        Reply(200, {}, b"null"),
        Reply(200, {}, b"<html>"),
        Reply(200, {}, b'{"recordingUrl":7}'),
        Reply(200, {}, b"[]", close_after=-1),
        Reply(0),
    ],
    ids=lambda reply: f"{reply.status} {reply.body!r}"[:30],
)
@pytest.mark.parametrize("count", [1, 4, 5])
def test_an_odd_answer_for_some_calls_is_no_obstacle(platform, client, reply, count):
    platform.hooks.append(of_calls(reply, "/recording-url", NEWEST[:count]))
    assert len(client.check_access()) == 5 - count


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("hides", [True, False])
@pytest.mark.parametrize("count", [5, 6, 50, 99])
def test_calls_that_are_refused_are_not_taken_for_the_scope(platform, client, status, hides, count):
    """A source that `hides` answers so for an id that it does not know, too."""
    refused = [*NEWEST[:count], *(["access-check"] if hides else [])]
    platform.hooks.append(of_calls(Reply(status), "/recording-url", refused))
    asked = collect(platform, is_for_a_url)
    assert len(client.check_access()) == (1 if hides else 0)
    assert len(asked) <= count + 2


@pytest.mark.parametrize("count", [0, 1, 120])
def test_a_scope_that_is_missing_is_named(platform, client, count):
    platform.hidden.update(NEWEST[count:])
    platform.options.tokens[platform.token] = frozenset({READ})
    asked = collect(platform, is_for_a_url)
    with pytest.raises(SourceRefused, match="audio:download") as caught:
        client.check_access()
    assert (caught.value.status, caught.value.reach) == (403, Reach.SOURCE)
    assert len(asked) <= 102, "one page of calls, and the id that cannot exist"


def test_what_is_proved_before_work_begins_holds_for_the_work(platform, client):
    platform.hooks.append(of_calls(Reply(403), "/recording-url", [*NEWEST[1:], "access-check"]))
    client.check_access()
    for call_id in NEWEST[1:30]:
        with pytest.raises(Exception, match="refuses this call") as caught:
            client.recording_url(call_id)
        assert not getattr(caught.value, "undecided", True)


@pytest.mark.parametrize(
    "entries",
    [[None], [{}], [{"id": None}], [{"id": ""}], ["x"], [None, {}, [], 7, {"id": {}}]],
    ids=json.dumps,
)
def test_entries_that_are_no_calls_are_skipped(platform, client, entries):
    rows = [*entries, {"id": "vc_001"}, {"id": "vc_002"}]
    platform.hooks.append(on("/voice-calls", json_reply(rows)))
    assert len(client.check_access()) == 2


@pytest.mark.parametrize(
    "reply",
    [Reply(400), Reply(422), *(Reply(200, {}, body) for body in (b"{}", b"null", b'{"data":{}}'))],
    ids=lambda reply: f"{reply.status} {reply.body!r}",
)
@pytest.mark.parametrize("scope", [True, False])
def test_a_plain_listing_that_says_nothing_is_a_warning(platform, client, reply, scope):
    if not scope:
        platform.options.tokens[platform.token] = frozenset({READ})
    platform.hooks.append(on("/voice-calls", reply))
    with capture_logs() as logs:
        if scope:
            assert client.check_access() == []
        else:
            with pytest.raises(SourceRefused, match="audio:download"):
                client.check_access()
    assert [line["log_level"] for line in logs] == ["warning"]


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (Reply(401), "ARCHIVER_API_TOKEN"),
        (Reply(403), "voice:read"),
        (Reply(404), "ARCHIVER_API_BASE_URL"),
        (Reply(500), "ARCHIVER_API_BASE_URL"),
        (Reply(429), "429"),
        (Reply(200, {}, b"<html>"), "ARCHIVER_API_BASE_URL"),
        (Reply(200, {}, b""), "ARCHIVER_API_BASE_URL"),
        (Reply(0), "ARCHIVER_API_BASE_URL"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.status}",
)
def test_what_is_wrong_with_the_source_is_an_error(platform, client, reply, what):
    platform.hooks.append(on("/voice-calls", reply))
    with pytest.raises(SourceError, match=what) as caught:
        client.check_access()
    assert caught.value.reach is Reach.SOURCE


# --- hosts


def hosts(clock: HandClock, *urls: str, allow_http: bool = False) -> list[dict[str, Any]]:
    """The warnings of a look at the hosts of these URLs."""
    platform = MemoryPlatform(clock=clock.now)
    blobs = RecordingClient([HOST], clock, MemoryWire(platform), allow_http=allow_http)
    with capture_logs() as logs:
        check_hosts([SignedUrl(url, None) for url in urls], blobs)
    return [dict(line) for line in logs]


GOOD = f"https://{HOST}/a.wav?sig=secret"
MALFORMED = [
    f"https://{HOST}/a b.wav?sig=secret",
    f"https://{HOST}/ä?sig=secret",
    "secret",
    "ftp://x/",
]
OTHER = "https://other.example.com/a.wav?sig=secret"
PLAIN = f"http://{HOST}/a.wav?sig=secret"


@pytest.mark.parametrize("urls", [[], [GOOD], [GOOD] * 5])
def test_hosts_that_are_allowed(clock, urls):
    assert hosts(clock, *urls) == []


@pytest.mark.parametrize(
    ("urls", "count"),
    [
        *(([url], 1) for url in MALFORMED),
        (MALFORMED, 4),
        ([*MALFORMED, OTHER], 5),
        ([OTHER, GOOD], 1),
        ([GOOD, OTHER, *MALFORMED[:3]], 4),
        ([OTHER, "https://third.example.com/a.wav"], 2),
        ([PLAIN, GOOD], 1),
    ],
)
def test_the_odd_urls_of_some_calls_are_a_warning(clock, urls, count):
    [line] = hosts(clock, *urls)
    assert (line["event"], line["log_level"]) == ("source.urls_not_allowed", "warning")
    assert (line["count"], line["asked"]) == (count, len(urls))
    assert "secret" not in str(line)
    if not {OTHER, "https://third.example.com/a.wav"} & set(urls):
        assert "not in ARCHIVER_RECORDING_HOSTS" not in str(line)


@pytest.mark.parametrize("urls", [[OTHER], [OTHER] * 5, [OTHER, OTHER.replace("a.wav", "b.wav")]])
def test_a_host_that_is_missing_in_the_settings_is_named(clock, urls):
    with pytest.raises(UsageError, match=r"RECORDING_HOSTS.* other\.example\.com, which") as caught:
        hosts(clock, *urls)
    assert "secret" not in str(caught.value)


def test_plain_http_is_said_to_be_just_that(clock):
    with pytest.raises(UsageError, match="ARCHIVER_ALLOW_HTTP") as caught:
        hosts(clock, PLAIN, PLAIN)
    assert "RECORDING_HOSTS" not in str(caught.value)
    assert hosts(clock, PLAIN, allow_http=True) == []


def test_the_urls_that_come_are_looked_at(platform, client, clock):
    """The newest call's URL has a space; the others are as they should be."""
    odd = Reply(200, {}, b'{"recordingUrl":"https://blobs.test/recs/a b.wav?sig=1"}')
    platform.hooks.append(of_calls(odd, "/recording-url", NEWEST[:1]))
    with capture_logs() as logs:
        check_hosts(client.check_access(), recording_client(platform, clock))
    assert [(line["count"], line["asked"]) for line in logs] == [(1, 5)]
