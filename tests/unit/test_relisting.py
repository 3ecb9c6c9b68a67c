"""What comes late, changes or goes: re-listings and revisions, in memory and on a clock turned by
hand. Each test ends with an audit of what it left."""

from __future__ import annotations

import json

import pytest

from tests.fakes.hooks import json_reply, on
from tests.fakes.http_server import Reply, Request
from tests.fakes.population import TEN, a_call, call_of, stamp
from tests.fakes.relisting import (
    AGES,
    DAY,
    FIRST,
    MINUTE,
    REST,
    SECOND,
    SETTLED,
    amend,
    another,
    files_of,
    lines_of,
)
from tests.fakes.rig import HOUR, WINDOW

pytestmark = pytest.mark.usefixtures("audited")
SURVEY = {"state": "Completed", "calculatedScore": 9}
TALK = [{"role": "user", "text": "I said something else", "timestamp": stamp(TEN)}]


# --- what comes late


def test_a_call_listed_hours_late_comes_with_the_next_listing(platform, sealed, archive):
    platform.add(a_call("late", TEN + 5 * MINUTE))
    sealed.round_at(WINDOW.end + 3 * HOUR)
    assert archive().records.keys() == {"vc_1"}, "its window is sealed: not before its first age"
    sealed.round_at(FIRST - MINUTE)
    assert len(lines_of(archive())) == 1
    assert sealed.round_at(FIRST).committed == {"archived": 1}
    look = archive()
    first, second = lines_of(look)
    assert (first["listed"], second["listed"], second["archived"]) == (1, 2, 2)
    assert second["listed_at"] == stamp(FIRST)
    assert [one.call_id for one in list(look.segments.values())[-1].records] != ["vc_1"]
    assert look.records["late"]["revision"] == 1


def test_a_recording_that_is_late_by_two_hours(platform, loop, clock, archive):
    """404 for 2 h, then there: tried again with growing pauses, archived before it is sealed."""
    noon = clock.now()
    platform.add(a_call("vc_1", noon, audio=None))
    while clock.now() < noon + 2 * HOUR:
        loop.round_after(MINUTE)
    assert archive().records == {}
    assert platform.asked("recording-url") < 20, "with backoff"
    platform.add(a_call("vc_1", noon))
    for _ in range(15):
        loop.round_after(MINUTE)
    record = archive().records["vc_1"]
    assert (record["outcome"], record["revision"]) == ("archived", 1)
    loop.round_at(noon + 3 * HOUR)
    (line,) = lines_of(archive(), noon)
    assert (line["archived"], line["no_recording"]) == (1, 0)


@pytest.mark.parametrize("before", ["no_recording", "failed"])
def test_a_recording_that_comes_after_its_window_was_sealed(platform, loop, archive, before):
    platform.add(a_call(audio=None if before == "no_recording" else b""))
    call_of(platform, "vc_1").blob_missing = before == "failed"
    loop.round_at(SETTLED + HOUR)
    assert archive().records["vc_1"]["outcome"] == before
    platform.add(a_call())
    loop.round_at(FIRST)
    look = archive()
    assert (look.records["vc_1"]["outcome"], look.records["vc_1"]["revision"]) == ("archived", 2)
    assert [(line[before], line["archived"]) for line in lines_of(look)] == [(1, 0), (0, 1)]


def test_a_survey_that_is_filled_in_later(platform, loop, archive):
    platform.add(a_call(), a_call("other", TEN + MINUTE))
    loop.round_at(SETTLED)
    before = archive().records["vc_1"]
    assert "epa" not in files_of(before)
    call_of(platform, "vc_1").epa = SURVEY
    asked = platform.asked(".wav")
    loop.round_at(FIRST)
    look = archive()
    after = look.records["vc_1"]
    assert after["revision"] == 2
    assert look.json(files_of(after)["epa"]["key"])["calculatedScore"] == 9
    assert files_of(after)["recording"] == files_of(before)["recording"]
    assert files_of(after)["transcript"] == files_of(before)["transcript"]
    assert platform.asked(".wav") == asked, "the recording is not fetched again"
    assert after["source"]["etag"] == before["source"]["etag"]
    assert look.records["other"]["revision"] == 1
    assert [line["archived"] for line in lines_of(look)] == [2, 2]


