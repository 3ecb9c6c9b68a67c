"""A newer release wrote into the archive, and was rolled back: the older one goes on beside it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from tests.fakes.log_lines import collected
from tests.permanent import newer
from tests.permanent.judge import audit
from tests.permanent.scene import (
    CALLS,
    END,
    LENGTH,
    LOOP,
    SECOND,
    START,
    THIRD,
    PlaceWorld,
    Run,
    ids_of,
    record_key,
    segment_name,
)
from tests.simulation.judge import truth

Leave = Callable[[PlaceWorld], list[str]]
ROLLED_BACK = 5
"""Before this round of the loop: two windows are sealed then, the third is open."""
LATER = END + LENGTH + timedelta(hours=1, minutes=1)
"""A further window has settled."""

SAID = {
    "newer_format", "revision_skipped", "unnamed_object", "unsealed_segment", "untold_record",
}  # fmt: skip
"""What `verify` may say of it. Where a key is taken, the next revision is written."""

LEFT: dict[str, tuple[Leave, ...]] = {
    "a sealed window": (lambda world: newer.sealed_window(world, SECOND),),
    "a record": (lambda world: newer.unsealed_record(world, "vc_c1"),),
    "a segment": (lambda world: newer.unsealed_segment(world, THIRD),),
    "sealed events": (newer.sealed_events,),
    "events": (newer.unsealed_events,),
}
LEFT["all of it"] = tuple(
    LEFT[name][0] for name in ("a sealed window", "a record", "a segment", "sealed events")
)


@pytest.mark.parametrize("goes_on", ["loop", "backfill"])
@pytest.mark.parametrize("left", LEFT.values(), ids=list(LEFT))
def test_it_goes_on_and_overwrites_nothing(left, goes_on):
    random.seed(1)
    world = PlaceWorld(LOOP[0], 1, "-startTime")
    run = Run(world, None)
    with collected():
        run.loop(LOOP[:ROLLED_BACK])
    # What covers other bytes is made last, so that no seal is made anew over it.
    keys = [key for leave in left for key in leave(world)]
    before = {one.key: (one.version_id, one.data) for one in world.store.objects}

    with collected() as run.events:
        if goes_on == "loop":
            run.loop([*LOOP[ROLLED_BACK:], LATER])
        else:
            world.clock.turn_to(LATER)
            run.backfill(START, END + LENGTH)

    # Nothing is overwritten, nor gone.
    after = {one.key: (one.version_id, one.data) for one in world.store.objects}
    assert {key: after.get(key) for key in before} == before
    assert len(world.store.keys) == len(list(world.store.versions("")))
    world.finish()
    # The loop goes on: what is not of the newer format is archived, and every other window sealed.
    assert not run.failed
    of_newer = {key.split("/")[2] for key in keys if key.startswith(layout.RECORDS)}
    for call_id in ids_of(THIRD) - of_newer:
        assert record_key(call_id) in after
        assert truth(world, call_id)[0] == "archived"
    open_windows = {key.removesuffix(".jsonl") for key in keys if key.startswith(layout.SEGMENTS)}
    fourth = SegmentName(END, 1)
    for name in (segment_name(THIRD), fourth):
        if name.jsonl.removesuffix(".jsonl") not in open_windows:
            assert name.seal in after, f"{name.jsonl} is not sealed"
    # Whoever looks hears of it.
    report = audit(run)
    named = {one.key for one in report.findings if one.code == "newer_format"}
    assert named >= set(keys), f"verify names {named} of {keys}"
    assert report.totals.keys() <= SAID, report.totals


def test_all_calls_are_there_before():
    """What the cases above begin with."""
    world = PlaceWorld(LOOP[0], 1, "-startTime")
    with collected():
        Run(world, None).loop(LOOP[:ROLLED_BACK])
    sealed = {key for key in world.store.keys if key.endswith(".r1.seal")}
    assert {segment_name(SECOND).seal} <= sealed
    assert segment_name(THIRD).jsonl not in world.store.keys
    assert record_key("vc_c1") in world.store.keys
    assert len(CALLS) == 10
