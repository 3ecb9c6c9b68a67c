"""Windows, backfills and the loop on a clock that is turned by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from archiver.core.clock import Interrupted
from archiver.core.errors import SourceRefused
from archiver.core.model import Window, window_of
from archiver.manifest import layout
from archiver.pipeline import loop as loop_module
from archiver.pipeline.backfill import range_windows
from archiver.pipeline.loop import loop_start
from archiver.pipeline.plan import Purpose
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_rig import Crash
from tests.fakes.population import TEN, a_call
from tests.fakes.relisting import crashing, missing, stranger, troubled, value
from tests.fakes.rig import HOUR, WINDOW

MINUTE = timedelta(minutes=1)
SETTLED = WINDOW.end + 2 * HOUR
GIVEN_UP = WINDOW.end + timedelta(days=1)


# --- backfill


def test_a_backfill_archives_closes_and_seals(platform, rig, clock, archive, key):
    clock.turn_to(SETTLED + HOUR)
    platform.add(*[a_call(f"vc_{n}", TEN + n * 10 * MINUTE) for n in range(12)])
    platform.add(a_call("none", audio=None), a_call("open", state="InProgress"))
    totals = rig().backfill(hours=2)
    assert totals.committed == {"archived": 12, "no_recording": 1}
    assert (totals.windows, totals.closed, totals.stuck) == (2, 2, 0)
    assert not totals.needs_a_person
    look = archive()
    look.check(key)
    assert look.line()["listed"] == 7
    assert look.line(TEN + HOUR)["archived"] == 6
    assert "open" not in look.records


def test_the_same_again_writes_nothing(platform, rig, clock, bucket):
    clock.turn_to(SETTLED)
    platform.add(a_call(), a_call("none", audio=None))
    rig().backfill()
    before = sorted((v.key, v.version_id) for v in bucket.versions(""))
    clock.forward(HOUR)
    totals = rig().backfill()
    assert totals.committed == {}
    assert sorted((v.key, v.version_id) for v in bucket.versions("")) == before


def test_a_window_that_has_not_settled_is_archived_but_left_open(platform, rig, clock, archive):
    clock.turn_to(SETTLED - timedelta(seconds=1))
    platform.add(a_call(), a_call("none", audio=None))
    totals = rig().backfill()
    assert (totals.closed, totals.unsettled, totals.waiting) == (0, 1, 1)
    assert archive().segments == {}
    assert archive().records.keys() == {"vc_1"}


def test_what_is_missing_is_pending_then_archived_in_the_next_revision(
    platform, rig, clock, archive, key
):
    clock.turn_to(SETTLED)
    platform.add(a_call(), a_call("late"))
    missing(platform, "late")
    totals = rig().backfill()
    assert totals.needs_a_person
    assert archive().line()["pending"] == ["late"]
    missing(platform, "late", gone=False)
    assert not rig().backfill().needs_a_person
    look = archive()
    assert look.line(revision=2)["pending"] == []
    assert look.line(revision=2)["archived"] == 2
    names = layout.SegmentName(TEN, 2)
    assert [one.call_id for one in look.segments[names.jsonl].records] == ["late"]
    look.check(key)


def test_given_up_calls_are_failed_and_tried_again_by_a_backfill(
    platform, rig, clock, archive, key
):
    clock.turn_to(GIVEN_UP)
    platform.add(a_call())
    missing(platform, "vc_1")
    first = rig().backfill()
    assert (first.failed, first.committed) == (1, {"failed": 1})
    again = rig().backfill()
    assert (again.failed, again.committed, again.segments) == (1, {}, 0)
    missing(platform, "vc_1", gone=False)
    assert rig().backfill(purpose=Purpose.CLOSE).committed == {}
    assert rig().backfill().committed == {"archived": 1}
    look = archive()
    assert look.records["vc_1"]["revision"] == 2
    look.check(key)


@pytest.mark.parametrize("whole_days", [False, True])
def test_calls_without_any_time_are_one_record_each(platform, rig, clock, archive, key, whole_days):
    """With a filter that reads only the date, every window of the day lists them."""
    clock.turn_to(SETTLED + timedelta(days=1))
    platform.options.whole_days = whole_days
    for n in range(6):
        call = a_call(f"t{n}", startTime=None, endTime=None, createdAt=None)
        call.listed_at = TEN + MINUTE
        platform.add(call)
    rig().backfill(hours=8)
    assert archive().records.keys() == {f"t{n}" for n in range(6)}
    assert len(archive().below("records/")) == 6


def test_another_window_length_is_refused(platform, rig, clock):
    clock.turn_to(SETTLED)
    made = rig()
    made.backfill()
    half = Window(TEN, TEN + HOUR / 2)
    outcome = rig().windows.process(half)
    assert "it is of the window" in str(outcome.error)
    assert not outcome.is_closed


def test_foreign_bytes_in_the_place_of_a_segment_stop_nothing(
    platform, rig, clock, bucket, archive
):
    clock.turn_to(SETTLED)
    rig().backfill(TEN - HOUR)
    platform.add(a_call())
    stranger(bucket).put_once(layout.SegmentName(TEN, 1).jsonl, b"{}\n")
    totals = rig().backfill()
    assert (totals.closed, totals.committed) == (1, {"archived": 1})
    assert layout.SegmentName(TEN, 2).seal in archive().keys
    assert bucket.read(layout.SegmentName(TEN, 1).jsonl) == b"{}\n"


def test_a_plan_writes_nothing_even_after_a_crash(platform, rig, clock, bucket, archive):
    clock.turn_to(SETTLED)
    platform.add(a_call())
    dying = rig(crashing(bucket, ".sha256"))
    with pytest.raises(Crash):
        dying.backfill()
    platform.add(a_call("new"))
    before = archive().keys
    plan = rig().windows.plan(WINDOW)
    assert [task.call.id for task in plan.todo] == ["new"]
    assert archive().keys == before


def test_two_backfills_at_once_make_one_record_a_call_and_one_chain(
    platform, rig, clock, bucket, archive, key
):
    clock.turn_to(SETTLED + 5 * HOUR)
    platform.add(*[a_call(f"vc_{n:02}", TEN + n * 20 * MINUTE) for n in range(15)])
    rigs = [rig(), rig()]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda made: made.backfill(hours=5), rigs))
    look = archive()
    look.check(key)
    assert len(look.records) == len(look.below("records/")) == 15
    assert all(one.name.revision == 1 for one in look.segments.values())
    versions = [version.key for version in bucket.versions("")]
    assert len(versions) == len(set(versions))


def test_a_segment_of_another_writer_that_died_before_it_was_sealed(
    platform, rig, clock, bucket, archive, key
):
    """Who finds the key taken lists once more, and seals what is there."""
    platform.add(a_call())
    rival = rig(crashing(bucket, "1000.r1.sha256"))

    def faster() -> None:
        clock.forward(timedelta(seconds=1))
        with pytest.raises(Crash):
            rival.backfill()

    loop = rig(troubled(bucket, "put", "1000.r1.jsonl", faster)).loop()
    loop.round_at(SETTLED)
    look = archive()
    look.check(key)
    assert [one.name for one in look.segments.values()] == [layout.SegmentName(TEN, 1)]
    assert look.seals[-1].watermark == WINDOW.end


def test_a_refused_token_stops_the_run_and_fails_no_call(platform, rig, clock, archive):
    clock.turn_to(GIVEN_UP)
    platform.add(*[a_call(f"vc_{n}") for n in range(20)])
    refuse = Reply(403, {}, b"{}")
    platform.hooks.append(lambda r: refuse if r.path.endswith("/recording-url") else None)
    with pytest.raises(SourceRefused):
        rig().backfill()
    assert archive().records == {}
    assert archive().segments == {}


# --- shards


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_every_window_once(count):
    end = TEN + 3 * timedelta(days=1)
    whole = range_windows(TEN, end, HOUR)
    parts = [range_windows(TEN, end, HOUR, (index, count)) for index in range(count)]
    assert sorted(window for part in parts for window in part) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    alone = [range_windows(TEN, TEN + HOUR, HOUR, (index, count)) for index in range(count)]
    assert [whole[0] in part for part in parts] == [bool(part) for part in alone]


# --- the loop


def test_the_loop_archives_at_once_and_seals_when_settled(platform, rig, clock, archive, key):
    loop = rig().loop()
    platform.add(a_call(), a_call("none", audio=None))
    totals = loop.round_at(SETTLED - MINUTE)
    assert totals.committed == {"archived": 1}
    assert archive().segments == {}
    assert value("archiver_pending_calls") == 1
    assert value("archiver_oldest_unarchived_seconds") == (clock.now() - TEN).total_seconds()
    assert loop.round_at(SETTLED).committed == {"no_recording": 1}
    look = archive()
    look.check(key)
    assert look.seals[-1].watermark == WINDOW.end
    assert value("archiver_watermark_timestamp_seconds") == WINDOW.end.timestamp()
    assert value("archiver_pending_calls") == 0
    assert value("archiver_last_round_timestamp_seconds") == clock.now().timestamp()
    assert value("archiver_seal_sequence") == 1


def test_a_window_that_settles_while_a_round_looks_at_it_is_the_next_ones(
    platform, rig, clock, archive, key
):
    """It was not due when the round began, which is why nobody would seal it; and there may be no
    other round, for the process may end."""
    loop = rig().loop()
    platform.add(a_call())
    clock.turn_to(SETTLED - timedelta(seconds=1))

    def later(_: Request) -> Reply | None:
        if clock.now() < SETTLED:
            clock.turn_to(SETTLED)
        return None

    platform.hooks.append(later)
    loop.round()
    look = archive()
    assert clock.now() >= SETTLED
    assert "vc_1" in look.records
    assert look.below("manifest/segments/") == []
    loop.round()
    look = archive()
    look.check(key)
    assert look.seals[-1].watermark == WINDOW.end


def test_pending_is_listed_again_until_it_comes(platform, rig, clock, archive, key):
    loop = rig().loop()
    platform.add(a_call())
    missing(platform, "vc_1")
    assert loop.round_at(SETTLED).pending >= 1
    assert archive().line()["pending"] == ["vc_1"]
    loop.round_after(MINUTE)
    assert archive().line()["pending"] == ["vc_1"]
    assert not [key for key in archive().segments if "1000.r2" in key], "nothing new, nothing told"
    missing(platform, "vc_1", gone=False)
    loop.round_after(MINUTE)
    assert not [key for key in archive().segments if "1000.r2" in key], "it rests two minutes now"
    loop.round_after(MINUTE)
    assert archive().line(revision=2)["archived"] == 1
    archive().check(key)


@pytest.mark.parametrize("restarted", [False, True])
def test_pending_is_given_up_in_time(platform, rig, clock, archive, key, restarted):
    loop = rig(give_up=4 * HOUR).loop()
    platform.add(a_call())
    missing(platform, "vc_1")
    loop.round_at(SETTLED)
    clock.turn_to(WINDOW.end + 4 * HOUR)
    if restarted:
        loop = rig(give_up=4 * HOUR).loop()
    loop.round()
    look = archive()
    assert look.records["vc_1"]["outcome"] == "failed"
    assert look.records["vc_1"]["reason"] == "recording_missing"
    assert look.line(revision=2)["failed"] == 1
    look.check(key)
    assert value("archiver_pending_calls") == 0


def test_the_watermark_moves_over_windows_that_a_backfill_sealed(
    platform, rig, clock, archive, key
):
    loop = rig().loop()
    clock.turn_to(SETTLED + 2 * HOUR)
    rig().backfill(TEN + HOUR)
    assert archive().seals[-1].watermark == TEN, "a backfill carries it on unchanged"
    platform.add(a_call())
    loop.round()
    look = archive()
    assert look.seals[-1].watermark == TEN + 3 * HOUR
    look.check(key)


def test_a_backlog_is_worked_off_in_order(platform, rig, clock, archive, key, monkeypatch):
    loop = rig().loop()
    platform.add(*[a_call(f"vc_{n}", TEN + n * HOUR) for n in range(10)])
    clock.turn_to(TEN + 12 * HOUR)
    monkeypatch.setattr(loop_module, "CLOSED_AT_A_TIME", 4)
    loop.round()
    look = archive()
    look.check(key)
    assert [one.watermark for one in look.seals] == [TEN + n * HOUR for n in (0, 4, 8, 10)]
    assert len(look.segments) == 10
    assert look.records.keys() == {f"vc_{n}" for n in range(10)}


def test_an_unstable_window_is_not_closed_and_the_mark_waits(platform, rig, clock, archive, key):
    loop = rig().loop()
    clock.turn_to(SETTLED + HOUR)
    numbers = iter(range(1000))

    def grow(request: Request) -> None:
        if "dateFrom=2024-01-15T10" in request.raw_query:
            platform.add(a_call(f"n{next(numbers)}", audio=None))

    platform.hooks.append(grow)
    loop.round()
    assert archive().seals[-1].watermark == TEN
    platform.hooks.clear()
    loop.round()
    look = archive()
    look.check(key)
    assert look.seals[-1].watermark == TEN + 2 * HOUR


def test_a_round_that_fails_is_followed_by_another(platform, rig, clock, archive, key):
    loop = rig().loop()
    platform.add(a_call())
    clock.turn_to(SETTLED)

    def down_at_first(request: Request) -> Reply | None:
        return Reply(500, {}, b"") if clock.now() < SETTLED + 3 * MINUTE else None

    def stop_at_last(_: Request) -> None:
        if clock.now() > SETTLED + 10 * MINUTE:
            clock.stop()

    platform.hooks += [stop_at_last, down_at_first]
    with pytest.raises(Interrupted):
        loop.run_forever()
    clock.go_on()
    archive().check(key)
    assert archive().records["vc_1"]["outcome"] == "archived"
    assert 60.0 in clock.sleeps


def test_an_archive_that_begins_in_the_future_waits(rig, clock, archive):
    made = rig()
    made.found(clock.now() + timedelta(days=1))
    made.loop().round()
    assert archive().segments == {}


def test_where_the_loop_begins():
    now = datetime.fromisoformat("2024-01-15T12:34:56+00:00")
    assert loop_start(None, now, HOUR) == TEN + 2 * HOUR
    assert loop_start(TEN + MINUTE, now, HOUR) == TEN
    assert window_of(now, HOUR).start == TEN + 2 * HOUR
