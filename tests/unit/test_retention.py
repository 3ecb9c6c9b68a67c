"""Protection over time: a later, longer policy extends what is touched again, and shortens nothing;
what is new of a held call is born held. On a real store, whose locks hold, and a clock turned by
hand: dates are so far off that the store's own clock does not matter."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from archiver.audit.verify import Options, verify
from archiver.core.model import Retention, parse_time, windows_between
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Action, HoldEvent
from archiver.manifest.signing import SigningKey
from archiver.pipeline.backfill import Backfill
from archiver.pipeline.bucket_state import UnsealedSegment
from archiver.pipeline.plan import Purpose
from archiver.store.bucket import Bucket
from archiver.store.types import Stored
from tests.fakes.calls import SimulatedCall
from tests.fakes.clock import HandClock
from tests.fakes.memory_rig import Crash, World
from tests.fakes.memory_store import Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call, stamp
from tests.fakes.proxy import FaultProxy
from tests.fakes.relisting import (
    AGES,
    FIRST,
    SECOND,
    SETTLED,
    Look,
    MakeRig,
    amend,
    another,
    files_of,
    lines_of,
)
from tests.fakes.rig import HOUR, WINDOW, HandLoop, Rig

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
SHORT, MIDDLE, LONG = 7300, 7302, 7330
"""Days; the archive is of 2024, and a store refuses dates that are over."""
GOVERNANCE, COMPLIANCE = "GOVERNANCE", "COMPLIANCE"
TALK = [{"role": "user", "text": "I said something else", "timestamp": stamp(TEN)}]
OtherLock = tuple[str | None, datetime | None]


@pytest.fixture
def platform(served: Platform) -> Platform:
    return served


@pytest.fixture
def bucket(open_bucket: Callable[..., Bucket]) -> Bucket:
    return open_bucket()


@dataclass
class Scene:
    """One archive, and writers of it whose settings change over time."""

    platform: Platform
    clock: HandClock
    key: SigningKey
    make: MakeRig
    open_bucket: Callable[..., Bucket]
    archive: Look

    def bucket(self, mode: str | None) -> Bucket:
        return self.open_bucket(lock_mode=mode)

    def rig(self, mode: str | None, days: int = 0, where: Bucket | None = None, **more: Any) -> Rig:
        made = self.make(where or self.bucket(mode), retention=Retention(mode, days), **more)
        made.found(TEN)
        return made

    def settle(self, *calls: SimulatedCall) -> None:
        """The window of these calls has settled."""
        self.platform.add(*calls)
        self.clock.turn_to(SETTLED)

    def service(
        self, mode: str | None, days: int = 0, at: datetime | None = None, **more: Any
    ) -> HandLoop:
        """A process that begins now, or at that moment."""
        self.clock.turn_to(at or self.clock.now())
        options = {"relist": AGES, "retention": Retention(mode, days), **more}
        return another(lambda **rest: self.make(self.bucket(mode), **rest), **options)

    def locks(self) -> dict[str, OtherLock]:
        """Mode and date of every object, as they are now. Sightings have no lock."""
        bucket = self.bucket(None)
        heads = {item.key: bucket.head(item.key) for item in bucket.list("")}
        return {
            key: (head.lock_mode, head.lock_until)
            for key, head in heads.items()
            if head and not key.startswith(layout.SIGHTINGS)
        }

    def audit(self) -> None:
        self.archive().check(self.key)
        found = verify(self.bucket(None), Options(level="objects")).findings
        assert [item for item in found if item.severity != "info"] == []


@pytest.fixture
def scene(
    platform: Platform,
    clock: HandClock,
    key: SigningKey,
    rig: MakeRig,
    open_bucket: Callable[..., Bucket],
    archive: Look,
) -> Scene:
    return Scene(platform, clock, key, rig, open_bucket, archive)


@contextmanager
def counted(bucket: Bucket) -> Iterator[Counter[str]]:
    """What boto3 is asked for meanwhile, by operation: locks and holds are."""
    asked: Counter[str] = Counter()
    events = bucket.client.s3.meta.events

    def count(model: Any, **_: Any) -> None:
        asked[model.name] += 1

    events.register("before-call.s3", count)
    try:
        yield asked
    finally:
        events.unregister("before-call.s3", count)


def asked_by(proxy: FaultProxy, scene: Scene, mode: str | None, days: int = 0) -> list[str]:
    """What a backfill asks, but for its look at the archive as a whole."""
    rig = scene.rig(mode, days, scene.open_bucket(lock_mode=mode, endpoint_url=proxy.url))
    rig.windows.retention.keep_archive(rig.chain.head.key_id)
    proxy.seen.clear()
    rig.backfill()
    return list(proxy.seen)


def short_of(
    locks: dict[str, OtherLock], days: int, mode: str = GOVERNANCE, since: datetime = TEN
) -> list[str]:
    """What is not locked in this mode for so long, all calls being of the hour."""
    return [
        key
        for key, (found, until) in sorted(locks.items())
        if found != mode or until is None or until < since + days * DAY
    ]


def only(locks: dict[str, OtherLock], keys: Iterable[str]) -> dict[str, OtherLock]:
    return {key: locks[key] for key in keys}


# --- a longer policy


def test_a_second_backfill_with_more_days_extends_everything(scene):
    scene.platform.add(a_call("one", epa={"state": "Completed"}), a_call("none", audio=None))
    scene.platform.add(a_call("next", TEN + HOUR), a_call("slow", WINDOW.end - MINUTE, seconds=600))
    scene.clock.turn_to(SETTLED + 2 * HOUR)
    scene.rig(GOVERNANCE, SHORT).backfill(hours=3)  # the third window has no call
    first, before = scene.locks(), scene.archive()
    assert short_of(first, SHORT) == []
    assert len(short_of(first, SHORT + 1)) == len(first), "and none is locked for longer"
    scene.rig(GOVERNANCE, LONG).backfill(hours=3)
    longer, look = scene.locks(), scene.archive()
    assert longer.keys() == first.keys(), "nothing is written for it"
    assert look.records == before.records
    assert short_of(longer, LONG) == []
    for document in look.records.values():
        end = parse_time(document["ended_at"])
        assert end is not None
        exactly = (GOVERNANCE, end + LONG * DAY)
        assert {longer[one["key"]] for one in document["files"]} <= {exactly}
        assert longer[document["record"]] == exactly
    slow = parse_time(look.records["slow"]["ended_at"])
    assert slow is not None
    name = layout.SegmentName(TEN, 1)
    for one in (name.jsonl, name.sha256, name.seal, layout.seal_key(1), layout.signature_key(1)):
        until = longer[one][1]
        assert until is not None
        assert until >= slow + LONG * DAY, f"{one} covers a call that ends after its window"
    scene.rig(GOVERNANCE, MIDDLE).backfill(hours=3)
    assert scene.locks() == longer, "nothing is ever shortened"
    scene.audit()


def test_the_same_policy_asks_the_store_for_nothing(scene, weed):
    """And a longer one only once: then a look at the segments tells that all is done."""
    scene.settle(*(a_call(f"vc_{number}") for number in range(5)))
    scene.rig(GOVERNANCE, SHORT).backfill()
    with FaultProxy(weed.endpoint_url) as proxy:
        unlocked, same, longer, again = (
            asked_by(proxy, scene, mode, days)
            for mode, days in (
                (None, 0),
                (GOVERNANCE, SHORT),
                (GOVERNANCE, LONG),
                (GOVERNANCE, LONG),
            )
        )
    assert len(same) == len(unlocked), "no more than without any policy"
    objects = 5 * 3 + 5  # recording, transcript, record; segment, companion, pointer, seal, sig
    assert sum("retention" in line for line in longer) == objects
    assert not any("retention" in line for line in again)
    assert len(again) == len(same) + 1


def test_the_loop_extends_what_it_lists_again(scene):
    scene.settle(a_call("one"))
    scene.service(GOVERNANCE, SHORT).round()
    first = scene.locks()
    mine = [one for one in first if "dt=" in one or "seals/000000000001" in one]
    assert len(mine) == 3 + 3 + 2
    longer = scene.service(GOVERNANCE, LONG)
    scene.clock.turn_to(FIRST - MINUTE)
    longer.round()
    assert only(scene.locks(), mine) == only(first, mine)
    scene.clock.turn_to(FIRST)
    longer.round()
    now = scene.locks()
    assert short_of(only(now, mine), LONG) == []
    assert scene.archive().records["one"]["revision"] == 1
    assert len(lines_of(scene.archive())) == 2
    scene.service(GOVERNANCE, MIDDLE, at=SECOND).round()
    assert only(scene.locks(), now) == now, "nothing is ever shortened"
    scene.audit()


def test_what_was_archived_without_a_lock_gets_one(scene):
    scene.settle(a_call())
    scene.rig(None).backfill()
    assert set(scene.locks().values()) == {(None, None)}
    assert scene.archive().records["vc_1"]["retention"] is None
    scene.rig(GOVERNANCE, SHORT).backfill()
    assert short_of(scene.locks(), SHORT) == []
    scene.rig(None).backfill()
    assert short_of(scene.locks(), SHORT) == []
    scene.audit()


def test_calls_without_any_end_are_reckoned_by_their_window(scene, weed):
    """One has its creation, which no record tells, and one nothing at all."""
    scene.platform.add(a_call("made", TEN + MINUTE, startTime=..., endTime=...))
    scene.settle(a_call("bare", TEN + MINUTE, startTime=None, endTime=None))
    scene.rig(GOVERNANCE, SHORT).backfill()
    with FaultProxy(weed.endpoint_url) as proxy:
        unlocked = asked_by(proxy, scene, None)
        same = asked_by(proxy, scene, GOVERNANCE, SHORT)
    assert len(same) == len(unlocked)
    scene.rig(GOVERNANCE, SHORT + 1).backfill()
    mine = {one: lock for one, lock in scene.locks().items() if "dt=" in one}
    assert short_of(mine, SHORT + 1) == []
    assert len(mine) == 2 * 3 + 3


def test_all_revisions_of_a_call_are_extended(scene):
    scene.settle(a_call())
    scene.service(GOVERNANCE, SHORT).round()
    amend(scene.platform, "vc_1", transcript=TALK)
    scene.service(GOVERNANCE, SHORT, at=FIRST).round()
    look = scene.archive()
    assert look.records["vc_1"]["revision"] == 2
    assert len(look.below("recordings/")) == 3, "the old transcript and the new one"
    scene.rig(GOVERNANCE, LONG).backfill(hours=5)
    assert short_of(scene.locks(), LONG) == []
    # The next revision extends all that stood before by itself.
    amend(scene.platform, "vc_1", transcript=[*TALK, *TALK])
    scene.service(GOVERNANCE, LONG + 5, at=SECOND).round()
    calls = {one: lock for one, lock in scene.locks().items() if not one.startswith("manifest/")}
    assert short_of(calls, LONG + 5) == []
    assert len(calls) == 7
    scene.audit()


class Troubled(Bucket):
    """Something happens just before the first key is written that holds `part`."""

    def __init__(self, real: Bucket, part: str, happen: Callable[[], object]) -> None:
        client = real.client
        super().__init__(real.options, client.clock, client.retry, client=client.s3)
        self._part = part
        self._todo = [happen]

    def put_once(self, key: str, *rest: Any, **options: Any) -> Stored:
        if self._part in key and self._todo:
            self._todo.pop()()
        return super().put_once(key, *rest, **options)


def crash() -> None:
    raise Crash


def test_what_a_crash_left_short_is_extended_by_the_next_touch():
    world = World(SETTLED, TEN, retention=Retention(GOVERNANCE, SHORT))
    world.platform.add(a_call("one"), a_call("two"))
    world.writer("first").backfill(TEN, TEN + HOUR)
    deaths = 0
    for nth in range(1, 17):
        world.retention = Retention(GOVERNANCE, LONG + 2 * nth)
        dying, left = world.writer(f"dying {nth}"), iter(range(nth))

        def die(request: Request, left: Iterator[int] = left, nth: int = nth) -> None:
            is_extension = (request.operation, request.moment) == ("extend", "before")
            if is_extension and next(left) == nth - 1:
                raise Crash

        dying.store.hooks.append(die)
        try:
            dying.backfill(TEN, TEN + HOUR)
        except Crash:
            deaths += 1
            world.writer(f"next {nth}").backfill(TEN, TEN + HOUR)
        kept = [o for o in world.store.objects if not o.key.startswith(layout.SIGHTINGS)]
        locks = {one.key: (one.lock_mode, one.lock_until) for one in kept}
        assert short_of(locks, LONG + 2 * nth) == []
    assert deaths == 4 + 2 * 3 + 5, "of the archive, of the calls, of the window"


def test_an_object_that_is_gone_does_not_stop_the_others(scene, bucket):
    scene.settle(a_call("one"), a_call("two"))
    scene.rig(None).backfill()
    client = bucket.client
    gone = layout.recording_dir(TEN.date(), "one") + "transcript.json"
    for version in list(bucket.versions(gone)):
        client.s3.delete_object(**client.at(gone, version.version_id))
    with capture_logs() as logs:
        scene.rig(GOVERNANCE, SHORT).backfill()
    assert short_of(scene.locks(), SHORT) == []
    told = [line for line in logs if line["event"].startswith("window.")]
    assert [(line["event"], line["objects"]) for line in told] == [
        ("window.locks_extended", 5 + 5),
        ("window.objects_gone", 1),
    ]


def test_what_no_segment_tells_yet_is_extended_before_one_does(scene):
    """Records of a process that ended before it closed the window: also one that is amended now."""
    scene.settle(a_call("one"), a_call("late", audio=None))
    dying = Troubled(scene.bucket(GOVERNANCE), "manifest/segments", crash)
    with pytest.raises(Crash):
        scene.rig(GOVERNANCE, SHORT, dying).backfill()
    scene.platform.add(a_call("late"))
    scene.rig(GOVERNANCE, LONG).backfill()
    assert {one: found["revision"] for one, found in scene.archive().records.items()} == {
        "one": 1,
        "late": 2,
    }
    assert short_of(scene.locks(), LONG) == []
    scene.audit()


def test_a_shorter_policy_keeps_what_tells_of_a_longer_promise(scene):
    scene.platform.add(a_call())
    scene.service(GOVERNANCE, LONG).round()  # the window is open yet
    scene.service(GOVERNANCE, SHORT, at=SETTLED).round()
    mine = [one for one in scene.locks() if "dt=" in one or "seals/000000000001" in one]
    assert len(mine) == 3 + 3 + 2
    assert short_of(only(scene.locks(), mine), LONG) == []
    scene.audit()


def test_a_seal_of_many_windows_is_extended_once_by_many_threads(scene, bucket):
    """To the latest date of all windows that it covers: whichever comes first, and no store has to
    choose between dates."""
    count = 8
    scene.platform.add(*(a_call(f"vc_{number}", TEN + number * HOUR) for number in range(count)))
    scene.clock.turn_to(SETTLED + count * HOUR)
    windows = list(windows_between(TEN, TEN + count * HOUR, HOUR))
    rig = scene.rig(GOVERNANCE, SHORT)
    outcomes = [rig.windows.process(window, Purpose.BACKFILL) for window in windows]
    Backfill(rig.windows, rig.chain, rig.segments).seal(outcomes, None)
    for days in (LONG, LONG + 5):
        longer = scene.rig(GOVERNANCE, days)
        longer.windows.retention.keep_archive(rig.chain.head.key_id)
        with counted(bucket) as asked:
            Backfill(longer.windows, longer.chain, longer.segments, at_once=8).run(windows)
        assert asked["PutObjectRetention"] == 2 + (3 + 3) * count
        now, last = scene.locks(), TEN + (count - 1) * HOUR
        assert short_of(now, days) == []
        both = only(now, (layout.seal_key(1), layout.signature_key(1)))
        assert short_of(both, days, since=last) == []


# --- what tells of legal holds


def put_act(rig: Rig, action: Action, call_id: str) -> list[str]:
    """An act on the ledger, as the rig's policy locks it; the keys of all that tells of it."""
    at, bucket = rig.clock.now(), rig.bucket
    until = rig.retention.until(at)
    key, data = event.segment([HoldEvent(action, call_id, "J. Doe", "Case 1", at, ())])
    bucket.put_once(key, data, retain_until=until)
    checksum_list = event.checksum_list(key, data)
    bucket.put_once(layout.checksum_list_key(key), checksum_list, retain_until=until)
    entry = seal.segment_entry(key, io.BytesIO(data), window_lines=0)
    rig.chain.append([UnsealedSegment(entry, until)])
    own = rig.chain.head.seq
    beside = [layout.checksum_list_key(key), layout.seal_pointer_key(key)]
    return [key, *beside, layout.seal_key(own), layout.signature_key(own)]


