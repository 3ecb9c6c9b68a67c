"""The calls of the simulated platform: documents, surveys and recordings, made from a seed.

`make_calls` makes a population like a real one: campaigns and languages, most calls with a survey,
a few without survey or recording, a few still in progress, some long. The same arguments give the
same calls, byte for byte.
"""

from __future__ import annotations

import hashlib
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import Any

# --- recordings

SAMPLE_RATE_HZ = 8000
HEADER_BYTES = 44
MAX_SECONDS = (0xFFFFFFFF - HEADER_BYTES) / (2 * SAMPLE_RATE_HZ)
"""A RIFF header counts in 32 bits."""
_NOISE_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20


class Recording(ABC):
    """The bytes behind a recording URL. Safe to read from several threads.

    `content_md5` says whether the blob server sends the MD5 digest: Azure does so only for blobs
    that were uploaded in one piece.
    """

    content_type: str = "audio/wav"
    content_md5: bool = True

    @property
    @abstractmethod
    def length(self) -> int:
        """Length in bytes."""

    @abstractmethod
    def read(self, offset: int, n: int) -> bytes:
        """The up to `n` bytes from `offset`; fewer at the end."""

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of `[start, end)`, a MiB at a time at most."""
        end = self.length if end is None else min(end, self.length)
        for at in range(start, end, _BLOCK_BYTES):
            yield self.read(at, min(_BLOCK_BYTES, end - at))

    def sha256(self) -> str:
        """The digest of all bytes, lower-case hex."""
        return self._digests[0]

    def md5(self) -> bytes:
        """The MD5 digest of all bytes."""
        return self._digests[1]

    @property
    def etag(self) -> str:
        """Other bytes have another one."""
        return f'"0x{self.sha256()[:15].upper()}"'

    @cached_property
    def _digests(self) -> tuple[str, bytes]:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        for block in self.blocks():
            sha256.update(block)
            md5.update(block)
        return sha256.hexdigest(), md5.digest()


class BytesRecording(Recording):
    """Any bytes at all, also what a source should not send but might."""

    def __init__(
        self, data: bytes, *, content_type: str = "audio/wav", content_md5: bool = True
    ) -> None:
        self._data = data
        self.content_type = content_type
        self.content_md5 = content_md5

    @property
    def length(self) -> int:
        return len(self._data)

    def read(self, offset: int, n: int) -> bytes:
        return self._data[offset : offset + n]


class NoiseRecording(Recording):
    """A WAV of `seconds` of noise, 8 kHz, 16 bit, mono; the same for the same `seed`.

    It is made as it is read, at any offset: one of hours takes no memory, and every part of it
    differs from every other. Raises `ValueError` beyond `MAX_SECONDS`.
    """

    def __init__(self, seed: str, seconds: float, *, content_md5: bool = True) -> None:
        if not 0 <= seconds <= MAX_SECONDS:
            raise ValueError(f"a WAV file holds 0 to {MAX_SECONDS:.0f} seconds, not {seconds}")
        self.content_md5 = content_md5
        self._seed = seed
        audio = 2 * round(seconds * SAMPLE_RATE_HZ)
        self._length = HEADER_BYTES + audio
        self._header = struct.pack(
            "<4sI4s4sIHHIIHH4sI", b"RIFF", self._length - 8, b"WAVE", b"fmt ", 16,
            1, 1, SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16, b"data", audio,
        )  # fmt: skip

    @property
    def length(self) -> int:
        return self._length

    @property
    def etag(self) -> str:
        # Seed and length stand for the bytes: hashing hours of audio would delay the first answer.
        digest = hashlib.sha256(f"{self._seed} {self._length}".encode()).hexdigest()
        return f'"0x{digest[:15].upper()}"'

    def read(self, offset: int, n: int) -> bytes:
        end = min(offset + n, self._length)
        first = offset // _NOISE_BYTES
        blocks = [self._noise(at) for at in range(first, -(-end // _NOISE_BYTES))]
        if first == 0 and blocks:
            blocks[0] = (self._header + blocks[0])[:_NOISE_BYTES]
        return b"".join(blocks)[offset - first * _NOISE_BYTES : end - first * _NOISE_BYTES]

    def _noise(self, number: int) -> bytes:
        """A part of the shared noise, after a digest that no other part begins with."""
        digest = hashlib.sha256(f"{self._seed} {number}".encode()).digest()
        start = int.from_bytes(digest[:4]) % _BLOCK_BYTES
        return digest + _shared_noise()[start : start + _NOISE_BYTES - len(digest)]


@cache
def _shared_noise() -> bytes:
    return random.Random("noise").randbytes(_BLOCK_BYTES + _NOISE_BYTES)


# --- calls

APART = {"epa": "epa-results"}
"""The documents that the platform has apart from the call, by file kind: the last part of each
one's path."""


