"""Stores list in the order of keys, or in another: nothing may hang on it."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from archiver.audit.verify import Options, verify
from archiver.manifest import layout
from archiver.pipeline.bucket_state import SegmentIndex
from tests.fakes.memory_rig import HOUR, Times, World
from tests.fakes.population import TEN, a_call

pytestmark = pytest.mark.usefixtures("any_order")

DAY = timedelta(days=1)
DAYS = 4


@pytest.fixture
def world() -> World:
    """Windows of four days, sealed by a process that is gone; each has an age before it."""
    times = Times(window=6 * HOUR, settle=HOUR, give_up=DAY, relist=(5 * DAY,))
    world = World(TEN - 4 * HOUR, TEN - 4 * HOUR, times)
    world.platform.add(*(a_call(f"vc_{n}", TEN + n * DAY) for n in range(DAYS)))
    writer = world.writer("first")
    for _ in range(4 * DAYS + 1):
        writer.round_after(6 * HOUR)
    writer.close()
    return world


def test_each_sealed_window_is_listed_again_by_the_next_process(world):
    names = [layout.parse_segment_key(key) for key in world.store.keys]
    sealed = {one[0].start for one in names if one is not None}
    assert len({start.date() for start in sealed}) > DAYS
    world.clock.forward(timedelta(days=6))
    world.platform.add(*(a_call(f"late_{n}", TEN + n * DAY) for n in range(DAYS)))
    later = world.writer("second")
    for _ in range(8):
        later.round()
        world.clock.forward(timedelta(minutes=1))
    assert {f"late_{n}" for n in range(DAYS)} <= {key.split("/")[2] for key in records(world)}
    names = [layout.parse_segment_key(key) for key in world.store.keys]
    again = {one[0].start for one in names if one is not None and one[0].revision > 1}
    assert sealed <= again
    assert verify(world.store, Options()).findings == []
    world.finish()


def records(world: World) -> list[str]:
    return [key for key in world.store.keys if key.startswith(layout.RECORDS)]


def test_the_days_of_an_archive(world):
    days = SegmentIndex(world.store).days()
    assert days == sorted(days)
    assert (days[0], days[-1]) == (date(2024, 1, 15), date(2024, 1, 19))
