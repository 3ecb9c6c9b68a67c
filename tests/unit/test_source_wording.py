"""The same thing said in other words: an archive is what it is by the usual ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.core.model import parse_source_time
from archiver.source.api import Filter
from archiver.source.listing import Lister
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call, stamp
from tests.fakes.rig import HOUR, WINDOW, Archive, Rig, api_client

LATE = TEN + timedelta(days=30)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def platform(served_late: Platform) -> Platform:
    return served_late


def outcomes(archive: Callable[[], Archive]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Each call's outcome, and the kinds of its files."""
    return {
        call_id: (one["outcome"], tuple(sorted(file["kind"] for file in one["files"])))
        for call_id, one in archive().records.items()
    }


# --- there is no more

MORE = [400, 404, 410, 416, 422, 204, b"", b"null", b'{"data":null}', b"[]"]


@pytest.mark.parametrize("says", MORE)
def test_there_is_no_page_beyond_the_announced_last(
    platform: Platform, rig: Callable[..., Rig], archive: Any, says: int | bytes
) -> None:
    """The last page is full, so the next one is asked for."""
    platform.options.page_size_cap, platform.options.past_end = 5, says
    platform.add(*(a_call(f"vc_{n:02}", TEN + n * MINUTE) for n in range(10)))
    totals = rig().backfill()
    assert (totals.closed, totals.stuck, totals.committed["archived"]) == (1, 0, 10)
    assert archive().line()["listed"] == 10


EMPTY = b'{"data":[],"pagination":{"totalCount":15,"pageSize":5}}'


@pytest.mark.parametrize("says", [400, 404, 410, 416, 422, 204, b"", b"null", EMPTY])
@pytest.mark.parametrize("page", ["1", "2"])
def test_before_the_announced_last_the_same_is_a_failure(
    platform: Platform, clock: Any, says: int | bytes, page: str
) -> None:
    platform.options.page_size_cap = 5
    platform.add(*(a_call(f"vc_{n:02}", TEN + n * MINUTE) for n in range(15)))

    def refuse(request: Request) -> Reply | None:
        if request.query.get("page") != page or "dateFrom" not in request.query:
            return None
        return Reply(200, {}, says) if isinstance(says, bytes) else Reply(says)

    platform.hooks.append(refuse)
    client = api_client(platform, clock)
    found = Lister(client, Filter(("Completed",)), clock, HOUR).list(WINDOW)
    client.close()
    assert not found.complete
    assert not found.stable
    assert len(found.calls) == 10, "the other pages are listed"


def listing_of(pages: dict[int, int | list[int]], total: int) -> Callable[[Request], Reply | None]:
    """A listing in pages of a hundred calls: by page, how many calls it has, or a status."""

    def answer(request: Request) -> Reply | None:
        if "dateFrom" not in request.query:
            return None
        number = int(request.query["page"])
        found = pages.get(number, 0)
        if isinstance(found, list):
            return Reply(found[0])
        rows = [{"id": f"vc_{number}_{n}", "startTime": stamp(TEN)} for n in range(found)]
        pagination = {"totalCount": total, "pageSize": 100}
        return Reply(200, {}, json.dumps({"data": rows, "pagination": pagination}).encode())

    return answer


@pytest.mark.parametrize(
    ("pages", "total", "error", "calls"),
    [
        ({1: 100, 2: 100, 4: 100, 5: 100}, 500, "page 3 .* was empty, and others follow", 400),
        ({1: 100, 4: 100}, 400, "page 2 .* was empty, and others follow", 200),
        ({2: 100}, 200, "page 1 .* was empty, and others follow", 100),
        ({1: 100, 2: 100}, 500, None, 200),
        ({}, 500, None, 0),
        ({1: 100, 2: 40}, 10_000, None, 140),
        ({1: 100, 2: 100, 4: [404], 5: [404]}, 500, None, 200),
        ({1: 100, 2: 40, 4: [400], 5: [400]}, 10_000, None, 140),
        (
            dict.fromkeys(range(1, 101), 100) | {101: [400]}, 10_000,
            "page 101 .* answered 400: .* ARCHIVER_WINDOW", 10_000,
        ),
        (dict.fromkeys(range(1, 101), 100), 10_000, None, 10_000),
        (dict.fromkeys(range(1, 101), 100) | {101: [404]}, 10_000, None, 10_000),
        (dict.fromkeys(range(1, 6), 100) | {6: [400]}, 500, None, 500),
    ],
    ids=["a hole", "a hole of two pages", "a hole at the start", "a total too high",
         "a total of nothing", "a total far too high", "empty and 404", "empty and 400", "capped",
         "ten thousand", "ten thousand and 404", "five hundred"],
)  # fmt: skip
def test_an_end_that_may_be_none(
    platform: Platform, clock: Any, pages: Any, total: int, error: str | None, calls: int
) -> None:
    platform.hooks.append(listing_of(pages, total))
    client = api_client(platform, clock)
    found = Lister(client, Filter(("Completed",)), clock, HOUR).list(WINDOW)
    client.close()
    assert len(found.calls) == calls
    assert found.complete == found.stable == (error is None)
    if error is not None:
        assert re.search(error, str(found.error))


