"""`manifest list` and `manifest show`: only what is sealed, in the newest revision."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta

import pytest

from archiver.audit import tables
from archiver.audit.chain import SealedSegments
from archiver.audit.query import CallHistory, Query
from archiver.core.errors import FormatError, StoreError
from archiver.manifest import layout, record
from tests.audit.builder import DAY, Builder, hour, small_archive, unordered_archive
from tests.audit.damage import FIRST, THIRD, edit_seal, flip, lose_seal
from tests.audit.foreign import THIRTEEN, kinds, newer, sealed_segment

pytestmark = pytest.mark.usefixtures("any_order")

ALL = (DAY, DAY + timedelta(days=1))


def ids(builder: Builder, start=ALL[0], end=ALL[1], outcome=None) -> list[tuple[str, int]]:
    rows = Query(builder.store).records(start, end, outcome)
    return [(row.record.call_id, row.record.revision) for row in rows]


def history_of(builder: Builder, call_id: str) -> CallHistory:
    found = Query(builder.store).find(call_id)
    assert found is not None
    return found


def test_each_call_once_in_its_newest_revision() -> None:
    assert ids(small_archive()) == [
        ("vc_a", 2), ("vc_b", 1), ("vc_g", 1), ("vc_x", 1), ("../önd\n=1", 1), ("vc_c", 1),
        ("vc_d", 1),
    ]  # fmt: skip


def test_the_newest_is_the_one_with_the_highest_number() -> None:
    builder = unordered_archive()

    assert ids(builder) == [("vc_a", 10), ("vc_b", 10), ("vc_c", 2), ("vc_d", 1), ("vc_p", 1)]
    assert ids(builder, outcome="failed") == []
    history = history_of(builder, "vc_a")

    assert [found.revision for found in history.revisions] == [2, 3, 10]


def test_a_record_in_two_segments_of_a_window_is_one_row() -> None:
    builder = small_archive()
    found = record.parse(builder.store.data("records/dt=2024-01-15/vc_d/r1.json"))
    known = {"vc_c": "failed", "vc_d": "archived", "../önd\n=1": "archived"}
    sealed = builder.close(hour(12), [found], revision=2, outcomes=known)

    rows = [r for r in Query(builder.store).records(*ALL) if r.record.call_id == "vc_d"]
    assert [(row.segment[-8:], row.seal) for row in rows] == [("r2.jsonl", sealed.seq)]


def test_a_row_knows_its_segment_and_seal() -> None:
    rows = {row.record.call_id: row for row in Query(small_archive().store).records(*ALL)}

    assert (rows["vc_a"].seal, rows["vc_a"].segment[-8:]) == (4, "r2.jsonl")
    assert (rows["vc_b"].seal, rows["vc_b"].segment[-8:]) == (1, "r1.jsonl")


def test_the_range_is_of_windows() -> None:
    builder = small_archive()
    half = timedelta(minutes=30)

    assert len(ids(builder, hour(11).start, hour(12).end)) == 3
    assert len(ids(builder, hour(10).start + half, hour(11).start)) == 4
    assert len(ids(builder, hour(11).start, hour(12).start)) == 0
    assert len(ids(builder, hour(12).start + half, hour(12).start + 2 * half)) == 3
    assert len(ids(builder, hour(13).start, hour(14).end)) == 0
    assert len(ids(builder, DAY - timedelta(days=3), DAY + timedelta(days=3))) == 7
    assert len(ids(builder, DAY + timedelta(days=1), DAY + timedelta(days=3))) == 0


def test_an_outcome_can_be_asked_for() -> None:
    builder = small_archive()

    assert ids(builder, outcome="failed") == [("vc_c", 1)]
    assert ids(builder, outcome="no_recording") == [("vc_b", 1)]


def test_what_is_not_sealed_is_not_listed() -> None:
    builder = small_archive()
    built = builder.segment(hour(13), [builder.call("vc_e", hour(13))])
    assert "vc_e" not in dict(ids(builder))

    sealed = builder.seal(built)
    assert "vc_e" in dict(ids(builder))

    builder.store.lose(built.name.seal)  # a crash came between: the newest seal still says so
    assert "vc_e" in dict(ids(builder))
    builder.store.put(built.name.seal, f"{sealed.seq - 1}\n".encode())
    assert "vc_e" not in dict(ids(builder))
    [damage] = damages(builder)
    assert built.name.seal in damage


def damages(builder: Builder) -> list[str]:
    """What a query over the whole day names as left out."""
    query = Query(builder.store)
    list(query.records(DAY, DAY + timedelta(days=1)))
    return list(query.damages)


def test_a_later_window_alone_has_no_first_revision() -> None:
    builder = small_archive()
    builder.store.lose(THIRD + ".jsonl")

    assert len(ids(builder)) == 4  # not listed: verify says why


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b.store.rot(THIRD + ".jsonl", flip),
        lambda b: b.store.rot(THIRD + ".jsonl", lambda d: d + b"more"),
        lambda b: lose_seal(b, 3),
        lambda b: b.store.rot(layout.seal_key(3), lambda _: b"{}"),
        lambda b: edit_seal(b, 3, segments=[]),
        lambda b: b.store.rot(THIRD + ".seal", lambda _: "٣".encode()),
        lambda b: b.store.rot(THIRD + ".seal", lambda _: b"-1"),
        lambda b: b.refuse(THIRD + ".jsonl"),
        lambda b: b.refuse(THIRD + ".seal"),
        lambda b: b.refuse(layout.seal_key(3)),
    ],
)
def test_damage_is_one_clear_line_and_the_rest_is_listed(damage) -> None:
    builder = small_archive()
    damage(builder)

    [problem] = damages(builder)

    assert "\n" not in problem
    assert [call_id for call_id, _ in ids(builder)] == ["vc_a", "vc_b", "vc_g", "vc_x"]


def test_a_day_that_cannot_be_listed_is_left_out() -> None:
    builder = small_archive()
    builder.refuse("manifest/segments/dt=2024-01-15/")

    assert damages(builder) == ["manifest/segments/dt=2024-01-15/ cannot be listed (odd)"]


def test_a_store_that_is_out_ends_it() -> None:
    builder = small_archive()
    gone = StoreError("gone", reason="unreachable")
    builder.store.refuse_all = dict.fromkeys(("read", "stream", "head", "list", "versions"), gone)

    with pytest.raises(StoreError, match="gone"):
        ids(builder)


@pytest.mark.parametrize(("lines", "listed"), [((0,), ["vc_f"]), ((2,), []), ((0, 1, 2), [])])
def test_lines_of_a_newer_release_are_left_out(lines: tuple[int, ...], listed: list[str]) -> None:
    builder = small_archive()
    sealed_segment(*lines)(builder)

    new = [call_id for call_id, _ in ids(builder)]

    assert [one for one in new if one in ("vc_e", "vc_f")] == listed
    assert len(new) == 7 + len(listed)
    [problem] = damages(builder)
    assert problem.startswith(f"{THIRTEEN}.jsonl: ")
    assert "newer release" in problem


# --- forms


def told(builder: Builder, form: str) -> str:
    return "".join(tables.records_text(Query(builder.store).records(*ALL), form))  # type: ignore[arg-type]


def test_jsonl_is_the_exact_lines() -> None:
    builder = small_archive()
    lines = told(builder, "jsonl").splitlines(keepends=True)

    assert len(lines) == 7
    for line in lines:
        assert builder.store.data(json.loads(line)["record"]) == line.encode()


def test_csv_is_quoted_and_has_no_formulas() -> None:
    builder = Builder().genesis()
    names = ["=1+1", " \t=1", "@x", "+4", "-4", "\tx", "\rx", 'say "hi",\nyou', "plain"]
    builder.close(hour(10), [builder.call(name, hour(10)) for name in names])

    text = told(builder, "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))

    assert {row["call_id"] for row in rows} == {
        "'=1+1", "' \t=1", "'@x", "'+4", "'-4", "'\tx", "'\rx", 'say "hi",\nyou', "plain"
    }  # fmt: skip
    assert tuple(rows[0]) == tables.COLUMNS
    assert rows[0]["recording_bytes"] == "1600"
    assert all(line.startswith('"') for line in text.split("\r\n") if line and line != 'you"')


def test_the_table_shows_no_control_characters() -> None:
    text = told(small_archive(), "table")

    assert len(text.splitlines()) == 8
    assert "../önd\\n=1" in text


# --- one call


def test_all_revisions_with_files_and_seals() -> None:
    history = history_of(small_archive(), "vc_a")

    document = history.document()
    assert [(r["record"]["revision"], r["seal"]) for r in document["revisions"]] == [(1, 1), (2, 4)]
    assert [r["segment"][-8:] for r in document["revisions"]] == ["r1.jsonl", "r2.jsonl"]
    assert len(document["revisions"][1]["record"]["files"]) == 3
    text = tables.history_text(history)
    assert "seal 4, manifest/segments/dt=2024-01-15/1000.r2.jsonl" in text
    assert document["revisions"][1]["record"]["files"][0]["sha256"] in text


def test_a_call_that_vanished_keeps_its_record() -> None:
    history = history_of(small_archive(), "vc_g")

    assert [(row["key"], row["seal"]) for row in history.document()["revisions"]] == [
        ("records/dt=2024-01-15/vc_g/r1.json", 1)
    ]


def test_an_odd_id_is_found_and_shown_harmless() -> None:
    shown = tables.history_text(history_of(small_archive(), "../önd\n=1"))

    assert "call ../önd\\n=1\n" in shown


def test_an_unknown_call_is_none() -> None:
    builder = small_archive()

    assert Query(builder.store).find("vc_no") is None
    assert Query(Builder().genesis().store).find("vc_no") is None


def test_a_recent_call_costs_little() -> None:
    builder = small_archive()
    Query(builder.store).find("vc_a")

    assert len(builder.store.requests) < 80


def test_a_call_of_tomorrow_and_one_of_another_century_are_found() -> None:
    builder = small_archive()
    for days in (400, -20_000):
        window = type(hour(0))(hour(0).start + timedelta(days=days), hour(1).start)
        builder.call(f"vc_{days}", window)

    for days in (400, -20_000):
        history = history_of(builder, f"vc_{days}")
        assert history.document()["revisions"][0]["seal"] is None


def test_a_call_that_is_not_sealed_yet_says_so() -> None:
    builder = small_archive()
    builder.now += timedelta(days=1)
    builder.call("vc_e", hour(13))
    history = history_of(builder, "vc_e")

    assert "sealed    " in tables.history_text(history)
    assert "not yet" in tables.history_text(history)


def test_a_record_that_was_amended_before_any_segment_told_of_it_says_so() -> None:
    builder = small_archive()
    builder.call("vc_e", hour(13), outcome="failed")
    sealed = builder.close(hour(13), [builder.call("vc_e", hour(13), revision=2)])
    history = history_of(builder, "vc_e")

    first, second = history.document()["revisions"]
    assert (first["seal"], first["segment"], second["seal"]) == (None, None, sealed.seq)
    text = tables.history_text(history)
    assert "not yet" not in text
    assert "  sealed        no: revision 2 came before any segment told of it\n" in text


def test_a_call_in_a_window_far_from_its_start_is_found() -> None:
    builder = small_archive()
    found = builder.call("vc_e", hour(13))
    far = type(hour(0))(hour(0).start + timedelta(days=90), hour(1).start + timedelta(days=90))
    sealed = builder.close(far, [found], watermark=hour(12).end)
    history = history_of(builder, "vc_e")

    assert history.sealed[found.key][1] == sealed.seq


@pytest.mark.parametrize(
    "damage",
    [
        lambda b, key: b.store.rot(key, lambda _: b"{}"),
        lambda b, key: b.store.rot(key, newer),
        lambda b, key: b.store.rot(key, lambda _: b" " * (2 << 20)),
        lambda b, key: b.refuse(key),
    ],
)
def test_a_damaged_record_is_one_clear_line_and_the_others_are_shown(damage) -> None:
    builder = small_archive()
    damage(builder, "records/dt=2024-01-15/vc_a/r1.json")

    query = Query(builder.store)
    history = query.find("vc_a")

    assert history is not None
    assert [found.revision for found in history.revisions] == [2]
    [problem] = query.damages
    assert "records/dt=2024-01-15/vc_a/r1.json" in problem


def test_a_segment_that_cannot_be_read_hides_no_call() -> None:
    builder = small_archive()
    builder.refuse(FIRST + ".jsonl")

    query = Query(builder.store)
    history = query.find("vc_a")

    assert history is not None
    assert [found.key in history.sealed for found in history.revisions] == [False, True]
    [problem] = query.damages
    assert FIRST in problem


def test_findings_stand_in_every_form() -> None:
    builder = small_archive()
    kinds(("transcript_malformed", "transcript.bad"))(builder)

    rows = list(Query(builder.store).records(hour(13).start, hour(13).end))

    told = " ".join(sorted(record.INCOMPLETE))
    for form in ("table", "csv"):
        assert told in "".join(tables.records_text(rows, form))
    history = history_of(builder, "vc_e")

    assert f"findings      {told}\n" in tables.history_text(history)
    assert "transcript_malformed" in tables.history_text(history)


def test_the_head_is_found_in_chains_of_any_length() -> None:
    builder = Builder().genesis()
    for length in range(1, 20):
        assert SealedSegments(builder.store).newest().seq == length - 1
        builder.seal()
    with pytest.raises(FormatError, match="no archive"):
        SealedSegments(Builder().store).newest()
