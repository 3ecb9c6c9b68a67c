"""Generates the calls of the demo: documents, surveys and recordings. Deterministic: the same
arguments give the same calls.

Most calls have a survey, a few have neither survey nor recording, a few are still in progress, some
are long. A recording sounds like two voices that take turns.
"""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

SAMPLE_RATE_HZ = 8000
_SLOT_SAMPLES = SAMPLE_RATE_HZ // 4
"""A recording consists of slots of a quarter of a second, about one syllable each."""
_TURN_SLOTS = 14
_VOICES_HZ = (104.0, 188.0)

_LANGUAGES = {
    "en": (
        "Hello, this is the automated assistant of Northwind Energy. Is now a good time?",
        "Yes, go ahead.",
        'Your meter reading is due. It says four one seven nine "point" two?',
        "That is right. Bye 👋🏽",
    ),
    "de": (
        "Guten Tag, hier spricht der Sprachassistent der Müller & Söhne GmbH.",
        "Grüß Gott, worum geht es?",
        "Um Ihre fünf Stühle – möchten Sie den Liefertermin ändern?",
        "Ja, bitte auf nächsten Donnerstag, möglichst früh.",
    ),
    "ar": (
        "مرحبًا، معك المساعد الصوتي لشركة الاتصالات.",
        "أهلًا، تفضل.",
        "هل ترغب في تجديد اشتراكك الشهري؟",
        "نعم، من فضلك.",
    ),
    "ja": (
        "お電話ありがとうございます。自動音声アシスタントです。",
        "予約を変更したいのですが。",
        "かしこまりました。ご希望の日時をお聞かせください。",
        "来週の火曜日、午後三時でお願いします。",
    ),
}
_CAMPAIGNS = ("camp_meter_reading", "camp_delivery", "camp_renewal")


@dataclass(frozen=True)
class DemoCall:
    """A simulated call. `document` is the response of `GET /voice-calls/{id}`. `survey` is None for
    a call without one. With 0 `audio_seconds` the call has no recording."""

    id: str
    start: datetime
    document: dict[str, Any]
    survey: dict[str, Any] | None = None
    audio_seconds: int = 0

    @property
    def is_completed(self) -> bool:
        return bool(self.document["state"] == "Completed")


def make_calls(count: int, start: datetime, end: datetime) -> list[DemoCall]:
    """Return `count` calls with start times in `[start, end)`, ordered by start time.

    Of each 30 calls, one is still in progress, two have neither recording nor survey, two have a
    recording and no survey, and three last 200 to 400 s (3 to 6 MB). Others last 8 to 90 s. One of
    each 60 lasts about 10 min: its recording is over 8 MiB, and is uploaded in parts.
    """
    chance = random.Random("1")
    step = (end - start) / count
    return [
        _make_call(number, start + step * (number + chance.random() * 0.98), chance)
        for number in range(count)
    ]


def _make_call(number: int, at: datetime, chance: random.Random) -> DemoCall:
    place = number % 30
    if number % 60 == 25:
        seconds = chance.randint(560, 620)
    elif place in (5, 15, 27):
        seconds = chance.randint(200, 400)
    else:
        seconds = chance.randint(8, 90)
    language = chance.choice(tuple(_LANGUAGES))
    lines = _LANGUAGES[language]
    call_id = f"vc_{chance.randrange(36**7):08x}"
    document: dict[str, Any] = {
        "id": call_id,
        "campaignId": chance.choice(_CAMPAIGNS),
        "direction": chance.choice(("Outbound", "Outbound", "Inbound")),
        "state": "Completed",
        "startTime": _format(at),
        "endTime": _format(at + timedelta(seconds=seconds)),
        "durationSeconds": seconds,
        "talkTimeSeconds": seconds - chance.randint(0, 3),
        "outcome": chance.choice(("Success", "Success", "Transferred", "Voicemail")),
        "transcript": [
            {
                "role": ("agent", "user")[line % 2],
                "text": lines[line % len(lines)],
                "timestamp": _format(at + timedelta(seconds=7 * line)),
            }
            for line in range(max(1, seconds // 7))
        ],
        "createdAt": _format(at - timedelta(seconds=2)),
        "language": language,
    }
    if place == 12:
        unknown = dict.fromkeys(("endTime", "durationSeconds", "talkTimeSeconds", "outcome"))
        return DemoCall(call_id, at, {**document, **unknown, "state": "InProgress"})
    if place in (8, 21):
        unanswered = {"outcome": "NoAnswer", "talkTimeSeconds": 0, "transcript": []}
        return DemoCall(call_id, at, {**document, **unanswered})
    if place in (3, 17):
        return DemoCall(call_id, at, document, audio_seconds=seconds)
    survey = _survey(chance)
    return DemoCall(call_id, at, {**document, "epaResults": survey}, survey, seconds)


def _survey(chance: random.Random) -> dict[str, Any]:
    questions = ("How satisfied are you with this call?", "Was your request solved?")
    scores = [chance.randint(1, 5) for _ in questions]
    return {
        "state": "Completed",
        "completionReason": "AllQuestionsAnswered",
        "totalQuestions": len(scores),
        "questionsAnswered": len(scores),
        "calculatedScore": sum(scores) / len(scores),
        "responses": [
            {"question": question, "answer": "Very satisfied", "score": score}
            for question, score in zip(questions, scores, strict=True)
        ],
    }


def _format(moment: datetime) -> str:
    """Format a time as RFC 3339 with milliseconds, as such platforms do."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make_recording(call: DemoCall) -> bytes:
    """Generate a telephony WAV file: 8 kHz, 16 bit, mono. Depends on the call's id and length."""
    chance = random.Random(call.id)
    pause = bytes(2 * _SLOT_SAMPLES)
    slots = []
    for number in range(4 * call.audio_seconds):
        turn, place = divmod(number, _TURN_SLOTS)
        is_pause = place == 0 or chance.random() < 1 / 7
        slots.append(pause if is_pause else chance.choice(_syllables(_VOICES_HZ[turn % 2])))
    audio = b"".join(slots)
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + len(audio), b"WAVE")
        + struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16)
        + struct.pack("<4sI", b"data", len(audio))
        + audio
    )


@cache
def _syllables(voice_hz: float) -> list[bytes]:
    """Return the sounds of a voice, one slot each: tones with overtones that swell and fade."""
    syllables = []
    for pitch in (0.9, 0.95, 1.0, 1.07, 1.15):
        step = 2 * math.pi * voice_hz * pitch / SAMPLE_RATE_HZ
        samples = [
            5000
            * math.sin(math.pi * at / _SLOT_SAMPLES)
            * sum(math.sin(n * step * at) / n for n in (1, 2, 3, 5))
            for at in range(_SLOT_SAMPLES)
        ]
        syllables.append(struct.pack(f"<{_SLOT_SAMPLES}h", *map(int, samples)))
    return syllables
