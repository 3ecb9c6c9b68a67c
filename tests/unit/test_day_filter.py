"""A source whose filter reads the day only costs little more than one that reads the time, and the
archive is the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from archiver.core.model import Call, Window
from archiver.manifest import layout
from archiver.source.api import Filter, Page
from archiver.source.listing import Lister
from tests.fakes.clock import HandClock
from tests.fakes.hooks import collect
from tests.fakes.memory_rig import World, Writer
from tests.fakes.population import TEN, a_call, stamp

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MIDNIGHT = TEN - 10 * HOUR
CALLS, CAP = 72, 10
"""Three calls in each hour, pages of ten: a tenth of a day of 720 calls and pages of 100."""


def world_of(whole_days: bool, now: Any, calls: int = CALLS, **options: Any) -> World:
    made = World(now, MIDNIGHT)
    made.platform.options.whole_days = whole_days
    made.platform.options.page_size_cap = CAP
    for name, value in options.items():
        setattr(made.platform.options, name, value)
    for n in range(calls):
        at = MIDNIGHT + n * DAY / CALLS + timedelta(minutes=1)
        made.platform.add(a_call(f"vc_{n:03}", at, audio=None if n % 12 == 5 else b""))
    return made


def is_listing(request: Any) -> bool:
    return "dateFrom" in request.query


def ledger(world: World) -> dict[str, tuple[Any, ...]]:
    """What each segment says of its window, and the calls that it has records of."""
    found = {}
    for one in world.store.objects:
        key = one.key
        if not (key.startswith(layout.SEGMENTS) and key.endswith(".jsonl")):
            continue
        *records, line = [json.loads(each) for each in one.data.splitlines()]
        said = {
            name: line[name]
            for name in (
                "from", "to", "listed", "listed_sha256", "archived", "no_recording", "failed",
                "pending", "vanished", "filter", "revision",
            )
        }  # fmt: skip
        calls = sorted((one["call_id"], one["outcome"], one["started_at"]) for one in records)
        found[key] = (said, calls)
    return found


def compare(
    do: Callable[[World, Writer], None], now: Any, **options: Any
) -> tuple[int, int, World, World]:
    """The list requests of a filter that reads the time, and of one that reads the day."""
    counts, worlds = [], []
    for whole_days in (False, True):
        world = world_of(whole_days, now, **options)
        writer = world.writer("a")
        asked = collect(world.platform, is_listing)
        do(world, writer)
        counts.append(len(asked))
        worlds.append(world)
    return counts[0], counts[1], worlds[0], worlds[1]


@pytest.mark.parametrize("sort", ["-startTime", "startTime", "id"])
def test_a_backfill_of_a_day(sort: str) -> None:
    def backfill(world: World, writer: Writer) -> None:
        assert writer.backfill(MIDNIGHT, MIDNIGHT + DAY).closed == 24

    exact, by_day, one, other = compare(backfill, MIDNIGHT + 3 * DAY, sort=sort)
    assert ledger(one) == ledger(other)
    assert len(ledger(other)) == 24
    assert other.complaints("bytes") == []
    assert exact == 48
    assert by_day <= 3 * exact
    print(exact, by_day)
    one.finish()
    other.finish()


def test_a_quiet_round_of_the_loop() -> None:
    """The second round of those at 23:30, when the day is fullest."""
    counts = []
    for whole_days in (False, True):
        world = world_of(whole_days, MIDNIGHT + 23.5 * HOUR, calls=CALLS - 2)
        world.watermark = MIDNIGHT + 20 * HOUR
        writer = world.writer("a")
        writer.round()
        asked = collect(world.platform, is_listing)
        writer.round_after(timedelta(minutes=1))
        counts.append(len(asked))
        world.finish()
    exact, by_day = counts
    print(exact, by_day)
    assert exact >= 4
    assert by_day <= 3 * exact


@pytest.mark.parametrize("page", [18, 30, 60])
def test_a_call_that_comes_while_the_day_is_archived(page: int) -> None:
    """The check of its window's own pages shows it, so that its window is listed in full."""
    world = world_of(True, MIDNIGHT + 3 * DAY)
    late = a_call("vc_late", MIDNIGHT + 23.5 * HOUR)
    world.platform.later("page", page, lambda: world.platform.add(late))
    writer = world.writer("a")
    assert writer.backfill(MIDNIGHT, MIDNIGHT + DAY).closed == 24
    [line] = [said for said, _ in ledger(world).values() if said["from"].endswith("T23:00:00Z")]
    assert line["listed"] == 4
    assert sum(said["listed"] for said, _ in ledger(world).values()) == CALLS + 1
    assert world.complaints("bytes") == []
    world.finish()