def test_what_tells_of_a_hold_is_kept_longer_too(scene, bucket):
    scene.settle(a_call("held"), a_call("free"))
    rig = scene.rig(GOVERNANCE, SHORT)
    rig.backfill()
    begun = scene.clock.now()
    stands, ended = put_act(rig, "add", "held"), put_act(rig, "add", "free")
    removed = put_act(rig, "remove", "free")
    scene.rig(GOVERNANCE, LONG).backfill()
    before = scene.locks()
    for one in (stands, ended, removed):
        assert short_of(only(before, one), LONG, since=begun) == []
    scene.rig(GOVERNANCE, MIDDLE).backfill()
    assert scene.locks() == before, "nothing is ever shortened"
    # A hold outlasts any retention, and what tells of it does not end before it.
    scene.clock.forward(40 * DAY)
    with capture_logs() as logs:
        scene.rig(GOVERNANCE, LONG).backfill()
    now = scene.locks()
    assert short_of(only(now, stands), LONG, since=scene.clock.now()) == []
    assert only(now, ended + removed) == only(before, ended + removed)
    assert [one["objects"] for one in logs if one["event"] == "holds.locks_extended"] == [5]
    with counted(bucket) as asked:
        scene.rig(GOVERNANCE, LONG).backfill()
    assert asked["PutObjectRetention"] == 0


