"""A download that breaks goes on where it was; what cannot go on starts over, or says why."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

import pytest

from archiver.core.errors import CallError
from archiver.source.recordings import ResumableDownload
from tests.fakes.calls import BytesRecording, SimulatedCall
from tests.fakes.clock import HandClock
from tests.fakes.errors import error_of
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_source import MemoryPlatform, api_client, recording_client
from tests.fakes.population import a_call

MIB = 1 << 20
AUDIO = bytes(range(256)) * (5 << 12)  # 5 MiB


class Blobs:
    """A platform with one recording, its clients, and every range that was asked for."""

    def __init__(self, clock: HandClock, call: SimulatedCall, **options: int) -> None:
        self.clock = clock
        self.platform = MemoryPlatform([call], clock=clock.now, **options)
        self.asked: list[str] = []
        self.sent = 0
        self.bend: Callable[[Request, Reply], Reply] = lambda _, reply: reply
        self.platform.hooks.append(self._serve)

    def _serve(self, request: Request) -> Reply | None:
        if request.server != "blob":
            return None
        self.asked.append(request.headers.get("Range") or "all")
        assert "Range" not in request.headers or request.headers.get("If-Match", "").startswith('"')
        reply = self.bend(request, self.platform.answer(request))
        body = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
        if reply.status in (200, 206):
            self.sent += len(body[: reply.close_after])
        reply.body = body
        return reply

    def read(self, **pace: float) -> bytes:
        api = api_client(self.platform, self.clock)
        blobs = recording_client(self.platform, self.clock, **pace)
        buffer = bytearray(MIB)
        found = b""
        recording = ResumableDownload(blobs, lambda: api.recording_url("vc_1"), self.clock)
        with closing(recording):
            while len(found) < recording.info.length:
                found += buffer[: recording.readinto(memoryview(buffer))]
        assert self.platform.violations == []
        return found

    def failure(self, **pace: float) -> tuple[str, bool]:
        """The reason why it cannot be read, and whether to try again."""
        error = error_of(CallError, self.read, **pace)
        return error.reason, error.retryable


def cut_after(count: int) -> Callable[[Request, Reply], Reply]:
    def cut(_: Request, reply: Reply) -> Reply:
        if reply.status in (200, 206):
            reply.close_after = count
        return reply

    return cut


@pytest.fixture
def blobs(clock: HandClock) -> Blobs:
    return Blobs(clock, a_call(audio=AUDIO))


def test_it_goes_on_from_the_next_byte(blobs, clock):
    blobs.bend = cut_after(MIB + MIB // 2)
    assert blobs.read() == AUDIO
    assert blobs.asked == ["all", "bytes=1572864-", "bytes=3145728-", "bytes=4718592-"]
    assert blobs.sent == len(AUDIO)
    assert clock.sleeps == [], "who brings much is asked again at once"


def test_one_url_does_while_it_lives_and_a_fresh_one_after_it(clock):
    blobs = Blobs(clock, a_call(audio=AUDIO), sas_ttl_seconds=10)
    blobs.bend = cut_after(MIB)
    blobs.platform.later("request", 3, lambda: clock.forward(timedelta(seconds=11)))
    assert blobs.read() == AUDIO
    assert blobs.sent == len(AUDIO)
    assert blobs.platform.served["request"] == 2 + 5, "two URLs, five ranges"


def test_a_url_is_not_used_that_dies_before_the_rest_has_come(clock):
    """At 1 MiB a second the rest takes longer than the URL lives: nobody waits for a 403."""
    blobs = Blobs(clock, a_call(audio=AUDIO), sas_ttl_seconds=3)
    cut, answers = cut_after(MIB), list[int]()

    def slow(request: Request, reply: Reply) -> Reply:
        answers.append(reply.status)
        clock.forward(timedelta(seconds=1))
        return cut(request, reply)

    blobs.bend = slow
    assert blobs.read() == AUDIO
    assert set(answers) <= {200, 206}


def test_a_blob_that_changed_is_begun_anew(blobs):
    other = AUDIO[::-1]
    blobs.bend = cut_after(MIB)
    change = {"recording": BytesRecording(other)}
    blobs.platform.later("request", 2, lambda: blobs.platform.change("vc_1", **change))
    assert blobs.failure() == ("recording_changed", True)
    assert blobs.read() == other


CHANGED = f'"bytes 1048576-5242880/{len(AUDIO)}"'


@pytest.mark.parametrize(
    ("status", "header", "value", "reason"),
    [
        (206, "ETag", CHANGED, "recording_changed"),
        (206, "Content-Range", CHANGED, "recording_changed"),
        (200, "ETag", None, "truncated"),
        (200, "ETag", 'W/"weak"', "truncated"),
    ],
)
def test_what_cannot_be_gone_on_with_is_begun_anew(blobs, status, header, value, reason):
    """A range of something else is not taken, and without a strong ETag none is asked for."""
    cut = cut_after(MIB)

    def bent(request: Request, reply: Reply) -> Reply:
        if reply.status == status:
            headers = {name: text for name, text in reply.headers.items() if name != header}
            reply.headers = headers if value is None else {**headers, header: value}
        return cut(request, reply)

    blobs.bend = bent
    assert blobs.failure() == (reason, True)
    assert len(blobs.asked) == (2 if status == 206 else 1)


def test_a_store_that_knows_no_ranges_makes_it_start_over(blobs):
    blobs.bend = lambda _, reply: Reply(200, reply.headers, AUDIO, close_after=MIB)
    assert blobs.failure() == ("truncated", True)


def test_a_connection_that_brings_next_to_nothing_counts(blobs, clock):
    blobs.bend = cut_after(1000)
    assert blobs.failure() == ("truncated", False)
    assert len(blobs.asked) == 4
    assert len(clock.sleeps) == 3, "each after a rest"


def test_it_ends_when_it_takes_longer_than_the_least_rate_allows(clock):
    """Each connection is fast enough while it lasts; all of them together are not."""
    blobs = Blobs(clock, a_call(audio=AUDIO))
    cut = cut_after(MIB // 2)

    def late(request: Request, reply: Reply) -> Reply:
        clock.forward(timedelta(seconds=60))
        return cut(request, reply)

    blobs.bend = late
    pace = {"min_bytes_per_second": len(AUDIO) / 100, "rate_grace_seconds": 200}
    assert blobs.failure(**pace) == ("too_slow", False)
    assert len(blobs.asked) == 6


def test_a_pause_of_the_source_is_no_time_of_the_download(clock):
    """A second connection needs a fresh URL, which the source's quota allows in 60 s only."""
    blobs = Blobs(clock, a_call(audio=AUDIO), sas_ttl_seconds=10)
    blobs.bend = cut_after(2 * MIB)
    blobs.platform.later("request", 2, lambda: clock.forward(timedelta(seconds=11)))
    urls: list[Request] = []

    def throttle(request: Request) -> Reply | None:
        is_of_url = request.path.endswith("/recording-url")
        if is_of_url:
            urls.append(request)
        is_refused = len(urls) == 2 and (is_of_url or request.query.get("pageSize") == "1")
        return Reply(429, {"Retry-After": "60"}, b"{}") if is_refused else None

    blobs.platform.hooks.append(throttle)
    assert blobs.read(min_bytes_per_second=MIB, rate_grace_seconds=15.0) == AUDIO
    assert sum(clock.sleeps) >= 60


def test_a_blob_store_that_keeps_a_download_waiting_says_nothing_of_its_rate(clock):
    blobs = Blobs(clock, a_call(audio=AUDIO * 2))
    cut = cut_after(MIB // 4)

    def busy(request: Request, reply: Reply) -> Reply:
        is_busy = len(blobs.asked) % 4 != 1
        return Reply(503, {"Retry-After": "60"}) if is_busy else cut(request, reply)

    blobs.bend = busy
    error = error_of(CallError, blobs.read)
    assert (error.reason, error.retryable) == ("too_slow", False)
    assert "waiting for over an hour" in str(error)
    assert 3600 < sum(clock.sleeps) < 4000


def test_a_recording_that_the_source_loses_midway_was_there(clock):
    """`no_recording` would say that there never was one."""
    blobs = Blobs(clock, a_call(audio=AUDIO), sas_ttl_seconds=60)
    blobs.bend = cut_after(MIB)

    def lose() -> None:
        blobs.platform.status["url"]["vc_1"] = 404
        clock.forward(timedelta(seconds=61))

    blobs.platform.later("request", 2, lose)
    assert error_of(CallError, blobs.read).reason == "recording_missing"
