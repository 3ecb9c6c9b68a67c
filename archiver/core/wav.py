"""Parses a WAV header from the first bytes of a stream. Pure, with bounded memory; never crashes.

Sources: Microsoft's "Multimedia Programming Interface and Data Specifications 1.0" (RIFF, fmt), the
WAVE_FORMAT_EXTENSIBLE note (sub-format), and EBU Tech 3306 (RF64 and its ds64 chunk).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from archiver.core.errors import FormatError

MAX_HEADER_BYTES = 1 << 20
"""The most that chunks before the audio (metadata, padding) may take; more is an error."""

_ENCODINGS = {1: "pcm", 3: "ieee_float", 6: "alaw", 7: "mulaw", 0x31: "gsm610"}
_EXTENSIBLE = 0xFFFE
_OPEN = (0, 0xFFFFFFFF)


@dataclass(frozen=True)
class WavHeader:
    """The format of the audio, and how many bytes of it the header announces."""

    encoding: str
    channels: int
    sample_rate_hz: int
    bits_per_sample: int
    byte_rate: int
    data_offset: int
    data_bytes: int | None
    """None if the header leaves it open, as streaming writers do."""
    riff_bytes: int | None
    """Length of the whole file by the RIFF header; None if left open."""

    def duration_seconds(self, file_bytes: int) -> float:
        """How long the audio in a file lasts: as announced, and at most what the file has."""
        there = max(0, file_bytes - self.data_offset)
        audio = there if self.data_bytes is None else min(self.data_bytes, there)
        return round(audio / self.byte_rate, 3)

    def missing_bytes(self, file_bytes: int) -> int:
        """How many announced bytes of audio lie beyond the end of the file."""
        if self.data_bytes is None:
            return 0
        return max(0, self.data_offset + self.data_bytes - file_bytes)


def parse_header(head: bytes | memoryview, *, complete: bool) -> WavHeader | None:
    """Parse the header from the first bytes of a file.

    Returns None if more bytes are needed; with `complete` no more bytes will come. Raises
    `FormatError` if this is not a WAV file with its format before its audio.
    """
    try:
        return _parse(head)
    except struct.error:
        if complete or len(head) >= MAX_HEADER_BYTES:
            raise FormatError("no WAV: the header ends before the audio") from None
        return None


def _parse(head: bytes | memoryview) -> WavHeader:
    magic, riff_size, wave = struct.unpack_from("<4sI4s", head)
    if magic not in (b"RIFF", b"RF64", b"BW64") or wave != b"WAVE":
        raise FormatError("no WAV: the RIFF/WAVE magic is missing")
    offset, fmt, sizes64 = 12, None, None
    while True:
        name, size = struct.unpack_from("<4sI", head, offset)
        body = offset + 8
        if name == b"data":
            break
        if name == b"fmt ":
            fmt = _format(head, body, size)
        elif name == b"ds64":
            sizes64 = struct.unpack_from("<QQ", head, body)
        # RIFF pads chunks to an even length.
        offset = body + size + (size & 1)
        if offset > MAX_HEADER_BYTES:
            raise FormatError("no WAV: over 1 MiB before the audio")
    if fmt is None:
        raise FormatError("no WAV: audio before its format")
    riff, data = (riff_size, size) if sizes64 is None else (sizes64[0], sizes64[1])
    return WavHeader(
        *fmt,
        data_offset=body,
        data_bytes=None if data in _OPEN else data,
        riff_bytes=None if riff in _OPEN else riff + 8,
    )


def _format(head: bytes | memoryview, body: int, size: int) -> tuple[str, int, int, int, int]:
    if size < 16:
        raise FormatError("no WAV: the format chunk is too short")
    code, channels, rate, byte_rate, _, bits = struct.unpack_from("<HHIIHH", head, body)
    if code == _EXTENSIBLE and size >= 26:
        (code,) = struct.unpack_from("<H", head, body + 24)
    if not channels or not rate or not byte_rate:
        raise FormatError("no WAV: channels, sample rate or byte rate is zero")
    return _ENCODINGS.get(code, f"0x{code:04x}"), channels, rate, bits, byte_rate
