"""What the ledger calls held, the archiver holds: new objects are born held, and what a crash left
without its hold gets it at the next touch. The acts are sealed here by hand, as `hold` seals them.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from archiver.core.errors import StoreError
from archiver.core.model import Retention
from archiver.manifest import event, layout, seal
from archiver.manifest.event import Action, HoldEvent
from archiver.pipeline.bucket_state import UnsealedSegment
from archiver.pipeline.chain import Chain
from archiver.pipeline.hold_enforcement import HeldCalls
from tests.fakes.clock import HandClock
from tests.fakes.memory_rig import HOUR, Crash, World
from tests.fakes.memory_store import MemoryStore, Request
from tests.fakes.population import TEN, a_call, stamp

pytestmark = pytest.mark.usefixtures("any_order")

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SETTLED = TEN + 3 * HOUR
FIRST, SECOND = TEN + 4 * HOUR, TEN + 7 * HOUR
BY, WHY = "J. Doe", "Case 1"


@dataclass
class Officer:
    """Puts acts on the ledger: nothing but the acts."""

    world: World
    minutes: int = 0

    def writes(self, action: Action, *call_ids: str) -> UnsealedSegment:
        """A segment and its companion, without a seal."""
        self.minutes += 1
        at, store = SETTLED + self.minutes * MINUTE, self.store
        key, data = event.segment(HoldEvent(action, i, BY, WHY, at, ()) for i in call_ids)
        store.put_once(key, data)
        store.put_once(layout.checksum_list_key(key), event.checksum_list(key, data))
        return UnsealedSegment(seal.segment_entry(key, io.BytesIO(data), window_lines=0), None)

    def seals(self, *entries: UnsealedSegment) -> None:
        chain = Chain(self.store, self.world.key, self.world.clock, Retention())
        assert chain.open()
        chain.append(entries)

    def act(self, action: Action, *call_ids: str) -> str:
        """An act on the ledger; the segment's key."""
        entry = self.writes(action, *call_ids)
        self.seals(entry)
        return entry.entry.key

    def hold(self, call_id: str) -> None:
        """As `hold add` does it: all that the call has by now, then the ledger."""
        for one in self.world.store.objects:
            if f"/{call_id}/" in one.key:
                self.store.set_hold(one.key, one.version_id, True)
        self.act("add", call_id)

    @property
    def store(self) -> MemoryStore:
        return self.world.store.by("officer")


@pytest.fixture
def world() -> Iterator[World]:
    """Three calls, sealed."""
    made = World(SETTLED, TEN)
    made.platform.add(a_call("vc_1", epa={"score": 1}), a_call("vc_2"), a_call("vc_3"))
    made.writer("first").backfill(TEN, TEN + HOUR)
    yield made
    made.finish()


@pytest.fixture
def officer(world: World) -> Officer:
    return Officer(world)


def amend(world: World, call_id: str) -> None:
    call = world.platform.find(call_id)
    assert call is not None
    text = f"I said something else, {world.tick()}"
    call.document["transcript"] = [{"role": "user", "text": text, "timestamp": stamp(TEN)}]


def loose(world: World, call_id: str) -> list[str]:
    """The objects of a call that no hold is on."""
    return [one.key for one in world.store.objects if f"/{call_id}/" in one.key and not one.held]


def held(world: World) -> set[str]:
    """The calls of which anything is held."""
    return {one.key.split("/")[2] for one in world.store.objects if one.held}


def knowledge(world: World, **options: object) -> HeldCalls:
    return HeldCalls(world.store.by("reader"), world.clock)


# --- what is new, and what a crash left


def test_a_hold_that_a_crash_lost_is_set_at_the_next_touch(world, officer):
    """The writer has looked at the call, finds no hold; the hold comes; the writer writes the next
    revision and dies before it looks again."""
    amend(world, "vc_1")
    world.clock.turn_to(FIRST)
    dying = world.writer("dying")

    def meanwhile(request: Request) -> None:
        if not request.key.endswith("vc_1/r2.json") or request.operation != "put":
            return
        if request.moment == "before":
            officer.hold("vc_1")
        else:
            dying.kill()
            raise Crash

    dying.store.hooks.append(meanwhile)
    with pytest.raises(Crash):
        dying.round()
    assert loose(world, "vc_1") == ["records/dt=2024-01-15/vc_1/r2.json"]
    with capture_logs() as logs:
        world.writer("next").backfill(TEN, TEN + HOUR)
    assert loose(world, "vc_1") == []
    assert held(world) == {"vc_1"}
    told = [one for one in logs if one["event"] == "window.holds_set"]
    assert [(one["objects"], one["log_level"]) for one in told] == [(1, "warning")]
    with capture_logs() as logs:
        world.writer("last").backfill(TEN, TEN + HOUR)
    assert "window.holds_set" not in {one["event"] for one in logs}


def test_a_hold_that_somebody_took_off_beside_the_ledger_is_set_again(world, officer):
    amend(world, "vc_1")
    world.clock.turn_to(FIRST)
    world.writer("second").round()
    officer.hold("vc_1")
    for one in world.store.objects:
        officer.store.set_hold(one.key, one.version_id, False)
    world.clock.turn_to(SECOND)
    world.writer("loop").round()
    assert loose(world, "vc_1") == []
    assert held(world) == {"vc_1"}, "all of both revisions, and of no other call"


