"""What was listed is written down before it is worked at: whoever ends then, a later process knows
of each call, though the source lists it no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from archiver.core.errors import Reach, SourceError, StoreError
from archiver.core.model import Window
from archiver.manifest import layout, sighting
from archiver.pipeline.bucket_state import RecordIndex
from archiver.pipeline.recording import random_tag
from archiver.pipeline.sightings import Sightings
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_rig import HOUR, Crash, SerialWorkers, Times, World, Writer
from tests.fakes.memory_store import MemoryStore
from tests.fakes.memory_store import Request as Asked
from tests.fakes.population import TEN, a_call, stamp
from tests.model.ledger import Ledger

MINUTE = timedelta(minutes=1)
WINDOW = Window(TEN, TEN + HOUR)
SETTLED = TEN + 3 * HOUR + MINUTE
AGE = TEN + 9 * HOUR
TIMES = Times(relist=(8 * HOUR,), give_up=24 * HOUR)


@pytest.fixture
def world() -> Iterator[World]:
    made = World(TEN + 30 * MINUTE, TEN, TIMES)
    yield made
    made.finish()


def ledger_of(world: World) -> Ledger:
    return Ledger(world.store.objects, world.key.public)


def sightings(world: World) -> list[str]:
    return [key for key in world.store.keys if key.startswith("manifest/sightings/")]


def dies_at_the_first_call(world: World, writer: Writer) -> None:
    """Killed between listing and archiving: at the first request for a call."""

    def hook(request: Request) -> Reply | None:
        if "/voice-calls/" in request.path and not writer.died:
            writer.kill()
            raise Crash("killed before the first call")
        return None

    world.platform.hooks.append(hook)


def killed_in_a_round(world: World, writer: Writer) -> None:
    dies_at_the_first_call(world, writer)
    with pytest.raises(Crash):
        writer.round()


def hide(world: World, *call_ids: str, gone: bool = False) -> None:
    """Not listed any more; where they are not `gone`, they can still be had by their ids."""
    (world.platform.gone if gone else world.platform.hidden).update(call_ids)


def rounds(world: World, writer: Writer, until: Any, minutes: int = 20) -> None:
    while world.clock.now() < until:
        writer.round_after(timedelta(minutes=minutes))


@pytest.mark.parametrize("gone", [False, True])
def test_calls_of_an_open_window_that_were_listed_only_before_a_kill(world, gone):
    world.platform.add(*(a_call(f"vc_{n}", TEN + n * MINUTE) for n in range(3)))
    killed_in_a_round(world, world.writer("one"))
    hide(world, "vc_0", "vc_1", "vc_2", gone=gone)
    rounds(world, world.writer("two"), SETTLED)
    found = ledger_of(world)
    assert (found.pending if gone else found.recorded) == {"vc_0", "vc_1", "vc_2"}
    [line] = [window.newest.line for window in found.windows if window.start == TEN]
    assert line["pending"] == (["vc_0", "vc_1", "vc_2"] if gone else [])
    assert line["vanished"] == ([] if gone else ["vc_0", "vc_1", "vc_2"])


@pytest.mark.parametrize("gone", [False, True])
def test_a_late_call_of_a_sealed_window_that_was_listed_only_before_a_kill(world, gone):
    one = world.writer("one")
    world.platform.add(a_call("vc_1"))
    rounds(world, one, SETTLED)
    world.platform.add(a_call("late", TEN + MINUTE))
    world.clock.turn_to(AGE + 2 * MINUTE)
    killed_in_a_round(world, one)
    hide(world, "late", gone=gone)
    two = world.writer("two")
    two.round()
    two.round()
    found = ledger_of(world)
    assert "late" in (found.pending if gone else found.recorded)


def test_a_late_call_that_another_window_showed_before_a_kill(world):
    """A source that reads only the date lists it beside the calls of the newest window."""
    world.platform.options.whole_days = True
    one = world.writer("one")
    world.platform.add(a_call("vc_1"))
    rounds(world, one, SETTLED)
    world.platform.add(a_call("late", TEN + MINUTE), a_call("new", world.clock.now()))
    killed_in_a_round(world, one)
    hide(world, "late")
    two = world.writer("two")
    two.round()
    two.round()
    found = ledger_of(world)
    assert "late" in found.recorded
    assert [w.start for w in found.windows if "late" in w.newest.records] == [TEN]


def shown_before_it_goes_out(world: World, window: Window, run: Callable[[], object]) -> set[str]:
    """The calls that the source has shown when it goes out, at this window's second page."""
    since: list[Request] = []

    def out(request: Request) -> Reply | None:
        query = request.query
        if query.get("dateFrom") == stamp(window.start) and query.get("page") == "2":
            since.append(request)
        return Reply(0) if since else None

    world.platform.options.page_size_cap = 2
    world.platform.hooks.append(out)
    with pytest.raises(SourceError):
        run()
    world.platform.hooks.remove(out)
    return set(world.platform.listed)


