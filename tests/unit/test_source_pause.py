"""The source asks for a pause: all workers make it together, everybody can see it, and what is due
is done afterwards."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from archiver.core.errors import SourceError
from archiver.core.http import make_client
from archiver.core.retry import Retry
from archiver.observability.metrics import REGISTRY
from archiver.observability.progress import LogProgress
from archiver.source.json_api import BearerAuth, JsonApi
from archiver.source.recordings import RecordingClient
from tests.fakes.hooks import id_in
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import TRANSPORT, Rig, api_client, blob_client

LATE = TEN + timedelta(days=30)
MINUTE = timedelta(minutes=1)
LONG = 30.0
"""Of the waits of these tests only the asked-for pauses are longer."""


@pytest.fixture
def platform(served_late: Platform) -> Platform:
    return served_late


def pauses(clock: Any) -> list[float]:
    return [seconds for seconds in clock.sleeps if seconds > LONG]


def assert_one_pause(clock: Any, seconds: int) -> None:
    """All workers wait for this long, once; a retry's own backoff may be a part of it."""
    [one] = pauses(clock)
    assert seconds - 2 <= one <= seconds + 1
    assert seconds <= sum(clock.sleeps) < seconds + 10


def patient(platform: Platform, clock: Any) -> RecordingClient:
    """A pause moves the clock of all threads, also of one that is downloading."""
    return blob_client(platform, clock, rate_grace_seconds=1e6)


def throttled(times: int, headers: dict[str, str], body: bytes = b"{}", status: int = 429) -> Any:
    """A hook: the first requests to the API are refused."""
    left = iter(range(times))

    def hook(request: Request) -> Reply | None:
        is_refused = request.server == "api" and next(left, None) is not None
        return Reply(status, headers, body) if is_refused else None

    return hook


