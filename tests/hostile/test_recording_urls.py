"""Recording URLs that want us to go elsewhere, and answers that are no recording."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from archiver.core.clock import SystemClock
from archiver.core.errors import CallError
from archiver.core.http import make_client
from archiver.manifest.record import FAILED_REASONS
from archiver.source.recordings import Expired, RecordingClient
from tests.fakes.audio import noise, wav
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import a_call
from tests.fakes.rig import TRANSPORT, blob_client

HOST = "recs.example.com"


def client(clock: HandClock) -> RecordingClient:
    return RecordingClient(
        ["Recs.example.com", "alt.example.com:8443"], clock, make_client(TRANSPORT)
    )


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (f"https://{HOST}/a.wav?sig=x", HOST),
        (f"https://{HOST.upper()}/a.wav?sig=x", HOST),
        (f"https://{HOST}:443/a.wav", f"{HOST}:443"),
        ("https://alt.example.com:8443/a.wav", "alt.example.com:8443"),
        (f"https://{HOST}/a%20b/%2e%2e/c.wav?x=%40evil.com", HOST),
        (f"https://{HOST}?sig=x", HOST),
    ],
)
def test_allowed(clock: HandClock, url: str, host: str) -> None:
    assert client(clock).check_url(url) == host


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/a.wav",
        f"//{HOST}/a.wav",
        f"http://{HOST}/a.wav",
        f"ftp://{HOST}/a.wav",
        f"file://{HOST}/etc/passwd",
        f"https:{HOST}/a.wav",
        f"https:///{HOST}/a.wav",
        "https://evil.com/a.wav",
        f"https://{HOST}.evil.com/a.wav",
        f"https://evil.{HOST}/a.wav",
        f"https://{HOST}:8443/a.wav",
        f"https://{HOST}:80/a.wav",
        f"https://{HOST}:/a.wav",
        f"https://{HOST}:0443/a.wav",
        f"https://{HOST}:99999/a.wav",
        f"https://{HOST}:abc/a.wav",
        "https://alt.example.com/a.wav",
        f"https://{HOST}./a.wav",
        f"https://.{HOST}/a.wav",
        f"https://{HOST}@evil.com/a.wav",
        f"https://user@{HOST}/a.wav",
        f"https://user:pass@{HOST}/a.wav",
        f"https://@{HOST}/a.wav",
        f"https://{HOST}\\@evil.com/a.wav",
        f"https://evil.com\\{HOST}/a.wav",
        f"https:\\\\{HOST}\\a.wav",
        f"https://{HOST}%2eevil.com/a.wav",
        f"https://{HOST}%00/a.wav",
        f"https://{HOST}%40evil.com/a.wav",
        f"https://{HOST}/a.wav#fragment",
        f"https://{HOST}#@evil.com/",
        f"https://evil.com#@{HOST}/",
        f"https://evil.com?@{HOST}/",
        f"https://{HOST}/a b.wav",
        f" https://{HOST}/a.wav",
        f"https://{HOST}/a.wav\n",
        f"https://{HOST}/a\r\nX-Evil: 1",
        f"https://{HOST}\t/a.wav",
        f"https://{HOST}/\0",
        f"https://{HOST}/\x7f",
        f"https://{HOST}/ä.wav",
        "https://ｒecs.example.com/a.wav",
        "https://recs。example。com/a.wav",
        "https://reсs.example.com/a.wav",
        "https://xn--res-9cd.example.com/a.wav",
        "https://2130706433/a.wav",
        "https://0x7f000001/a.wav",
        "https://0177.0.0.1/a.wav",
        "https://127.1/a.wav",
        "https://[::1]/a.wav",
        "https://[::ffff:127.0.0.1]/a.wav",
        "https://[::1",
        "https://169.254.169.254/latest/meta-data",
        f"https://{HOST}, evil.com/a.wav",
        f"https://{HOST};evil.com/a.wav",
    ],
)
def test_refused_before_anything_is_sent(clock: HandClock, url: str) -> None:
    with pytest.raises(CallError) as caught:
        client(clock).check_url(url)
    assert caught.value.reason == "url_not_allowed"
    assert not caught.value.retryable
    assert "evil" not in str(caught.value)


# --- what the blob store answers


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform([a_call("vc_1", audio=wav(2))]) as served:
        yield served
        assert served.violations == []


def fetch(recordings: RecordingClient, url: str) -> bytes:
    with recordings.connect(url) as recording:
        buffer = bytearray(recording.info.length or recordings.max_bytes + 1)
        count = recording.readinto(memoryview(buffer))
        return bytes(buffer[:count])


def test_a_recording_comes_as_it_is(platform: Platform, clock: HandClock) -> None:
    recordings = blob_client(platform, clock)
    with recordings.connect(platform.recording_url("vc_1")) as recording:
        info = recording.info
        parts = []
        while count := recording.readinto(memoryview(part := bytearray(1000))):
            parts.append(bytes(part[:count]))
    assert b"".join(parts) == wav(2)
    assert info.length == len(wav(2))
    assert info.host == platform.blob_host
    assert info.etag
    assert info.content_md5
    recordings.close()


def test_only_the_blob_s_own_headers_are_sent(platform: Platform, clock: HandClock) -> None:
    sent = []
    platform.hooks.append(lambda request: sent.append(request.headers) or None)
    fetch(blob_client(platform, clock), platform.recording_url("vc_1"))
    [headers] = sent
    assert headers["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie", "Referer", "X-Api-Key"} & set(headers.keys())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(301, {"Location": "http://127.0.0.1:1/"}), "url_not_allowed"),
        (Reply(302, {"Location": "/other"}), "bad_response"),
        (Reply(307, {"Location": "https://evil.example/"}), "url_not_allowed"),
        (Reply(206, {}, b"12345"), "bad_response"),
        (Reply(204), "bad_response"),
        (Reply(400, {}, b"<Error/>"), "bad_response"),
        (Reply(401, {}, b""), "bad_response"),
        (Reply(404, {}, b""), "recording_missing"),
        (Reply(410, {}, b""), "recording_missing"),
        (Reply(429, {}, b""), "source_unavailable"),
        (Reply(503, {}, b""), "source_unavailable"),
        (Reply(200, {}, b""), "recording_empty"),
        (Reply(200, {}, [wav(1)], chunked=True, close_after=5_000), "truncated"),
        (Reply(200, {}, [wav(1)] * 99, chunked=True), "too_large"),
        (Reply(200, {}, [wav(1)] * 99), "too_large"),
        (Reply(200, {"Transfer-Encoding": "gzip"}, b"12345"), "bad_response"),
        (Reply(200, {"Content-Length": "5"}, [b"12345"], chunked=True), "bad_response"),
        (Reply(200, {"Content-Length": "²"}, [b"12"]), "bad_response"),
        (Reply(200, {"Content-Length": "-1"}, [b"12"]), "bad_response"),
        # One length said twice: `standard` takes it for one (RFC 9112, section 6.3).
        (
            Reply(200, {"Content-Length": "12, 12"}, [b"12"]),
            "bad_response" if TRANSPORT == "fast" else "truncated",
        ),
        (Reply(200, {"Content-Length": "1" * 16}, [b"12"]), "bad_response"),
        (Reply(200, {}, b"x", content_length=10**9), "too_large"),
        (Reply(200, {}, wav(1), content_length=20_000), "truncated"),
        (Reply(200, {}, wav(1), close_after=5_000), "truncated"),
        (Reply(200, {}, wav(1), close_after=0), "truncated"),
        (Reply(200, {}, wav(1), close_after=-1), "source_unavailable"),
        (Reply(200, {}, wav(1), close_after=5_000, reset=True), "source_unavailable"),
    ],
)
def test_answers_that_are_no_recording(
    platform: Platform, clock: HandClock, reply: Reply, reason: str
) -> None:
    platform.hooks.append(lambda _: reply)
    recordings = blob_client(platform, clock, max_bytes=1 << 20)
    url = platform.recording_url("vc_1")
    with pytest.raises(CallError) as caught:
        fetch(recordings, url)
    assert caught.value.reason == reason
    assert reason in FAILED_REASONS
    assert "sig" not in str(caught.value)
    platform.hooks.clear()
    assert fetch(recordings, url) == wav(2), "the client is of use afterwards"


def test_403_is_a_reason_to_ask_for_a_fresh_url(platform: Platform, clock: HandClock) -> None:
    url = platform.recording_url("vc_1")
    platform.void_recording_urls()
    with pytest.raises(Expired):
        fetch(blob_client(platform, clock), url)


def test_bytes_beyond_the_announced_length_are_not_read(
    platform: Platform, clock: HandClock
) -> None:
    recordings = blob_client(platform, clock)
    long = Reply(200, {}, wav(1) + noise(5000), content_length=len(wav(1)))
    platform.hooks.append(lambda _: long)
    url = platform.recording_url("vc_1")
    for _ in range(3):
        assert fetch(recordings, url) == wav(1)


def test_an_odd_header_does_not_reach_the_record(platform: Platform, clock: HandClock) -> None:
    headers = {"ETag": "é" * 20, "Last-Modified": "x" * 5000, "Content-MD5": "no-md5"}
    platform.hooks.append(lambda _: Reply(200, headers, wav(1)))
    with blob_client(platform, clock).connect(platform.recording_url("vc_1")) as recording:
        info = recording.info
    assert (info.etag, info.content_md5) == (None, None)
    assert len(info.last_modified or "") <= 256


def drip(chunks: int, pause: float) -> Callable[[Request], Reply]:
    def body() -> Iterator[bytes]:
        for _ in range(chunks):
            yield b"RIFF"
            time.sleep(pause)

    return lambda _: Reply(200, {}, body(), content_length=4 * chunks)


def test_a_drip_feed_is_cut(platform: Platform) -> None:
    """Each read comes in time, and yet the whole would take half a minute."""
    platform.hooks.append(drip(600, 0.05))
    recordings = blob_client(platform, SystemClock(), rate_grace_seconds=0.3)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(CallError) as caught:
        fetch(recordings, platform.recording_url("vc_1"))
    assert caught.value.reason == "too_slow"
    assert caught.value.retryable
    assert time.monotonic() - began < 5


def test_a_slow_start_is_forgiven_within_the_grace(platform: Platform) -> None:
    platform.hooks.append(drip(8, 0.05))
    recordings = blob_client(platform, SystemClock(), rate_grace_seconds=10)  # type: ignore[arg-type]
    assert fetch(recordings, platform.recording_url("vc_1")) == b"RIFF" * 8