def test_a_transcript_that_has_changed_stands_beside_the_old_one(platform, loop, archive):
    platform.add(a_call(epa=SURVEY))
    loop.round_at(SETTLED)
    before = archive().records["vc_1"]
    amend(platform, "vc_1", transcript=TALK)
    loop.round_at(FIRST)
    look = archive()
    after = look.records["vc_1"]
    old, new = files_of(before)["transcript"], files_of(after)["transcript"]
    assert new["key"] == old["key"].replace(".json", f"-{new['sha256'][:16]}.json")
    assert look.json(new["key"])["transcript"] == TALK
    assert look.json(old["key"])["transcript"] != TALK
    assert files_of(after)["epa"] == files_of(before)["epa"]


def test_another_duration_is_noticed(platform, sealed, archive):
    amend(platform, "vc_1", durationSeconds=100)
    sealed.round_at(FIRST)
    assert archive().records["vc_1"]["findings"] == ["duration_mismatch"]
    amend(platform, "vc_1", durationSeconds=1)
    sealed.round_at(SECOND)
    record = archive().records["vc_1"]
    assert (record["findings"], record["revision"]) == ([], 3)


def test_what_the_source_has_lost_stays_in_the_record(platform, loop, archive):
    platform.add(a_call(epa=SURVEY))
    loop.round_at(SETTLED)
    before = archive().records["vc_1"]
    call = call_of(platform, "vc_1")
    call.epa, call.recording = None, None
    amend(platform, "vc_1", transcript=None)
    loop.round_at(FIRST)
    assert archive().records["vc_1"] == before
    amend(platform, "vc_1", transcript=TALK)
    loop.round_at(SECOND)
    after = archive().records["vc_1"]
    assert after["revision"] == 2
    assert files_of(after)["epa"] == files_of(before)["epa"]
    assert files_of(after)["recording"] == files_of(before)["recording"]


# --- what goes


def test_a_call_that_is_not_listed_any_more_has_vanished_until_it_is(platform, loop, archive):
    gone = a_call("gone", TEN + MINUTE)
    platform.add(a_call(), gone)
    loop.round_at(SETTLED)
    platform.remove("gone")
    loop.round_at(FIRST)
    platform.add(gone)
    loop.round_at(SECOND)
    lines = lines_of(archive())
    assert [line["vanished"] for line in lines] == [[], ["gone"], []]
    assert [line["listed"] for line in lines] == [2, 1, 2]
    assert [line["archived"] for line in lines] == [2, 1, 2]
    assert archive().records["gone"]["revision"] == 1


def test_a_call_that_was_listed_once_and_never_came_is_told_of(platform, loop, archive):
    """Listed while its window was open, gone before it could be archived."""
    platform.add(a_call(), a_call("gone", TEN + MINUTE, audio=None))
    loop.round()
    platform.remove("gone")
    loop.round_at(SETTLED)
    (line,) = lines_of(archive())
    assert (line["listed"], line["archived"]) == (2, 1)
    assert (line["pending"], line["vanished"]) == (["gone"], [])
    loop.round_at(FIRST)
    look = archive()
    record, line = look.records["gone"], lines_of(look)[-1]
    assert (record["outcome"], record["reason"]) == ("failed", "call_missing")
    assert (line["listed"], line["failed"], line["vanished"]) == (1, 0, ["gone"])


def test_a_call_that_only_one_pass_has_listed_is_archived(platform, loop, archive):
    """Hidden from the second pass on, but still there for who asks by its id."""
    platform.add(a_call(), a_call("shy", TEN + MINUTE))
    passes = iter(range(1000))

    def hide(request: Request) -> Reply | None:
        if "dateFrom=2024-01-15T10" not in request.raw_query or next(passes) == 0:
            return None
        body = json.loads(platform.answer(request).body)
        body["data"] = [row for row in body["data"] if row["id"] != "shy"]
        body["pagination"] |= {"totalCount": len(body["data"])}
        return json_reply(body)

    platform.hooks.append(hide)
    loop.round_at(SETTLED)
    look = archive()
    assert look.records.keys() == {"vc_1", "shy"}
    (line,) = lines_of(look)
    assert (line["listed"], line["vanished"], line["passes"]) == (1, ["shy"], 3)


