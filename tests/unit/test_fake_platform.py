"""The simulated platform is strict: what the tests of the clients rely on."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import ssl
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import pytest

from tests.fakes.calls import BytesRecording, NoiseRecording, SimulatedCall, make_calls
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import AUDIO, READ, Platform, sign_request

START = datetime(2024, 1, 15, tzinfo=UTC)
END = START + timedelta(days=2)


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code, of the API or of the blob server."""
        if self.headers["Content-Type"] == "application/xml":
            return ElementTree.fromstring(self.body.decode("utf-8-sig")).findtext("Code", "")
        return str(self.json["error"]["code"])


def fetch(
    url: str,
    headers: dict[str, str] | None = None,
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
) -> Answer:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = (
        http.client.HTTPSConnection(parts.hostname, parts.port, timeout=10, context=tls)
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    )
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def ask(platform: Platform, path: str, token: str | None = None, **parameters: object) -> Answer:
    query = "&".join(f"{name}={quote(str(value))}" for name, value in parameters.items())
    bearer = {"Authorization": f"Bearer {token or platform.token}"}
    return fetch(f"{platform.api_url}{path}" + (f"?{query}" if query else ""), bearer)


def recording_of(platform: Platform, call: SimulatedCall) -> str:
    url = ask(platform, f"/voice-calls/{quote(call.id, safe='')}/recording-url").json
    return str(url["data"]["recordingUrl"])


@pytest.fixture
def calls() -> list[SimulatedCall]:
    return make_calls(60, START, END, short=True)


@pytest.fixture
def platform(calls: list[SimulatedCall]) -> Iterator[Platform]:
    with Platform(calls) as running:
        yield running
        # What a test of this file does on purpose it takes off the list again.
        assert running.violations == []


def plain(document_id: str, **fields: Any) -> SimulatedCall:
    document = {"id": document_id, "state": "Completed", "startTime": "2024-01-15T10:00:00Z"}
    return SimulatedCall({**document, **fields}, NoiseRecording(document_id, 2))


class TestAuthentication:
    @pytest.mark.parametrize("header", ["", "Bearer", "Bearer nope", "Basic {}", "bearer{}"])
    def test_a_wrong_bearer_token_is_refused(self, platform: Platform, header: str) -> None:
        headers = {"Authorization": header.format(platform.token)}
        answer = fetch(f"{platform.api_url}/voice-calls", headers)
        assert (answer.status, answer.code) == (401, "unauthorized")
        assert answer.json["error"]["requestId"] == answer.headers["X-Request-Id"]

    def test_no_credentials_are_refused(self, platform: Platform) -> None:
        assert fetch(f"{platform.api_url}/voice-calls").status == 401

    def signed(self, platform: Platform, path: str, query: str = "", **changes: str) -> Answer:
        path = f"/api/v1{path}"
        stamp = changes.get("X-Timestamp", str(int(time.time())))
        headers = {
            "X-Api-Key": platform.api_key,
            "X-Timestamp": stamp,
            "X-Signature": sign_request(platform.api_secret, stamp, "GET", path, b""),
        }
        return fetch(f"http://{platform.api_host}{path}{query}", {**headers, **changes})

    def test_a_signed_request_is_let_in(
        self, platform: Platform, calls: list[SimulatedCall]
    ) -> None:
        assert self.signed(platform, "/voice-calls", "?page=2").status == 200
        assert self.signed(platform, f"/voice-calls/{calls[0].id}/recording-url").status == 200

    def test_the_signature_is_the_documented_one(self) -> None:
        body = base64.b64encode(hashlib.sha256(b"").digest()).decode()
        assert body == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
        # printf '1705312800.GET./api/v1/voice-calls.47DE…' | openssl dgst -sha256 -hmac s -binary
        expected = "IHioffSLmX+xOCOCM5niqcEneFpajkyuenX82iTtHEs="
        assert sign_request("s", "1705312800", "GET", "/api/v1/voice-calls", b"") == expected

    def test_what_is_signed_cannot_be_changed(self, platform: Platform) -> None:
        now = str(int(time.time()))
        other = sign_request(platform.api_secret, now, "GET", "/api/v1/voice-calls/x", b"")
        wrong = self.signed(platform, "/voice-calls", **{"X-Signature": other})
        assert (wrong.status, wrong.code) == (401, "invalid_signature")
        assert self.signed(platform, "/voice-calls", **{"X-Api-Key": "ak_live_0"}).status == 401

    @pytest.mark.parametrize(("off", "status"), [(-290, 200), (290, 200), (-310, 401), (310, 401)])
    def test_a_timestamp_is_good_for_300_seconds(
        self, platform: Platform, off: int, status: int
    ) -> None:
        stamp = str(int(time.time()) + off)
        assert self.signed(platform, "/voice-calls", **{"X-Timestamp": stamp}).status == status

    def test_two_kinds_of_credentials_at_once_are_a_violation(self, platform: Platform) -> None:
        bearer = {"Authorization": f"Bearer {platform.token}"}
        assert self.signed(platform, "/voice-calls", **bearer).status == 401
        assert platform.violations == ["both a bearer token and an API key sent"]
        platform.violations.clear()