@pytest.mark.parametrize("part_bytes", [8 << 20, 4 << 10])
def test_a_held_call_that_moves_to_another_day_is_born_held_there(world, officer, part_bytes):
    officer.hold("vc_1")
    call = world.platform.find("vc_1")
    assert call is not None
    later = TEN + DAY
    call.document |= {"startTime": stamp(later), "endTime": stamp(later + MINUTE)}
    world.clock.turn_to(later + HOUR)  # not settled: so nothing is looked at again
    writer = world.writer("second", part_bytes)
    asked = Counter[str]()
    writer.store.hooks.append(lambda one: asked.update([f"{one.operation} {one.moment}"]))
    writer.backfill(later, later + HOUR)
    day = [one.key for one in world.store.objects if "dt=2024-01-16/vc_1/" in one.key]
    assert len(day) == 4
    assert loose(world, "vc_1") == []
    assert asked["hold after"] == (part_bytes < 8 << 20), "only what came in parts is held after"


def test_what_another_writer_was_faster_with_is_held(world, officer):
    """Adopted: the files, being the same, and the record, which is the other's. The window has not
    settled, so nothing is looked at again."""
    officer.act("add", "vc_4")
    start = TEN + 2 * HOUR
    world.platform.add(a_call("vc_4", start))
    unaware, writer = world.writer("unaware"), world.writer("second")

    def rival(request: Request) -> None:
        if request.operation == "put" and request.key.endswith("vc_4/r1.json"):
            writer.store.hooks.remove(rival)
            world.clock.forward(MINUTE)
            unaware.backfill(start, start + HOUR)
            for one in world.store.objects:
                if "/vc_4/" in one.key:
                    officer.store.set_hold(one.key, one.version_id, False)

    writer.store.hooks.append(rival)
    writer.backfill(start, start + HOUR)
    assert len([one for one in world.store.keys if "/vc_4/" in one]) == 3
    assert loose(world, "vc_4") == []


def test_a_call_that_is_released_is_not_held_again(world, officer):
    """Nor is one whose removal came only after the backfill had begun."""
    officer.hold("vc_1")
    officer.hold("vc_2")
    officer.act("remove", "vc_1")
    for one in world.store.objects:
        officer.store.set_hold(one.key, one.version_id, False)
    writer = world.writer("second")

    def meanwhile(request: Request) -> None:
        if request.operation == "head" and "/vc_2/" in request.key:
            writer.store.hooks.remove(meanwhile)
            officer.act("remove", "vc_2")

    writer.store.hooks.append(meanwhile)
    writer.backfill(TEN, TEN + HOUR)
    assert held(world) == set()


# --- what the ledger tells


def test_the_newest_act_in_the_chain_counts_and_not_its_time(world, officer):
    first, second = officer.writes("add", "vc_1", "vc_2"), officer.writes("remove", "vc_1")
    officer.seals(second)
    officer.seals(first)
    assert knowledge(world).ids() == {"vc_1", "vc_2"}
    officer.act("remove", "vc_2")
    assert knowledge(world).ids() == {"vc_1"}


def test_what_is_not_sealed_counts_where_it_adds(world, officer):
    officer.act("add", "vc_1")
    officer.writes("remove", "vc_1")
    officer.writes("add", "vc_2")
    known = knowledge(world)
    assert known.ids() == {"vc_1", "vc_2"}
    officer.act("remove", "vc_2")
    assert known.is_held("vc_2"), "as of a moment ago"
    known.refresh()
    assert known.ids() == {"vc_1"}, "a removal that came after it, and was sealed"


def test_an_archive_without_holds_pays_one_listing(world):
    writer = world.writer("second")
    asked = Counter[str]()
    writer.store.hooks.append(
        lambda one: asked.update([one.operation] if "/events/" in one.key else [])
    )
    writer.backfill(TEN, TEN + 3 * HOUR)
    assert asked == {"list": 2}, "before and after"


def test_a_segment_is_read_once_and_its_pointer_when_it_comes(world, officer):
    sealed = officer.act("add", "vc_1")
    waiting = officer.writes("add", "vc_2")
    store = world.store.by("reader")
    asked = Counter[str]()
    store.hooks.append(
        lambda one: asked.update(
            [one.key] if (one.operation, one.moment) == ("get", "after") else []
        )
    )
    known = HeldCalls(store, world.clock)
    for _ in range(3):
        known.refresh()
    officer.seals(waiting)
    for _ in range(3):
        known.refresh()
    keys = [sealed, waiting.entry.key]
    assert asked == Counter([*keys, *map(layout.seal_pointer_key, keys)])


@pytest.mark.parametrize("data", [b"{}\n", b"", b"no json", b'{"type":"hold"}\n'])
def test_damage_stops_nothing_and_what_was_known_stays(world, officer, data):
    officer.act("add", "vc_1")
    good = knowledge(world)
    assert good.ids() == {"vc_1"}
    key = layout.event_key(SETTLED + HOUR, "0123abcd")
    world.store.by("stranger").put_once(key, data or b" ")
    with capture_logs() as logs:
        for _ in range(3):
            good.refresh()
        assert good.ids() == {"vc_1"}
        world.writer("second").backfill(TEN, TEN + HOUR)
    assert loose(world, "vc_1") == []
    told = [one for one in logs if one["event"] == "holds.unreadable"]
    assert [one["key"] for one in told] == [key, key], "once by each process"


def test_a_store_that_is_out_is_no_damage(world, officer):
    officer.act("add", "vc_1")
    store = world.store.by("reader")

    def out(request: Request) -> None:
        if request.operation == "get":
            raise StoreError("the store is out", retryable=True)

    store.hooks.append(out)
    with pytest.raises(StoreError):
        HeldCalls(store, HandClock()).ids()
