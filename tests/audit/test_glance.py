"""What is recognised at a glance is what the parser takes, finds nothing wrong with, and says."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.audit import glance
from archiver.audit.told import Told, of_record, parse_record
from archiver.errors import FormatError
from archiver.manifest import canonical, record
from archiver.manifest.record import File, Result
from archiver.model import Call, format_time
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
    result = Result(
        outcome,  # type: ignore[arg-type]
        tuple(file(kind, call_id, version_id) for kind in kinds),
        source,
        audio if outcome == "archived" else None,
        findings=("duration_mismatch",),
        reason=None if outcome == "archived" else "not_found",
    )
    call = Call(call_id, told)
    made = record.build(
        call, result, day=DAY.date(), revision=1, archived_at=DAY, retention=retention
    )
    return made.data


ORDINARY = {
    "all files": line(),
    "no survey": line(kinds=("recording", "transcript")),
    "a recording alone": line(kinds=("recording",)),
    "no recording": line(outcome="no_recording", kinds=("transcript", "epa")),
    "failed, no files": line(outcome="failed", kinds=()),
    "no versions, no lock": line(version_id=None, retention=None),
    "a fraction": line(seconds=12.125),
    "other letters": line(campaign="Grüße aus 東京 \u2028 \U0001f600 \x7f"),
}
ODD = {
    "an id that has no place in keys": line("../önd"),
    "a quote": line(campaign='"'),
    "a control character": line(campaign="\x1f"),
    "a number with an exponent": line(seconds=1.5e-7),
    "a version with a quote": line(version_id='"'),
    "archived without a recording": line(kinds=("transcript",)),
    "over 1 MiB": line(campaign="x" * (1 << 20)),
}


def parsed(data: bytes) -> Told | None:
    """What parsing makes of a line; None where there is anything to report."""
    found: list[str] = []
    try:
        told = of_record(parse_record(data), lambda code, key, detail: found.append(code))
    except FormatError:
        return None
    return None if found else told


def seen(data: bytes) -> Told | None:
    """What a glance makes of it."""
    batch = glance.batch([data])
    return next(iter(batch.told())) if batch is not None else None


@pytest.mark.parametrize("name", ORDINARY)
def test_what_the_archiver_writes_is_recognised_and_tells_the_same(name: str) -> None:
    assert seen(ORDINARY[name]) == parsed(ORDINARY[name]) is not None


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_left_to_the_parser(name: str) -> None:
    assert seen(ODD[name]) is None


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (rb'"v":1', rb'"v":1,"v":1'),
        (rb'"v":1', rb'"v": 1'),
        (rb'"v":1', rb'"v":1.0'),
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
        (rb'"kind":"recording"', rb'"kind":"transcript"'),
        (rb'"version_id":"v1"\}\]', rb'"version_id":"v1"},]'),
        (rb'"version_id":"v1"\}\]', rb'"version_id":""}]'),
        (rb'"files":\[', rb'"files":[,'),
        (rb"dt=2024-01-15/vc_1/r1", rb"dt=2024-02-30/vc_1/r1"),
        (rb"dt=2024-01-15/vc_1/r1", rb"dt=2024-01-15/vc_2/r1"),
        (rb"dt=2024-01-15/vc_1/r1", rb"dt=2024-01-15/vc_1/r2"),
        (rb"dt=2024-01-15/vc_1/epa", rb"dt=2024-01-15/vc_2/epa"),
        (rb"vc_1/r1", rb"vc_1/r01"),
        (rb"transcript\.json", rb"transcript.json1"),
        (rb"epa\.json", rb"epa.wav"),
        (rb"\n", b""),
        (rb"\n", b" \n"),
        (rb"^", b" "),
        (rb"^", b"\xef\xbb\xbf"),
    ],
)
def test_a_record_that_is_not_in_its_one_form_is_not_recognised(was: bytes, becomes: bytes) -> None:
    damaged = re.sub(was, becomes, line(), count=1)
    assert damaged != line()
    assert seen(damaged) is None


@given(st.integers(0, 2**32), st.sampled_from(sorted(ORDINARY)))
def test_no_damage_is_taken_for_a_record_that_the_parser_refuses(seed: int, name: str) -> None:
    data, rng = bytearray(ORDINARY[name]), random.Random(seed)
    for _ in range(rng.randrange(1, 3)):
        damage(data, rng)
    for one in io.BytesIO(data):
        told = seen(one)
        assert told is None or told == parsed(one)


def damage(data: bytearray, rng: random.Random) -> None:
    """Something is put in, taken out, doubled or replaced; mostly what JSON is made of."""
    at, size = rng.randrange(len(data)), rng.choice([0, 1, 1, rng.randrange(40)])
    pieces = [b"", b"0", b"1", b".", b"e", b"-", b'"', b"\\", b",", b"{", b"}", b"null", b"\n"]
    data[at : at + size] = rng.choice([*pieces, data[at : at + 40], rng.randbytes(2)])


@given(st.floats(0, 10**9) | st.decimals(0, 10**9, places=5).map(float))
def test_numbers_are_recognised_in_their_canonical_spelling_alone(number: float) -> None:
    for text in (repr(number), f"{number:.6f}", f"{number:.1f}", json.dumps(number)):
        data = line().replace(b'"duration_seconds":312,', f'"duration_seconds":{text},'.encode())
        told = seen(data)
        assert told is None or told == parsed(data)


def amended(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = canonical.load_object(line())
    change(document)
    return canonical.dump(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(new=1),
        lambda d: d.pop("state"),
        lambda d: d["source"].update(zone="x"),
        lambda d: d["files"].reverse(),
        lambda d: d["files"].append(d["files"][0]),
        lambda d: d["files"][0].update(note=None),
        lambda d: d.update(revision=True),
    ],
)
def test_other_fields_or_files_are_left_to_the_parser(
    change: Callable[[dict[str, Any]], object],
) -> None:
    assert seen(amended(change)) is None


def test_a_batch_tells_all_its_records_in_order() -> None:
    lines = [line(f"vc_{number}", version_id=f"v{number}") for number in range(5)]
    batch = glance.batch(lines)
    assert batch is not None
    assert list(batch.told()) == [parsed(one) for one in lines]


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_one_odd_line_makes_a_batch_none(odd: bytes) -> None:
    assert glance.batch([line("vc_0"), odd, line("vc_2")]) is None


def test_a_batch_out_of_order_is_none() -> None:
    assert glance.batch([line("vc_2"), line("vc_1")]) is None
    assert glance.batch([line("vc_1"), line("vc_1")]) is None