class TestScopes:
    def test_each_resource_wants_its_own(
        self, platform: Platform, calls: list[SimulatedCall]
    ) -> None:
        path = f"/voice-calls/{calls[0].id}"
        reader, listener = platform.token_for(READ), platform.token_for(AUDIO)
        assert ask(platform, "/voice-calls", reader).status == 200
        assert ask(platform, f"{path}/epa-results", reader).status == 200
        assert ask(platform, f"{path}/recording-url", listener).status == 200
        for url, token in (("/recording-url", reader), ("", listener), ("/epa-results", listener)):
            answer = ask(platform, path + url, token)
            assert (answer.status, answer.code) == (403, "insufficient_scope")
        assert AUDIO in ask(platform, f"{path}/recording-url", reader).json["error"]["message"]


class TestListing:
    def ids(self, platform: Platform, **parameters: object) -> list[str]:
        found = ask(platform, "/voice-calls", **parameters).json["data"]
        return [call["id"] for call in found]

    def test_pages_are_of_25_unless_asked_and_of_100_at_most(self, platform: Platform) -> None:
        first = ask(platform, "/voice-calls").json
        assert len(first["data"]) == 25
        assert first["pagination"] == {
            "page": 1,
            "pageSize": 25,
            "totalCount": 60,
            "totalPages": 3,
        }
        assert len(self.ids(platform, page=3)) == 10
        assert self.ids(platform, page=4) == []
        platform.add(*make_calls(90, START, END, seed=2, short=True))
        assert len(self.ids(platform, pageSize=500)) == 100

    def test_pages_together_are_everything_once(
        self, platform: Platform, calls: list[SimulatedCall]
    ) -> None:
        seen = [i for page in range(1, 10) for i in self.ids(platform, page=page, pageSize=7)]
        assert seen == [call.id for call in reversed(calls)]

    def test_a_listing_has_no_transcripts_and_a_call_has(
        self, platform: Platform, calls: list[SimulatedCall]
    ) -> None:
        assert "transcript" not in ask(platform, "/voice-calls").json["data"][0]
        detail = ask(platform, f"/voice-calls/{calls[0].id}").json["data"]
        assert detail == {**calls[0].document, "epaResults": calls[0].epa}

    def test_filters_narrow(self, platform: Platform, calls: list[SimulatedCall]) -> None:
        pending = [call.id for call in calls if call.state == "InProgress"]
        assert sorted(self.ids(platform, state="InProgress")) == sorted(pending) != []
        inbound = {c.id for c in calls if c.document["direction"] == "Inbound"}
        assert set(self.ids(platform, direction="Inbound", pageSize=100)) == inbound
        camp = {c.id for c in calls if c.document.get("campaignId") == "camp_delivery"}
        assert set(self.ids(platform, campaignId="camp_delivery", pageSize=100)) == camp

    @pytest.mark.parametrize(("inclusive", "expected"), [(False, ["a"]), (True, ["a", "b"])])
    def test_a_range_may_or_may_not_hold_its_end(
        self, inclusive: bool, expected: list[str]
    ) -> None:
        ends = (("a", "10:00:00Z"), ("b", "11:00:00Z"), ("c", "11:00:01Z"), ("d", "09:59:59.9Z"))
        calls = [plain(name, startTime=f"2024-01-15T{at}") for name, at in ends]
        with Platform(calls, inclusive_end=inclusive, sort="id") as platform:
            span = {"dateFrom": "2024-01-15T10:00:00Z", "dateTo": "2024-01-15T12:00:00+01:00"}
            assert self.ids(platform, **span) == expected

    def test_the_filter_may_read_another_time_or_only_the_day(self) -> None:
        late = plain("late", createdAt="2024-01-16T00:00:05Z")
        with Platform([late], filter_field="createdAt") as platform:
            span = {"dateFrom": "2024-01-15", "dateTo": "2024-01-16"}
            assert self.ids(platform, **span) == []
            platform.options.filter_field = "startTime"
            assert self.ids(platform, **span) == ["late"]
            span = {"dateFrom": "2024-01-15T20:00:00Z", "dateTo": "2024-01-15T21:00:00Z"}
            assert self.ids(platform, **span) == []
            platform.options.whole_days = True
            assert self.ids(platform, **span) == ["late"]

    def test_a_call_without_times_is_placed_by_hand(self) -> None:
        bare = SimulatedCall({"id": "bare"}, listed_at=START + timedelta(hours=1))
        with Platform([bare]) as platform:
            assert self.ids(platform, dateFrom="2024-01-15", dateTo="2024-01-16") == ["bare"]
            assert self.ids(platform, dateFrom="2024-01-16") == []

    def test_bodies_come_bare_or_enveloped(self) -> None:
        with Platform([plain("a")], enveloped=False) as platform:
            [listed] = ask(platform, "/voice-calls").json
            assert listed["id"] == ask(platform, "/voice-calls/a").json["id"] == "a"
            platform.options.enveloped = "mixed"
            kinds = [type(ask(platform, "/voice-calls").json) for _ in range(4)]
            assert sorted(map(str, kinds)) == sorted(map(str, [list, dict, list, dict]))

    def test_more_requests_than_the_rate_get_429(self) -> None:
        with Platform([plain("a")], rate_per_second=2) as platform:
            answers = [ask(platform, "/voice-calls") for _ in range(12)]
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.headers["Retry-After"] == "1"
        assert refused.json["error"]["retryAfter"] == 1