# --- what the check of a kept listing shows, and which day it is of


class DayPages:
    """A source whose filter reads its own day, which begins `offset` after ours. One page has it
    all."""

    def __init__(self, times: list[datetime], offset: timedelta = timedelta(0)) -> None:
        self.calls = {f"vc_{n:02}": at for n, at in enumerate(times)}
        self.offset = offset
        self.passes = 0
        self.on_check: Callable[[], None] = lambda: None

    def _answer(self, window: Window) -> Page:
        day = (window.start - self.offset).date()
        found = [
            Call(call_id, {"id": call_id, "startTime": stamp(at)})
            for call_id, at in self.calls.items()
            if (at - self.offset).date() == day
        ]
        return Page("Completed", tuple(found), total=len(found), size=100)

    def pages(self, window: Window, filters: Filter) -> Iterator[Page]:
        self.passes += 1
        yield self._answer(window)

    def page(self, window: Window, filters: Filter, state: str, number: int) -> Page:
        found = self._answer(window)
        self.on_check()
        return found


def hour(number: int) -> Window:
    return Window(MIDNIGHT + number * HOUR, MIDNIGHT + (number + 1) * HOUR)


EACH_HOUR = [MIDNIGHT + n * HOUR + timedelta(minutes=1) for n in range(-4, 24)]


def lister_of(pages: DayPages, clock: HandClock) -> Lister:
    clock.turn_to(MIDNIGHT + 14 * HOUR)
    return Lister(pages, Filter(("Completed",)), clock, HOUR)


@pytest.mark.parametrize("offset", [0, 8, -5])
def test_an_open_window_of_another_day_of_the_source_is_listed(
    clock: HandClock, offset: int
) -> None:
    pages = DayPages(EACH_HOUR, offset * HOUR)
    lister = lister_of(pages, clock)
    for number in (12, 11, 9, 8, 7, 6, 1, 0):
        found = lister.list(hour(number), is_open=True)
        assert len(found.calls) == 1, number
    assert pages.passes < 10, "the other windows of each day are answered from one listing"


def test_what_only_the_check_shows_was_listed(clock: HandClock) -> None:
    """The source shows a call once, and no more afterwards."""
    pages = DayPages(EACH_HOUR)
    lister = lister_of(pages, clock)
    lister.list(hour(12))
    pages.calls["vc_once"] = MIDNIGHT + 11 * HOUR
    pages.on_check = lambda: pages.calls.pop("vc_once", None)
    seen: dict[str, Call] = {}
    found = lister.list(hour(11), seen)
    assert "vc_once" in seen
    assert "vc_once" in found.seen_once
    assert found.stable


def test_what_only_the_proof_shows_was_listed(clock: HandClock) -> None:
    """It stands in the page of another window that is asked for once."""
    pages = DayPages(EACH_HOUR)
    lister = lister_of(pages, clock)
    answer = pages.page

    def page(window: Window, filters: Filter, state: str, number: int) -> Page:
        pages.calls["vc_once"] = MIDNIGHT + 11 * HOUR
        return answer(window, filters, state, number)

    pages.page = page  # type: ignore[method-assign]
    pages.on_check = lambda: pages.calls.pop("vc_once", None)
    of_others: dict[str, Call] = {}
    found = lister.list(hour(12), {}, of_others)
    assert "vc_once" in of_others
    assert "vc_once" in found.other_windows[hour(11)]
