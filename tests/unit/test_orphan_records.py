"""Records that no segment names yet, and calls without a record: none falls silent, whoever ends,
is faster or is out meanwhile. Each test ends with an audit of what it left."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from archiver.core.errors import StoreError
from archiver.core.model import Retention, parse_time
from archiver.pipeline.loop import Loop
from archiver.store.bucket import Bucket
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call, stamp
from tests.fakes.relisting import (
    DAY,
    FIRST,
    MINUTE,
    SETTLED,
    Troubled,
    amend,
    another,
    answers,
    files_of,
    lines_of,
    told_in,
)
from tests.fakes.rig import HOUR
from tests.unit.test_sealing import Crash, Crashing

pytestmark = pytest.mark.usefixtures("audited")
ELEVEN = TEN + HOUR
REST = 16 * MINUTE
"""Longer than a window rests whose source does not answer."""
LONG = Retention("GOVERNANCE", 20_000)
"""Its dates lie ahead of the store's own clock, which nobody turns back to the calls' year."""


def out() -> None:
    raise StoreError("the store is out")


def put_off(platform: Platform, clock: HandClock, loop: Loop, late: Any) -> None:
    """At the window's first age a late call is listed, while the survey of another one is out: so
    that listing is put off. Then all is well again, but the late call is not listed any more."""
    platform.add(a_call())
    clock.turn_to(SETTLED)
    loop.round()
    outage = answers(503, "vc_1/epa-results")
    platform.hooks.append(outage)
    platform.add(late)
    clock.turn_to(FIRST)
    loop.round()
    platform.hooks.remove(outage)
    platform.remove("late")
    clock.forward(REST)
    loop.round()


# --- known to a process that goes on


def test_a_call_without_a_recording_that_only_a_postponed_listing_showed_is_pending(
    platform, rig, clock, archive
):
    late = a_call("late", TEN + MINUTE)
    late.blob_missing = True
    put_off(platform, clock, another(rig, give_up=DAY), late)
    assert [line["pending"] for line in lines_of(archive())] == [[], ["late"]]


def test_a_call_that_a_postponed_listing_archived_is_told_of_by_the_next_one(
    platform, rig, clock, archive
):
    put_off(platform, clock, another(rig, give_up=DAY), a_call("late", TEN + MINUTE))
    look = archive()
    assert [line["vanished"] for line in lines_of(look)] == [[], ["late"]]
    assert told_in(look, "late") == [TEN]


def test_a_rival_that_takes_the_first_revision_tells_what_was_written_down(
    platform, rig, clock, archive, bucket
):
    """The rival begins later, and the source has hidden the call by then."""
    rival = rig()
    racing = Troubled(bucket, "put_once", "1000.r1.jsonl", rival.backfill)
    loop = another(rig, where=racing, give_up=DAY)
    platform.add(a_call(), a_call("gone", TEN + MINUTE, audio=None))
    loop.round()
    platform.remove("gone")
    clock.turn_to(SETTLED)
    loop.round()
    assert [line["pending"] for line in lines_of(archive())] == [["gone"]]


def test_a_store_that_is_out_while_old_records_are_looked_for_is_asked_again(
    platform, rig, clock, archive, bucket
):
    """The call's own window is the newest one, and so the first to look for them."""
    platform.add(a_call("stays", ELEVEN), a_call("gone", ELEVEN + MINUTE))
    another(rig).round()
    platform.remove("gone")
    loop = another(rig, where=Troubled(bucket, "read", "/gone/", out))
    with pytest.raises(StoreError, match="is out"):
        loop.round()
    clock.turn_to(SETTLED + HOUR)
    loop.round()
    (line,) = lines_of(archive(), ELEVEN)
    assert (line["listed"], line["vanished"]) == (1, ["gone"])


def test_a_call_that_goes_while_its_window_is_open_is_told_when_it_closes(
    platform, rig, clock, archive
) -> None:
    loop = another(rig)
    platform.add(a_call(), a_call("gone", TEN + MINUTE))
    clock.turn_to(TEN + 2 * HOUR)
    loop.round()
    platform.remove("gone")
    clock.turn_to(SETTLED)
    loop.round()
    (line,) = lines_of(archive())
    assert (line["listed"], line["vanished"]) == (1, ["gone"])
    assert told_in(archive(), "gone") == [TEN]


def test_an_outage_after_a_long_downtime_is_mended_by_the_next_round(
    platform, rig, clock, archive
) -> None:
    """One try gives no call up."""
    loop = another(rig, give_up=HOUR, relist=())
    platform.add(a_call(), a_call("newer", TEN + 8 * HOUR))
    clock.turn_to(TEN + 11 * HOUR)
    platform.hooks.append(lambda r: Reply(503, {}, b"") if r.server == "blob" else None)
    loop.round()
    assert [line["pending"] for line in lines_of(archive())] == [["vc_1"]]
    platform.hooks.clear()
    clock.forward(MINUTE)
    loop.round()
    look = archive()
    assert {found["outcome"] for found in look.records.values()} == {"archived"}
    assert [line["pending"] for line in lines_of(look)] == [["vc_1"], []]


# --- known to a process that ended


def test_a_record_of_a_process_that_died_before_its_revision_is_told_by_the_next_one(
    platform, rig, clock, archive, bucket
):
    """Its window is sealed, so what is written down of it is read, and might be thought enough."""
    loop = another(rig, where=Crashing(bucket, "1000.r2.jsonl"))
    platform.add(a_call())
    clock.turn_to(SETTLED)
    loop.round()
    platform.add(a_call("late", TEN + MINUTE))
    clock.turn_to(FIRST)
    with pytest.raises(Crash):
        loop.round()
    platform.remove("late")
    another(rig).round()
    look = archive()
    assert [line["vanished"] for line in lines_of(look)] == [[], ["late"]]
    assert told_in(look, "late") == [TEN]


