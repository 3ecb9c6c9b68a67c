"""Windows that are sealed and not done with: when they are listed again, and that none of them
keeps the others, or the newest calls, waiting. Each test ends with an audit of what it left."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from archiver.core.clock import Interrupted
from archiver.core.errors import StoreError
from archiver.manifest import layout
from archiver.pipeline import loop as loop_module
from tests.fakes.calls import APART
from tests.fakes.clock import HandClock
from tests.fakes.hooks import on
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call, call_of
from tests.fakes.relisting import (
    AGES,
    DAY,
    ELEVEN,
    FIRST,
    GIVE_UP,
    MINUTE,
    REST,
    SETTLED,
    MakeRig,
    another,
    files_of,
    lines_of,
    missing,
    told_in,
    troubled,
    value,
)
from tests.fakes.rig import HOUR, WINDOW, Archive, HandLoop

pytestmark = pytest.mark.usefixtures("audited")
OUT = Reply(503, {}, b"{}")
UNREADABLE = Reply(200, {"Content-Type": "application/json"}, b'{"data": [NaN]}')


def surveyed(platform: Platform, call_id: str = "vc_1") -> None:
    """The source has a survey of the call from now on."""
    call_of(platform, call_id).epa = {"state": "Completed"}


def has_survey(look: Archive, call_id: str = "vc_1") -> bool:
    return "epa" in files_of(look.records[call_id])


# --- no age passes unseen


@pytest.mark.usefixtures("sealed")
def test_an_age_is_looked_after_though_a_backfill_listed_the_window_since(
    platform, rig, clock, archive
):
    """The backfill has something of its own to tell, and so writes the newest revision."""
    surveyed(platform)
    platform.add(a_call("late", TEN + MINUTE))
    clock.turn_to(FIRST + MINUTE)
    rig(relist=AGES).backfill()
    assert "late" in archive().records
    clock.forward(MINUTE)
    another(rig).round()
    assert has_survey(archive())


def test_an_age_before_the_window_settles_is_looked_after_once_it_has(platform, rig, archive):
    """It passes while the window is open, and its first listing has archived the call long ago."""
    loop = another(rig, relist=(HOUR,))
    platform.add(a_call())
    loop.round()
    surveyed(platform)
    loop.round_at(SETTLED)
    loop.round_after(MINUTE)
    assert has_survey(archive())


@pytest.mark.parametrize("is_sealed", [False, True])
def test_ages_that_passed_during_a_downtime_are_looked_after_once_the_source_answers(
    platform, rig, clock, archive, is_sealed
):
    """Archived while the window was open; the source is out when the loop is up again. The time
    that it was down is no time that it waited for the source."""
    platform.add(a_call())
    another(rig).round()
    surveyed(platform)
    if is_sealed:
        clock.turn_to(SETTLED)
        another(rig).round()
    platform.hooks.append(on("/epa-results", OUT))
    clock.turn_to(FIRST + GIVE_UP + MINUTE if is_sealed else FIRST)
    loop = another(rig)
    loop.round()
    platform.hooks.clear()
    loop.round_after(REST)
    assert has_survey(archive())
    assert len(lines_of(archive())) == 2


def test_an_age_that_comes_while_the_window_is_listed_is_not_seen_by_that_listing(
    platform, rig, clock, archive
):
    """A pending call has the window listed just before; that listing ends just after."""
    loop = another(rig, give_up=DAY)
    platform.add(a_call(), a_call("late", TEN + MINUTE))
    missing(platform, "late")
    loop.round_at(SETTLED)
    surveyed(platform)
    missing(platform, "late", gone=False)

    def drag(request: Request) -> None:
        if "dateFrom=2024-01-15T10" in request.raw_query:
            clock.forward(timedelta(seconds=3))

    platform.hooks.append(drag)
    loop.round_at(FIRST - timedelta(seconds=4))
    assert clock.now() > FIRST
    assert [line["archived"] for line in lines_of(archive())] == [1, 2]
    platform.hooks.clear()
    loop.round_after(MINUTE)
    assert has_survey(archive())


@pytest.mark.usefixtures("sealed")
def test_a_first_look_at_the_bucket_that_fails_is_taken_again_in_the_next_round(
    rig, archive, bucket
):
    def out() -> None:
        raise StoreError("the store is out")

    loop = another(rig, where=troubled(bucket, "get", "1000.r1.jsonl", out))
    with pytest.raises(StoreError, match="is out"):
        loop.round_at(FIRST)
    loop.round_after(MINUTE)
    assert len(lines_of(archive())) == 2


# --- one for all


@pytest.fixture
def of_age(platform: Platform, rig: MakeRig, clock: HandClock) -> HandLoop:
    """Two windows have a call with a survey that is not archived yet, and wait to be listed again;
    another call has just begun."""
    platform.add(a_call(), a_call("other", ELEVEN))
    another(rig).round_at(SETTLED + HOUR)
    surveyed(platform)
    surveyed(platform, "other")
    clock.turn_to(FIRST + HOUR)
    platform.add(a_call("newest", clock.now() - MINUTE))
    return another(rig, give_up=DAY)


def goes_on(platform: Platform, loop: HandLoop) -> None:
    """All is well again, until the newest call's window is closed too."""
    platform.hooks.clear()
    loop.round_after(3 * HOUR)


