"""Single calls with what a test needs of them, and nothing by chance."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.fakes.audio import wav
from tests.fakes.calls import BytesRecording, SimulatedCall
from tests.fakes.platform import Platform

TEN = datetime(2024, 1, 15, 10, 0, tzinfo=UTC)
YESTERDAY_TEN = datetime.now(UTC).replace(hour=10, minute=0, second=0, microsecond=0) - timedelta(1)
"""For who looks for a call's records: it asks for each day since."""
SECRET_WORDS = "Xylophon-Geheimnis"
"""Stands in each transcript: it must never turn up in a log line."""
PHONE = "+4915112345678"


def voice(call_id: str = "vc_1", seconds: float = 1) -> bytes:
    """The WAV that `a_call` gives a call of this id."""
    return wav(seconds, seed=zlib.crc32(call_id.encode()) % 997)


def stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def a_call(
    call_id: str = "vc_1",
    at: datetime = TEN,
    *,
    seconds: int = 1,
    audio: bytes | None = b"",
    epa: dict[str, Any] | None = None,
    others: dict[str, dict[str, Any]] | None = None,
    **fields: Any,
) -> SimulatedCall:
    """A completed call that starts `at`; `audio` b"" makes a WAV of its length, None has none."""
    document = {
        "id": call_id,
        "campaignId": "camp_1",
        "direction": "Outbound",
        "state": "Completed",
        "startTime": stamp(at),
        "endTime": stamp(at + timedelta(seconds=seconds)),
        "durationSeconds": seconds,
        "createdAt": stamp(at - timedelta(seconds=1)),
        "phoneNumber": PHONE,
        "transcript": [{"role": "user", "text": SECRET_WORDS, "timestamp": stamp(at)}],
        **fields,
    }
    document = {name: value for name, value in document.items() if value is not ...}
    data = voice(call_id, seconds) if audio == b"" else audio
    recording = None if data is None else BytesRecording(data)
    return SimulatedCall(document, recording, epa, others=others or {})


def call_of(platform: Platform, call_id: str) -> SimulatedCall:
    """One that the platform has, to be changed there."""
    call = platform.find(call_id)
    assert call is not None
    return call
