"""What `check` makes of what the store proved: verdicts, exit codes, and what follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from archiver.preflight import CheckLine, Wanted, endpoint_line, store_lines, table
from tests.contract.stores import KNOWN, MATTERS, told

BEST = KNOWN["weed-locked"].proved
LOCKS = Wanted("COMPLIANCE", 7300)


def lines(wanted: Wanted = LOCKS, **differs: Any) -> dict[str, CheckLine]:
    return {line.name: line for line in store_lines(replace(BEST, **differs), wanted)}


def test_of_the_best_store_there_is_nothing_to_note():
    found = lines(clock_skew_seconds=0.4)
    assert {line.verdict for line in found.values()} == {"ok"}
    assert found.keys() == {
        "create-once", "checksums", "multipart", "versioning", "object lock", "multipart lock",
        "legal hold", "store clock",
    }  # fmt: skip
    assert "7300 days" in found["object lock"].action


@pytest.mark.parametrize(
    ("differs", "name", "verdict", "told"),
    [
        ({"create_once": False}, "create-once", "FAIL", "--single-writer"),
        (
            {"create_once": False, "create_once_race_winners": 3},
            "create-once", "FAIL", "3 of 32 writers won",
        ),
        ({"create_once_race_winners": 0}, "create-once", "ok", "none overwrote"),
        ({"checksums": False}, "checksums", "note", "read back and hashed"),
        ({"complete_create_once": False}, "multipart", "note", "keys of their own"),
        ({"versioning": False}, "versioning", "note", "gone"),
        ({"versioning": None}, "versioning", "note", "s3:GetBucketVersioning"),
        ({"lock_holds": False}, "object lock", "FAIL", "nothing is archived"),
        ({"lock_at_multipart": False}, "multipart lock", "note", "set again"),
        ({"lock_at_multipart": None}, "multipart lock", "ok", "not known"),
        ({"legal_hold": False}, "legal hold", "note", "archiver hold fails"),
        ({"legal_hold": None}, "legal hold", "ok", "looks at each hold"),
        ({"clock_skew_seconds": 61.0}, "store clock", "FAIL", "61 s ahead of ours"),
        ({"clock_skew_seconds": -61.0}, "store clock", "FAIL", "61 s behind ours"),
        ({"clock_skew_seconds": -59.0}, "store clock", "ok", "59 s behind ours"),
    ],
)  # fmt: skip
def test_what_differs_is_told(differs, name, verdict, told):
    line = lines(**differs)[name]
    assert line.verdict == verdict
    assert told in f"{line.detail}; {line.action}"
    assert line.exit_code == (4 if verdict == "FAIL" else 0)
    assert line.ok == (verdict != "FAIL")


def test_without_a_lock_mode_nothing_is_promised():
    unlocked = {"lock_holds": None, "lock_at_multipart": None}
    found = lines(Wanted(), **unlocked)
    assert found["object lock"].verdict == "note"
    assert "multipart lock" not in found
    assert "legal hold" in found
    bare = lines(Wanted(), **unlocked, object_lock=False, legal_hold=None)
    assert bare["object lock"].detail == "the bucket lacks it"
    assert "legal hold" not in bare
    unknown = lines(Wanted(), **unlocked, object_lock=None, legal_hold=None)
    assert "not known" in unknown["object lock"].detail


@pytest.mark.parametrize(
    ("verify_writes", "checksums", "told"),
    [
        ("auto", True, "proves each write"),
        ("auto", False, "read back and hashed"),
        ("full", True, "read back and hashed"),
        ("head", True, "proves each write"),
        ("head", False, "stays unseen"),
    ],
)
def test_how_writes_are_checked(verify_writes, checksums, told):
    found = lines(Wanted(verify_writes=verify_writes), checksums=checksums, lock_holds=None)
    assert told in found["checksums"].action


@pytest.mark.parametrize(
    ("endpoint", "verdict", "told"),
    [
        ("https://s3.example.com", "ok", "on"),
        ("http://127.0.0.1:8333", "ok", "this very machine"),
        ("http://[::1]:8333", "ok", "this very machine"),
        ("http://localhost:8333", "ok", "this very machine"),
        ("http://10.0.0.7:8333", "note", "another machine"),
        ("http://s3.internal", "note", "another machine"),
        ("http://localhost.example.com", "note", "another machine"),
    ],
)
def test_plain_http_is_noted_but_to_this_machine(endpoint, verdict, told):
    line = endpoint_line(endpoint)
    assert (line.verdict, line.exit_code) == (verdict, 0)
    assert told in line.detail


def test_the_table_is_one_line_a_matter():
    rows = [
        CheckLine("settings", "complete"),
        CheckLine("checksums", "wrong ones are taken", "all is read back", note=True),
        CheckLine("store", "a refusal is a sentence of any length", exit_code=4),
    ]
    assert list(table(rows)) == [
        "      matter     found                 what follows",
        "ok    settings   complete",
        "note  checksums  wrong ones are taken  all is read back",
        "FAIL  store      a refusal is a sentence of any length",
    ]


def test_a_line_for_programs():
    assert CheckLine("store", "is unreachable", exit_code=4).document() == {
        "action": "", "detail": "is unreachable", "exit_code": 4, "name": "store", "ok": False,
        "verdict": "fail",
    }  # fmt: skip


def test_the_table_of_stores_agrees_with_itself():
    """What the probe finds and what the suite looks at are told apart, and must not differ."""
    for name, known in KNOWN.items():
        proved = known.proved
        refuses = told("a part with a wrong SHA-256", name) == "refused"
        assert proved.checksums == refuses, name
        assert proved.create_once == (
            told("a create-once write of a taken key", name) == "refused"
        ), name
        assert proved.complete_create_once == (
            told("a create-once end of an upload, of a taken key", name) == "refused"
        ), name
        if known.locked:
            kept = told("a lock given when an upload begins", name) == "kept"
            assert proved.lock_at_multipart == kept, name
            held = told("shortening a lock", name) == "refused"
            assert proved.lock_holds == held, name
    assert MATTERS
