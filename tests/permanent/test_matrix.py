"""One thing is bad, for ever or for a while, wherever that may be: it harms nothing but itself.

Each place is tried in the loop and in backfills; with one worker, and with eight and the listing
the other way round. `places.py` has the rows, `judge.py` says what must hold.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.fakes.log_lines import collected
from tests.permanent.judge import judge, judge_healed, result
from tests.permanent.places import CALM, PLACES, Place
from tests.permanent.scene import (
    BACKFILL,
    FIRST,
    HEALED,
    LOCK_DAYS,
    LOOP,
    PlaceWorld,
    Run,
    ids_of,
)

VARIANTS = ((1, "-startTime"), (8, "startTime"))
"""How many workers there are, and the order of the listing."""

# All take a minute: `make permanent`, a step of CI. Here every third one.
HERE = list(PLACES)[:: 1 if os.environ.get("PERMANENT") == "all" else 3]
places = pytest.mark.parametrize("place", [PLACES[name] for name in HERE], ids=HERE)


def test_there_are_as_many_places_as_promised():
    assert len(PLACES) > 100
    assert len(HERE) >= 40


def begin(place: Place, variant: tuple[int, str], now: object) -> Run:
    random.seed(1)  # the jitter of tries
    workers, sort = variant
    world = PlaceWorld(
        now, workers, sort, lock_days=LOCK_DAYS if place.locked else 0,
        page_size=2 if place.ordered else 100,
    )  # fmt: skip
    return Run(world, world.spoil(place.make(world)))


def loop(place: Place, variant: tuple[int, str], healed: int | None = None) -> Run:
    run = begin(place, variant, LOOP[0])
    with collected() as run.events:
        return run.loop(healed=healed)


def the_same(place: Place, runs: list[Run]) -> None:
    """Neither the number of workers nor the order of a listing decides what comes of it."""
    if not place.ordered:
        first, *others = map(result, runs)
        assert [first] * len(others) == others


def variants_of(place: Place) -> tuple[tuple[int, str], ...]:
    """Both where an order has a first or a newest; else one, by turns. The backfills compare both
    at each place."""
    if "first" in place.name or "newest" in place.name:
        return VARIANTS
    return (VARIANTS[list(PLACES).index(place.name) % 2],)


@places
def test_for_ever_in_the_loop(place):
    runs = [loop(place, variant) for variant in variants_of(place)]
    for run in runs:
        judge(place, run, loop=True)
    the_same(place, runs)


@places
def test_for_a_while_in_the_loop(place):
    run = loop(place, VARIANTS[0], HEALED)
    if place.window is None and place.calls & ids_of(FIRST):
        # That window is closed beyond its last age: the loop does not come back to it.
        with collected():
            run.backfill()
    judge_healed(place, run, loop=True)


@places
def test_in_backfills_for_ever_and_then_no_more(place):
    """Two of them while it is bad, a third one once it is well again."""
    runs = [begin(place, variant, BACKFILL[0]) for variant in VARIANTS]
    for run in runs:
        with collected() as run.events:
            for moment in BACKFILL[:2]:
                run.world.clock.turn_to(max(run.world.clock.now(), moment))
                run.backfill()
                judge(place, run, loop=False)
    the_same(place, runs)
    for run in runs if place.comes_late else ():
        with collected():
            run.heal()
            run.world.clock.turn_to(max(run.world.clock.now(), BACKFILL[2]))
            judge_healed(place, run.backfill(), loop=False)


def test_where_nothing_is_bad_all_is_well():
    for variant in VARIANTS:
        workers, sort = variant
        run = Run(PlaceWorld(LOOP[0], workers, sort), None)
        with collected():
            judge_healed(CALM, run.loop(), loop=True)
        run = Run(PlaceWorld(BACKFILL[0], workers, sort), None)
        with collected():
            judge_healed(CALM, run.backfill(), loop=False)
