"""Keys: the frozen examples, round trips, and ids that want to be something else."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.manifest import layout
from archiver.manifest.layout import SegmentName

DAY = date(2024, 1, 15)
DAYS = st.dates(date(1970, 1, 1), date(2400, 1, 1))
REVISIONS = st.integers(1, 10**8)
PARSERS = (
    layout.parse_record_key, layout.parse_segment_key, layout.parse_event_key,
    layout.parse_seal_key,
)  # fmt: skip
SAFE_KEY = re.compile(r"[A-Za-z0-9_.=/-]+")


def test_the_keys_of_the_contract():
    assert layout.recording_dir(DAY, "vc_abc123") == "recordings/dt=2024-01-15/vc_abc123/"
    assert layout.record_key(DAY, "vc_abc123", 1) == "records/dt=2024-01-15/vc_abc123/r1.json"
    name = SegmentName(datetime(2024, 1, 15, 10, tzinfo=UTC), 1)
    assert name.jsonl == "manifest/segments/dt=2024-01-15/1000.r1.jsonl"
    assert name.sha256 == "manifest/segments/dt=2024-01-15/1000.r1.sha256"
    assert name.seal == "manifest/segments/dt=2024-01-15/1000.r1.seal"
    assert layout.seal_key(41) == "manifest/seals/000000000041.json"
    assert layout.signature_key(41) == "manifest/seals/000000000041.json.sig"
    assert layout.public_key_key("0123456789abcdef") == "manifest/keys/0123456789abcdef.pem"
    assert layout.alternative_key("a/recording.wav", "f" * 16) == "a/recording-ffffffffffffffff.wav"


@given(DAYS, st.text(max_size=40), REVISIONS)
def test_record_keys_round_trip_for_any_id(day, call_id, revision):
    key = layout.record_key(day, call_id, revision)
    assert layout.parse_record_key(key) == (day, layout.call_dir(call_id), revision)


@given(DAYS, st.integers(0, 1439), REVISIONS)
def test_segment_keys_round_trip(day, minute, revision):
    start = datetime.combine(day, datetime.min.time(), UTC) + timedelta(minutes=minute)
    name = SegmentName(start, revision)
    for kind, key in (("jsonl", name.jsonl), ("sha256", name.sha256), ("seal", name.seal)):
        assert layout.parse_segment_key(key) == (name, kind)


@given(st.integers(0, 10**12 - 1))
def test_seal_keys_round_trip(number):
    assert layout.parse_seal_key(layout.seal_key(number)) == (number, False)
    assert layout.parse_seal_key(layout.signature_key(number)) == (number, True)


@given(st.text(max_size=300))
def test_no_id_leaves_its_directory_or_brings_odd_characters(call_id):
    directory = layout.call_dir(call_id)
    assert SAFE_KEY.fullmatch(directory)
    assert "/" not in directory
    assert directory not in (".", "..")
    assert len(directory) <= 128


@pytest.mark.parametrize(
    "call_id",
    ["../x", "..", ".", "a/b", "", "a b", "x" * 129, "\0", "\u202eabc", "👋", "id.abc", "a\n", "é"],
)
def test_an_unsafe_id_becomes_its_digest(call_id):
    digest = hashlib.sha256(call_id.encode()).hexdigest()
    assert layout.call_dir(call_id) == f"id.{digest}"


@pytest.mark.parametrize("call_id", ["a", "vc_abc123", "A-b_9", "x" * 128])
def test_a_safe_id_stands_as_it_is(call_id):
    assert layout.call_dir(call_id) == call_id


def test_a_lone_surrogate_has_a_directory_too():
    assert layout.call_dir("\ud800").startswith("id.")


@given(st.text(max_size=80) | st.from_regex(r"records/dt=.{10}/[a-z]{1,3}/r.{1,4}\.json"))
def test_parsing_any_key_is_safe(key):
    for parse in PARSERS:
        parse(key)


@pytest.mark.parametrize(
    "key",
    [
        "records/dt=2024-13-45/x/r1.json",
        "records/dt=2024-01-15/x/r0.json",
        "records/dt=2024-01-15/x/r01.json",
        "records/dt=2024-01-15/x/r1" + "1" * 5000 + ".json",
        "records/dt=2024-01-15/x/r1\u0661.json",
        "records/dt=2024-01-15/x/y/r1.json",
        "records/dt=2024-01-15/x/r1.json\n",
        "/records/dt=2024-01-15/x/r1.json",
        "manifest/segments/dt=2024-01-15/9999.r1.jsonl",
        "manifest/segments/dt=2024-01-15/2400.r1.jsonl",
        "manifest/segments/dt=2024-01-15/1060.r1.jsonl",
        "manifest/segments/dt=2024-02-30/1000.r1.jsonl",
        "manifest/segments/dt=2024-01-15/1000.r1.txt",
        "manifest/events/dt=2024-02-30/101112-0123abcd.jsonl",
        "manifest/events/dt=2024-01-15/241112-0123abcd.jsonl",
        "manifest/events/dt=2024-01-15/101112-0123ABCD.jsonl",
        "manifest/events/dt=2024-01-15/101112-0123abcd.jsonl\n",
        "manifest/seals/41.json",
        "manifest/seals/000000000041.json.bak",
        "manifest/seals/00000000004\u0661.json",
    ],
)
def test_what_is_no_key_of_ours_parses_as_none(key):
    assert [parse(key) for parse in PARSERS] == [None] * 4


def test_what_lies_beside_a_segment_of_events():
    key = layout.event_key(datetime(2024, 1, 15, 10, 11, 12, tzinfo=UTC), "0123abcd")
    stem = "manifest/events/dt=2024-01-15/101112-0123abcd"
    beside = [key, layout.checksum_list_key(key), layout.seal_pointer_key(key)]
    assert [layout.parse_event_key(one) for one in beside] == [
        (stem, "jsonl"), (stem, "sha256"), (stem, "seal")
    ]  # fmt: skip


def test_segment_names_sort_by_window_then_revision():
    start = datetime(2024, 1, 15, 10, tzinfo=UTC)
    names = [SegmentName(start, 10), SegmentName(start, 2), SegmentName(start - timedelta(1), 3)]
    assert [name.revision for name in sorted(names)] == [3, 2, 10]