def test_what_a_listing_showed_that_was_cut_short_and_a_restart(world):
    world.platform.add(*(a_call(f"vc_{n}", TEN + n * MINUTE) for n in range(3)))
    shown = shown_before_it_goes_out(world, WINDOW, world.writer("one").round)
    assert len(shown) == 2
    hide(world, *shown, gone=True)
    rounds(world, world.writer("two"), SETTLED)
    assert shown <= ledger_of(world).pending


def test_what_a_glance_at_another_window_showed_that_was_cut_short(world):
    """A call at the window's end is listed here too. So the next window is looked at, and the
    source is out from its second page on."""
    world.platform.options.inclusive_end = True
    world.platform.add(*(a_call(f"vc_{n}", WINDOW.end + n * MINUTE) for n in range(4)))
    world.clock.turn_to(WINDOW.end + 30 * MINUTE)
    beside = Window(WINDOW.end, WINDOW.end + HOUR)
    one = world.writer("one")
    shown = shown_before_it_goes_out(world, beside, partial(one.backfill, WINDOW.start, WINDOW.end))
    assert shown == {"vc_0", "vc_2", "vc_3"}
    hide(world, *shown, gone=True)
    rounds(world, world.writer("two"), SETTLED + HOUR)
    told = [w.newest.line["pending"] for w in ledger_of(world).windows]
    assert told == [["vc_0"], ["vc_2", "vc_3"]], "by the window where each was seen"


def recalled_while_the_source_goes_out(world: World) -> tuple[Writer, set[str]]:
    """A process archived a call and ended before a segment told of it; nor does a sighting, and the
    source hides it. The next process looks for it beside the window, and the source is out from the
    second page on. That process, and the calls that it was shown."""
    world.platform.add(a_call("vc_told", TEN + MINUTE))
    one = world.writer("one")
    one.store.refuse("put", "/sightings/")
    one.round()
    hide(world, "vc_told")
    world.platform.add(*(a_call(f"vc_{n}", TEN - HOUR + n * MINUTE) for n in range(4)))
    world.platform.listed.clear()
    two = world.writer("two")
    before = Window(TEN - HOUR, TEN)
    run = partial(two.backfill, WINDOW.start, WINDOW.end)
    return two, shown_before_it_goes_out(world, before, run)


def test_what_a_glance_for_a_recalled_call_showed_that_was_cut_short(world):
    _, shown = recalled_while_the_source_goes_out(world)
    assert len(shown) == 2
    hide(world, *shown, gone=True)
    world.clock.turn_to(SETTLED)
    world.writer("three").backfill(TEN - HOUR, TEN)
    assert shown <= ledger_of(world).pending


def test_a_recalled_call_is_told_of_by_the_process_whose_glance_was_cut_short(world):
    two, _ = recalled_while_the_source_goes_out(world)
    rounds(world, two, SETTLED)
    [window] = [window for window in ledger_of(world).windows if window.start == TEN]
    assert window.newest.records.keys() == {"vc_told"}