# --- another mode


def test_a_stricter_mode_stops_nothing_and_holds_for_what_is_new(scene):
    """The store does not change the mode of a lock that holds: what is there stays in GOVERNANCE,
    for longer; a record that names something of it promises no more."""
    scene.settle(a_call("one"), a_call("two"))
    scene.service(GOVERNANCE, SHORT).round()
    old = scene.locks()
    amend(scene.platform, "one", transcript=TALK)
    scene.platform.add(a_call("late"))
    scene.clock.turn_to(FIRST)
    with capture_logs() as logs:
        scene.service(COMPLIANCE, LONG).round()
    now, records = scene.locks(), scene.archive().records
    assert {one["event"] for one in logs if one["log_level"] in ("warning", "error")} == {
        "lock.mode_stays"
    }
    assert [one["event"] for one in logs].count("lock.mode_stays") == 1
    for one in (old.keys() & now.keys()) - {layout.PROBE}:
        if "seals/000000000000" not in one:
            assert now[one][0] == GOVERNANCE, one
            assert short_of({one: now[one]}, LONG) == []
    for one in now.keys() - old.keys():
        assert now[one][0] == COMPLIANCE, one
    promised = {name: found["retention"]["mode"] for name, found in records.items()}
    assert promised == {"one": GOVERNANCE, "two": GOVERNANCE, "late": COMPLIANCE}
    assert files_of(records["one"])["transcript"]["key"] not in old
    scene.rig(COMPLIANCE, LONG + 1).backfill()
    assert (
        short_of(
            {one: lock for one, lock in scene.locks().items() if lock[0] == GOVERNANCE}, LONG + 1
        )
        == []
    )
    scene.audit()


