"""A loop that was away for ten days: on the fakes in memory, because it is 239 windows."""

from __future__ import annotations

from datetime import timedelta

from archiver.core.model import windows_between
from tests.fakes.memory_rig import HOUR, Times, World
from tests.fakes.memory_store import Request
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import Archive

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def test_a_long_downtime_is_caught_up_oldest_first():
    world = World(TEN + 3 * HOUR, TEN, Times(relist=(DAY, 7 * DAY), give_up=DAY))
    world.platform.add(a_call())
    world.writer("before").round()
    back = TEN + 10 * DAY
    world.clock.turn_to(back)
    windows = list(windows_between(TEN, back - 2 * HOUR, HOUR))
    world.platform.add(
        *(a_call(f"m{n}", w.start + MINUTE) for n, w in enumerate(windows) if n % 9 == 0)
    )
    world.platform.add(a_call("fresh", back - 10 * MINUTE))
    after = world.writer("after")
    asked: list[Request] = []
    after.store.hooks.append(asked.append)
    after.round()
    recordings = [r.key for r in asked if r.writes and r.key.startswith("recordings/")]
    assert "/fresh/recording.wav" in recordings[0], "the newest is not starved"
    look = Archive(world.store)  # type: ignore[arg-type]
    sealed = [entry.key for one in look.seals for entry in one.segments if ".r1." in entry.key]
    assert sealed == sorted(sealed), "oldest first"
    assert len(sealed) == len(windows)
    assert look.seals[-1].watermark == windows[-1].end
    assert "fresh" in look.records
    assert {f"m{n}" for n in range(0, len(windows), 9)} < look.records.keys()
    after.round_after(3 * HOUR)
    after.close()
    world.finish()
    assert world.complaints("bytes") == []
