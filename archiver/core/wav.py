"""Parses a WAV header from the first bytes of a file. Pure, with bounded work; never crashes.

`parse_header` reads what the header says and believes nothing. `WavHeader.examine` holds it against
the file's length: it returns how long the audio lasts, and what is odd, as codes of
`manifest.record.FINDINGS`.

- A WAV file is RIFF/WAVE, RIFX (big-endian), RF64 or BW64 (sizes in `ds64`), or Sony Wave64.
- The format may stand before or after the audio, as long as it lies in the bytes that are given.
- A size of 0, near 2^31 or near 2^32 is left open if the file is shorter: that is what programs
  write that cannot seek back (sox 7ffff000, arecord 80000000, ffmpeg ffffffff, others ffffff00).
- The audio has a duration only if all figures of the header for it agree.

Sources: Microsoft's "Multimedia Programming Interface and Data Specifications 1.0" (RIFF, fmt,
fact), the WAVE_FORMAT_EXTENSIBLE note (sub-format), EBU Tech 3306 (RF64 and its ds64 chunk), and
Sony's "Wave64 file format".
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from archiver.core.errors import FormatError
from archiver.core.model import MAX_DURATION_SECONDS

MAX_CHUNKS = 4096
"""More chunks are not looked at: 5 MiB have room for 600,000 empty ones."""
UNSEEN_CHUNKS_BYTES = 1 << 20
"""What follows the audio of a file too long to see its end, and is taken for metadata, at most."""
TOLERANCE_SECONDS = 0.25
TOLERANCE_SHARE = 0.02
"""Two figures for the length agree within the larger of the two, or within one block of samples.
Encoders pad the first and the last block, and some count that and some do not."""

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_ENCODINGS = {
    _PCM: "pcm",
    2: "adpcm_ms",
    _FLOAT: "ieee_float",
    _ALAW: "alaw",
    _MULAW: "mulaw",
    0x11: "adpcm_ima",
    0x31: "gsm610",
    0x55: "mp3",
    0x28F: "g722",
}
_SAMPLES_PER_BLOCK = (2, 0x11, 0x31)
"""Codes whose format chunk states how many samples a block has."""
_BITS = (_PCM, 2, _FLOAT, 0x11, 0x28F)
"""Codes whose bits per sample mean something. Encoders put any number there for other codes."""
_MAGIC = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_WAVE = b"wave\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_CHUNK_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_ ]{3}")


@dataclass(frozen=True)
class WavFormat:
    """The format chunk, as it says. Channels and sample rate are above 0."""

    code: int
    channels: int
    sample_rate_hz: int
    byte_rate: int
    block_align: int
    bits: int
    samples_per_block: int

    @property
    def encoding(self) -> str:
        return _ENCODINGS.get(self.code, f"0x{self.code:04x}")

    @property
    def bits_per_sample(self) -> int | None:
        """None where the encoding has no fixed number. G.711 has 8, whatever the header says."""
        if self.code in (_ALAW, _MULAW):
            return 8
        return (self.bits or None) if self.code in _BITS else None

    @property
    def lacks_bits(self) -> bool:
        """Whether nobody can decode it, for want of the bits per sample."""
        return self.code in (_PCM, _FLOAT) and not self.bits

    @property
    def block(self) -> tuple[int, int]:
        """How many bytes a block has, and how many samples of each channel; 0 if not known."""
        if self.code in _SAMPLES_PER_BLOCK:
            return self.block_align, self.samples_per_block
        is_linear = self.code in (_PCM, _FLOAT, _ALAW, _MULAW)
        return (
            (self.channels * (((self.bits_per_sample or 0) + 7) // 8), 1) if is_linear else (0, 0)
        )


@dataclass(frozen=True)
class WavHeader:
    """What a header says: offsets and sizes in bytes, as announced, true or not."""

    is_wave64: bool
    format: WavFormat | None
    """None if there is no usable format chunk in the first bytes."""
    samples: int
    """How many samples of each channel the `fact` chunk announces; 0 if it does not."""
    data_offset: int | None
    """None if no audio begins in the first bytes."""
    data_bytes: int
    riff_bytes: int
    """Length of the whole file by the RIFF header; 0 if that says 0."""
    following: tuple[bytes, int] | None
    """What stands after the announced end of the audio, read as name and size of a chunk. None if
    the first bytes do not reach so far."""

    def examine(self, file_bytes: int) -> tuple[float | None, set[str]]:
        """Return how long the audio in a file of this length lasts, and the findings about it.

        1. A header without a format, or without audio, has no duration.
        2. Compare the announced sizes with the file and with each other.
        3. The length is that of the audio in the file, at most as announced, if all agree.
        """
        findings: set[str] = set()
        # 1.
        if self.format is None or self.data_offset is None or self.format.lacks_bits:
            findings.add("audio_unreadable")
        if self.data_offset is None:
            if not _is_left_open(self.riff_bytes, file_bytes) and self.riff_bytes > file_bytes:
                findings.add("header_length_mismatch")
            return None, findings
        # 2. A writer that never came back to its header leaves 0, and a RIFF size to match.
        there = max(0, file_bytes - self.data_offset)
        is_chunk = self._chunk_follows(there)
        is_open = _is_left_open(self.data_bytes, there) and (
            self.data_bytes > 0 or (there > 0 and not is_chunk)
        )
        audio = there if is_open else min(self.data_bytes, there)
        end = self.data_offset + audio
        pad = audio & 1
        riff_is_open = _is_left_open(self.riff_bytes, file_bytes) or (
            is_open and self.riff_bytes <= self.data_offset
        )
        riff_end = file_bytes if riff_is_open else self.riff_bytes
        is_uncertain = False
        if is_open:
            findings.add("header_length_unknown")
        elif self.data_bytes > there or end > riff_end + pad:
            findings.add("header_length_mismatch")
        elif end + pad < min(riff_end, file_bytes) and not is_chunk:
            findings.add("header_length_mismatch")  # bytes after the audio that are nothing
            is_uncertain = True
        if riff_end > file_bytes + pad:
            findings.add("header_length_mismatch")
        elif file_bytes > riff_end + 1 and "header_length_mismatch" not in findings:
            findings.add("trailing_bytes")
        # 3.
        if self.format is None:
            return None, findings
        if not audio:
            return 0.0, findings | {"audio_empty"}
        # `fact` counts the samples that were announced. Of a cut file it says nothing.
        is_cut = not is_open and audio < self.data_bytes
        lengths = self._lengths(self.format, audio, 0 if is_cut else self.samples)
        block_seconds = self.format.block[1] / self.format.sample_rate_hz
        shortest, longest = min(lengths, default=0.0), max(lengths, default=0.0)
        allowed = max(TOLERANCE_SECONDS, TOLERANCE_SHARE * longest, block_seconds)
        is_uncertain = is_uncertain or longest - shortest > allowed
        if is_uncertain or not 0 < longest <= MAX_DURATION_SECONDS:
            return None, findings | {"duration_uncertain"}
        return round(lengths[0], 3), findings

    def _chunk_follows(self, there: int) -> bool:
        """Whether what stands after the audio, in a file with `there` bytes from the audio's begin,
        may be a chunk. Of a long file that is not known: a little is taken for one."""
        if self.following is None:
            return there - self.data_bytes <= UNSEEN_CHUNKS_BYTES
        name, size = self.following
        rest = there - self.data_bytes - (self.data_bytes & 1)
        size += 24 if self.is_wave64 else 8  # of its own header
        return _CHUNK_NAME.fullmatch(name) is not None and size <= rest

    def _lengths(self, form: WavFormat, audio: int, announced: int) -> list[float]:
        """All figures for the length of so many bytes of audio, in seconds; the best first.
        `announced`: the samples by the `fact` chunk; 0 if it says nothing."""
        block_bytes, samples = form.block
        found = []
        if announced and not _is_left_open(announced, 0):
            found.append(announced / form.sample_rate_hz)
        if block_bytes and samples:
            blocks = audio / block_bytes if samples == 1 else -(-audio // block_bytes)
            found.append(blocks * samples / form.sample_rate_hz)
            if samples == 1:
                found.reverse()  # what is there counts more than what is said of it
                if form.block_align:
                    found.append(audio / form.block_align / form.sample_rate_hz)
        if form.byte_rate:
            found.append(audio / form.byte_rate)
        return found


def parse_header(head: bytes | memoryview) -> WavHeader:
    """Parse the header from the first bytes of a file; chunks beyond them are not seen.

    Raises `FormatError` if this is no WAV file by its magic.
    """
    order, is_wave64 = _MAGIC.get(bytes(head[:4]), ""), bytes(head[:16]) == _W64_RIFF
    if is_wave64 and bytes(head[24:40]) == _W64_WAVE:
        order, riff_bytes, start = "<", struct.unpack_from("<Q", head, 16)[0], 40
    elif order and bytes(head[8:12]) == b"WAVE":
        (size,) = struct.unpack_from(order + "I", head, 4)
        riff_bytes, start = size + 8 if size else 0, 12
    else:
        raise FormatError("no WAV: the RIFF/WAVE magic is missing")
    is_rf64 = bytes(head[:4]) in (b"RF64", b"BW64")
    shape = struct.Struct("<16sQ" if is_wave64 else order + "4sI")
    form, samples, sizes64, data, following = None, 0, (0, 0, 0), None, None
    for _ in range(MAX_CHUNKS):
        if start + shape.size > len(head) or (following is not None and form is not None):
            break
        name, size = shape.unpack_from(head, start)
        name, body = name[:4], start + shape.size
        if is_wave64:  # a size counts its own header, too
            is_chunk = size >= shape.size or name == b"data"
            name, size = name if is_chunk else b"", max(0, size - shape.size)
        if data is not None and following is None:
            following = name, size
        if name == b"fmt " and form is None:
            form = _format(head, body, size, order)
        elif name == b"fact" and len(head) >= body + 4:
            (samples,) = struct.unpack_from(order + "I", head, body)
        elif name == b"ds64" and is_rf64 and len(head) >= body + 24:
            sizes64 = struct.unpack_from("<QQQ", head, body)
        elif name == b"data" and data is None:
            # A 32-bit size that is not all ones counts (EBU Tech 3306). ffmpeg leaves an empty
            # ds64 in a pipe.
            size = (sizes64[1] or size) if size == 0xFFFFFFFF else size
            data = body, size
        # RIFF pads chunks to an even length, Wave64 to 8 bytes.
        start = body + size + (-size % 8 if is_wave64 else size & 1)
    if is_rf64 and riff_bytes == 0xFFFFFFFF + 8:
        riff_bytes = sizes64[0] + 8 if sizes64[0] else 0
    if is_rf64 and samples == 0xFFFFFFFF:
        samples = sizes64[2]
    offset, data_bytes = data or (None, 0)
    return WavHeader(is_wave64, form, samples, offset, data_bytes, riff_bytes, following)


def _format(head: bytes | memoryview, body: int, size: int, order: str) -> WavFormat | None:
    """The format chunk; None if it is cut, too short, or without channels or sample rate."""
    if size < 16 or body + 16 > len(head):
        return None
    code, channels, rate, byte_rate, align, bits = struct.unpack_from(order + "HHIIHH", head, body)
    samples = 0
    if size >= 20 and body + 20 <= len(head):
        (samples,) = struct.unpack_from(order + "H", head, body + 18)
    if code == _EXTENSIBLE and size >= 26 and body + 26 <= len(head):
        (code,) = struct.unpack_from(order + "H", head, body + 24)
    if not channels or not rate:
        return None
    return WavFormat(code, channels, rate, byte_rate, align, bits, samples)


def _is_left_open(size: int, there: int) -> bool:
    """Whether an announced size says that the writer did not know it: 0, or a number that nobody
    means, larger than what is there."""
    # 64 KiB around the limits of signed and unsigned numbers: headers are counted in or not.
    near = abs(size - (1 << 31)) <= 1 << 16 or abs(size - (1 << 32)) <= 1 << 16 or size >= 1 << 62
    return size == 0 or (size > there and near)
