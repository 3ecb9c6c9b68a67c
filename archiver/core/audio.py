"""Tells what a recording is by its first bytes: which kind of file, and the format of its audio.

What is told here never decides whether a recording is kept, with one exception: `is_error_page`.
Only what stands at a fixed place of a header is read; nothing is decoded. Pure, with bounded work;
never crashes.

The codes of findings are those of `manifest.record.FINDINGS`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from archiver.core import wav
from archiver.core.errors import FormatError

PAGE_BYTES = 512
"""So many first bytes, after white space, decide whether a blob is an error page."""
MAX_WHITE_SPACE_BYTES = 64 << 10
"""More white space may hide a page."""
FIRST_BYTES = 64 << 10
"""Where the header of a file that is no WAV must lie."""


class AudioType(NamedTuple):
    """A type of recording: the extension of its key, and the content type."""

    extension: str
    content_type: str
    means: str


WAV = AudioType("wav", "audio/wav", "WAV: RIFF, RIFX, RF64 or BW64, with audio of any encoding")
W64 = AudioType("w64", "audio/x-w64", "Sony Wave64")
MP3 = AudioType("mp3", "audio/mpeg", "MP3, with or without an ID3 tag")
AAC = AudioType("aac", "audio/aac", "AAC in ADTS frames")
OGG = AudioType("ogg", "audio/ogg", "Ogg: Opus, Vorbis, Speex, FLAC")
FLAC = AudioType("flac", "audio/flac", "FLAC")
AMR = AudioType("amr", "audio/amr", "AMR, narrowband")
AWB = AudioType("awb", "audio/amr-wb", "AMR, wideband")
M4A = AudioType("m4a", "audio/mp4", "MP4, M4A, 3GP")
AIFF = AudioType("aiff", "audio/aiff", "AIFF, AIFF-C")
AU = AudioType("au", "audio/basic", "Sun AU")
CAF = AudioType("caf", "audio/x-caf", "Apple CAF")
WEBM = AudioType("webm", "audio/webm", "WebM, Matroska")
WMA = AudioType("wma", "audio/x-ms-wma", "Windows Media (ASF)")
UNKNOWN = AudioType("bin", "application/octet-stream", "anything else")
TYPES = (WAV, W64, MP3, AAC, OGG, FLAC, AMR, AWB, M4A, AIFF, AU, CAF, WEBM, WMA, UNKNOWN)

# The binary data bytes of WHATWG's MIME Sniffing occur in no text, of whatever encoding.
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*("
    rb"<(!doctype|\?xml)\s|<!--|<[a-z][a-z0-9:_-]*(\s[^<]*)?/?>"  # HTML and XML
    rb"|\{\s*(\"|\}\s*\Z)|\[\s*([\[{\"]|\]\s*\Z)"  # JSON: an object or an array
    rb")",
    re.IGNORECASE,
)
_MP3_RATES = (44100, 48000, 32000)
_MP3_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5
)
_AU_ENCODINGS = {
    1: ("mulaw", 8), 2: ("pcm", 8), 3: ("pcm", 16), 4: ("pcm", 24), 5: ("pcm", 32),
    6: ("ieee_float", 32), 7: ("ieee_float", 64), 27: ("alaw", 8),
}  # fmt: skip


@dataclass(frozen=True)
class AudioFile:
    """What the first bytes of a recording tell. Members that cannot be told are None."""

    type: AudioType
    encoding: str | None = None
    channels: int | None = None
    sample_rate_hz: int | None = None
    bits_per_sample: int | None = None
    duration_seconds: float | None = None
    header: wav.WavHeader | None = None
    """Of WAV and Wave64: the length depends on that of the file."""
    tag_bytes: int = field(default=0, kw_only=True)
    """Length of an ID3 tag before the file proper."""

    def describe(self, file_bytes: int) -> tuple[dict[str, Any], set[str]]:
        """The `audio` field of the record of a file of this length, and the findings about it."""
        seconds, findings = self.duration_seconds, set[str]()
        if self.header is not None:
            seconds, findings = self.header.examine(file_bytes - self.tag_bytes)
        if self.type is not WAV:
            findings.add("not_wav")
        if self.type is UNKNOWN:
            findings.add("audio_unreadable")
        audio = {
            "bits_per_sample": self.bits_per_sample,
            "channels": self.channels,
            "duration_seconds": seconds,
            "encoding": self.encoding,
            "sample_rate_hz": self.sample_rate_hz,
        }
        return audio, findings


def is_error_page(head: bytes | memoryview, *, is_whole: bool = False) -> bool:
    """Whether a blob is evidently HTML, XML or JSON: it begins as such, and its first bytes are
    text. A short blob that `is_whole` may be any JSON, such as `null`."""
    first = bytes(head[:MAX_WHITE_SPACE_BYTES]).lstrip()[:PAGE_BYTES]
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):  # the byte order mark of UTF-16
        first = first.decode("utf-16", "replace").encode()
    if is_whole and len(first) < PAGE_BYTES:
        with suppress(ValueError, RecursionError):
            json.loads(first)
            return True
    return _CONTROL.search(first) is None and _PAGE.match(first) is not None


def recognise(head: bytes | memoryview) -> AudioFile:
    """Tell a recording by its first bytes: any bytes are at least `UNKNOWN`."""
    tag = _id3_bytes(bytes(head[:10]))
    try:
        return replace(_wav(memoryview(head)[tag:]), tag_bytes=tag)
    except FormatError:
        first = bytes(head[tag : tag + FIRST_BYTES])
    for read in _READERS:
        try:
            found = read(first)
        except (struct.error, IndexError):  # it ends before what it should have
            continue
        if found is not None:
            return found
    return AudioFile(MP3 if tag else UNKNOWN)


def _id3_bytes(first: bytes) -> int:
    """Length of the ID3v2 tag at the begin; 0 if there is none. Its size has 7 bits a byte."""
    if len(first) < 10 or first[:3] != b"ID3" or max(first[6:]) > 0x7F:
        return 0
    a, b, c, d = first[6:]
    return 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if first[5] & 0x10 else 0)


def _wav(view: memoryview) -> AudioFile:
    """Raises `FormatError` if it is no WAV file."""
    header = wav.parse_header(view)
    kind, form = W64 if header.is_wave64 else WAV, header.format
    if form is None:
        return AudioFile(kind, header=header)
    return AudioFile(
        kind, form.encoding, form.channels, form.sample_rate_hz, form.bits_per_sample, header=header
    )


def _flac(first: bytes) -> AudioFile | None:
    """The STREAMINFO block comes first (RFC 9639, section 8.2)."""
    if first[:4] != b"fLaC":
        return None
    packed = int.from_bytes(first[18:26], "big")
    rate, samples = packed >> 44, packed & (1 << 36) - 1
    if len(first) < 26 or not rate:
        return AudioFile(FLAC)
    seconds = round(samples / rate, 3) if samples else None
    channels, bits = (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    return AudioFile(FLAC, "flac", channels, rate, bits, seconds)


def _ogg(first: bytes) -> AudioFile | None:
    """The first packet of the first page names the codec (RFC 3533, RFC 7845)."""
    if first[:4] != b"OggS":
        return None
    packet = first[27 + first[26] :] if len(first) > 26 else first[:0]
    if packet[:8] == b"OpusHead" and len(packet) > 9:
        return AudioFile(OGG, "opus", packet[9] or None, 48000)  # Opus always decodes to 48 kHz
    if packet[:7] == b"\x01vorbis":
        channels, rate = struct.unpack_from("<BI", packet, 11)
        return AudioFile(OGG, "vorbis", channels or None, rate or None)
    if packet[:8] == b"Speex   ":
        rate, channels = struct.unpack_from("<I8xI", packet, 36)
        return AudioFile(OGG, "speex", channels or None, rate or None)
    return AudioFile(OGG)


def _aiff(first: bytes) -> AudioFile | None:
    """The COMM chunk has the format; its rate is an 80-bit float."""
    if first[:4] != b"FORM" or first[8:12] not in (b"AIFF", b"AIFC"):
        return None
    offset = 12
    while offset + 26 <= len(first):
        name, size = struct.unpack_from(">4sI", first, offset)
        if name == b"COMM":
            channels, frames, bits, exponent, mantissa = struct.unpack_from(
                ">HIHHQ", first, offset + 8
            )
            rate = round(mantissa * 2.0 ** (exponent - 16383 - 63)) if exponent < 16420 else 0
            packed = first[offset + 26 : offset + 30] if first[8:12] == b"AIFC" else b"NONE"
            encoding = {b"NONE": "pcm", b"sowt": "pcm", b"ulaw": "mulaw", b"alaw": "alaw"}
            seconds = round(frames / rate, 3) if rate and frames else None
            name = encoding.get(packed)
            return AudioFile(AIFF, name, channels or None, rate or None, bits or None, seconds)
        offset += 8 + size + (size & 1)
    return AudioFile(AIFF)


def _au(first: bytes) -> AudioFile | None:
    if first[:4] != b".snd":
        return None
    if len(first) < 24:
        return AudioFile(AU)
    code, rate, channels = struct.unpack_from(">III", first, 12)
    encoding, bits = _AU_ENCODINGS.get(code, (None, None))
    return AudioFile(AU, encoding, channels or None, rate or None, bits)


def _by_magic(first: bytes) -> AudioFile | None:
    """Kinds whose header tells nothing at a fixed place, or always the same."""
    if first.startswith(b"#!AMR-WB\n"):
        return AudioFile(AWB, "amr_wb", 1, 16000)
    if first.startswith(b"#!AMR\n"):
        return AudioFile(AMR, "amr", 1, 8000)
    if first[4:8] == b"ftyp":
        return AudioFile(M4A)
    for magic, kind in (
        (b"caff", CAF),
        (b"\x1a\x45\xdf\xa3", WEBM),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", WMA),
    ):
        if first.startswith(magic):
            return AudioFile(kind)
    return None


def _mp3(first: bytes) -> AudioFile | None:
    """Two frames in a row, because two bytes of any audio may look like the begin of one."""
    frame = _mp3_frame(first)
    if frame is None:
        return None
    length, rate, channels = frame
    following = _mp3_frame(first[length:])
    if len(first) >= length + 4 and (following is None or following[1] != rate):
        return None
    return AudioFile(MP3, "mp3", channels, rate)


def _mp3_frame(first: bytes) -> tuple[int, int, int] | None:
    """Length, sample rate and channels of a Layer III frame; None if it is none (ISO 11172-3)."""
    if len(first) < 4 or first[0] != 0xFF or first[1] & 0xE6 != 0xE2:
        return None
    version, bitrate, rate = first[1] >> 3 & 3, first[2] >> 4, first[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    hertz = _MP3_RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    kbits = _MP3_KBITS[0 if is_first else 1][bitrate]
    length = (144_000 if is_first else 72_000) * kbits // hertz + (first[2] >> 1 & 1)
    return length, hertz, 1 if first[3] >> 6 == 3 else 2


def _aac(first: bytes) -> AudioFile | None:
    """Two ADTS frames in a row (ISO 14496-3, 1.A.2)."""

    def frame_length(at: int) -> int:
        if len(first) < at + 7 or first[at] != 0xFF or first[at + 1] & 0xF6 != 0xF0:
            return 0
        return (first[at + 3] & 3) << 11 | first[at + 4] << 3 | first[at + 5] >> 5

    length = frame_length(0)
    return AudioFile(AAC, "aac") if length > 6 and frame_length(length) > 6 else None


_READERS: tuple[Callable[[bytes], AudioFile | None], ...] = (
    _flac, _ogg, _aiff, _au, _by_magic, _mp3, _aac,
)  # fmt: skip