def test_a_second_loop_that_ends_right_after_the_first_one_closed_the_window(world):
    """The window is sealed by then, and the process that saw the call is no more."""
    one, two = world.writer("one"), world.writer("two")
    two.round()
    rounds(world, one, SETTLED)
    world.platform.add(a_call("late", TEN + MINUTE))
    two.segments.forget()
    dies_at_the_first_call(world, two)
    with pytest.raises(Crash):
        two.backfill(TEN, TEN + HOUR)
    hide(world, "late", gone=True)
    rounds(world, one, SETTLED + 90 * MINUTE)
    assert "late" in ledger_of(world).pending


def test_who_closes_a_window_asks_for_what_others_have_written_down_meanwhile(world):
    one, two = world.writer("one"), world.writer("two")
    world.platform.add(a_call("vc_1"))
    one.round()
    world.platform.add(a_call("late", TEN + MINUTE))
    killed_in_a_round(world, two)
    hide(world, "late", gone=True)
    one.round_at(SETTLED)
    [window] = [window for window in ledger_of(world).windows if window.start == TEN]
    assert [each.pending for each in window.revisions] == [["late"]]


# --- the objects


@pytest.fixture
def clock() -> HandClock:
    return HandClock(TEN)


@pytest.fixture
def store(clock: HandClock) -> MemoryStore:
    return MemoryStore(clock, rules=False)


def opened(store: MemoryStore, clock: HandClock, *tags: str) -> Sightings:
    given = iter(tags)
    tag = (lambda: next(given)) if tags else random_tag
    records = RecordIndex(store)  # type: ignore[arg-type]
    return Sightings(store, records, SerialWorkers(), clock, tag)  # type: ignore[arg-type]


def add_ids(sightings: Sightings, call_ids: list[str]) -> None:
    sightings.keep(WINDOW, call_ids)
    sightings.write()


def test_an_id_is_written_down_once(store, clock):
    one = opened(store, clock)
    add_ids(one, ["vc_2", "vc_1"])
    add_ids(one, ["vc_1"])
    add_ids(one, ["vc_1", "vc_3"])
    other = opened(store, clock)
    add_ids(other, ["vc_1", "vc_3"])
    add_ids(other, [])
    assert other.read(WINDOW).ids == {"vc_1", "vc_2", "vc_3"}
    bodies = [json.loads(made.data) for made in store.objects]
    assert [body["ids"] for body in bodies] == [["vc_1", "vc_2"], ["vc_3"]]
    assert all(made.lock_until is None and not made.held for made in store.objects)


def test_each_object_is_read_once_and_what_others_add_when_asked_to_reload(store, clock):
    reading = store.by("other")
    one, other = opened(store, clock), opened(reading, clock)
    add_ids(one, ["vc_1"])
    asked: list[str] = []
    reading.hooks.append(lambda r: asked.append(r.operation) if r.moment == "before" else None)
    for _ in range(3):
        assert other.read(WINDOW).ids == {"vc_1"}
    assert asked == ["list", "get"]
    add_ids(one, ["vc_2"])
    assert other.read(WINDOW).ids == {"vc_1"}
    assert other.read(WINDOW, reload=True).ids == {"vc_1", "vc_2"}
    assert asked == ["list", "get", "list", "get"]


def test_a_taken_key_takes_another_tag(store, clock):
    tags = [f"{n:016x}" for n in range(2)]
    add_ids(opened(store, clock, tags[0]), ["vc_1"])
    add_ids(opened(store, clock, *tags), ["vc_2"])
    assert [key.rpartition("-")[2] for key in store.keys] == [f"{tag}.json" for tag in tags]


NEWER = sighting.build(WINDOW, TEN, ["vc_9"]).replace(b'"v":1', b'"v":2')
ELSEWHERE = sighting.build(Window(TEN + HOUR, TEN + 2 * HOUR), TEN, ["vc_9"])


