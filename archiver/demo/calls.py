"""The calls of a simulated voice-bot platform: documents, surveys, recordings.

`make_calls` invents a population like a real one: several campaigns and languages, most calls
with a survey, a few without survey or recording, a few still going on, some long. The same
arguments give the same calls, byte for byte.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from archiver.demo.voices import Recording, VoiceRecording


@dataclass
class SimulatedCall:
    """One call as the platform has it; tests change its fields while it is served.

    `document` is the call's JSON without its survey, `epa` the survey (None: the campaign has
    none), `recording` the audio (None: the platform has none). `blob_missing` keeps the signed
    URL working and takes away the blob behind it; `etag` and `last_modified` override what the
    blob server would say. The date filter places the call by `listed_at` where that is set,
    whatever `document` says, else by `document`.
    """

    document: dict[str, Any]
    recording: Recording | None = None
    epa: dict[str, Any] | None = None
    blob_missing: bool = False
    etag: str | None = None
    last_modified: datetime | None = None
    listed_at: datetime | None = None

    @property
    def id(self) -> str:
        call_id: str = self.document["id"]
        return call_id

    @property
    def state(self) -> str | None:
        return self.document.get("state")

    def detail(self) -> dict[str, Any]:
        """The call as `GET /voice-calls/{id}` tells it: everything, the survey inline."""
        return self.document if self.epa is None else {**self.document, "epaResults": self.epa}

    def summary(self) -> dict[str, Any]:
        """The call as a listing tells it: without transcript and survey."""
        return {k: v for k, v in self.document.items() if k not in ("transcript", "epaResults")}


@dataclass(frozen=True)
class _Language:
    name: str
    lines: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


_LANGUAGES = (
    _Language(
        "en",
        (
            "Hello, this is the automated assistant of Northwind Energy. Is now a good time?",
            "Yes, go ahead.",
            "Your meter reading is due this week. Would you like to tell it to me now?",
            'It says four one seven nine "point" two.',
            "Thank you, I have noted that down.",
            "That's it? Great, bye 👋🏽",
        ),
        ("How satisfied are you with this call?", "Was your request solved?"),
        "Very satisfied",
    ),
    _Language(
        "de",
        (
            "Guten Tag, hier spricht der Sprachassistent der Müller & Söhne GmbH.",
            "Grüß Gott, worum geht es?",
            "Um Ihre Bestellung über fünf Stühle – möchten Sie den Liefertermin ändern?",
            "Ja, bitte auf nächsten Donnerstag, möglichst früh.",
            "Gern. Die Lieferung kommt am Donnerstag zwischen acht und zehn Uhr.",
            "Schön, danke. Auf Wiederhören!",
        ),
        ("Wie zufrieden waren Sie mit dem Gespräch?", "Würden Sie uns weiterempfehlen?"),
        "Überaus zufrieden",
    ),
    _Language(
        "pl",
        (
            "Dzień dobry, dzwonię w sprawie wizyty u dentysty w przyszły piątek.",
            "Zgadza się, o której to było?",
            "O dziewiątej trzydzieści. Czy potwierdza Pan tę godzinę?",
            "Wolałbym później, około jedenastej.",
            "Przełożyłam wizytę na jedenastą piętnaście.",
            "Dziękuję, do usłyszenia!",
        ),
        ("Jak ocenia Pan rozmowę?", "Czy sprawa została załatwiona?"),
        "Bardzo dobrze",
    ),
    _Language(
        "ar",
        (
            "مرحبًا، معك المساعد الصوتي لشركة الاتصالات.",
            "أهلًا، تفضل.",
            "هل ترغب في تجديد اشتراكك الشهري؟",
            "نعم، من فضلك.",
            "تم التجديد بنجاح، شكرًا لك.",
        ),
        ("ما مدى رضاك عن المكالمة؟", "هل تم حل طلبك؟"),
        "راضٍ جدًا",
    ),
    _Language(
        "ja",
        (
            "お電話ありがとうございます。自動音声アシスタントです。",
            "予約を変更したいのですが。",
            "かしこまりました。ご希望の日時をお聞かせください。",
            "来週の火曜日、午後三時でお願いします。",
            "承りました。ご利用ありがとうございました。😊",
        ),
        ("本日の対応はいかがでしたか。", "ご用件は解決しましたか。"),
        "とても満足",
    ),
)

_CAMPAIGNS = ("camp_meter_reading", "camp_delivery", "camp_dental_recall", "camp_renewal")
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def make_calls(
    count: int,
    start: datetime,
    end: datetime,
    seed: int | str = 1,
    *,
    short: bool = False,
    id_prefix: str = "vc_",
) -> list[SimulatedCall]:
    """`count` calls whose start times lie in `[start, end)`, in the order of those.

    Of each 30 calls one is still in progress, two have no recording, two no survey, three are of
    200 to 400 s (3 to 6 MB), the others of 8 to 90 s; every 60th, from the 26th, is of 10 min (over
    8 MiB). `short` makes all of them of 1 to 4 s instead, for tests that need many.
    """
    chance = random.Random(f"{seed}")
    spread = (end - start) / max(count, 1)
    return [
        _call(number, start + spread * (number + chance.random() * 0.98), chance, short, id_prefix)
        for number in range(count)
    ]


def _call(
    number: int, at: datetime, chance: random.Random, short: bool, id_prefix: str
) -> SimulatedCall:
    call_id = id_prefix + "".join(chance.choices(_ID_ALPHABET, k=8))
    seconds = _seconds(number, chance, short)
    language = _LANGUAGES[chance.choices(range(5), (5, 4, 3, 2, 2))[0]]
    document = _document(call_id, at, seconds, language, chance)
    place = number % 30
    if place == 12:
        return SimulatedCall(_still_going_on(document))
    if place in (8, 21):
        document |= {"outcome": "NoAnswer", "talkTimeSeconds": 0, "transcript": []}
        return SimulatedCall(document, epa=None)
    _vary(place, document)
    recording = VoiceRecording(call_id, seconds, content_md5=seconds < 500)
    if place == 17:
        document["epaResults"] = None
    epa = None if place in (3, 17) else _survey(language, chance)
    return SimulatedCall(document, recording, epa)


def _seconds(number: int, chance: random.Random, short: bool) -> int:
    if short:
        return chance.randint(1, 4)
    if number % 60 == 25:
        return chance.randint(560, 620)
    if number % 30 in (5, 15, 27):
        return chance.randint(200, 400)
    return chance.randint(8, 90)


def _document(
    call_id: str, at: datetime, seconds: int, language: _Language, chance: random.Random
) -> dict[str, Any]:
    ended_at = at + timedelta(seconds=seconds)
    return {
        "id": call_id,
        "campaignId": chance.choice(_CAMPAIGNS),
        "direction": chance.choice(("Outbound", "Outbound", "Inbound")),
        "state": "Completed",
        "startTime": _time(at),
        "endTime": _time(ended_at),
        "durationSeconds": seconds,
        "talkTimeSeconds": max(0, seconds - chance.randint(0, 3)),
        "outcome": chance.choice(("Success", "Success", "Transferred", "Voicemail")),
        "transcript": list(_transcript(at, seconds, language)),
        "createdAt": _time(at - timedelta(seconds=2)),
        "language": language.name,
    }


def _transcript(at: datetime, seconds: int, language: _Language) -> Iterator[dict[str, Any]]:
    """One line about every seven seconds, agent and caller in turn."""
    lines = max(2, seconds // 7)
    for number in range(lines):
        yield {
            "role": ("agent", "user")[number % 2],
            "text": language.lines[number % len(language.lines)],
            "timestamp": _time(at + timedelta(seconds=seconds * number / lines)),
        }


def _vary(place: int, document: dict[str, Any]) -> None:
    """What documents may be beside the documented: fields more, fields fewer, values unknown."""
    if place % 10 == 1:
        document["telephony"] = {"mosScore": 4.32, "codec": "PCMU", "packetLoss": 1e-05, "hops": []}
        document["bigNumber"] = 2**53 + 1
    elif place == 6:
        del document["talkTimeSeconds"]
        document["outcome"] = None
    elif place == 14:
        del document["campaignId"]
    elif place == 19:
        document["direction"] = "Callback"
    elif place == 24:
        document["notes"] = (
            'quotes " backslash \\ slash / tab\t newline\n <b>&amp;</b> \u2028 zß水🍌'
        )


def _still_going_on(document: dict[str, Any]) -> dict[str, Any]:
    missing = {"endTime": None, "durationSeconds": None, "talkTimeSeconds": None, "outcome": None}
    return {**document, **missing, "state": "InProgress"}


def _survey(language: _Language, chance: random.Random) -> dict[str, Any]:
    scores = [chance.randint(1, 5) for _ in language.questions]
    return {
        "state": "Completed",
        "completionReason": "AllQuestionsAnswered",
        "totalQuestions": len(scores),
        "questionsAnswered": len(scores),
        "calculatedScore": round(sum(scores) / len(scores), 2),
        "responses": [
            {"question": question, "answer": language.answer, "score": score}
            for question, score in zip(language.questions, scores, strict=True)
        ],
    }


def _time(moment: datetime) -> str:
    """RFC 3339 to the millisecond, as such platforms write it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