class TestCalls:
    def test_ids_are_percent_decoded(self) -> None:
        odd = "../a b/ü?%41"
        with Platform([plain(odd)]) as platform:
            path = f"/voice-calls/{quote(odd, safe='')}"
            assert ask(platform, path).json["data"]["id"] == odd
            assert fetch(recording_of(platform, platform.calls[0])).status == 200

    def test_what_is_not_there_is_404(self, platform: Platform, calls: list[SimulatedCall]) -> None:
        silent = next(call for call in calls if call.recording is None)
        unasked = next(call for call in calls if call.epa is None)
        for path, code in (
            ("/voice-calls/vc_none", "call_not_found"),
            (f"/voice-calls/{silent.id}/recording-url", "recording_not_found"),
            (f"/voice-calls/{unasked.id}/epa-results", "epa_results_not_found"),
            ("/nothing", "not_found"),
        ):
            answer = ask(platform, path)
            assert (answer.status, answer.code) == (404, code)

    def test_other_methods_are_violations(self, platform: Platform) -> None:
        bearer = {"Authorization": f"Bearer {platform.token}"}
        for method in ("DELETE", "BREW"):
            assert fetch(f"{platform.api_url}/voice-calls", bearer, method=method).status == 405
        assert platform.violations == ["DELETE sent to the API", "BREW sent to the API"]
        platform.violations.clear()


