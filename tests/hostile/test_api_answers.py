"""A source that answers anything at all: refused within bounds, and never quoted."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator

import pytest

from archiver.core.clock import SystemClock
from archiver.core.errors import CallError, SourceError
from archiver.source.api import Filter, VoiceCallsClient
from archiver.source.json_api import MAX_JSON_BYTES
from tests.fakes.calls import APART
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply
from tests.fakes.platform import Platform
from tests.fakes.population import PHONE, SECRET_WORDS, a_call
from tests.fakes.rig import WINDOW, api_client

TEXT = f'"transcript":"{SECRET_WORDS} {PHONE}"'.encode()


@pytest.fixture
def platform(clock: HandClock) -> Iterator[Platform]:
    with Platform([a_call("vc_1")], clock=clock.now) as served:
        yield served


@pytest.fixture
def client(platform: Platform, clock: HandClock) -> Iterator[VoiceCallsClient]:
    made = api_client(platform, clock)
    yield made
    made.close()


def listing(client: VoiceCallsClient) -> None:
    """A page that is no answer harms its own window alone."""
    for page in client.pages(WINDOW, Filter(("Completed",))):
        if page.error is not None:
            raise page.error


ASKS: dict[str, Callable[[VoiceCallsClient], object]] = {
    "listing": listing,
    "call": lambda client: client.call("vc_1"),
    **{kind: lambda client, kind=kind: client.document("vc_1", kind) for kind in APART},
    "url": lambda client: client.recording_url("vc_1"),
}
BODIES = {
    "html": b"<!doctype html><p>" + TEXT,
    "empty": b"",
    "cut": b'[{"id":"vc_1",' + TEXT,
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "brackets": b"[" * 1_000_000,
    "quotes": b"[" * 70 + b'"' + b'\\"' * 500_000,
    "duplicate": b'[{"id":"vc_1","id":"vc_2",' + TEXT + b"}]",
    "nan": b'[{"id":"vc_1","score":NaN,' + TEXT + b"}]",
    "infinity": b'{"id":"vc_1","score":-Infinity,' + TEXT + b"}",
    "overflow": b'{"id":"vc_1","score":1e999,' + TEXT + b"}",
    "digits": b'{"id":"vc_1","score":' + b"9" * 10_000 + b"," + TEXT + b"}",
    "surrogate": b'[{"id":"vc_1\\ud800",' + TEXT + b"}]",
    "not utf-8": b'[{"id":"vc_\xff",' + TEXT + b"}]",
    "latin-16": json.dumps({"id": SECRET_WORDS}).encode("utf-16"),
    "two": b"{} {}",
    "text": b'"' + SECRET_WORDS.encode() + b'"',
    "number": b"5",
    "list of text": b'["' + SECRET_WORDS.encode() + b'"]',
    "data of text": b'{"data":"' + SECRET_WORDS.encode() + b'"}',
    "no id": b"[{" + TEXT + b"}]",
    "id of number": b'[{"id":5,' + TEXT + b"}]",
    "empty id": b'[{"id":"",' + TEXT + b"}]",
}
ROWS = {"no id", "id of number", "empty id", "list of text"}
"""Lists: what is no call in them is counted, and no error."""
ANSWERS = {
    "listing": ROWS,
    **dict.fromkeys(APART, {"empty", *ROWS} - {"list of text"}),
    "call": set[str](),
    "url": set[str](),
}
NO_ANSWERS = [(a, b) for b in BODIES for a in ASKS if b not in ANSWERS[a]]


@pytest.mark.parametrize(("ask", "body"), NO_ANSWERS)
def test_what_is_no_answer_is_refused_and_not_quoted(
    platform: Platform, client: VoiceCallsClient, ask: str, body: str
) -> None:
    platform.hooks.append(lambda _: Reply(200, {"Content-Type": "text/html; x"}, BODIES[body]))
    began = time.process_time()
    with pytest.raises((SourceError, CallError)) as caught:
        ASKS[ask](client)
    assert time.process_time() - began < 3
    message = str(caught.value)
    assert SECRET_WORDS not in message
    assert PHONE not in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {}, (b'"' + b"x" * (1 << 20) for _ in range(10**9)), chunked=True),
        Reply(200, {}, (b" " * (1 << 20) for _ in range(10**9))),
        Reply(200, {"Content-Encoding": "gzip"}, gzip.compress(b"[]" * 100_000)),
        Reply(200, {"Content-Encoding": "br"}, b"[]"),
    ],
    ids=["endless chunked", "endless", "gzip", "br"],
)
def test_size_and_encoding_are_bounded(
    platform: Platform, client: VoiceCallsClient, ask: str, reply: Reply
) -> None:
    platform.hooks.append(lambda _: reply)
    with pytest.raises((SourceError, CallError)) as caught:
        ASKS[ask](client)
    assert caught.value.reason == ("listing" if ask == "listing" else "bad_document")
    assert MAX_JSON_BYTES == 32 << 20


def test_an_encoded_page_of_a_gateway_is_a_fault_that_may_pass(
    platform: Platform, client: VoiceCallsClient, clock: HandClock
) -> None:
    replies = [Reply(502, {"Content-Encoding": "gzip"}, gzip.compress(b"<html>"))] * 2
    platform.hooks.append(lambda _: replies.pop() if replies else None)
    assert client.call("vc_1")[0].id == "vc_1"
    assert len(clock.sleeps) == 2


def test_an_answer_that_drips_for_ever_is_cut(platform: Platform) -> None:
    def drip() -> Iterator[bytes]:
        while True:
            yield b" "
            time.sleep(0.02)

    platform.hooks.append(lambda _: Reply(200, {}, drip(), chunked=True))
    clock = HandClock()
    real = SystemClock()
    clock.monotonic = real.monotonic  # type: ignore[method-assign]
    client = api_client(platform, clock, answer_seconds=0.2)
    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        client.call("vc_1")
    assert caught.value.reason == "source_unavailable"
    assert time.monotonic() - began < 10
    client.close()


def test_another_call_than_asked_for_is_refused(
    platform: Platform, client: VoiceCallsClient
) -> None:
    platform.hooks.append(lambda _: Reply(200, {}, b'{"id":"vc_2"}'))
    with pytest.raises(CallError) as caught:
        client.call("vc_1")
    assert caught.value.reason == "bad_document"


@pytest.mark.parametrize(
    "call_id",
    ["../x", "...", "a/b", "a?b=c", "a#b", "a%2Fb", "a b", "\0", "\u202ecba", "👋", "x" * 300,
     "ünï", "a\\b", "+", ";", "a\r\nHost: evil", "%2e%2e", "epa-results"],
)  # fmt: skip
def test_any_id_is_one_path_segment(
    platform: Platform, client: VoiceCallsClient, call_id: str
) -> None:
    platform.add(a_call(call_id, epa={"state": "Completed"}))
    assert client.call(call_id)[0].id == call_id
    assert client.document(call_id, "epa") == {"state": "Completed"}
    assert client.recording_url(call_id).url
    assert platform.violations == []


@pytest.mark.parametrize("call_id", [".", ".."])
def test_an_id_that_no_url_can_name_is_never_asked(
    platform: Platform, client: VoiceCallsClient, call_id: str
) -> None:
    for ask in (client.call, lambda one: client.document(one, "epa"), client.recording_url):
        with pytest.raises(CallError):
            ask(call_id)
    assert platform.violations == []


@pytest.mark.parametrize("request_id", [5, None, ["x"], "x" * 10_000, {"a": 1}])
def test_an_odd_request_id_is_bounded(
    platform: Platform, client: VoiceCallsClient, request_id: object
) -> None:
    body = json.dumps({"data": {"id": "vc_1"}, "meta": {"requestId": request_id}}).encode()
    platform.hooks.append(lambda _: Reply(200, {}, body))
    found = client.call("vc_1")[1]
    assert found is None or len(found) <= 128


@pytest.mark.parametrize(
    "pagination",
    [None, [], "x", {"totalCount": "many"}, {"totalCount": -5}, {"totalCount": True},
     {"totalCount": 1.5}, {"totalCount": 1, "totalPages": 0}, {"totalPages": 10**9}],
)  # fmt: skip
def test_an_odd_pagination_is_no_crash(
    platform: Platform, client: VoiceCallsClient, pagination: object
) -> None:
    body = json.dumps({"data": [{"id": "vc_1"}], "pagination": pagination}).encode()
    platform.hooks.append(lambda _: Reply(200, {}, body))
    listing(client)
