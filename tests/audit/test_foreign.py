"""Objects that are not ours, or not readable, are findings at every level, and no more."""

from __future__ import annotations

import pytest

from archiver.audit import leftovers
from archiver.audit.findings import CODES, Report
from tests.audit.builder import hour, small_archive
from tests.audit.damage import SEGMENTS, Damage
from tests.audit.foreign import (
    FOREIGN,
    FOREIGN_BYTES,
    SIGHTING,
    SOUND,
    STRANGE,
    THIRTEEN,
    at,
    passed_over,
    sealed_segment,
    sight,
    unreadable_entries,
)
from tests.audit.store import MemoryStore

LEVELS = ["manifest", "objects", "bytes"]


def without_leftovers(report: Report) -> set[str]:
    """The codes, but for what a window that is not sealed leaves behind at the higher levels."""
    return set(report.totals) - {"untold_record", "unnamed_object"}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("damage", FOREIGN, ids=lambda damage: damage.name)
def test_what_is_foreign_has_its_code(damage: Damage, level: str) -> None:
    builder = small_archive()
    damage.do(builder)

    report = builder.audit(level=level)

    if "recordings/" in damage.name and level == "manifest":
        assert report.totals == {}, "what lies there is looked at from level objects on"
        return
    assert set(report.totals) == damage.codes
    assert all(count == 1 for count in report.totals.values()), "told of once"
    assert report.exit_code == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("name", "do"), SOUND, ids=[name for name, _ in SOUND])
def test_what_is_sound_is_no_damage(name: str, do, level: str) -> None:
    builder = small_archive()
    do(builder)

    report = builder.audit(level=level)

    assert without_leftovers(report) == set()
    assert report.ok


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("versioned", [True, False])
def test_in_a_bucket_without_versions_too(versioned: bool, level: str) -> None:
    builder = small_archive(MemoryStore(versioned=versioned))
    at(STRANGE, FOREIGN_BYTES)(builder)
    at("manifest/evil.json", FOREIGN_BYTES)(builder)

    assert builder.audit(level=level).totals == {"foreign_object": 1, "record_unreadable": 1}


# --- records


def test_records_that_a_segment_names_are_not_read_at_level_manifest() -> None:
    builder = small_archive()
    at(STRANGE, FOREIGN_BYTES)(builder)

    builder.audit(level="manifest")

    asked = [one for one in builder.store.requests if " records/dt" in one]
    assert asked == [f"read {STRANGE}"]


def test_very_many_records_are_read_as_far_as_it_goes(monkeypatch) -> None:
    monkeypatch.setattr(leftovers, "MAX_RECORDS_READ", 5)
    builder = small_archive()
    for number in range(8):
        builder.store.put(f"records/dt=2024-01-16/vc_{number}/r1.json", b"x")

    report = builder.audit()

    assert report.totals == {"record_unreadable": 5, "untold_record": 3}
    assert "3 records that no sealed segment names were not read" in report.notes


def test_very_many_foreign_keys_are_counted() -> None:
    builder = small_archive()
    for number in range(30):
        builder.store.put(f"records/{number:02}", b"x")

    report = builder.audit()

    assert report.totals == {"foreign_object": 30}
    assert len(report.findings) == leftovers.SHOWN


def test_what_another_archive_keeps_beside_is_nothing_of_ours() -> None:
    builder = small_archive()
    builder.store.put("elsewhere/records/x", b"x")

    assert builder.audit().totals == {}


def test_a_log_of_a_newer_release_is_information() -> None:
    builder = small_archive()
    builder.store.put("manifest/log/checkpoint", b"x")

    assert builder.audit().totals == {"unexpected_object": 1}


@pytest.mark.parametrize("level", LEVELS)
def test_a_record_that_cannot_be_read_is_a_finding(level: str) -> None:
    builder = small_archive()
    builder.call("vc_e", hour(13), kinds=())
    key = "records/dt=2024-01-15/vc_e/r1.json"
    builder.refuse(key)

    report = builder.audit(level=level)

    assert [(f.code, f.key) for f in report.findings] == [("unreadable", key)]


# --- a newer release