class TestRecordingUrls:
    @pytest.fixture
    def url(self, platform: Platform, calls: list[SimulatedCall]) -> str:
        return recording_of(platform, calls[0])

    def test_one_opens_its_blob_without_credentials(
        self, platform: Platform, url: str, calls: list[SimulatedCall]
    ) -> None:
        recording = calls[0].recording
        assert recording is not None
        answer = fetch(url)
        assert answer.status == 200
        assert hashlib.sha256(answer.body).hexdigest() == recording.sha256()
        md5 = base64.b64encode(hashlib.md5(answer.body).digest()).decode()
        assert answer.headers["Content-MD5"] == md5
        assert answer.headers["Content-Type"] == "audio/wav"
        assert urlsplit(url).netloc == platform.blob_host
        assert platform.sas_issued == {calls[0].id: 1}
        with wave.open(io.BytesIO(answer.body)) as audio:
            assert (audio.getframerate(), audio.getsampwidth(), audio.getnchannels()) == (
                8000,
                2,
                1,
            )
            assert audio.getnframes() == 8000 * calls[0].document["durationSeconds"]

    @pytest.mark.parametrize("part", ["sig=", "se=20", "sp=r", "/recs/vc_"])
    def test_nothing_in_it_can_be_changed(self, url: str, part: str) -> None:
        answer = fetch(url.replace(part, f"{part}0"))
        assert (answer.status, answer.code) == (403, "AuthenticationFailed")

    def test_it_needs_its_whole_query_and_no_more(self, url: str) -> None:
        assert fetch(f"{url}&x=1").status == 403
        assert fetch(url.partition("?")[0]).status == 403

    def test_it_is_good_from_its_start_to_its_expiry(self) -> None:
        now = [START]
        with Platform([plain("a")], clock=lambda: now[0], sas_ttl_seconds=60) as platform:
            url = recording_of(platform, platform.calls[0])
            for seconds, status in ((-1, 403), (0, 200), (59, 200), (60, 403)):
                now[0] = START + timedelta(seconds=seconds)
                assert fetch(url).status == status
            assert b"time frame" in fetch(url).body

    def test_all_can_be_voided(self, platform: Platform, url: str) -> None:
        platform.void_recording_urls()
        assert fetch(url).status == 403

    @pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "X-Signature"])
    def test_credentials_never_go_to_the_blob_host(
        self, platform: Platform, url: str, name: str
    ) -> None:
        assert fetch(url, {name: "secret"}).status == 400
        assert platform.violations == [f"{name} sent to the blob host"]
        platform.violations.clear()

    def test_a_missing_blob_is_404(
        self, platform: Platform, url: str, calls: list[SimulatedCall]
    ) -> None:
        calls[0].blob_missing = True
        answer = fetch(url)
        assert (answer.status, answer.code) == (404, "BlobNotFound")

    def test_ranges(self, url: str) -> None:
        whole = fetch(url).body
        part = fetch(url, {"Range": "bytes=100-199"})
        assert (part.status, part.body) == (206, whole[100:200])
        assert part.headers["Content-Range"] == f"bytes 100-199/{len(whole)}"
        assert "Content-MD5" not in part.headers
        assert fetch(url, {"Range": "bytes=1000-"}).body == whole[1000:]
        assert fetch(url, {"Range": f"bytes=0-{len(whole) + 9}"}).body == whole
        beyond = fetch(url, {"Range": f"bytes={len(whole)}-"})
        assert (beyond.status, beyond.code) == (416, "InvalidRange")
        assert fetch(url, {"Range": "bytes=-5"}).status == 400

    def test_a_resume_does_not_mix_two_versions_of_a_blob(
        self, url: str, calls: list[SimulatedCall]
    ) -> None:
        etag = str(fetch(url).headers["ETag"])
        resume = {"Range": "bytes=9-", "If-Match": etag}
        assert fetch(url, resume).status == 206
        calls[0].recording = BytesRecording(b"another content", content_md5=False)
        changed = fetch(url, resume)
        assert (changed.status, changed.code) == (412, "ConditionNotMet")
        assert "Content-MD5" not in fetch(url).headers

    def test_a_head_has_the_headers_only(self, url: str) -> None:
        whole, head = fetch(url), fetch(url, method="HEAD")
        assert head.body == b""
        assert head.headers["Content-Length"] == str(len(whole.body))


