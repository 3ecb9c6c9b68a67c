"""What a process keeps in mind does not grow with the archive: years of days, in memory.

All that can be reached from the loop is counted, whatever it is called; what the fakes hold is not
the process's. The archive has a second writer, who is faster at times, and a source that does not
answer for everything.
"""

from __future__ import annotations

import gc
import types
from collections import deque
from collections.abc import Iterable
from datetime import timedelta

import pytest

from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_rig import Times, World, Writer
from tests.fakes.memory_source import MemoryPlatform
from tests.fakes.memory_store import MemoryStore
from tests.fakes.population import TEN, a_call

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
TIMES = Times(DAY, 2 * timedelta(hours=1), DAY, (DAY, 2 * DAY))
REACH = 40
"""Days that a sealed window is looked after; within these the loop's memory may grow."""
MORE = 40
"""So many that what is under way at the moment of counting, up to 15, does not matter."""
SHARED = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType,
    types.FrameType, World, MemoryPlatform, MemoryStore, HandClock,
)  # fmt: skip
CONTAINERS = (dict, set, frozenset, list, tuple, deque)


def weight(root: object) -> int:
    """How many objects hang on this one, each with as many more as it has in it: of a dictionary
    with strings for keys the collector shows the values alone."""
    seen: set[int] = set()
    todo, total = [root], 0
    while todo:
        found = todo.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        total += 1 + (len(found) if isinstance(found, CONTAINERS) else 0)
        todo += (one for one in gc.get_referents(found) if not isinstance(one, SHARED))
    return total


def days(world: World, numbers: Iterable[int], *writers: Writer) -> None:
    """A day a number: of its three calls one fails at first, with the writer that comes first, and
    one is refused once it is old. Who comes first changes, in the morning, when the day before is
    closed, and at noon."""
    for number in numbers:
        start = TEN.replace(hour=0) + number * DAY
        world.platform.add(*(a_call(f"{number}-{n}", start + n * MINUTE) for n in range(3)))
        for hours in (3, 12):
            world.clock.turn_to(start + timedelta(hours=hours))
            world.platform.status["blob"] = {f"{number}-1": 503}
            for writer in writers if (number + hours) % 2 else reversed(writers):
                writer.round()
                world.platform.status["blob"] = {}


def refuse_old_calls(world: World) -> None:
    """The source refuses one call of each day once it is a day old."""

    def hook(request: Request) -> Reply | None:
        number, _, last = request.path.rsplit("/", 1)[-1].partition("-")
        old = last == "2" and world.clock.now() > TEN + (int(number) + 1) * DAY
        return Reply(403) if old else None

    world.platform.hooks.append(hook)


@pytest.mark.timeout(600)  # 80 days, of which a busy machine has done half after two minutes
def test_what_the_loop_has_in_mind_does_not_grow_with_the_archive():
    world = World(TEN, TEN.replace(hour=0), TIMES)
    refuse_old_calls(world)
    one, other = world.writer("one"), world.writer("other")
    days(world, range(1, REACH), one, other)
    before = weight(one.loop)
    days(world, range(REACH, REACH + MORE), one, other)
    grown = weight(one.loop) - before
    # A date for each day that was looked at for records is remembered: 20 kB a year.
    assert grown < 2.5 * MORE, f"{before}, and {grown} more after {MORE} days"