@pytest.mark.parametrize("data", [b"\x00", b"{}\n", b'{"v":1}\n', NEWER, ELSEWHERE])
def test_one_that_cannot_be_read_is_told_once_and_stops_nothing(store, clock, data):
    store.put_once(layout.sighting_key(TEN, "f" * 16), data)
    store.put_once("manifest/sightings/dt=2024-01-15/1000-none", b"foreign")
    add_ids(opened(store, clock), ["vc_1"])
    sightings = opened(store, clock)
    with capture_logs() as logs:
        for reload in (False, True, True):
            assert sightings.read(WINDOW, reload=reload).ids == {"vc_1"}
    assert [line["event"] for line in logs] == ["sighting.unreadable"]
    assert logs[0]["log_level"] == "error"


def test_an_object_that_the_store_does_not_hand_out_is_passed_over(store, clock):
    add_ids(opened(store, clock), ["vc_1"])
    add_ids(opened(store, clock), ["vc_2"])

    def refuse(request: Asked) -> None:
        if request.operation == "get" and request.key == store.keys[0]:
            raise StoreError("refused", reach=Reach.ITEM)

    store.hooks.append(refuse)
    with capture_logs() as logs:
        assert len(opened(store, clock).read(WINDOW).ids) == 1
    assert [line["event"] for line in logs] == ["sighting.unreadable"]


def test_what_the_store_refuses_to_take_is_kept_in_memory(store, clock):
    sightings = opened(store, clock)
    reach = [Reach.STORE, Reach.ITEM]

    def refuse(request: Asked) -> None:
        if request.writes and request.moment == "before" and reach:
            raise StoreError("refused", reach=reach.pop(0))

    store.hooks.append(refuse)
    with pytest.raises(StoreError):
        add_ids(sightings, ["vc_1"])
    with capture_logs() as logs:
        add_ids(sightings, ["vc_2"])
    assert [line["event"] for line in logs] == ["sighting.refused"]
    assert sightings.read(WINDOW).ids == {"vc_1", "vc_2"}
    assert sightings.unaccounted == {WINDOW}
    assert store.keys == []
    sightings.write()
    assert opened(store, clock).read(WINDOW).ids == {"vc_1", "vc_2"}


def test_a_window_is_accounted_for_once_it_is_closed_but_not_for_what_came_since(store, clock):
    sightings = opened(store, clock)
    add_ids(sightings, ["vc_1"])
    seen = sightings.read(WINDOW)
    add_ids(sightings, ["late"])
    sightings.closed(WINDOW, seen, pending=False)
    assert sightings.unaccounted == {WINDOW}
    sightings.closed(WINDOW, sightings.read(WINDOW), pending=False)
    assert sightings.unaccounted == set()


def test_windows_that_nobody_asks_for_are_forgotten(store, clock, monkeypatch):
    monkeypatch.setattr("archiver.pipeline.sightings.REMEMBERED_WINDOWS", 4)
    made = opened(store, clock)
    windows = [Window(TEN + n * HOUR, TEN + (n + 1) * HOUR) for n in range(9)]
    for window in windows:
        made.read(window)
    asked: list[str] = []
    store.hooks.append(lambda r: asked.append(r.operation) if r.moment == "before" else None)
    made.read(windows[-4])
    assert asked == []
    made.read(windows[0])
    assert asked == ["list"]


def test_of_a_sealed_windows_sightings_only_the_newest_are_read_by_a_process_that_starts(world):
    one = world.writer("one")
    world.platform.add(a_call("vc_1"))
    rounds(world, one, SETTLED)
    assert len(sightings(world)) == 1
    asked: list[str] = []
    two = world.writer("two")
    two.store.hooks.append(lambda r: asked.append(r.key) if r.operation == "get" else None)
    two.round()
    assert not [key for key in asked if key.startswith(layout.SIGHTINGS)]