@pytest.mark.parametrize("says", [400, 422])
@pytest.mark.parametrize("pagination", [None, {"totalCount": 5, "totalPages": 1, "pageSize": 5}])
def test_a_source_that_announces_nothing_is_not_believed(
    platform: Platform, clock: Any, says: int, pagination: Any
) -> None:
    """Without numbers, or with those of the page alone, a refusal proves no end."""

    def answer(request: Request) -> Reply | None:
        number = int(request.query.get("page", "1"))
        if number > 2:
            return Reply(says)
        rows = [{"id": f"vc_{number}{n}", "startTime": stamp(TEN)} for n in range(5)]
        body = {"data": rows, "pagination": pagination} if pagination else rows
        return Reply(200, {}, json.dumps(body).encode())

    platform.hooks.append(answer)
    client = api_client(platform, clock)
    found = Lister(client, Filter(("Completed",)), clock, HOUR).list(WINDOW)
    client.close()
    assert not found.complete
    assert len(found.calls) == 10


def test_a_null_with_a_total_of_nothing_is_an_empty_listing(
    platform: Platform, rig: Callable[..., Rig], archive: Any
) -> None:
    def answer(request: Request) -> Reply | None:
        pagination = {"page": 1, "pageSize": 100, "totalCount": 0, "totalPages": 0}
        body = {"data": None, "pagination": pagination}
        return Reply(200, {}, json.dumps(body).encode()) if "page" in request.query else None

    platform.hooks.append(answer)
    assert rig().backfill().closed == 1
    assert archive().line()["listed"] == 0


# --- there is none


@pytest.mark.parametrize(
    "says", [204, 404, 410, b"", b"null", b"\xef\xbb\xbf", b"\xef\xbb\xbfnull"]
)
def test_there_is_no_survey_and_no_recording(
    platform: Platform, rig: Callable[..., Rig], archive: Any, says: int | bytes
) -> None:
    platform.options.absent = says
    platform.add(a_call("vc_with", epa={"score": 5}), a_call("vc_none", audio=None))
    totals = rig().backfill()
    assert not totals.needs_a_person
    assert outcomes(archive) == {
        "vc_with": ("archived", ("epa", "recording", "transcript")),
        "vc_none": ("no_recording", ("transcript",)),
    }
    assert archive().records["vc_none"]["findings"] == []


# --- JSON, ids and times


@pytest.mark.parametrize("enveloped", [True, False, "mixed"])
def test_a_byte_order_mark_before_json_is_passed_over(
    platform: Platform, rig: Callable[..., Rig], archive: Any, enveloped: Any
) -> None:
    platform.options.bom, platform.options.enveloped = True, enveloped
    platform.add(a_call(epa={"score": 5}))
    assert rig().backfill().committed["archived"] == 1
    document = json.loads(archive().read("recordings/dt=2024-01-15/vc_1/transcript.json"))
    assert document == platform.calls[0].document


def test_a_wait_is_read_after_a_byte_order_mark(platform: Platform, clock: Any) -> None:
    platform.add(a_call())
    body = b'\xef\xbb\xbf{"error":{"code":"rate_limited","retryAfter":7}}'
    left = iter([Reply(429, {}, body)])
    platform.hooks.append(lambda request: next(left, None))
    client = api_client(platform, clock)
    client.call("vc_1")
    client.close()
    assert 7 <= sum(clock.sleeps) < 9


@pytest.mark.parametrize("number", [4711, 0, -5, 2**63])
def test_a_number_is_an_id(
    platform: Platform, rig: Callable[..., Rig], archive: Any, number: int
) -> None:
    platform.add(a_call(str(number), id=number, campaignId=17))
    assert rig().backfill().committed["archived"] == 1
    [record] = archive().records.values()
    assert record["call_id"] == str(number)
    assert record["campaign_id"] == "17"
    assert record["record"] == f"records/dt=2024-01-15/{number}/r1.json"
    sidecar = json.loads(archive().read(f"recordings/dt=2024-01-15/{number}/transcript.json"))
    assert sidecar == platform.calls[0].document
    assert (sidecar["id"], sidecar["campaignId"]) == (number, 17)


