"""Records that no segment names yet, and calls without a record: none falls silent, whoever ends,
is faster or is out meanwhile. Each test ends with an audit of what it left."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta

import pytest

from archiver.core.errors import StoreError
from archiver.core.model import Retention, parse_time
from tests.fakes.hooks import on
from tests.fakes.http_server import Reply
from tests.fakes.memory_rig import Crash
from tests.fakes.memory_store import MemoryStore
from tests.fakes.population import TEN, a_call, stamp
from tests.fakes.relisting import (
    DAY,
    ELEVEN,
    FIRST,
    MINUTE,
    REST,
    SETTLED,
    amend,
    another,
    crashing,
    lines_of,
    missing,
    told_in,
    troubled,
)
from tests.fakes.rig import HOUR

pytestmark = pytest.mark.usefixtures("audited")
LONG = Retention("GOVERNANCE", 20_000)


def out() -> None:
    raise StoreError("the store is out")


# --- known to a process that goes on


@pytest.mark.parametrize("is_archived", [False, True])
def test_a_call_that_only_a_postponed_listing_showed_is_told_of_by_the_next_one(
    platform, rig, archive, is_archived
):
    """At the window's first age a late call is listed, while the survey of another one is out: so
    that listing is put off. Then all is well again, but the late call is not listed any more."""
    loop = another(rig, give_up=DAY)
    platform.add(a_call())
    loop.round_at(SETTLED)
    platform.add(a_call("late", TEN + MINUTE))
    missing(platform, "late", gone=not is_archived)
    platform.hooks.append(on("vc_1/epa-results", Reply(503)))
    loop.round_at(FIRST)
    platform.hooks.clear()
    platform.remove("late")
    loop.round_after(REST)
    look = archive()
    field = "vanished" if is_archived else "pending"
    assert [line[field] for line in lines_of(look)] == [[], ["late"]]
    assert told_in(look, "late") == [TEN] * is_archived


def test_a_rival_that_takes_the_first_revision_tells_what_was_written_down(
    platform, rig, clock, archive, bucket
):
    """The rival begins later, and the source has hidden the call by then."""
    rival = rig()
    racing = troubled(bucket, "put", "1000.r1.jsonl", rival.backfill)
    loop = another(rig, where=racing, give_up=DAY)
    platform.add(a_call(), a_call("gone", TEN + MINUTE, audio=None))
    loop.round()
    platform.remove("gone")
    loop.round_at(SETTLED)
    assert [line["pending"] for line in lines_of(archive())] == [["gone"]]


def test_a_store_that_is_out_while_old_records_are_looked_for_is_asked_again(
    platform, rig, clock, archive, bucket
):
    """The call's own window is the newest one, and so the first to look for them."""
    platform.add(a_call("stays", ELEVEN), a_call("gone", ELEVEN + MINUTE))
    another(rig).round()
    platform.remove("gone")
    loop = another(rig, where=troubled(bucket, "get", "/gone/", out))
    with pytest.raises(StoreError, match="is out"):
        loop.round()
    loop.round_at(SETTLED + HOUR)
    (line,) = lines_of(archive(), ELEVEN)
    assert (line["listed"], line["vanished"]) == (1, ["gone"])


def test_an_outage_after_a_long_downtime_is_mended_by_the_next_round(platform, rig, clock, archive):
    """One try gives no call up."""
    loop = another(rig, give_up=HOUR, relist=())
    platform.add(a_call(), a_call("newer", TEN + 8 * HOUR))
    platform.hooks.append(lambda r: Reply(503) if r.server == "blob" else None)
    loop.round_at(TEN + 11 * HOUR)
    assert [line["pending"] for line in lines_of(archive())] == [["vc_1"]]
    platform.hooks.clear()
    loop.round_after(MINUTE)
    look = archive()
    assert {found["outcome"] for found in look.records.values()} == {"archived"}
    assert [line["pending"] for line in lines_of(look)] == [["vc_1"], []]


# --- known to a process that ended


def test_a_record_of_a_process_that_died_before_its_revision_is_told_by_the_next_one(
    platform, rig, clock, archive, bucket
):
    """Its window is sealed, so what is written down of it is read, and might be thought enough."""
    loop = another(rig, where=crashing(bucket, "1000.r2.jsonl"))
    platform.add(a_call())
    loop.round_at(SETTLED)
    platform.add(a_call("late", TEN + MINUTE))
    with pytest.raises(Crash):
        loop.round_at(FIRST)
    platform.remove("late")
    another(rig).round()
    look = archive()
    assert [line["vanished"] for line in lines_of(look)] == [[], ["late"]]
    assert told_in(look, "late") == [TEN]


@pytest.mark.parametrize("closes", ["the same loop", "a backfill"])
def test_a_call_that_goes_while_its_window_is_open_is_told_when_it_closes(
    platform, rig, loop, clock, archive, closes
):
    platform.add(a_call(), a_call("gone", TEN + MINUTE))
    loop.round()
    platform.remove("gone")
    if closes == "the same loop":
        loop.round_at(SETTLED)
    else:
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
        loop.round_at(moment)
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


@pytest.mark.parametrize("restarted", [False, True])
def test_a_call_whose_start_is_filled_in_later_moves_to_the_window_of_its_start(
    platform, rig, loop, clock, archive, restarted
):
    """It has only a creation, after eleven, until it starts in the hour before. Both windows may
    tell of it, but only that one counts it, and its record is one and the same."""
    created = stamp(ELEVEN + MINUTE)
    platform.add(a_call("vc_1", ELEVEN + MINUTE, startTime=None, createdAt=created))
    loop.round()
    amend(platform, "vc_1", startTime=stamp(TEN + 59 * MINUTE))
    clock.turn_to(SETTLED + HOUR)
    (another(rig) if restarted else loop).round()
    look = archive()
    assert len(look.below("records/")) == 1
    assert [line["listed"] for line in lines_of(look)] == [1]
    assert [line["listed"] for line in lines_of(look, ELEVEN)] == [0]
    if restarted:
        assert told_in(look, "vc_1") == [TEN]
        assert [line["vanished"] for line in lines_of(look, ELEVEN)] == [[]]
    else:
        assert TEN in told_in(look, "vc_1")


# --- how long files are kept that a later record carries over


@pytest.mark.parametrize("dies", [False, True])
def test_files_that_a_later_record_carries_over_are_kept_as_long_as_that_promises(
    platform, rig, clock, archive, bucket, dies
):
    """A call is archived before the source knows its end: it is kept from its start on then."""
    locking = MemoryStore(clock, lock_mode=LONG.mode, shelf=bucket._shelf)
    where = crashing(locking, "/vc_1/r2.json", after=True) if dies else locking
    loop = another(rig, where=where, retention=LONG)
    platform.add(a_call(endTime=None))
    loop.round_at(SETTLED)
    amend(platform, "vc_1", endTime=stamp(TEN + 55 * MINUTE))
    with pytest.raises(Crash) if dies else nullcontext():
        loop.round_at(FIRST)
    record = archive().records["vc_1"]
    promised = parse_time(record["retention"]["until"])
    assert record["revision"] == 2
    assert promised == TEN + 55 * MINUTE + timedelta(days=LONG.days)
    for file in record["files"]:
        head = locking.head(file["key"], file["version_id"])
        assert head is not None
        assert head.lock_until == promised
    another(rig, where=locking, retention=LONG).round()
