"""A window looks at the windows beside it. What is bad there for ever keeps it from nothing: where
its own listing is complete, its calls are archived and it is sealed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from archiver.core.model import Window
from archiver.manifest import layout
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_rig import HOUR, World
from tests.fakes.population import TEN, a_call, stamp
from tests.model.ledger import Ledger

MINUTE = timedelta(minutes=1)
MIDNIGHT = TEN + 14 * HOUR
LAST = Window(MIDNIGHT - HOUR, MIDNIGHT)
SETTLED = MIDNIGHT + 6 * HOUR
FIRST = Window(MIDNIGHT, MIDNIGHT + HOUR)
BAD = {
    "500": Reply(500, {}, b""),
    "400": Reply(400, {}, b"{}"),
    "401": Reply(401, {}, b"{}"),
    "403": Reply(403, {}, b"{}"),
    "html": Reply(200, {}, b"<html>"),
    "silent": Reply(200, {}, b"[]", close_after=-1),
    "unconnected": Reply(0),
}


@pytest.fixture
def world() -> World:
    """Both sides of midnight. The source lists a call at a window's end there, too."""
    made = World(MIDNIGHT, MIDNIGHT - 2 * HOUR)
    made.platform.options.inclusive_end = True
    made.platform.add(
        a_call("before", MIDNIGHT - 30 * MINUTE),
        a_call("edge", MIDNIGHT),
        a_call("after", MIDNIGHT + 30 * MINUTE),
    )
    return made


def bad_listing(world: World, start: datetime, reply: Reply) -> Callable[[Request], Reply | None]:
    def hook(request: Request) -> Reply | None:
        return reply if request.query.get("dateFrom") == stamp(start) else None

    world.platform.hooks.append(hook)
    return hook


def sealed(world: World) -> dict[datetime, set[str]]:
    """The sealed windows, by their starts, with the calls that they tell of."""
    found = Ledger(world.store.objects, world.key.public)
    return {window.start: set(window.newest.records) for window in found.windows}


def recalled(world: World, call_id: str) -> None:
    """A process archives a call and ends before any segment tells of it; the source lists it no
    more."""
    world.platform.add(a_call(call_id, world.clock.now() - 20 * MINUTE))
    one = world.writer("earlier")
    one.store.refuse("put", "/sightings/")
    one.round()
    world.platform.hidden.add(call_id)
    world.clock.turn_to(SETTLED)


@pytest.mark.parametrize("bad", BAD)
def test_a_neighbour_that_lists_badly_for_ever(world, bad):
    world.clock.turn_to(SETTLED)
    hook = bad_listing(world, FIRST.start, BAD[bad])
    writer = world.writer("a")
    writer.round()
    assert sealed(world)[LAST.start] == {"before", "edge"}
    assert FIRST.start not in sealed(world)
    world.platform.hooks.remove(hook)
    writer.round_after(HOUR)
    assert sealed(world)[FIRST.start] >= {"after"}
    assert {one.code for one in world.complaints("bytes")} <= {"call_in_two_windows"}


@pytest.mark.parametrize("bad", BAD)
def test_neighbours_that_list_badly_while_a_recalled_call_is_looked_for(world, bad):
    recalled(world, "told")
    for start in (LAST.start - HOUR, FIRST.start):
        bad_listing(world, start, BAD[bad])
    world.writer("a").backfill(LAST.start, LAST.end)
    assert sealed(world) == {LAST.start: {"before", "edge", "told"}}


def test_a_neighbours_day_that_the_store_does_not_list(world):
    """What is written down for the neighbour needs to know which calls have a record there."""
    world.clock.turn_to(SETTLED)
    writer = world.writer("a")
    writer.store.refuse("list", layout.record_prefix(FIRST.start.date()))
    writer.round()
    assert sealed(world)[LAST.start] == {"before"}
    assert FIRST.start not in sealed(world)
    later = world.writer("b")
    world.platform.gone.update({"edge"})
    later.round()
    found = Ledger(world.store.objects, world.key.public)
    assert "edge" in found.pending | found.recorded


def test_a_neighbours_day_that_the_store_does_not_list_beside_a_recalled_call(world):
    recalled(world, "told")
    writer = world.writer("a")
    writer.store.refuse("list", layout.record_prefix(FIRST.start.date()))
    writer.backfill(LAST.start, LAST.end)
    assert sealed(world) == {LAST.start: {"before", "told"}}


def test_a_neighbours_day_that_the_store_does_not_list_and_a_call_that_was_sighted(world):
    """Its record may lie below that day: nobody can tell, so it is worked at once more."""
    one = world.writer("one")
    one.store.refuse("put", "/before/")
    one.round()
    world.clock.turn_to(SETTLED)
    world.platform.hidden.add("before")
    two = world.writer("two")
    two.store.refuse("list", layout.record_prefix(FIRST.start.date()))
    two.round()
    assert "before" in sealed(world)[LAST.start]


def test_a_call_kept_here_whose_day_the_store_does_not_list(world):
    """Its own window does not list it. Its record lies below that day all the same, and is created
    once, so that not to know of it costs no more than work done twice."""
    bad_listing(world, FIRST.start, BAD["500"])
    world.clock.turn_to(SETTLED)
    for name in ("a", "b"):
        writer = world.writer(name)
        writer.store.refuse("list", layout.record_prefix(FIRST.start.date()))
        writer.round()
        assert sealed(world)[LAST.start] == {"before", "edge"}


def test_who_loses_a_segments_key_to_another_writer_names_its_calls_in_the_next(world):
    """The other one did not see `after`: not in its listing, and the sighting was not written."""
    world.clock.turn_to(SETTLED)
    first, second = world.writer("first"), world.writer("second")
    first.store.refuse("put", "/sightings/")

    def close_meanwhile(request: Request) -> Reply | None:
        if request.path.endswith("/after/recording-url"):
            world.platform.hooks.remove(close_meanwhile)
            world.platform.hidden.add("after")
            second.backfill(FIRST.start, FIRST.end)
            assert sealed(world) == {FIRST.start: {"edge"}}
        return None

    world.platform.hooks.append(close_meanwhile)
    first.backfill(FIRST.start, FIRST.end)
    assert sealed(world) == {FIRST.start: {"edge", "after"}}