@pytest.mark.parametrize("retry_date", [False, True])
@pytest.mark.parametrize("quota", [(40, 60), (7, 60), (100, 900)])
def test_under_a_quota_all_is_archived_slowly(
    platform: Platform, rig: Callable[..., Rig], archive: Any, clock: Any, quota: Any,
    retry_date: bool,
) -> None:  # fmt: skip
    platform.options.quota, platform.options.retry_date = quota, retry_date
    count = 40 if quota[0] == 100 else 20
    platform.add(*(a_call(f"vc_{n:02}", TEN + n * MINUTE) for n in range(count)))
    with capture_logs() as logs:
        totals = rig(recordings=patient(platform, clock)).backfill()
    assert totals.committed["archived"] == count
    assert not totals.needs_a_person
    assert len(archive().records) == count
    answered = [one for one in platform.served("api") if one.status != 429]
    spans = -(-len(answered) // quota[0])
    assert 1 <= len(pauses(clock)) <= spans, "one for all workers"
    events = [line["event"] for line in logs if line["event"].startswith("source.")]
    assert events == ["source.paused", "source.resumed"] * len(pauses(clock))


@pytest.mark.parametrize("seconds", [60, 61, 300, 899, 900])
@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_of_a_quarter_of_an_hour_is_made(
    platform: Platform, rig: Callable[..., Rig], clock: Any, seconds: int, status: int
) -> None:
    platform.add(a_call())
    platform.hooks.append(throttled(2, {"Retry-After": str(seconds)}, status=status))
    assert rig().backfill().committed["archived"] == 1
    assert_one_pause(clock, seconds)


@pytest.mark.parametrize("seconds", [901, 3600, 999_999])
def test_beyond_it_the_source_is_out(
    platform: Platform, rig: Callable[..., Rig], clock: Any, seconds: int
) -> None:
    platform.add(a_call())
    platform.hooks.append(throttled(99, {"Retry-After": str(seconds)}))
    with pytest.raises(SourceError) as caught:
        rig().backfill()
    assert caught.value.exit_code == 3
    assert f"pause of {seconds}" in str(caught.value)
    assert "900 s are waited for" in str(caught.value)
    assert sum(clock.sleeps) == 0


def test_a_loop_waits_for_longer(platform: Platform, rig: Callable[..., Rig], clock: Any) -> None:
    platform.add(a_call())
    platform.hooks.append(throttled(2, {"Retry-After": "7200"}))
    api = api_client(platform, clock, longest_pause_seconds=86_400.0)
    assert rig(api=api).backfill().committed["archived"] == 1
    assert_one_pause(clock, 7200)


@pytest.mark.parametrize("has_date", [True, False])
def test_a_pause_until_a_date(
    platform: Platform, rig: Callable[..., Rig], clock: Any, has_date: bool
) -> None:
    """By the source's clock, or by ours where it tells none."""
    ahead = timedelta(hours=5) if has_date else timedelta(0)
    until = clock.now() + ahead + timedelta(seconds=120)
    headers = {"Retry-After": format_datetime(until, usegmt=True)}
    if has_date:
        headers["Date"] = format_datetime(clock.now() + ahead, usegmt=True)
    platform.add(a_call())
    platform.hooks.append(throttled(2, headers))
    assert rig().backfill().committed["archived"] == 1
    assert_one_pause(clock, 120)


@pytest.mark.parametrize("asked", ["120.0", "120"])
def test_a_pause_in_the_error_or_as_a_fraction(
    platform: Platform, rig: Callable[..., Rig], clock: Any, asked: str
) -> None:
    platform.add(a_call())
    in_body = b'{"error":{"retryAfter":' + asked.encode() + b"}}"
    platform.hooks.append(throttled(2, {}, in_body))
    assert rig().backfill().committed["archived"] == 1
    assert_one_pause(clock, 120)


@pytest.mark.parametrize("seconds", ["50", "3600"])
def test_one_throttled_call_keeps_nobody_waiting(
    platform: Platform, rig: Callable[..., Rig], clock: Any, seconds: str
) -> None:
    """The control request is answered, so the pause is that call's own."""
    platform.add(*(a_call(f"vc_{n}") for n in range(8)))
    platform.hooks.append(
        lambda request: Reply(429, {"Retry-After": seconds}) if id_in(request) == "vc_3" else None
    )
    with capture_logs() as logs:
        totals = rig(recordings=patient(platform, clock)).backfill()
    assert totals.committed["archived"] == 7
    assert "source.paused" not in [line["event"] for line in logs]


def test_a_source_that_always_throttles_is_out(
    platform: Platform, rig: Callable[..., Rig], clock: Any
) -> None:
    platform.add(a_call())
    platform.hooks.append(throttled(10**6, {"Retry-After": "60"}))
    with pytest.raises(SourceError) as caught:
        rig().backfill()
    assert caught.value.exit_code == 3
    assert len(pauses(clock)) < 20


def is_control(request: Request) -> bool:
    return request.server == "api" and request.query.get("pageSize") == "1"


@pytest.mark.parametrize("times", [1, 2])
def test_a_pause_that_only_the_control_request_gets(
    platform: Platform, rig: Callable[..., Rig], archive: Any, clock: Any, times: int
) -> None:
    """The calls are answered with 500 until it is over. Those that failed are pending."""
    platform.add(*(a_call(f"vc_{n:02}") for n in range(12)))
    left = times

    def hook(request: Request) -> Reply | None:
        nonlocal left
        if left and is_control(request):
            left -= 1
            return Reply(429, {"Retry-After": "120"})
        return Reply(500) if left and id_in(request) else None

    platform.hooks.append(hook)
    rig(recordings=patient(platform, clock)).backfill()
    assert len(pauses(clock)) == times
    assert sum(pauses(clock)) >= times * 115, "a retry's own backoff is a part of it"
    rig(recordings=patient(platform, clock)).backfill()
    records = archive().records.values()
    assert [one["outcome"] for one in records] == ["archived"] * 12


def test_a_quota_that_is_used_up_is_no_fault_of_the_url(platform: Platform, clock: Any) -> None:
    platform.hooks.append(throttled(99, {}))
    client = api_client(platform, clock)
    with pytest.raises(SourceError, match=r"429.*quota.*ARCHIVER_API_RATE") as caught:
        client.check_access()
    client.close()
    assert "ARCHIVER_API_BASE_URL" not in str(caught.value)


def test_an_answer_from_before_the_quota_was_used_up_hides_no_pause(
    platform: Platform, clock: Any
) -> None:
    http = make_client(TRANSPORT, check=clock.check, over_httpx=True)
    auth = BearerAuth(lambda: platform.token)
    api = JsonApi(platform.api_url, auth, clock, http, retry=Retry(clock))
    api.control()
    platform.hooks.append(throttled(2, {"Retry-After": "120"}))
    assert api.get("list", "/voice-calls", api.plain_query, scope="calls:read").body == []
    api.close()
    assert_one_pause(clock, 120)


def test_a_pause_shows_in_the_metric_and_on_the_progress_line(
    platform: Platform, rig: Callable[..., Rig], clock: Any
) -> None:
    shown: list[float] = []

    def look(seconds: float) -> None:
        left = REGISTRY.get_sample_value("archiver_source_pause_seconds")
        assert left is not None
        shown.append(left)
        progress.source_paused(seconds)

    progress = LogProgress(1)
    platform.add(a_call())
    platform.hooks.append(throttled(2, {"Retry-After": "90"}))
    with capture_logs() as logs:
        rig(api=api_client(platform, clock, on_pause=look)).backfill()
    assert [int(one) for one in shown] == [90]
    assert REGISTRY.get_sample_value("archiver_source_pause_seconds") == 0
    lines = [line for line in logs if line["event"] == "backfill.progress"]
    assert [line["source_pause_seconds"] for line in lines] == [90]
    retries = REGISTRY.get_sample_value(
        "archiver_retries_total", {"stage": "list", "reason": "throttled"}
    )
    assert retries