def test_a_number_as_campaign_is_filtered_by(platform: Platform, clock: Any) -> None:
    """The source ignores the filter."""
    rows = [{"id": n, "campaignId": n, "startTime": stamp(TEN)} for n in (1, 2)]
    platform.hooks.append(lambda _: Reply(200, {}, json.dumps(rows).encode()))
    client = api_client(platform, clock)
    filters = Filter(("Completed",), campaign_id="2")
    assert list(Lister(client, filters, clock, HOUR).list(WINDOW).calls) == ["2"]
    named = Filter(("Completed",), campaign_id="camp_2")
    assert len(Lister(client, named, clock, HOUR).list(WINDOW).calls) == 2, "it may be its name"
    client.close()


def test_a_state_that_is_a_number_is_no_other_state(platform: Platform, clock: Any) -> None:
    rows = [{"id": "vc_1", "state": 7, "direction": 1, "startTime": stamp(TEN)}]
    platform.hooks.append(lambda _: Reply(200, {}, json.dumps(rows).encode()))
    client = api_client(platform, clock)
    filters = Filter(("Completed",), direction="Inbound")
    assert list(Lister(client, filters, clock, HOUR).list(WINDOW).calls) == ["vc_1"]
    client.close()


@pytest.mark.parametrize("odd", [True, False])
def test_a_truth_value_is_no_id(platform: Platform, clock: Any, odd: bool) -> None:
    rows = [{"id": odd, "startTime": stamp(TEN)}]
    platform.hooks.append(lambda _: Reply(200, {}, json.dumps(rows).encode()))
    client = api_client(platform, clock)
    found = Lister(client, Filter(("Completed",)), clock, HOUR).list(WINDOW)
    client.close()
    assert (dict(found.calls), found.listing.unreadable) == ({}, 1)


TIMES = ["no zone", "no seconds", "rfc1123", "epoch", "epoch ms", "epoch text"]


@pytest.mark.parametrize("times", TIMES)
def test_times_in_other_forms_place_a_call_and_are_kept(
    platform: Platform, rig: Callable[..., Rig], archive: Any, times: Any
) -> None:
    """A filter that reads the day: only the call's own time says to which window it belongs."""
    platform.options.times, platform.options.whole_days = times, True
    platform.add(a_call("vc_ten", TEN, seconds=60), a_call("vc_eleven", TEN + HOUR, seconds=60))
    totals = rig().backfill(hours=2)
    assert (totals.closed, totals.committed["archived"]) == (2, 2)
    assert archive().line()["listed"] == 1
    assert archive().line(TEN + HOUR)["listed"] == 1
    record = archive().records["vc_ten"]
    assert record["started_at"] == "2024-01-15T10:00:00Z"
    assert record["ended_at"] == "2024-01-15T10:01:00Z"
    assert record["findings"] == []
    sidecar = json.loads(archive().read("recordings/dt=2024-01-15/vc_ten/transcript.json"))
    assert sidecar == platform.written(platform.calls[0].document)


NOON = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-01-15T12:00:00Z", NOON),
        ("2024-01-15T12:00", NOON),
        ("2024-01-15T12:00Z", NOON),
        ("2024-01-15 14:00+02", NOON),
        ("2024-01-15 12:00:00+00", NOON),
        ("2024-01-15T14:00+0200", NOON),
        ("2024-01-15T12:00:00", NOON),
        ("Mon, 15 Jan 2024 12:00:00 GMT", NOON),
        ("15 Jan 2024 14:00:00 +0200", NOON),
        (1705320000, NOON),
        (1705320000.0, NOON),
        (1705320000000, NOON),
        ("1705320000", NOON),
        ("1705320000000", NOON),
        (1705320000.25, NOON + timedelta(milliseconds=250)),
        (1705320000250, NOON + timedelta(milliseconds=250)),
        ("1705320000.25", NOON + timedelta(milliseconds=250)),
    ],
)
def test_a_time_of_the_source(value: Any, expected: datetime) -> None:
    assert parse_source_time(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 12, 99_999_999, 10**14, 1e300, float("inf"), float("nan"), "0",
        "20240115103000", 20240115103000, "202401151030", 202401151030, "170532000", 10**11,
        "20240115", "1705320000 ", "-1705320000", "\u0661705320000", "1" * 15, [1705320000], {},
        "Mon, 32 Jan 2024 12:00:00 GMT", "Mon, 15 Foo 2024 12:00:00 GMT", "2024-01-15T12Z", "12:00",
        "2024-01-15T12:60Z", "15.01.2024 12:00", "01/15/2024", "Mon, 15 Jan 2024 12:00:00 EST",
    ],
)  # fmt: skip
def test_what_is_no_time_of_the_source(value: Any) -> None:
    assert parse_source_time(value) is None