@dataclass
class SimulatedCall:
    """One call as the platform has it. Tests change its fields while it is served.

    `document` is the call's JSON without its survey, `epa` the survey (None: the campaign has
    none), `others` the other documents of `APART`, by kind, `recording` the audio (None: the
    platform has none). `blob_missing` takes away the blob
    behind a signed URL that still works; `etag` and `last_modified` override what the blob server
    would say. The date filter places the call by `listed_at` where that is set, else by `document`.
    """

    document: dict[str, Any]
    recording: Recording | None = None
    epa: dict[str, Any] | None = None
    blob_missing: bool = False
    etag: str | None = None
    last_modified: datetime | None = None
    listed_at: datetime | None = None
    others: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """As paths name it; the document may have it as a number."""
        return str(self.document["id"])

    @property
    def state(self) -> str | None:
        return self.document.get("state")

    def apart(self) -> dict[str, dict[str, Any]]:
        """The documents that it has of `APART`."""
        return self.others if self.epa is None else {"epa": self.epa, **self.others}

    def detail(self) -> dict[str, Any]:
        """The answer to `GET /voice-calls/{id}`: everything, the survey inline."""
        return self.document if self.epa is None else {**self.document, "epaResults": self.epa}

    def entry(self) -> dict[str, Any]:
        """The entry of a listing: without transcript and survey."""
        return {k: v for k, v in self.document.items() if k not in ("transcript", "epaResults")}

    def truth(self) -> dict[str, Any]:
        """What an archive of this call must hold, as JSON, for a test in another process."""
        audio = self.recording
        recording = audio and {"bytes": audio.length, "sha256": audio.sha256()}
        return {
            "id": self.id, "document": self.detail(), "epa": self.epa, "recording": recording,
        }  # fmt: skip


_LANGUAGES = {
    "en": ("Is now a good time?", 'It says four one seven nine "point" two.', "Great, bye 👋🏽"),
    "de": ("Grüß Gott, hier Müller & Söhne.", "Fünf Stühle – bitte früh.", "Auf Wiederhören!"),
    "pl": ("Dzień dobry, dzwonię w sprawie wizyty.", "O której?", "Dziękuję, do usłyszenia!"),
    "ar": ("مرحبًا، معك المساعد الصوتي.", "أهلًا، تفضل.", "تم التجديد بنجاح، شكرًا لك."),
    "ja": ("お電話ありがとうございます。", "来週の火曜日、午後三時で。", "承りました。😊"),
}
_CAMPAIGNS = ("camp_meter_reading", "camp_delivery", "camp_dental_recall", "camp_renewal")
_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def make_calls(
    count: int, start: datetime, end: datetime, seed: int | str = 1, *, short: bool = False
) -> list[SimulatedCall]:
    """`count` calls whose start times lie in `[start, end)`, in the order of those.

    Of each 30 calls one is still in progress, two have no recording, two no survey, three are of
    200 to 400 s (3 to 6 MB), the others of 8 to 90 s; every 60th, from the 26th, is of 10 min (over
    8 MiB). `short` makes all of them of 1 to 4 s instead, for tests that need many.
    """
    chance = random.Random(f"{seed}")
    step = (end - start) / max(count, 1)
    return [
        _make_call(number, start + step * (number + chance.random() * 0.98), chance, short)
        for number in range(count)
    ]


