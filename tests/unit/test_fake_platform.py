"""The simulated platform is strict where nobody else would notice: in what it signs and refuses.

That it serves the archiver's clients, their tests show.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from tests.fakes.calls import BytesRecording, NoiseRecording, SimulatedCall, make_calls
from tests.fakes.platform import AUDIO, READ, Platform, sign_request

START = datetime(2024, 1, 15, tzinfo=UTC)


@pytest.fixture
def call() -> SimulatedCall:
    document = {"id": "a", "state": "Completed", "startTime": "2024-01-15T10:00:00Z"}
    return SimulatedCall(document, NoiseRecording("a", 2))


@pytest.fixture
def now() -> list[datetime]:
    return [START]


@pytest.fixture
def platform(call: SimulatedCall, now: list[datetime]) -> Iterator[Platform]:
    with Platform([call], clock=lambda: now[0], sas_ttl_seconds=60) as running:
        yield running


def fetch(
    url: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, http.client.HTTPMessage, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.request(method, url.removeprefix(f"http://{parts.netloc}"), headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def status(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> int:
    return fetch(url, headers, method)[0]


def signed(platform: Platform, **changes: str) -> int:
    stamp = changes.get("X-Timestamp", str(int(START.timestamp())))
    signature = sign_request(platform.api_secret, stamp, "GET", "/api/v1/voice-calls", b"")
    headers = {"X-Api-Key": platform.api_key, "X-Timestamp": stamp, "X-Signature": signature}
    return status(f"{platform.api_url}/voice-calls?page=2", {**headers, **changes})


def test_the_signature_is_the_documented_one():
    # printf '1705312800.GET./api/v1/voice-calls.47DE…' | openssl dgst -sha256 -hmac s -binary
    expected = "IHioffSLmX+xOCOCM5niqcEneFpajkyuenX82iTtHEs="
    assert sign_request("s", "1705312800", "GET", "/api/v1/voice-calls", b"") == expected


def test_credentials_are_checked(platform):
    listing = f"{platform.api_url}/voice-calls"
    assert status(listing, {"Authorization": f"Bearer {platform.token}"}) == 200
    for header in ("", "Bearer", "Bearer nope", f"Basic {platform.token}"):
        assert status(listing, {"Authorization": header}) == 401
    assert signed(platform) == 200
    assert signed(platform, **{"X-Api-Key": "ak_live_0"}) == 401
    other = sign_request(platform.api_secret, str(int(START.timestamp())), "GET", "/api", b"")
    assert signed(platform, **{"X-Signature": other}) == 401
    for off, answer in ((-290, 200), (290, 200), (-310, 401), (310, 401)):
        assert signed(platform, **{"X-Timestamp": str(int(START.timestamp()) + off)}) == answer
    reader, listener = platform.token_for(READ), platform.token_for(AUDIO)
    for path, token, answer in (
        ("", reader, 200), ("", listener, 403), ("/epa-results", listener, 403),
        ("/recording-url", reader, 403), ("/recording-url", listener, 200),
    ):  # fmt: skip
        assert status(f"{listing}/a{path}", {"Authorization": f"Bearer {token}"}) == answer
    assert platform.violations == []
    assert signed(platform, Authorization=f"Bearer {platform.token}") == 401
    assert status(listing, method="DELETE") == 401
    assert status(listing, {"Authorization": f"Bearer {platform.token}"}, "DELETE") == 405
    assert len(platform.violations) == 2


def test_a_signed_url_opens_its_blob_alone_for_its_time(platform, now):
    url = platform.recording_url("a")
    for seconds, answer in ((-1, 403), (0, 200), (59, 200), (60, 403)):
        now[0] = START + timedelta(seconds=seconds)
        assert status(url) == answer
    now[0] = START
    for part in ("sig=", "se=20", "sp=r", "/recs/a"):
        assert status(url.replace(part, f"{part}0")) == 403
    assert status(f"{url}&x=1") == status(url.partition("?")[0]) == 403
    platform.void_recording_urls()
    assert status(url) == 403
    assert platform.violations == []


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "X-Signature"])
def test_credentials_never_go_to_the_blob_host(platform, name):
    assert status(platform.recording_url("a"), {name: "secret"}) == 400
    assert platform.violations == [f"{name} sent to the blob host"]


def test_a_blob_has_the_digest_the_ranges_and_the_etag_that_it_says(platform, call):
    url = platform.recording_url("a")
    _, headers, whole = fetch(url)
    assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(whole).digest()).decode()
    assert call.recording is not None
    assert call.recording.sha256() == hashlib.sha256(whole).hexdigest()
    answer, part, body = fetch(url, {"Range": "bytes=100-199"})
    assert (answer, body, part["Content-MD5"]) == (206, whole[100:200], None)
    assert part["Content-Range"] == f"bytes 100-199/{len(whole)}"
    assert fetch(url, {"Range": "bytes=1000-"})[2] == whole[1000:]
    assert status(url, {"Range": f"bytes={len(whole)}-"}) == 416
    resume = {"Range": "bytes=9-", "If-Match": headers["ETag"]}
    assert status(url, resume) == 206
    call.recording = BytesRecording(b"another content", content_md5=False)
    assert status(url, resume) == 412
    call.blob_missing = True
    assert status(url) == 404


def test_calls_are_the_same_for_the_same_seed_and_of_every_kind():
    def truths(seed: int) -> list[object]:
        return [
            c.truth() for c in make_calls(40, START, START + timedelta(days=2), seed, short=True)
        ]

    assert truths(1) == truths(1) != truths(2)
    calls = make_calls(60, START, START + timedelta(days=2))
    assert {call.state for call in calls} == {"Completed", "InProgress"}
    assert any(call.recording is None for call in calls)
    assert any(call.epa is None and call.recording for call in calls)


def test_a_recording_reads_the_same_at_any_offset():
    recording = NoiseRecording("vc_1", 12.3)
    whole = b"".join(recording.blocks())
    assert len(whole) == recording.length == 44 + 2 * round(12.3 * 8000)
    parts = [recording.read(at, 777) for at in range(0, recording.length, 777)]
    assert b"".join(parts) == whole
