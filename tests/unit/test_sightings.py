"""What was listed is written down before it is worked at: whoever ends then, a later process knows
of each call, though the source lists it no more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from archiver.demo.wire import Reply, Request
from archiver.errors import SourceError
from tests.fakes.memory_rig import HOUR, Crash, Times, World, Writer
from tests.fakes.population import TEN, a_call
from tests.model.ledger import Ledger

MINUTE = timedelta(minutes=1)
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


def one_is_hidden_by(status: int | None, world: World, *call_ids: str) -> None:
    """Not listed any more; without a status it can still be had by its id."""
    (world.platform.hidden if status is None else world.platform.gone).update(call_ids)


def rounds(world: World, writer: Writer, until: Any, minutes: int = 20) -> None:
    while world.clock.now() < until:
        world.clock.forward(timedelta(minutes=minutes))
        writer.round()


@pytest.mark.parametrize("gone", [False, True])
def test_calls_of_an_open_window_that_were_listed_only_before_a_kill(
    world: World, gone: bool
) -> None:
    world.platform.add(*(a_call(f"vc_{n}", TEN + n * MINUTE) for n in range(3)))
    killed_in_a_round(world, world.writer("one"))
    one_is_hidden_by(404 if gone else None, world, "vc_0", "vc_1", "vc_2")
    rounds(world, world.writer("two"), SETTLED)
    found = ledger_of(world)
    assert (found.pending if gone else found.recorded) == {"vc_0", "vc_1", "vc_2"}
    [line] = [window.newest.line for window in found.windows if window.start == TEN]
    assert line["pending"] == (["vc_0", "vc_1", "vc_2"] if gone else [])
    assert line["vanished"] == ([] if gone else ["vc_0", "vc_1", "vc_2"])


@pytest.mark.parametrize("gone", [False, True])
def test_a_late_call_of_a_sealed_window_that_was_listed_only_before_a_kill(
    world: World, gone: bool
) -> None:
    one = world.writer("one")
    world.platform.add(a_call("vc_1"))
    rounds(world, one, SETTLED)
    world.platform.add(a_call("late", TEN + MINUTE))
    world.clock.turn_to(AGE + 2 * MINUTE)
    killed_in_a_round(world, one)
    one_is_hidden_by(404 if gone else None, world, "late")
    two = world.writer("two")
    two.round()
    two.round()
    found = ledger_of(world)
    assert "late" in (found.pending if gone else found.recorded)


def test_a_late_call_that_another_window_showed_before_a_kill(world: World) -> None:
    """A source that reads only the date lists it beside the calls of the newest window."""
    world.platform.options.whole_days = True
    one = world.writer("one")
    world.platform.add(a_call("vc_1"))
    rounds(world, one, SETTLED)
    world.platform.add(a_call("late", TEN + MINUTE), a_call("new", world.clock.now()))
    killed_in_a_round(world, one)
    one_is_hidden_by(None, world, "late")
    two = world.writer("two")
    two.round()
    two.round()
    found = ledger_of(world)
    assert "late" in found.recorded
    assert [w.start for w in found.windows if "late" in w.newest.records] == [TEN]


def test_what_a_listing_showed_that_was_cut_short_and_a_restart(world: World) -> None:
    """The second page never comes, and the process is replaced."""
    world.platform.options.page_size_cap = 2
    calls = [a_call(f"vc_{n}", TEN + n * MINUTE) for n in range(3)]
    world.platform.add(*calls)

    def out(request: Request) -> Reply | None:
        return Reply(503) if request.query.get("page") == "2" else None

    world.platform.hooks.append(out)
    one = world.writer("one")
    with pytest.raises(SourceError):
        one.round()
    world.platform.hooks.remove(out)
    shown = set(world.platform.listed)
    assert len(shown) == 2
    one_is_hidden_by(404, world, *shown)
    rounds(world, world.writer("two"), SETTLED)
    assert shown <= ledger_of(world).pending


def test_a_second_loop_that_ends_right_after_the_first_one_closed_the_window(world: World) -> None:
    """The window is sealed by then, and the process that saw the call is no more."""
    one, two = world.writer("one"), world.writer("two")
    two.round()
    rounds(world, one, SETTLED)
    world.platform.add(a_call("late", TEN + MINUTE))
    two.segments.forget()
    dies_at_the_first_call(world, two)
    with pytest.raises(Crash):
        two.backfill(TEN, TEN + HOUR)
    one_is_hidden_by(404, world, "late")
    rounds(world, one, SETTLED + 90 * MINUTE)
    assert "late" in ledger_of(world).pending