@pytest.mark.parametrize("bad", ["a refused call", "a damaged record", "a damaged segment"])
def test_what_is_bad_in_one_window_keeps_no_other_waiting(platform, of_age, archive, bucket, bad):
    """Whether its window line can be read or not; mended, it is listed again itself."""
    key = layout.SegmentName(TEN, 1).jsonl
    objects = bucket._shelf.objects
    if bad == "a refused call":
        platform.hooks.append(on("/vc_1", Reply(403, {}, b"{}")))
        of_age.round()
    else:
        record, line = archive().read(key).splitlines(keepends=True)
        damaged = record[:9] + b"\n" + line if bad == "a damaged record" else b"nothing like it\n"
        whole, objects[key] = objects[key], replace(objects[key], data=damaged)
        of_age.round()
        objects[key] = whole
    look = archive()
    assert len(lines_of(look)) == 1
    assert has_survey(look, "other")
    assert "newest" in look.records
    goes_on(platform, of_age)
    assert has_survey(archive())


def test_a_survey_that_never_answers_has_no_other_call_asked_for_again_and_again(
    platform, rig, clock, archive
):
    loop = another(rig, give_up=DAY)
    platform.add(a_call(), a_call("other", TEN + MINUTE))
    loop.round_at(SETTLED)
    platform.hooks.append(on("vc_1/epa-results", OUT))
    clock.turn_to(FIRST)
    platform.requests.clear()
    for _ in range(3):
        loop.round()
        clock.forward(REST)
    assert len(lines_of(archive())) == 1, "the listing is put off"
    asked = [r.path.rpartition("/")[2] for r in platform.requests if "/other" in r.path]
    assert asked == ["other", *APART.values()]


def test_follow_ups_do_not_starve_the_newest_calls(platform, of_age, clock, archive, monkeypatch):
    """A source is so slow that one window takes more than the round has for all of them."""
    monkeypatch.setattr(loop_module, "CLOSED_AT_A_TIME", 1)

    def slow(request: Request) -> None:
        if "/voice-calls/vc_1" in request.path:
            clock.forward(timedelta(seconds=40))
            platform.add(a_call("begun_since", FIRST + HOUR + timedelta(seconds=1)))

    platform.hooks.append(slow)
    of_age.round()
    look = archive()
    assert has_survey(look)
    assert "begun_since" in look.records
    assert len(lines_of(look, ELEVEN)) == 1, "there was no time left for it"
    of_age.round()
    assert has_survey(archive(), "other")
    goes_on(platform, of_age)


def test_a_pending_call_that_each_listing_of_the_day_shows_has_its_window_listed_with_pauses(
    platform, rig, archive
):
    """A date-only source lists it beside the calls of every open window, in every round."""
    platform.options.whole_days = True
    loop = another(rig, give_up=DAY)
    platform.add(a_call(), a_call("bad", TEN + MINUTE))
    missing(platform, "bad")
    loop.round_at(SETTLED)
    open_windows = 3
    visits = [loop.round_after(MINUTE).windows - open_windows for _ in range(12)]
    assert archive().line()["pending"] == ["bad"]
    assert sum(visits) == 3, "with backoff"


def test_calls_of_before_the_archive_are_not_kept_in_mind(platform, rig, clock):
    """A date-only source shows them in every listing of the archive's first day."""
    platform.options.whole_days = True
    platform.add(a_call("old", TEN - HOUR, audio=None), a_call(audio=None))
    made = rig(relist=AGES)
    made.loop().round()
    clock.forward(2 * MINUTE)  # what was tried does not rest any more
    assert made.windows.with_unnamed_calls == {WINDOW}
    assert not [request for request in platform.requests if "/old" in request.path]