class TestHooks:
    def test_a_hook_answers_first_and_requests_are_counted(self, platform: Platform) -> None:
        once = [Reply(503, {"Retry-After": "2"}, b"busy")]
        platform.hooks.append(lambda request: once.pop() if once else None)
        assert ask(platform, "/voice-calls", page=2).status == 503
        assert ask(platform, "/voice-calls").status == 200
        assert [(one.server, one.status) for one in platform.requests] == [
            ("api", 503),
            ("api", 200),
        ]
        assert platform.requests[0].query == "page=2"
        assert len(platform.served("api", path_contains="voice-calls", status=503)) == 1
        assert platform.served("blob") == []

    def test_a_hook_can_bend_the_normal_answer(self, platform: Platform) -> None:
        def lie(request: Request) -> Reply:
            reply = platform.answer(request)
            reply.body = b'{"data": []}'
            return reply

        platform.hooks.append(lie)
        assert ask(platform, "/voice-calls").json == {"data": []}

    def test_stopping_ends_what_is_in_flight(self) -> None:
        with Platform([plain("a")]) as platform:
            connection = http.client.HTTPConnection(platform.api_host, timeout=10)
            connection.request("GET", "/api/v1/voice-calls")
            connection.getresponse().read()
        assert connection.sock.recv(1) == b""

    def test_both_speak_tls(self) -> None:
        trustme = pytest.importorskip("trustme")
        authority = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server)
        authority.configure_trust(client)
        with Platform([plain("a")], tls=server) as platform:
            bearer = {"Authorization": f"Bearer {platform.token}"}
            url = f"{platform.api_url}/voice-calls/a/recording-url"
            signed = fetch(url, bearer, tls=client).json["data"]["recordingUrl"]
            assert signed.startswith(f"https://{platform.blob_host}/")
            assert len(fetch(signed, tls=client).body) == 44 + 32_000
            with pytest.raises(ssl.SSLCertVerificationError):
                fetch(signed)
            assert platform.violations == []


class TestCallsFromASeed:
    def test_they_are_the_same_for_the_same_arguments(self) -> None:
        def truths(seed: int) -> list[object]:
            return [call.truth() for call in make_calls(40, START, END, seed, short=True)]

        assert truths(1) == truths(1) != truths(2)

    def test_there_is_one_of_everything(self) -> None:
        calls = make_calls(60, START, END)
        recordings = [call.recording for call in calls if call.recording is not None]
        assert len({recording.read(0, 9000) for recording in recordings}) == len(recordings)
        assert any(recording.length > 8 << 20 for recording in recordings)
        assert {call.state for call in calls} == {"Completed", "InProgress"}
        assert any(call.recording is None for call in calls)
        assert any(call.epa is None and call.recording for call in calls)
        starts = [datetime.fromisoformat(call.document["startTime"]) for call in calls]
        assert starts == sorted(starts)
        assert START <= starts[0] < starts[-1] < END

    def test_a_recording_reads_the_same_at_any_offset(self) -> None:
        recording = NoiseRecording("vc_1", 12.3)
        whole = b"".join(recording.blocks())
        assert len(whole) == recording.length == 44 + 2 * round(12.3 * 8000)
        parts = [recording.read(at, 777) for at in range(0, recording.length, 777)]
        assert b"".join(parts) == whole
        assert recording.read(recording.length, 5) == b""
        with wave.open(io.BytesIO(whole)) as audio:
            assert audio.getnframes() == round(12.3 * 8000)

    def test_a_recording_of_hours_takes_no_memory(self) -> None:
        recording = NoiseRecording("vc_1", 100_000)
        assert recording.length == 44 + 1_600_000_000
        assert len(recording.read(1_500_000_001, 1 << 20)) == 1 << 20
