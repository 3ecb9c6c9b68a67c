"""WAV files made by the byte, good ones and bad ones."""

from __future__ import annotations

import random
import struct
from functools import cache

PCM, FLOAT, ALAW, MULAW, GSM, EXTENSIBLE = 1, 3, 6, 7, 0x31, 0xFFFE


def chunk(name: bytes, body: bytes) -> bytes:
    """A RIFF chunk, padded to an even length."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def fmt(code: int = PCM, channels: int = 1, rate: int = 8000, bits: int = 16) -> bytes:
    frame = channels * max(1, bits // 8)
    return struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits)


def riff(*chunks: bytes, magic: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return magic + struct.pack("<I", len(body)) + body


@cache
def noise(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


def wav(seconds: float = 1.0, seed: int = 1) -> bytes:
    """16-bit mono PCM at 8 kHz, as telephony has it."""
    return riff(chunk(b"fmt ", fmt()), chunk(b"data", noise(2 * round(8000 * seconds), seed)))