def test_a_laxer_mode_weakens_nothing(scene):
    scene.settle(a_call("one"))
    scene.service(COMPLIANCE, SHORT).round()
    old = scene.locks()
    amend(scene.platform, "one", transcript=TALK)
    scene.clock.turn_to(FIRST)
    with capture_logs() as logs:
        scene.service(GOVERNANCE, LONG).round()
    assert {line["log_level"] for line in logs} == {"info"}
    now = scene.locks()
    assert short_of(only(now, old), LONG, COMPLIANCE) == []
    assert scene.archive().records["one"]["retention"]["mode"] == GOVERNANCE
    scene.audit()


# --- the archive as a whole


def test_the_key_is_kept_for_longer_than_the_seals_that_it_checks(scene, bucket):
    scene.settle(a_call())
    rig = scene.rig(GOVERNANCE, SHORT)
    rig.backfill()
    begun = scene.clock.now()
    scene.clock.forward(12 * HOUR)
    with counted(bucket) as asked:
        scene.rig(GOVERNANCE, SHORT).backfill()
    assert asked["PutObjectRetention"] == 0, "half a day is not worth it"
    scene.clock.turn_to(begun + 40 * DAY)
    rig.backfill()  # the same process, weeks later
    whole = [layout.seal_key(0), layout.signature_key(0), layout.VERIFY_PAGE]
    whole.append(layout.public_key_key(rig.chain.head.key_id))
    assert set(only(scene.locks(), whole).values()) == {
        (GOVERNANCE, scene.clock.now() + SHORT * DAY)
    }


