"""Lines that are read many at a time: the strict parser takes them too, and says the same."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.audit.segment_lines import RecordLine, read_record, read_records, sound_files
from archiver.core.errors import FormatError
from archiver.core.model import Call, format_time
from archiver.manifest import canonical, record
from archiver.manifest.record import File
from tests.audit.builder import DAY

MODES = {"mode": "COMPLIANCE", "until": "2034-01-12T10:05:12Z"}


def file(kind: str, call_id: str = "vc_1", version_id: str | None = "v1") -> File:
    extension = "wav" if kind == "recording" else "json"
    key = f"recordings/dt=2024-01-15/{call_id}/{kind}.{extension}"
    return File(kind, key, 4992044, f"{len(kind):064x}", "audio/wav", version_id)


def line(
    call_id: str = "vc_1",
    outcome: str = "archived",
    kinds: tuple[str, ...] = ("recording", "transcript", "epa"),
    version_id: str | None = "v1",
    retention: dict[str, str] | None = MODES,
    seconds: float = 312,
    campaign: str = "camp_1",
) -> bytes:
    """A record as the archiver writes it."""
    told = {
        "campaignId": campaign,
        "direction": "Outbound",
        "durationSeconds": seconds,
        "endTime": format_time(DAY + timedelta(seconds=312)),
        "id": call_id,
        "startTime": format_time(DAY),
        "state": "Completed",
    }
    source = {"api": "https://api.example.com", "etag": '"0x8D"', "request_id": None}
    audio = {
        "bits_per_sample": 16,
        "channels": 1,
        "duration_seconds": 312.25,
        "encoding": "pcm",
        "sample_rate_hz": 8000,
    }
    made = record.build(
        Call(call_id, told),
        outcome=outcome,  # type: ignore[arg-type]
        files=[file(kind, call_id, version_id) for kind in kinds],
        source=source,
        audio=audio if outcome == "archived" else None,
        findings=["duration_mismatch"],
        reason=None if outcome == "archived" else "not_found",
        day=DAY.date(),
        revision=1,
        archived_at=DAY,
        retention=retention,
    )
    return made.data


ORDINARY = {
    "all files": line(),
    "no survey": line(kinds=("recording", "transcript")),
    "no recording": line(outcome="no_recording", kinds=("transcript", "epa")),
    "failed, no files": line(outcome="failed", kinds=()),
    "no versions, no lock": line(version_id=None, retention=None),
    "a fraction": line(seconds=12.125),
    "other letters": line(campaign="Grüße aus 東京 \u2028 \U0001f600 \x7f"),
    "escapes": line(campaign='"\\ \x1f\n'),
    "an id that has no place in keys": line("../önd"),
}
ODD = {
    "a number with an exponent": line(seconds=1.5e-7),
    "over 1 MiB": line(campaign="x" * (1 << 20)),
}


def parsed(data: bytes) -> RecordLine | None:
    """What the strict parser, which takes a line by itself, makes of it; None where it is none."""
    try:
        return read_record(data)
    except FormatError:
        return None


def read(data: bytes) -> RecordLine | None:
    found = read_records([data])
    return found[0] if found is not None else None


@pytest.mark.parametrize("name", ORDINARY)
def test_what_the_archiver_writes_is_read_with_others_and_says_the_same(name: str) -> None:
    assert read(ORDINARY[name]) == parsed(ORDINARY[name]) is not None


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_left_to_the_strict_parser(name: str) -> None:
    assert read(ODD[name]) is None


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (rb'"v":1', rb'"v":1,"v":1'),
        (rb'"v":1', rb'"v": 1'),
        (rb'"v":1', rb'"v":2'),
        (rb'"reason":null', rb'"reason":NaN'),
        (rb'"reason":null', rb'"reason":"\\ud800"'),
        (rb'"reason":null', b'"reason":"\xed\xa0\x80"'),
        (rb'"reason":null', b'"reason":"\xff"'),
        (rb'"reason":null', b'"reason":"\t"'),
        (rb'"reason":null', rb'"reason":"\\/"'),
        (rb'"duration_seconds":312,', rb'"duration_seconds":312.0000,'),
        (rb'"duration_seconds":312,', rb'"duration_seconds":312.10,'),
        (rb'"duration_seconds":312,', rb'"duration_seconds":0312,'),
        (rb'"duration_seconds":312,', rb'"duration_seconds":-0,'),
        (rb'"duration_seconds":312,', rb'"duration_seconds":1e999,'),
        (rb'"duration_seconds":312,', rb'"duration_seconds":0.00001,'),
        (rb'"duration_seconds":312,', '"duration_seconds":3１2,'.encode()),
        (rb'"bytes":4992044', rb'"bytes":-1'),
        (rb'"bytes":4992044', rb'"bytes":4992044.0'),
        (rb'"bytes":4992044', rb'"bytes":04992044'),
        (rb'"version_id":"v1"\}\]', rb'"version_id":"v1"},]'),
        (rb'"files":\[', rb'"files":[,'),
        (rb"dt=2024-01-15/vc_1/r1", rb"dt=2024-02-30/vc_1/r1"),
        (rb"dt=2024-01-15/vc_1/r1", rb"dt=2024-01-15/vc_2/r1"),
        (rb"dt=2024-01-15/vc_1/r1", rb"dt=2024-01-15/vc_1/r2"),
        (rb"vc_1/r1", rb"vc_1/r01"),
        (rb"\n", b""),
        (rb"\n", b" \n"),
        (rb"^", b" "),
        (rb"^", b"\xef\xbb\xbf"),
    ],
)
def test_a_record_that_is_not_in_its_one_form_is_none(was: bytes, becomes: bytes) -> None:
    damaged = re.sub(was, becomes, line(), count=1)
    assert damaged != line()
    assert read(damaged) is None
    assert parsed(damaged) is None


@given(st.integers(0, 2**32), st.sampled_from(sorted(ORDINARY)))
def test_no_damage_is_taken_for_a_record_that_the_parser_refuses(seed: int, name: str) -> None:
    data, rng = bytearray(ORDINARY[name]), random.Random(seed)
    for _ in range(rng.randrange(1, 3)):
        damage(data, rng)
    for one in io.BytesIO(data):
        found = read(one)
        assert found is None or found == parsed(one)


def damage(data: bytearray, rng: random.Random) -> None:
    """Something is put in, taken out, doubled or replaced; mostly what JSON is made of."""
    at, size = rng.randrange(len(data)), rng.choice([0, 1, 1, rng.randrange(40)])
    pieces = [b"", b"0", b"1", b".", b"e", b"-", b'"', b"\\", b",", b"{", b"}", b"null", b"\n"]
    data[at : at + size] = rng.choice([*pieces, data[at : at + 40], rng.randbytes(2)])


def amended(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = canonical.load_object(line())
    change(document)
    return canonical.dump(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(new=1),
        lambda d: d["files"][0].update(note=None),
        lambda d: d.update(revision=True),
        lambda d: d.update(v=1.0),
    ],
)
def test_what_this_release_does_not_write_is_left_to_the_strict_parser(
    change: Callable[[dict[str, Any]], object],
) -> None:
    data = amended(change)
    assert read(data) is None
    assert parsed(data) is not None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d["files"][2].update(version_id=""), "segment_invalid"),
        (lambda d: d["files"][2].update(version_id="a b"), "segment_invalid"),
        (lambda d: d["files"][2].update(key=d["files"][1]["key"]), "file_key"),
        (lambda d: d["files"][2].update(key="recordings/dt=2024-01-15/vc_2/epa.json"), "file_key"),
        (lambda d: d["files"][1].update(kind="recording"), "file_key"),
        (lambda d: d["files"][1].update(key=d["files"][1]["key"] + "1"), "file_key"),
        (lambda d: d["files"].pop(0), "record_incomplete"),
    ],
)
def test_what_is_wrong_with_files_is_reported(
    change: Callable[[dict[str, Any]], object], code: str
) -> None:
    codes: list[str] = []
    found = read(amended(change))
    assert found is not None
    assert len(sound_files(found, lambda code, *_: codes.append(code))) == 2
    assert codes == [code]


def test_many_lines_are_read_in_order() -> None:
    lines = [line(f"vc_{number}", version_id=f"v{number}") for number in range(5)]
    assert read_records(lines) == [parsed(one) for one in lines]


@pytest.mark.parametrize("odd", [*ODD.values(), b"\n", b"{}\n", line() + line(), line()[:-1]])
def test_one_odd_line_makes_a_block_none(odd: bytes) -> None:
    assert read_records([line("vc_0"), odd, line("vc_2")]) is None
