"""Record, segment, seal: exact fields and bytes, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.core.errors import FormatError
from archiver.core.model import Call, Window
from archiver.manifest import canonical, merkle, record, seal, segment
from archiver.manifest.record import File, Record
from archiver.manifest.segment import Balance, Listing
from archiver.manifest.signing import SigningKey
from tests.fakes.segments import Segment, build_segment, parse_segment

TEN = datetime(2024, 1, 15, 10, tzinfo=UTC)
WINDOW = Window(TEN, TEN + timedelta(hours=1))
NOW = datetime(2024, 1, 15, 13, 0, 0, 123_456, UTC)
LISTING = Listing(NOW, pages=1, passes=2, source_total=42, filter={"state": ["Completed"]})
DOCUMENT = {
    "id": "vc_abc123",
    "campaignId": "camp_456",
    "direction": "Outbound",
    "state": "Completed",
    "startTime": "2024-01-15T10:00:00.250Z",
    "endTime": "2024-01-15T12:05:12+02:00",
    "durationSeconds": 312,
    "transcript": [{"text": "words"}],
}
AUDIO = {
    "bits_per_sample": 16,
    "channels": 1,
    "duration_seconds": 312.0,
    "encoding": "pcm",
    "sample_rate_hz": 8000,
}
WAV = File("recording", "recordings/x/recording.wav", 44, "a" * 64, "audio/wav", "v1")
RECORD_FIELDS = {
    "archived_at", "audio", "call_id", "campaign_id", "direction", "duration_seconds", "ended_at",
    "files", "findings", "outcome", "reason", "record", "retention", "revision", "source",
    "started_at", "state", "type", "v",
}  # fmt: skip


def a_record(call_id: str = "vc_abc123", revision: int = 1, **changes: Any) -> Record:
    archived = {"outcome": "archived", "files": [WAV], "audio": AUDIO}
    made = record.build(
        Call(call_id, {**DOCUMENT, "id": call_id}),
        **{**archived, "source": {"api": "https://api.example.com/api/v1"}, **changes},
        day=date(2024, 1, 15),
        revision=revision,
        archived_at=NOW,
        retention=None,
    )
    assert record.parse(made.data) == made, "what is written reads as it was meant"
    return made


def a_segment(*records: Record, revision: int = 1, **balance: Any) -> Segment:
    outcomes = {one.call_id: one.outcome for one in records}
    told = Balance(**{"outcomes": outcomes, **balance})
    return build_segment(WINDOW, revision, records, told, LISTING)


# --- record


def test_a_record_has_exactly_the_fields_of_the_contract():
    made = a_record()
    document = json.loads(made.data)
    assert document.keys() == RECORD_FIELDS
    assert made.data == canonical.dump(document)
    assert document["record"] == "records/dt=2024-01-15/vc_abc123/r1.json"
    assert document["archived_at"] == "2024-01-15T13:00:00Z"
    assert document["started_at"] == "2024-01-15T10:00:00.250000Z"
    assert document["ended_at"] == "2024-01-15T10:05:12Z"
    assert (document["type"], document["v"], document["revision"]) == ("call", 1, 1)
    assert document["files"] == [
        {
            "bytes": 44,
            "content_type": "audio/wav",
            "key": "recordings/x/recording.wav",
            "kind": "recording",
            "sha256": "a" * 64,
            "version_id": "v1",
        }
    ]


@pytest.mark.parametrize("outcome", ["no_recording", "failed"])
def test_what_is_not_archived_tells_attempts_and_status(outcome):
    made = a_record(
        outcome=outcome, files=(), audio=None, reason="not_found", attempts=3, status=404
    )
    assert made.document.keys() == RECORD_FIELDS | {"attempts", "status"}
    assert (made.document["attempts"], made.document["status"]) == (3, 404)
    assert made.document["audio"] is None


def test_a_record_of_a_call_that_tells_nothing_has_nulls():
    made = record.build(
        Call("x/y", {"id": "x/y"}),
        outcome="failed",
        files=[],
        source={},
        day=date(2024, 1, 15),
        revision=2,
        archived_at=NOW,
        retention={"mode": "COMPLIANCE", "until": "2025-01-15T00:00:00Z"},
    )
    document = record.parse(made.data).document
    empty = {name for name, value in document.items() if value is None}
    assert {"campaign_id", "direction", "duration_seconds", "started_at", "state"} <= empty
    assert document["call_id"] == "x/y"
    assert document["record"].startswith("records/dt=2024-01-15/id.")


def test_no_transcript_reaches_the_record():
    assert b"words" not in a_record().data


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"type": "hold"}, {"outcome": "lost"}, {"revision": 2}, {"call_id": "vc_other"},
        {"record": "records/dt=2024-13-45/vc_abc123/r1.json"}, {"record": ["x"]},
        {"record": "records/dt=2024-01-15/vc_abc123/r" + "9" * 5000}, {"outcome": ["archived"]},
        {"files": {}}, {"files": ["x"]},
        {"files": [{"key": "k", "sha256": "s", "kind": "recording"}]}, "call_id", "files", "record",
    ],
)  # fmt: skip
def test_a_damaged_record_is_a_format_error(change):
    """Changed, or without a field."""
    document = a_record().document
    changed = {k: v for k, v in document.items() if k != change}
    with pytest.raises(FormatError):
        record.parse(canonical.dump(changed if isinstance(change, str) else document | change))


def test_a_record_in_another_form_is_refused():
    pretty = json.dumps(a_record().document, indent=1).encode() + b"\n"
    for data in (pretty, a_record().data[:-1], a_record().data + b"\n", b"", b"[]\n"):
        with pytest.raises(FormatError):
            record.parse(data)


# --- segment


def test_a_segment_is_its_records_bytes_sorted_by_key_and_a_window_line():
    one, two, ten = a_record("vc_1"), a_record("vc_2"), a_record("vc_10")
    made = a_segment(two, ten, one, pending=["vc_x"])
    assert made.data.startswith(one.data + ten.data + two.data)
    line = json.loads(made.data.splitlines()[-1])
    assert made.data.splitlines(keepends=True)[-1] == canonical.dump(line)
    assert line == {
        "archived": 3,
        "failed": 0,
        "filter": {"state": ["Completed"]},
        "from": "2024-01-15T10:00:00Z",
        "listed": 4,
        "listed_at": "2024-01-15T13:00:00Z",
        "listed_sha256": hashlib.sha256(b"vc_1\nvc_10\nvc_2\nvc_x\n").hexdigest(),
        "no_recording": 0,
        "pages": 1,
        "passes": 2,
        "pending": ["vc_x"],
        "revision": 1,
        "source_total": 42,
        "to": "2024-01-15T11:00:00Z",
        "type": "window",
        "v": 1,
        "vanished": [],
    }


IDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6)


@given(
    st.dictionaries(IDS, st.sampled_from(record.OUTCOMES), max_size=8),
    st.sets(IDS, max_size=4),
    st.sets(IDS, max_size=4),
)
def test_the_window_line_always_balances(outcomes, pending, vanished):
    told = Balance(outcomes, sorted(pending - outcomes.keys()), sorted(vanished))
    line = build_segment(WINDOW, 1, [], told, LISTING).line
    ids = outcomes.keys() | pending
    assert line["listed"] == len(ids)
    assert line["listed"] == sum(line[o] for o in record.OUTCOMES) + len(line["pending"])
    text = "".join(f"{one}\n" for one in sorted(ids))
    assert line["listed_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert line["vanished"] == sorted(vanished)


def test_the_sha256_file_is_what_sha256sum_reads():
    one = a_record("vc_1")
    made = a_segment(one)
    assert made.sha256_file().decode() == (
        f"{hashlib.sha256(made.data).hexdigest()}  manifest/segments/dt=2024-01-15/1000.r1.jsonl\n"
        f"{hashlib.sha256(one.data).hexdigest()}  records/dt=2024-01-15/vc_1/r1.json\n"
        f"{'a' * 64}  recordings/x/recording.wav\n"
    )


def test_a_segment_reads_back():
    made = a_segment(a_record("vc_1"), a_record("vc_2"), revision=3, vanished=["vc_9"])
    again = segment.parse_window_line(made.data)
    assert (again.revision, again.window, again.vanished) == (3, WINDOW, ["vc_9"])
    again = parse_segment(made.data)
    assert [one.call_id for one in again.records] == ["vc_1", "vc_2"]


def test_an_empty_window_is_a_segment_of_one_line():
    made = a_segment()
    assert len(made.data.splitlines()) == 1
    assert made.line["listed"] == 0
    assert made.line["listed_sha256"] == hashlib.sha256(b"").hexdigest()


def _damaged() -> list[bytes]:
    one, two = a_record("vc_1"), a_record("vc_2")
    good = a_segment(one, two)
    line = good.data.splitlines(keepends=True)[-1]
    changed = [
        {**good.line, "type": "x"},
        {**good.line, "v": 2},
        {**good.line, "from": "soon"},
        {**good.line, "to": None},
        {**good.line, "revision": "1"},
        {**good.line, "archived": "2"},
        {**good.line, "pending": None},
        {**good.line, "vanished": "x"},
        {k: v for k, v in good.line.items() if k != "listed"},
    ]
    return [
        b"",
        good.data[:-1],
        one.data + two.data,
        two.data + one.data + line,
        one.data + one.data + line,
        b"\n" + good.data,
        one.data[:-2] + b"\n" + line,
        *[one.data + two.data + canonical.dump(document) for document in changed],
    ]


@pytest.mark.parametrize("data", _damaged())
def test_a_damaged_segment_is_a_format_error(data):
    with pytest.raises(FormatError):
        parse_segment(data)


# --- seal

KEY = SigningKey.generate()
ARCHIVE = "00000000-0000-4000-8000-000000000000"


def a_genesis() -> seal.Seal:
    return seal.parse_seal(
        seal.genesis(ARCHIVE, KEY.public, {"create_once": True}, sealed_at=NOW, watermark=TEN)
    )


def a_following(previous: seal.Seal, *made: Segment, **changes: Any) -> seal.Seal:
    entries = [seal.segment_entry(one.name.jsonl, io.BytesIO(one.data)) for one in made]
    given_fields = {"sealed_at": NOW, "watermark": TEN, "key_id": KEY.public.key_id, **changes}
    return seal.parse_seal(seal.next_seal(previous, entries, **given_fields))


def test_seal_0_has_exactly_these_fields():
    assert json.loads(a_genesis().data) == {
        "archive": ARCHIVE,
        "key_id": KEY.public.key_id,
        "prev": "0" * 64,
        "public_key": KEY.public.pem.decode(),
        "records": 0,
        "sealed_at": "2024-01-15T13:00:00Z",
        "segments": [],
        "seq": 0,
        "store": {"create_once": True},
        "type": "genesis",
        "v": 1,
        "watermark": "2024-01-15T10:00:00Z",
    }


def test_a_seal_has_exactly_these_fields():
    genesis, made = a_genesis(), a_segment(a_record("vc_1"), a_record("vc_2"))
    first = a_following(genesis, made)
    assert first.data == canonical.dump(first.document)
    assert first.document == {
        "archive": ARCHIVE,
        "key_id": KEY.public.key_id,
        "prev": hashlib.sha256(genesis.data).hexdigest(),
        "records": 2,
        "sealed_at": "2024-01-15T13:00:00Z",
        "segments": [
            {
                "bytes": len(made.data),
                "key": made.name.jsonl,
                "records": 2,
                "root": merkle.root_and_size(made.data.split(b"\n")[:-1])[0].hex(),
                "sha256": hashlib.sha256(made.data).hexdigest(),
            }
        ],
        "seq": 1,
        "type": "seal",
        "v": 1,
        "watermark": "2024-01-15T10:00:00Z",
    }


def test_seals_count_on_and_the_watermark_never_goes_back():
    genesis = a_genesis()
    first = a_following(genesis, a_segment(a_record("vc_1")), watermark=WINDOW.end)
    second = a_following(first, a_segment(a_record("vc_2"), revision=2), watermark=TEN)
    assert [one.seq for one in (genesis, first, second)] == [0, 1, 2]
    assert [one.records for one in (genesis, first, second)] == [0, 1, 2]
    assert second.prev == first.sha256
    assert second.watermark == WINDOW.end


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0}, {"seq": "1"}, {"seq": True}, {"type": "genesis"}, {"v": 2}, {"prev": None},
        {"records": 1.0}, {"sealed_at": "soon"}, {"watermark": 5}, {"segments": None},
        {"segments": ["x"]}, {"segments": [{"key": "k"}]}, {"archive": 1},
        {"segments": [{"bytes": "1", "key": "k", "records": 1, "root": "r", "sha256": "s"}]},
    ],
)  # fmt: skip
def test_a_damaged_seal_is_a_format_error(change):
    first = a_following(a_genesis(), a_segment(a_record()))
    with pytest.raises(FormatError):
        seal.parse_seal(canonical.dump({**first.document, **change}))
    for name in change:
        less = {k: v for k, v in first.document.items() if k != name}
        with pytest.raises(FormatError):
            seal.parse_seal(canonical.dump(less))


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_politely(data):
    for parse in (record.parse, parse_segment, seal.parse_seal):
        with pytest.raises(FormatError):
            parse(data)
