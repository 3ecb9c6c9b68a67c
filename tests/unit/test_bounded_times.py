"""Times that a source tells: whatever they are, no lock becomes longer than `RETENTION_DAYS` from
the listing plus a day, and a time that cannot be true places no call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.audit.verify import Options, verify
from archiver.core.model import Call, Retention, Window, lock_start, placing_time
from archiver.manifest import canonical, layout
from tests.fakes.memory_rig import HOUR, Times, World, Writer
from tests.fakes.population import TEN, a_call, stamp

DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
DAYS = 3650
WINDOW = Window(TEN, TEN + HOUR)
LISTED = TEN + 20 * 60 * SECOND
"""When the call is first listed: its window is open."""
FAR = "2999-01-01T00:00:00Z"
TALK = [{"role": "user", "text": "I said something else", "timestamp": stamp(TEN)}]


class LockedWorld(World):
    """A bucket whose objects are locked for ten years."""

    def __init__(self, **options: Any) -> None:
        super().__init__(LISTED, TEN, retention=Retention("COMPLIANCE", DAYS), **options)

    def too_long(self) -> Iterator[tuple[str, datetime]]:
        """What is locked for longer than any listing so far allows."""
        latest = self.clock.now() + DAY + DAYS * DAY + SECOND
        for one in self.store.objects:
            if one.lock_until is not None and one.lock_until > latest:
                yield one.key, one.lock_until

    def rounds(self, writer: Writer) -> None:
        """To the end of all that the archive does about a window; its call changes once."""
        for after in (timedelta(0), HOUR, 4 * HOUR, 5 * HOUR, 7 * HOUR, 8 * HOUR):
            writer.round_at(LISTED + after)
            assert list(self.too_long()) == []
            if after == 4 * HOUR and self.platform.calls:
                self.platform.calls[0].document["transcript"] = TALK

    def documents(self) -> list[dict[str, Any]]:
        keys = (key for key in self.store.keys if layout.parse_record_key(key))
        return [json.loads(self.store.object(key).data) for key in keys]


def listed(**times: Any) -> Any:
    """A call that the source lists in the window, whatever its times are."""
    call = a_call("vc_1", **times)
    call.listed_at = call.last_modified = LISTED
    return call


moments = st.datetimes(timezones=st.just(UTC))
near = st.timedeltas(min_value=-3 * DAY, max_value=3 * DAY).map(lambda by: LISTED + by)
told = st.one_of(
    near.map(stamp),
    moments.map(stamp),
    moments.map(lambda moment: moment.date().isoformat()),
    st.sampled_from([FAR, "9999-12-31T23:59:59Z", "0001-01-01", "1970-01-01T00:00:00Z", "", "∞"]),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.sampled_from([None, True, [], {}, ...]),
)


@settings(max_examples=300)
@given(start=told, end=told, created=told, after=st.timedeltas(timedelta(0), 40 * DAY))
def test_a_lock_counts_from_a_moment_between_the_window_s_start_and_a_day_after_the_listing(
    start, end, created, after
):
    listed_at = TEN + after
    call = Call("vc_1", {"startTime": start, "endTime": end, "createdAt": created})
    moment, plausible = lock_start(call, WINDOW, listed_at)
    assert WINDOW.start <= moment <= max(WINDOW.end, listed_at + DAY)
    assert plausible or moment == WINDOW.end
    assert placing_time(call, WINDOW, listed_at) <= max(WINDOW.start, listed_at + DAY)


@pytest.mark.parametrize(
    ("times", "until", "finding"),
    [
        ({}, TEN + SECOND, False),
        ({"endTime": FAR}, WINDOW.end, True),
        ({"endTime": "1999-01-01T00:00:00Z"}, WINDOW.end, True),
        ({"endTime": stamp(LISTED + DAY)}, LISTED + DAY, False),
        ({"endTime": stamp(LISTED + DAY + SECOND)}, WINDOW.end, True),
        ({"endTime": stamp(TEN)}, TEN, False),
        ({"endTime": stamp(TEN - SECOND)}, WINDOW.end, True),
        ({"endTime": None, "startTime": FAR}, WINDOW.end, True),
        ({"endTime": None}, TEN, False),
        ({"endTime": None, "startTime": None, "createdAt": FAR}, WINDOW.end, True),
        ({"endTime": None, "startTime": None, "createdAt": None}, WINDOW.end, False),
    ],
)
def test_the_record_says_from_where_its_lock_counts(times, until, finding):
    world = LockedWorld()
    world.platform.add(listed(**times))
    world.writer("main").round()
    (document,) = world.documents()
    assert document["retention"] == {"mode": "COMPLIANCE", "until": stamp(until + DAYS * DAY)}
    assert ("time_implausible" in document["findings"]) is finding
    for file in document["files"]:
        assert world.store.object(file["key"]).lock_until == until + DAYS * DAY
    # A restart goes by the record alone.
    world.rounds(world.writer("second"))


def test_one_false_end_locks_no_other_call_for_longer():
    world = LockedWorld()
    world.platform.add(listed(endTime=FAR), a_call("other", TEN + 60 * SECOND))
    world.rounds(world.writer("main"))
    years = {one.lock_until.year for one in world.store.objects if one.lock_until}
    assert years == {2034}


# --- records of releases that believed every end


def make_older(world: LockedWorld) -> None:
    """The record, as a release before the finding wrote it: without, and locked from its end."""
    until = datetime(2999, 1, 1, tzinfo=UTC) + DAYS * DAY
    (document,) = world.documents()
    document["findings"].remove("time_implausible")
    document["retention"]["until"] = stamp(until)
    data, objects = canonical.dump(document), world.store._shelf.objects
    key = document["record"]
    objects[key] = replace(objects[key], data=data, sha256=hashlib.sha256(data).hexdigest())
    for one in (key, *(file["key"] for file in document["files"])):
        objects[one] = replace(objects[one], lock_until=until)


def test_what_covers_a_record_of_an_older_release_is_not_locked_as_long_as_that():
    world = LockedWorld()
    world.platform.add(listed(endTime=FAR))
    world.writer("older").round()
    make_older(world)
    own = {key for key, _ in world.too_long()}
    assert {key.partition("/")[0] for key in own} == {"records", "recordings"}
    writer = world.writer("newer")
    for after in (HOUR, 4 * HOUR, 5 * HOUR, 8 * HOUR):
        writer.round_at(LISTED + after)
        assert {key for key, _ in world.too_long()} == own
    assert any(key.startswith(layout.SEGMENTS) for key in world.store.keys)
    assert world.complaints("manifest") == world.complaints() == []


def test_an_audit_still_finds_what_is_locked_for_less_than_a_bounded_promise():
    world = LockedWorld()
    world.platform.add(listed(endTime=FAR))
    world.rounds(world.writer("main"))
    key = layout.SegmentName(TEN, 1).jsonl
    shelf = world.store._shelf
    short = WINDOW.end + DAYS * DAY - SECOND
    shelf.objects[key] = replace(shelf.objects[key], lock_until=short)
    assert [(one.code, one.key) for one in world.complaints()] == [("retention_weaker", key)]


# --- where a call belongs


def test_a_call_of_the_far_future_belongs_to_the_window_that_lists_it():
    world = LockedWorld()
    world.platform.add(listed(startTime=FAR, endTime=FAR, createdAt=FAR))
    writer = world.writer("main")
    world.rounds(writer)
    assert {one["record"].split("/")[1] for one in world.documents()} == {"dt=2024-01-15"}
    assert {key.split("/")[1] for key in world.store.keys if key.startswith("recordings/")} == {
        "dt=2024-01-15"
    }
    segment = world.store.object(layout.SegmentName(TEN, 1).jsonl).data
    assert b'"call_id":"vc_1"' in segment
    asked = {one.asked["dateFrom"] for one in world.platform.listed["vc_1"]}
    assert asked == {stamp(TEN)}


def test_a_record_is_found_again_when_its_time_has_become_plausible():
    """Two days ahead when it was archived; when its window is closed, that is past."""
    world = LockedWorld()
    world.times = Times(settle=60 * HOUR, give_up=61 * HOUR, relist=(62 * HOUR,))
    ahead = stamp(LISTED + 2 * DAY)
    world.platform.add(listed(startTime=ahead, endTime=ahead))
    world.writer("main").round()
    for after in (2 * DAY + HOUR, 3 * DAY, 4 * DAY):
        world.clock.turn_to(LISTED + after)
        world.writer(f"later_{after.days}_{after.seconds}").round()
        assert list(world.too_long()) == []
    assert [one["record"] for one in world.documents()] == ["records/dt=2024-01-15/vc_1/r1.json"]
    found = verify(world.store, Options(level="objects"), now=world.clock.now()).findings
    assert found == []


def test_a_record_of_the_far_future_that_nobody_told_of_is_recalled_by_its_day():
    world = LockedWorld()
    world.platform.add(listed(startTime=FAR, endTime=FAR))
    world.writer("main").round()
    world.platform.hidden.add("vc_1")
    second = world.writer("second")
    world.rounds(second)  # it asks for the day's records in the newest window first
    segments = [
        one.data
        for one in world.store.objects
        if one.key.startswith(layout.SEGMENTS) and one.key.endswith(".jsonl")
    ]
    assert sum(b'"call_id":"vc_1"' in data for data in segments) == 1
    found = verify(world.store, Options(level="objects"), now=world.clock.now()).findings
    assert found == []


# --- all of it, whatever a document says


@settings(max_examples=30)
@given(start=told, end=told, created=told)
def test_no_document_makes_any_lock_longer_than_the_policy(start, end, created):
    world = LockedWorld()
    world.platform.add(listed(startTime=start, endTime=end, createdAt=created))
    world.rounds(world.writer("main"))
    assert {one["call_id"] for one in world.documents()} == {"vc_1"}
    locked = {key for key in world.store.keys if world.store.object(key).lock_until}
    assert locked == {key for key in world.store.keys if not key.startswith(layout.SIGHTINGS)}
    assert world.complaints() == []
    world.finish()