def test_what_is_known_of_a_newer_segment_is_checked() -> None:
    builder = small_archive()
    sealed_segment(0, 1, 2)(builder)
    builder.store.rot(THIRTEEN + ".jsonl", lambda data: data.replace(b"novelty", b"NOVELTY"))
    builder.store.rot(THIRTEEN + ".seal", lambda _: b"7\n")

    codes = {"newer_format", "segment_mismatch", "pointer_mismatch"}
    assert set(builder.audit(level="manifest").totals) == codes


def test_a_newer_release_is_named_in_words() -> None:
    builder = small_archive()
    sealed_segment(0, 1, 2)(builder)

    [finding] = builder.audit().findings

    assert (finding.severity, finding.detail) == ("warning", "3 lines")
    assert "verify with that release" in CODES["newer_format"].meaning


# --- revisions


def test_a_revision_that_was_passed_over_is_explained() -> None:
    builder = small_archive()
    passed_over(FOREIGN_BYTES)(builder)

    report = builder.audit()

    skipped = next(f for f in report.findings if f.code == "revision_skipped")
    assert (skipped.key, skipped.severity) == (f"{SEGMENTS}1300.r2.jsonl", "info")
    assert "not ours" in skipped.detail
    assert report.counts.records == 9


def test_the_balance_of_a_revision_that_was_passed_over_is_checked() -> None:
    builder = small_archive()
    passed_over(FOREIGN_BYTES, outcomes={"vc_e": "archived", "vc_more": "archived"})(builder)

    codes = {"revision_skipped", "segment_invalid", "window_counts", "listed_mismatch"}
    assert set(builder.audit().totals) == codes


def test_a_revision_whose_key_cannot_be_read_was_passed_over() -> None:
    builder = small_archive()
    passed_over(FOREIGN_BYTES)(builder)
    builder.refuse(THIRTEEN + ".jsonl")

    assert set(builder.audit().totals) >= {"revision_skipped", "unreadable"}


# --- listings


def test_entries_that_are_no_calls_are_counted_by_window() -> None:
    builder = small_archive()
    unreadable_entries(builder, 1, 3)

    [finding] = builder.audit(level="manifest").findings

    assert finding.key == f"{SEGMENTS}1300.r2.jsonl"
    assert finding.detail == "3 entries of the window from 2024-01-15T13:00:00Z"


# --- sightings


WINDOW = "2024-01-15T12:00:00Z/2024-01-15T13:00:00Z"


@pytest.mark.parametrize(
    ("ids", "detail"),
    [
        (["vc_d", "vc_lost", "../\n"], f"2 calls of the window {WINDOW}, for instance vc_lost"),
        (["../\n"], f"1 call of the window {WINDOW}"),
    ],
    ids=["an example", "no id that is safe to print"],
)
def test_a_lost_call_is_told_with_its_window(ids: list[str], detail: str) -> None:
    builder = small_archive()
    sight(*ids)(builder)

    [finding] = builder.audit().findings

    assert (finding.key, finding.detail) == (SIGHTING, detail)


def test_a_record_that_is_foreign_saves_no_sighted_call() -> None:
    builder = small_archive()
    sight("vc_strange")(builder)
    at(STRANGE, FOREIGN_BYTES)(builder)

    assert builder.audit(level="manifest").totals == {"record_unreadable": 1, "sighting_lost": 1}


def test_a_range_does_not_hold_sightings_against_windows() -> None:
    builder = small_archive()
    sight("vc_lost")(builder)

    report = builder.audit(start=hour(10).start)

    assert report.totals == {}
    assert any("sightings were not held" in note for note in report.notes)


def test_without_all_segments_no_call_is_called_lost() -> None:
    builder = small_archive()
    sight("vc_a", "vc_lost")(builder)
    builder.store.lose(f"{SEGMENTS}1000.r1.jsonl")

    report = builder.audit(level="manifest")

    assert set(report.totals) == {"segment_missing"}
    assert any("sightings were not held" in note for note in report.notes)


def test_a_sighting_that_cannot_be_read_is_a_finding() -> None:
    builder = small_archive()
    sight("vc_lost")(builder)
    builder.refuse(SIGHTING)

    assert builder.audit().totals == {"unreadable": 1}