def _make_call(number: int, at: datetime, chance: random.Random, short: bool) -> SimulatedCall:
    call_id = "vc_" + "".join(chance.choices(_ID_ALPHABET, k=8))
    place = number % 30
    if short:
        seconds = chance.randint(1, 4)
    elif number % 60 == 25:
        seconds = chance.randint(560, 620)
    elif place in (5, 15, 27):
        seconds = chance.randint(200, 400)
    else:
        seconds = chance.randint(8, 90)
    language = chance.choices(tuple(_LANGUAGES), (5, 4, 3, 2, 2))[0]
    said = _LANGUAGES[language]
    lines = max(2, seconds // 7)
    document: dict[str, Any] = {
        "id": call_id,
        "campaignId": chance.choice(_CAMPAIGNS),
        "direction": chance.choice(("Outbound", "Outbound", "Inbound")),
        "state": "Completed",
        "startTime": _format(at),
        "endTime": _format(at + timedelta(seconds=seconds)),
        "durationSeconds": seconds,
        "talkTimeSeconds": max(0, seconds - chance.randint(0, 3)),
        "outcome": chance.choice(("Success", "Success", "Transferred", "Voicemail")),
        "transcript": [
            {
                "role": ("agent", "user")[line % 2],
                "text": said[line % len(said)],
                "timestamp": _format(at + timedelta(seconds=seconds * line / lines)),
            }
            for line in range(lines)
        ],
        "createdAt": _format(at - timedelta(seconds=2)),
        "language": language,
    }
    if place == 12:
        missing = dict.fromkeys(("endTime", "durationSeconds", "talkTimeSeconds", "outcome"))
        return SimulatedCall({**document, **missing, "state": "InProgress"})
    if place in (8, 21):
        return SimulatedCall(
            document | {"outcome": "NoAnswer", "talkTimeSeconds": 0, "transcript": []}
        )
    _vary(place, document)
    recording = NoiseRecording(call_id, seconds, content_md5=seconds < 500)
    return SimulatedCall(document, recording, None if place in (3, 17) else _survey(chance))


def _vary(place: int, document: dict[str, Any]) -> None:
    """What documents may hold beside the documented: more fields, fewer, unknown values."""
    if place % 10 == 1:
        document["telephony"] = {"mosScore": 4.32, "codec": "PCMU", "packetLoss": 1e-05, "hops": []}
        document["bigNumber"] = 2**53 + 1
    elif place == 6:
        del document["talkTimeSeconds"]
        document["outcome"] = None
    elif place == 14:
        del document["campaignId"]
    elif place == 17:
        document["epaResults"] = None
    elif place == 19:
        document["direction"] = "Callback"
    elif place == 24:
        document["notes"] = (
            'quotes " backslash \\ slash / tab\t newline\n <b>&amp;</b> \u2028 zß水🍌'
        )


def _survey(chance: random.Random) -> dict[str, Any]:
    questions = ("How satisfied are you with this call?", "Würden Sie uns weiterempfehlen?")
    scores = [chance.randint(1, 5) for _ in questions]
    return {
        "state": "Completed",
        "completionReason": "AllQuestionsAnswered",
        "totalQuestions": len(scores),
        "questionsAnswered": len(scores),
        "calculatedScore": round(sum(scores) / len(scores), 2),
        "responses": [
            {"question": question, "answer": "とても満足", "score": score}
            for question, score in zip(questions, scores, strict=True)
        ],
    }


def _format(moment: datetime) -> str:
    """RFC 3339 to the millisecond, as such platforms write it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