# --- what is not known is not made up

OLDEST = "archiver_oldest_unarchived_seconds"


def test_gauges_keep_their_value_while_a_listing_cannot_be_read(platform, rig, clock):
    loop = another(rig, give_up=DAY)
    platform.add(a_call(audio=None))
    loop.round()
    assert (value("archiver_pending_calls"), value(OLDEST)) == (1, 2 * HOUR.total_seconds())
    platform.hooks.append(on("/voice-calls", UNREADABLE))
    loop.round_after(MINUTE)
    assert value("archiver_pending_calls") == 1
    waited = value(OLDEST) - (2 * HOUR + MINUTE).total_seconds()
    assert 0 <= waited <= sum(clock.sleeps), "it is counted from the call"
    before = value(OLDEST)
    clock.forward(HOUR)
    assert value(OLDEST) == before + HOUR.total_seconds(), "also while the loop waits"


def test_the_oldest_grows_while_rounds_fail_though_no_call_is_known_to_wait(platform, rig, clock):
    loop = another(rig, give_up=DAY)
    platform.add(a_call())
    began = clock.now()
    loop.round()
    assert value(OLDEST) == 0
    platform.hooks.append(lambda _: OUT)
    clock.when_asleep(3 * HOUR.total_seconds(), clock.stop)
    with pytest.raises(Interrupted):
        loop.run_forever()
    clock.go_on()
    assert value(OLDEST) >= 3 * HOUR.total_seconds()
    assert value(OLDEST) == (clock.now() - began).total_seconds(), "from the last good round on"
    platform.hooks.clear()
    loop.round()
    assert value(OLDEST) == 0


def test_the_oldest_counts_a_window_that_cannot_be_listed(platform, rig, clock):
    loop = another(rig, give_up=DAY)
    platform.add(a_call())
    platform.hooks.append(
        lambda r: UNREADABLE if "dateFrom=2024-01-15T10%3A00" in r.raw_query else None
    )
    loop.round()
    assert value(OLDEST) == (clock.now() - TEN).total_seconds()
    platform.hooks.clear()
    loop.round_at(SETTLED)
    assert value(OLDEST) == 0


def test_processes_of_one_round_each_give_a_call_up_that_was_pending_before(
    platform, rig, clock, archive
):
    """None of them tries twice, so none has more than the manifest to know it by."""
    platform.add(a_call())
    platform.hooks.append(on("/recording-url", OUT))
    clock.turn_to(SETTLED)
    another(rig).round()
    assert archive().line()["pending"] == ["vc_1"]
    clock.turn_to(WINDOW.end + GIVE_UP)
    another(rig).round()
    look = archive()
    told = [(line["failed"], line["pending"]) for line in lines_of(look)]
    assert told == [(0, ["vc_1"]), (1, [])]
    assert look.records["vc_1"]["reason"] == "source_unavailable"


def test_an_outage_does_not_make_a_failed_call_one_without_a_recording(
    platform, rig, clock, archive
):
    """The source had a recording once; neither an outage nor a later denial takes that back."""
    made = rig(give_up=GIVE_UP)
    platform.add(a_call())
    missing(platform, "vc_1")
    clock.turn_to(WINDOW.end + GIVE_UP)
    made.backfill()
    before = archive().records["vc_1"]
    assert (before["outcome"], before["reason"]) == ("failed", "recording_missing")
    platform.hooks.append(on("/recording-url", OUT))
    for _ in range(2):
        made.backfill()
    platform.hooks.clear()
    call_of(platform, "vc_1").recording = None
    made.backfill()
    assert archive().records["vc_1"] == before


@pytest.mark.usefixtures("sealed")
def test_processes_of_one_round_each_do_not_wait_for_ever_for_a_source_that_answers_for_no_survey(
    platform, rig, clock, archive
):
    """As `run --once` has it: each begins anew, and would have all its patience. Meanwhile no
    segment tells of the late call."""
    platform.hooks.append(on("vc_1/epa-results", OUT))
    platform.add(a_call("late", TEN + MINUTE))
    clock.turn_to(FIRST)
    another(rig).round()
    assert told_in(archive(), "late") == [], "it may wait for a while"
    clock.turn_to(FIRST + GIVE_UP)
    another(rig).round()
    clock.forward(MINUTE)
    another(rig).round()
    assert told_in(archive(), "late") == [TEN]