def test_a_backfill_that_closes_the_window_of_an_ended_loop_tells_what_that_archived(
    platform, rig, clock, archive
):
    platform.add(a_call(), a_call("gone", TEN + MINUTE))
    another(rig).round()
    platform.remove("gone")
    clock.turn_to(SETTLED)
    rig().backfill()
    look = archive()
    (line,) = lines_of(look)
    assert (line["listed"], line["vanished"]) == (1, ["gone"])
    assert told_in(look, "gone") == [TEN]


@pytest.mark.parametrize("without", [["startTime"], ["startTime", "endTime"]])
def test_a_record_without_a_start_is_told_of_once(platform, rig, clock, archive, without):
    """Without any time it may be any window's of its day, but some window's it must be."""
    platform.add(a_call("gone", TEN + MINUTE, **dict.fromkeys(without)))
    another(rig).round()
    platform.remove("gone")
    loop = another(rig)
    for moment in (SETTLED, FIRST):
        clock.turn_to(moment)
        loop.round()
    look = archive()
    assert look.records["gone"]["started_at"] is None
    assert len(told_in(look, "gone")) == 1


# --- calls that two windows may claim


def test_a_call_listed_by_its_end_stays_in_that_window_after_a_restart(
    platform, rig, clock, archive
):
    """Its record names a start in the window before, which does not list it."""
    platform.options.filter_field = "endTime"
    platform.add(a_call("long", TEN + 58 * MINUTE, endTime=stamp(ELEVEN + 2 * MINUTE)))
    another(rig).round()
    clock.turn_to(SETTLED + HOUR)
    another(rig).round()
    look = archive()
    assert told_in(look, "long") == [ELEVEN]
    assert [line["vanished"] for line in lines_of(look)] == [[]]


def start_comes_late(platform: Platform) -> None:
    amend(platform, "vc_1", startTime=stamp(TEN + 59 * MINUTE))


@pytest.fixture
def unstarted(platform: Platform) -> None:
    """A call that has only a creation, after eleven, until it starts in the hour before."""
    created = stamp(ELEVEN + MINUTE)
    platform.add(a_call("vc_1", ELEVEN + MINUTE, startTime=None, createdAt=created))


@pytest.mark.usefixtures("unstarted")
def test_a_call_whose_start_is_filled_in_later_moves_to_the_window_of_its_start(
    platform, rig, clock, archive
):
    """Both may tell of it, but only that one counts it, and its record is one and the same."""
    loop = another(rig)
    loop.round()
    start_comes_late(platform)
    clock.turn_to(SETTLED + HOUR)
    loop.round()
    look = archive()
    assert len(look.below("records/")) == 1
    assert TEN in told_in(look, "vc_1")
    assert [line["listed"] for line in lines_of(look)] == [1]
    assert [line["listed"] for line in lines_of(look, ELEVEN)] == [0]


@pytest.mark.usefixtures("unstarted")
def test_a_call_whose_start_is_filled_in_during_a_restart_is_told_of_once(
    platform, rig, clock, archive
):
    another(rig).round()
    start_comes_late(platform)
    clock.turn_to(SETTLED + HOUR)
    another(rig).round()
    look = archive()
    assert told_in(look, "vc_1") == [TEN]
    assert [line["vanished"] for line in lines_of(look, ELEVEN)] == [[]]


# --- how long files are kept that a later record carries over


@pytest.fixture
def locking(open_bucket: Callable[..., Bucket]) -> Bucket:
    return open_bucket(lock_mode=LONG.mode)


def end_comes_late(platform: Platform, clock: HandClock, loop: Loop) -> None:
    """A call is archived before the source knows its end: it is kept from its start on then."""
    platform.add(a_call(endTime=None))
    clock.turn_to(SETTLED)
    loop.round()
    amend(platform, "vc_1", endTime=stamp(TEN + 55 * MINUTE))
    clock.turn_to(FIRST)


def test_a_recording_that_a_later_record_carries_over_is_kept_as_long_as_that_promises(
    platform, rig, clock, archive, locking
):
    loop = another(rig, where=locking, retention=LONG)
    end_comes_late(platform, clock, loop)
    loop.round()
    record = archive().records["vc_1"]
    promised = parse_time(record["retention"]["until"])
    assert promised == TEN + 55 * MINUTE + timedelta(days=LONG.days)
    for file in record["files"]:
        head = locking.head(file["key"], file["version_id"])
        assert head is not None
        assert head.lock_until is not None
        assert head.lock_until >= promised


def test_a_crash_leaves_no_record_that_promises_more_than_its_recording_is_kept(
    platform, rig, clock, archive, locking
):
    dying = Crashing(locking, "/vc_1/r2.json", after=True)
    loop = another(rig, where=dying, retention=LONG)
    end_comes_late(platform, clock, loop)
    with pytest.raises(Crash):
        loop.round()
    record = archive().records["vc_1"]
    assert record["revision"] == 2
    recording = files_of(record)["recording"]
    head = locking.head(recording["key"], recording["version_id"])
    assert head is not None
    assert head.lock_until == parse_time(record["retention"]["until"])
    another(rig, where=locking, retention=LONG).round()
