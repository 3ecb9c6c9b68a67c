"""Times, windows, calls, retention."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.core.model import (
    Call,
    Retention,
    Window,
    format_second,
    format_time,
    parse_time,
    window_of,
    windows_between,
)

MOMENTS = st.integers(86_400 * 10**6, 7_258_118_400 * 10**6).map(
    lambda micros: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
)
LENGTHS = st.sampled_from([1, 5, 15, 30, 60, 90, 240, 720, 1440]).map(
    lambda minutes: timedelta(minutes=minutes)
)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-15", datetime(2024, 1, 15, tzinfo=UTC)),
        ("2024-01-15T10:00:00Z", datetime(2024, 1, 15, 10, tzinfo=UTC)),
        ("2024-01-15t10:00:00z", datetime(2024, 1, 15, 10, tzinfo=UTC)),
        ("2024-01-15 10:00:00", datetime(2024, 1, 15, 10, tzinfo=UTC)),
        ("2024-01-15T10:00:00+02:00", datetime(2024, 1, 15, 8, tzinfo=UTC)),
        ("2024-01-15T00:30:00+0100", datetime(2024, 1, 14, 23, 30, tzinfo=UTC)),
        ("2024-01-15T10:00:00.5Z", datetime(2024, 1, 15, 10, 0, 0, 500_000, UTC)),
        ("2024-01-15T10:00:00.123456789Z", datetime(2024, 1, 15, 10, 0, 0, 123_456, UTC)),
    ],
)
def test_times_are_read_as_rfc_3339(text, expected):
    assert parse_time(text) == expected


@pytest.mark.parametrize(
    "value",
    [
        None, 5, 1.5, True, [], {}, "", "now", "2024", "2024-13-01", "2024-02-30T00:00:00Z",
        "2024-01-15T25:00:00Z", "2024-01-15T10:00Z", "2024-01-15T10:00:00+99:00",
        "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2024-01-15T10:00:00Z\n",
        "2024-01-15T10:00:00.Z", " 2024-01-15", "２０２４-01-15T10:00:00Z", "2024-W03-1",
    ],
)  # fmt: skip
def test_an_odd_time_is_a_missing_time(value):
    assert parse_time(value) is None


@given(MOMENTS)
def test_a_written_time_reads_back(moment):
    text = format_time(moment)
    assert text.endswith("Z")
    assert parse_time(text) == moment
    assert parse_time(format_second(moment)) == moment.replace(microsecond=0)
    assert len(format_second(moment)) == 20


def test_times_are_written_in_utc():
    berlin = timezone(timedelta(hours=1))
    assert format_time(datetime(2024, 1, 15, 0, 30, tzinfo=berlin)) == "2024-01-14T23:30:00Z"


@given(MOMENTS, LENGTHS)
def test_each_moment_lies_in_one_window_aligned_to_midnight(moment, length):
    window = window_of(moment, length)
    assert moment in window
    assert window.end - window.start == length
    midnight = window.start.replace(hour=0, minute=0)
    assert (window.start - midnight) % length == timedelta(0)
    assert window.start not in window_of(window.start - timedelta(microseconds=1), length)


@given(MOMENTS, st.integers(1, 5000), LENGTHS)
def test_a_range_grows_outward_to_windows_without_gap(start, minutes, length):
    end = min(start + timedelta(minutes=minutes), start + 50 * length)
    windows = list(windows_between(start, end, length))
    assert windows[0].start <= start < windows[0].end
    assert windows[-1].start < end <= windows[-1].end
    assert all(a.end == b.start for a, b in itertools.pairwise(windows))


def test_an_empty_range_has_no_windows():
    moment = datetime(2024, 1, 15, 10, tzinfo=UTC)
    assert list(windows_between(moment, moment, HOUR)) == []
    assert list(windows_between(moment, moment - HOUR, HOUR)) == []


def test_a_window_is_half_open():
    window = Window(datetime(2024, 1, 15, 10, tzinfo=UTC), datetime(2024, 1, 15, 11, tzinfo=UTC))
    assert window.start in window
    assert window.end not in window
    assert str(window) == "2024-01-15T10:00:00Z/2024-01-15T11:00:00Z"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"startTime": "2024-01-15T10:00:00Z", "createdAt": "2024-01-14T10:00:00Z"}, 15),
        ({"startTime": None, "createdAt": "2024-01-14T10:00:00Z"}, 14),
        ({"startTime": "soon", "createdAt": "2024-01-14T10:00:00Z"}, 14),
        ({"startTime": 1705312800, "createdAt": "2024-01-14T10:00:00Z"}, 15),
        ({"startTime": 0, "endTime": "2024-01-13T10:00:00Z"}, None),
    ],
)
def test_a_call_is_placed_by_its_start_else_its_creation(document, expected):
    own = Call("x", document).own_time
    assert (own.day if own else None) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5), (1.5, 1.5), (0, 0), (True, None), ("5", None), (None, None), (10**400, None)],
)
def test_a_duration_is_a_number_that_can_be_reckoned_with(value, expected):
    assert Call("x", {"durationSeconds": value}).duration_seconds == expected


def test_retention_is_counted_from_the_moment_and_rounded_up():
    moment = datetime(2024, 1, 15, 10, 0, 0, 1, UTC)
    assert Retention().until(moment) is None
    assert Retention("GOVERNANCE", 30).until(moment) == datetime(2024, 2, 14, 10, 0, 1, tzinfo=UTC)
    whole = moment.replace(microsecond=0)
    assert Retention("COMPLIANCE", 1).until(whole) == whole + timedelta(days=1)


@pytest.mark.parametrize("odd", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "1969-12-31"])
def test_a_time_that_no_call_can_have_is_none(odd):
    call = Call("vc_1", {"startTime": odd, "createdAt": "2024-01-15T10:00:00Z", "endTime": odd})
    assert (call.started_at, call.ended_at) == (None, None)
    assert call.own_time == parse_time("2024-01-15T10:00:00Z")