# --- what is new of a held call


def test_a_new_revision_of_a_held_call_is_born_held(scene, bucket):
    scene.settle(a_call("held"), a_call("free"))
    scene.service(None).round()
    for one in scene.archive().below("", ""):
        if "/held/" in one:
            bucket.set_hold(one, None, True)
    for name in ("held", "free"):
        amend(scene.platform, name, transcript=TALK)
    scene.clock.turn_to(FIRST)
    with counted(bucket) as asked:
        scene.service(None).round()
    assert asked["PutObjectLegalHold"] == 1, "its transcript; the record was born held"
    look = scene.archive()
    assert {found["revision"] for found in look.records.values()} == {2}
    held = {one for one in look.keys if (head := bucket.head(one)) and head.held}
    assert held == {one for one in look.keys if "/held/" in one}
    assert len(held) == 2 + 3


def test_a_hold_that_comes_while_a_revision_is_written_is_seen(scene, bucket, rig):
    scene.settle(a_call())
    scene.service(None).round()
    amend(scene.platform, "vc_1", transcript=TALK)
    scene.clock.turn_to(FIRST)
    first = scene.archive().records["vc_1"]["record"]
    meanwhile = partial(bucket.set_hold, first, None, True)
    troubled = Troubled(bucket, "/r2.json", meanwhile)
    another(lambda **rest: rig(troubled, **rest)).round()
    record = scene.archive().records["vc_1"]
    assert record["revision"] == 2
    new = [record["record"], files_of(record)["transcript"]["key"]]
    assert [head.held for one in new if (head := bucket.head(one))] == [True, True]
