"""Recordings of calls that never were: speech-like telephony WAVs, 8 kHz, 16 bit, mono.

Two voices take turns, with pauses. Every recording comes from its seed alone and is read at any
offset, so that one of hours costs no memory and every part of it can be told from every other.
The sound is laid out in slots of a quarter of a second, about one syllable long; which syllable
fills a slot is a hash of the seed and the slot's number.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
import sys
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from functools import cache, cached_property

SAMPLE_RATE_HZ = 8000
BYTES_PER_SECOND = 2 * SAMPLE_RATE_HZ
HEADER_BYTES = 44
MAX_SECONDS = (0xFFFFFFFF - HEADER_BYTES) / BYTES_PER_SECOND
"""A RIFF header counts in 32 bits."""

_SLOT_SAMPLES = SAMPLE_RATE_HZ // 4
_SLOT_BYTES = 2 * _SLOT_SAMPLES
_TURN_SLOTS = 14
_SYLLABLES = 24
_VOICES = (104.0, 188.0)
_BLOCK_BYTES = 1 << 20


class Recording(ABC):
    """The bytes behind a recording URL. Safe to read from several threads.

    `content_md5` says whether the blob server tells the MD5 digest: real ones do so only for
    blobs that were uploaded in one piece. It is computed, once, before the first answer.
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
        while start < end:
            block = self.read(start, min(_BLOCK_BYTES, end - start))
            start += len(block)
            yield block

    def sha256(self) -> str:
        """The digest of all bytes, lower-case hex."""
        return self._digests[0]

    def md5(self) -> bytes:
        """The MD5 digest of all bytes, as blob servers tell it."""
        return self._digests[1]

    @property
    def etag(self) -> str:
        """What the blob server calls this content; other bytes, another one."""
        return f'"0x{self.sha256()[:15].upper()}"'

    @cached_property
    def _digests(self) -> tuple[str, bytes]:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        for block in self.blocks():
            sha256.update(block)
            md5.update(block)
        return sha256.hexdigest(), md5.digest()


class BytesRecording(Recording):
    """Any bytes at all, for what a source should not send but might."""

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


class VoiceRecording(Recording):
    """A conversation of `seconds`, the same for the same `seed`; at most `MAX_SECONDS`."""

    def __init__(self, seed: str, seconds: float, *, content_md5: bool = True) -> None:
        if not 0 <= seconds <= MAX_SECONDS:
            raise ValueError(f"a WAV file holds 0 to {MAX_SECONDS:.0f} seconds, not {seconds}")
        self.content_md5 = content_md5
        self._audio_bytes = 2 * round(seconds * SAMPLE_RATE_HZ)
        self._header = wav_header(self._audio_bytes)
        self._seed = zlib.crc32(seed.encode())
        self._pause = _line_noise(random.Random(seed))

    @property
    def length(self) -> int:
        return HEADER_BYTES + self._audio_bytes

    @property
    def etag(self) -> str:
        # Seed and length stand for the bytes: hashing hours of audio would delay the first answer.
        return f'"0x{self._seed:08X}{self._audio_bytes:08X}"'

    @property
    def seconds(self) -> float:
        return self._audio_bytes / BYTES_PER_SECOND

    def read(self, offset: int, n: int) -> bytes:
        end = min(offset + n, self.length)
        if offset >= end:
            return b""
        head = self._header[offset:end]
        start = max(offset, HEADER_BYTES) - HEADER_BYTES
        return head + self._audio(start, max(start, end - HEADER_BYTES))

    def _audio(self, start: int, end: int) -> bytes:
        first = start // _SLOT_BYTES
        last = -(-end // _SLOT_BYTES)
        sound = b"".join([self._slot(number) for number in range(first, last)])
        return sound[start - first * _SLOT_BYTES : end - first * _SLOT_BYTES]

    def _slot(self, number: int) -> bytes:
        turn, place = divmod(number, _TURN_SLOTS)
        chance = zlib.crc32(number.to_bytes(8, "big"), self._seed)
        # A turn opens with a pause, so the very first slot is this recording's own noise: two
        # recordings differ however short they are.
        if place == 0 or chance % 7 == 0:
            return self._pause
        return _syllables()[turn % 2][(chance >> 8) % _SYLLABLES]


def wav_header(audio_bytes: int) -> bytes:
    """The 44 bytes before `audio_bytes` of 8 kHz 16-bit mono PCM."""
    riff = struct.pack("<4sI4s", b"RIFF", HEADER_BYTES - 8 + audio_bytes, b"WAVE")
    rates = (1, 1, SAMPLE_RATE_HZ, BYTES_PER_SECOND, 2, 16)
    return riff + struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, *rates, b"data", audio_bytes)


def _line_noise(chance: random.Random) -> bytes:
    return _pcm([value // 8 - 16 for value in chance.randbytes(_SLOT_SAMPLES)])


@cache
def _syllables() -> tuple[tuple[bytes, ...], ...]:
    """Both voices' syllables, one slot each; 200 kB that all recordings share."""
    chance = random.Random("syllables")
    return tuple(
        tuple(_syllable(pitch_hz, chance) for _ in range(_SYLLABLES)) for pitch_hz in _VOICES
    )


def _syllable(pitch_hz: float, chance: random.Random) -> bytes:
    """A vowel: a pitch that glides through a period with two formants, swelling and fading."""
    period = _period(pitch_hz, chance.uniform(300, 800), chance.uniform(900, 2400))
    sounding = int(_SLOT_SAMPLES * chance.uniform(0.55, 0.98))
    pitch_hz *= chance.uniform(0.9, 1.15)
    glide = chance.uniform(-0.12, 0.08)
    samples, phase = [0] * _SLOT_SAMPLES, 0.0
    for number in range(sounding):
        part = number / sounding
        loudness = math.sin(math.pi * part) ** 0.6 * 9000
        samples[number] = int(loudness * period[int(phase) % len(period)])
        phase += pitch_hz * (1 + glide * part) * len(period) / SAMPLE_RATE_HZ
    return _pcm([value + chance.randrange(-12, 13) for value in samples])


def _period(pitch_hz: float, *formants_hz: float) -> list[float]:
    """One period of a voiced sound, its peak at 1: harmonics, louder near a formant."""
    harmonics = range(1, int(3400 / pitch_hz) + 1)
    weights = [
        sum(math.exp(-(((n * pitch_hz - formant) / 160) ** 2)) for formant in formants_hz) + 0.3 / n
        for n in harmonics
    ]
    steps = [2 * math.pi * step / 256 for step in range(256)]
    wave = [
        sum(w * math.sin(n * step) for n, w in zip(harmonics, weights, strict=True))
        for step in steps
    ]
    peak = max(map(abs, wave))
    return [value / peak for value in wave]


def _pcm(samples: list[int]) -> bytes:
    values = array("h", samples)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