# --- when


def test_that_nothing_changed_is_written_once_for_each_age(rig, sealed, archive):
    for moment in (FIRST, FIRST + HOUR, SECOND, SECOND + HOUR):
        sealed.round_at(moment)
        another(rig).round()
    lines = lines_of(archive())
    assert [line["listed_at"] for line in lines] == [stamp(t) for t in (SETTLED, FIRST, SECOND)]
    assert [line["archived"] for line in lines] == [1, 1, 1]
    later = [one for one in archive().segments.values() if one.name.revision > 1]
    assert [len(list(one.records)) for one in later] == [0] * len(later)


@pytest.mark.usefixtures("sealed")
def test_ages_that_passed_during_a_downtime_take_one_listing(platform, rig, clock, archive):
    platform.add(a_call("late", TEN + MINUTE))
    clock.turn_to(SECOND + 2 * DAY)
    another(rig).round()
    assert [line["listed"] for line in lines_of(archive())] == [1, 2]


def test_two_loops_list_a_window_of_age_once(rig, sealed, archive):
    two = another(rig)
    two.round()
    sealed.round_at(FIRST)
    two.round()
    assert len(lines_of(archive())) == 2


def test_what_one_writer_archived_and_another_did_not_list_is_told_of(platform, rig, loop, archive):
    """It vanished before the other one, which began earlier, closed the window."""
    two = another(rig)
    loop.round()
    platform.add(a_call(), a_call("gone", TEN + MINUTE))
    two.round()
    platform.remove("gone")
    loop.round_at(SETTLED)
    assert len(lines_of(archive())) == 1
    two.round()
    two.round_after(HOUR)
    assert [line["vanished"] for line in lines_of(archive())] == [[], ["gone"]]


def test_a_rival_that_was_faster_ends_the_listing(platform, rig, clock, archive):
    """Both have found the window due; the second one reads before it writes."""
    one, two = rig(relist=AGES), rig(relist=AGES)
    one.found()
    two.found()
    platform.add(a_call())
    clock.turn_to(SETTLED)
    one.backfill()
    two.windows.process(WINDOW)  # it knows of the first revision
    clock.turn_to(FIRST)
    for made in (one, two):
        outcome = made.windows.process(WINDOW)
        assert outcome.is_closed
        made.chain.append(outcome.segments)
    assert len(lines_of(archive())) == 2


def test_without_ages_nothing_is_listed_again(platform, rig, archive):
    loop = another(rig, relist=())
    platform.add(a_call())
    loop.round_at(SETTLED)
    loop.round_at(SECOND)
    assert len(lines_of(archive())) == 1


def test_an_outage_postpones_the_listing(platform, sealed, archive):
    """Else a survey that changed would never be found out."""
    call_of(platform, "vc_1").epa = SURVEY
    platform.hooks.append(on("/epa-results", Reply(503)))
    assert not sealed.round_at(FIRST).needs_a_person
    assert len(lines_of(archive())) == 1
    platform.hooks.clear()
    sealed.round_after(REST)
    assert len(lines_of(archive())) == 2
    assert "epa" in files_of(archive().records["vc_1"])


def test_an_outage_is_not_waited_for_longer_than_give_up(platform, sealed, archive):
    platform.hooks.append(on("/epa-results", Reply(503)))
    for moment, revisions in ((0 * HOUR, 1), (2 * HOUR, 1), (3 * HOUR + 10 * MINUTE, 2)):
        sealed.round_at(FIRST + moment)
        assert len(lines_of(archive())) == revisions
    assert archive().records["vc_1"]["revision"] == 1


def test_a_late_call_of_a_date_only_source_is_seen_at_once(platform, loop, archive):
    """Each listing shows the whole day, so a late call turns up beside another window's."""
    platform.options.whole_days = True
    platform.add(a_call())
    loop.round_at(SETTLED)
    platform.add(a_call("late", TEN + MINUTE))
    loop.round_after(MINUTE)
    assert archive().records.keys() == {"vc_1", "late"}
    assert [line["listed"] for line in lines_of(archive())] == [1, 2]
