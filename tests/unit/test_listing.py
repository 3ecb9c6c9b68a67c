"""Listing a window on every reading of what the source's documents leave open."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from archiver.core.model import Window
from archiver.source import api as api_module
from archiver.source.api import Filter
from archiver.source.listing import MAX_PASSES, Lister
from tests.fakes.calls import SimulatedCall
from tests.fakes.clock import HandClock
from tests.fakes.hooks import json_reply
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_source import MemoryPlatform, api_client
from tests.fakes.population import TEN, a_call, stamp
from tests.fakes.rig import HOUR, WINDOW

SECOND = timedelta(seconds=1)
NEXT = Window(WINDOW.end, WINDOW.end + HOUR)
BEFORE = Window(WINDOW.start - HOUR, WINDOW.start)
MakeLister = Callable[..., Lister]


@pytest.fixture
def platform(clock: HandClock) -> MemoryPlatform:
    return MemoryPlatform(clock=clock.now)


@pytest.fixture
def lister(platform: MemoryPlatform, clock: HandClock) -> MakeLister:
    def make(*states: str, **narrow: str) -> Lister:
        filters = Filter(states or ("Completed",), **narrow)
        return Lister(api_client(platform, clock), filters, clock, HOUR)

    return make


def spread(count: int, step: timedelta = 20 * SECOND) -> list[SimulatedCall]:
    return [a_call(f"vc_{n:03}", TEN + n * step) for n in range(count)]


def around_the_ends() -> list[SimulatedCall]:
    tick = timedelta(milliseconds=1)
    moments = {"before": TEN - tick, "first": TEN, "last": WINDOW.end - tick, "next": WINDOW.end}
    return [a_call(name, at) for name, at in moments.items()]


def by_window(made: Lister, *windows: Window) -> list[set[str]]:
    return [set(made.list(window).calls) for window in windows]


@pytest.mark.parametrize("sort", ["-startTime", "startTime", "id", "given"])
@pytest.mark.parametrize("cap", [7, 100])
def test_every_order_and_page_size_lists_all(platform, lister, sort, cap):
    platform.options.sort, platform.options.page_size_cap = sort, cap
    platform.add(*spread(150))
    found = lister().list(WINDOW)
    assert found.stable
    assert found.calls.keys() == {call.id for call in platform.calls}
    assert (found.listing.passes, found.listing.source_total) == (2, 150)
    assert found.listing.pages == -(-150 // cap)


@pytest.mark.parametrize("field", ["startTime", "createdAt", "endTime"])
@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("whole_days", [True, False])
def test_whatever_the_filter_reads_each_call_lies_in_one_window(
    platform, lister, field, inclusive, whole_days
):
    platform.options.filter_field = field
    platform.options.inclusive_end, platform.options.whole_days = inclusive, whole_days
    platform.add(*around_the_ends())
    per_window = by_window(lister(), BEFORE, WINDOW, NEXT)
    assert sum(map(len, per_window)) == 4, "each call once, none dropped"
    if field == "startTime":
        assert per_window == [{"before"}, {"first", "last"}, {"next"}]


def test_a_call_that_only_this_window_lists_is_kept_here(platform, lister):
    """The filter reads createdAt; this call started in the window after."""
    platform.options.filter_field = "createdAt"
    platform.add(a_call("late", NEXT.start + SECOND, createdAt=stamp(TEN + SECOND)))
    assert by_window(lister(), WINDOW, NEXT) == [{"late"}, set()]


def test_a_call_without_any_time_is_kept_where_it_is_listed(platform, lister):
    call = a_call("timeless", startTime=None, endTime=None, createdAt=None)
    call.listed_at = TEN + SECOND
    platform.add(call)
    assert by_window(lister(), BEFORE, WINDOW, NEXT) == [set(), {"timeless"}, set()]


def test_several_states_are_listed_one_by_one(platform, lister):
    platform.add(a_call("done"), a_call("bad", state="Failed"), a_call("now", state="InProgress"))
    found = lister("Completed", "Failed").list(WINDOW)
    assert found.calls.keys() == {"done", "bad"}
    assert found.listing.source_total == 2
    assert found.listing.filter == {"state": ["Completed", "Failed"]}


def test_a_source_that_ignores_the_filters_is_filtered_here(platform, lister):
    platform.add(a_call("mine"), a_call("other", campaignId="camp_2"), a_call("open", state="X"))
    platform.add(a_call("in", direction="Inbound"), a_call("bare", campaignId=..., direction=None))
    platform.add(a_call("loud", state="COMPLETED"))
    entries = [call.entry() for call in platform.calls]
    platform.hooks.append(lambda _: json_reply(entries))
    made = lister("Completed", campaign_id="camp_1", direction="Outbound")
    assert made.list(WINDOW).calls.keys() == {"mine", "bare", "loud"}


def test_a_page_that_shifts_while_one_lists_loses_nothing(platform, lister):
    """Newest first: a call that goes from page 1 after it was read moves the next ones forward."""
    platform.options.page_size_cap = 10
    platform.add(*spread(30))
    platform.later("page", 1, lambda: platform.remove("vc_029"))
    found = lister().list(WINDOW)
    assert found.stable
    assert {f"vc_{n:03}" for n in range(29)} <= found.calls.keys()


def test_a_call_that_comes_while_one_lists_is_there(platform, lister):
    platform.options.page_size_cap = 10
    platform.add(*spread(30))
    platform.later("page", 3, lambda: platform.add(a_call("new", TEN + SECOND)))
    found = lister().list(WINDOW)
    assert found.stable
    assert len(found.calls) == 31


def rows(*ids: str) -> list[dict[str, str]]:
    return [{"id": one, "startTime": stamp(TEN)} for one in ids]


def test_a_source_that_counts_more_than_it_lists_is_asked_a_third_time(platform, lister):
    """Two passes that agree may both have been answered by a replica that lags behind."""

    def lagging(request: Request) -> Reply:
        ids = "ab" if platform.served["pass"] <= 2 else "abc"
        shown = rows(*ids) if request.query["page"] == "1" else []
        return json_reply({"data": shown, "pagination": {"totalCount": 3}})

    platform.hooks.append(lagging)
    found = lister().list(WINDOW)
    assert found.calls.keys() == {"a", "b", "c"}
    assert found.stable


def test_a_page_of_repeats_does_not_end_a_listing(platform, lister):
    """As where many calls come in while one lists, newest first."""
    pages = {"1": rows("a", "b", "c"), "2": rows("b", "c"), "3": rows("d")}
    platform.hooks.append(lambda r: json_reply(pages.get(r.query["page"], [])))
    assert lister().list(WINDOW).calls.keys() == {"a", "b", "c", "d"}


def test_what_never_holds_still_is_not_called_stable(platform, lister):
    numbers = iter(range(1000))
    platform.hooks.append(lambda _: platform.add(a_call(f"new_{next(numbers)}", TEN + SECOND)))
    found = lister().list(WINDOW)
    assert not found.stable
    assert found.listing.passes == MAX_PASSES
    assert len(found.calls) == len(platform.calls), "all that was ever seen is kept"


def test_paging_that_never_ends_ends(platform, lister):
    platform.add(*spread(10))
    platform.options.enveloped = False
    platform.options.clamp_pages = True
    found = lister().list(WINDOW)
    assert len(found.calls) == 10
    assert found.listing.source_total is None
    assert platform.served["page"] <= 4


def test_a_listing_of_ever_new_ids_is_not_complete(platform, lister, monkeypatch):
    monkeypatch.setattr(api_module, "MAX_PAGES", 30)
    numbers = iter(range(10**9))
    platform.hooks.append(lambda _: json_reply([{"id": f"x{next(numbers)}"}]))
    found = lister().list(WINDOW)
    assert not found.complete
    assert not found.stable
    assert "30 pages" in str(found.error)
    assert len(found.calls) == 30


def test_the_same_id_twice_is_one_call(platform, lister):
    platform.hooks.append(lambda _: json_reply(rows("x", "x", "x")))
    assert list(lister().list(WINDOW).calls) == ["x"]
