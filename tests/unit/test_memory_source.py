"""The platform in memory drifts, and remembers what it showed; `Platform` stands behind it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from archiver.core.errors import CallError, SourceError
from archiver.source.api import Filter
from tests.fakes.clock import HandClock
from tests.fakes.errors import error_of
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_source import (
    API_URL,
    MemoryPlatform,
    MemoryWire,
    api_client,
    recording_client,
)
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import WINDOW

COMPLETED = Filter(("Completed",))


@pytest.fixture
def platform(clock: HandClock) -> MemoryPlatform:
    calls = [a_call(f"vc_{n}", TEN + timedelta(minutes=n)) for n in range(5)]
    return MemoryPlatform(calls, clock=clock.now, page_size_cap=2, sort="startTime")


def pages(platform: MemoryPlatform, clock: HandClock, client: str = "client") -> list[list[str]]:
    """One pass over the listing of the window, as the real client sees it."""
    with_network = api_client(platform, clock, client)
    return [[call.id for call in page.calls] for page in with_network.pages(WINDOW, COMPLETED)]


def download(platform: MemoryPlatform, clock: HandClock, url: str) -> bytes:
    with recording_client(platform, clock).connect(url) as recording:
        buffer = bytearray(recording.info.length)
        assert recording.readinto(memoryview(buffer)) == len(buffer)
    return bytes(buffer)


def test_a_change_comes_between_two_pages(platform, clock):
    platform.later("page", 1, lambda: platform.hidden.add("vc_0"))
    assert pages(platform, clock) == [["vc_0", "vc_1"], ["vc_3", "vc_4"], []]
    assert pages(platform, clock) == [["vc_1", "vc_2"], ["vc_3", "vc_4"], []]


def test_what_was_listed_is_remembered_with_who_saw_it(platform, clock):
    platform.add(a_call("open", TEN, state="InProgress"))
    pages(platform, clock, "first")
    platform.hidden.add("vc_1")
    platform.change("vc_2", durationSeconds=7)
    clock.forward(timedelta(hours=1))
    pages(platform, clock, "second")
    assert platform.listed.keys() == {f"vc_{n}" for n in range(5)}
    assert [seen.client for seen in platform.listed["vc_1"]] == ["first"]
    one, two = platform.listed["vc_2"]
    assert (one.document["durationSeconds"], two.document["durationSeconds"]) == (1, 7)
    assert two.at - one.at == timedelta(hours=1)
    assert one.number < two.number


def test_a_source_may_ignore_page_and_filter(platform, clock):
    platform.options.page_size_cap = 100
    platform.quirks.ignores_page = platform.quirks.ignores_filter = True
    platform.add(a_call("open", TEN + timedelta(minutes=9), state="InProgress"))
    found = pages(platform, clock)
    assert set(found[0]) == {*(f"vc_{n}" for n in range(5)), "open"}
    assert "open" not in platform.listed


@pytest.mark.parametrize("cut", [-1, 0, 9])
def test_an_answer_may_be_cut(platform, clock, cut):
    def shorten(request: Request) -> Reply | None:
        reply = platform.answer(request)
        reply.close_after = cut
        return reply

    url = api_client(platform, clock).recording_url("vc_1").url
    platform.hooks.append(shorten)
    assert error_of(SourceError, pages, platform, clock).reason == "broken_off"
    broken = error_of(CallError, download, platform, clock, url)
    assert broken.reason == ("source_unavailable" if cut < 0 else "truncated")


def test_what_no_client_may_send_is_a_violation(platform):
    headers = {"Authorization": f"Bearer {platform.token}"}
    assert MemoryWire(platform).request(
        "POST", f"{API_URL}/voice-calls", headers, max_bytes=1 << 20
    )
    assert platform.violations == ["POST sent to the API"]
