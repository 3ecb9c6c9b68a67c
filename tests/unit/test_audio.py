"""What a recording is, by its first bytes: each kind, and whatever else bytes can be."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from archiver.core import audio
from archiver.manifest.record import FINDINGS
from tests.fakes.audio import chunk, noise, wav

MP3_FRAME = b"\xff\xfb\x90\xc4" + bytes(413)
"""128 kbit/s at 44.1 kHz, mono: 417 bytes."""
ADTS_FRAME = b"\xff\xf1\x60\x40\x02\x1f\xfc" + bytes(9)
STREAMINFO = struct.pack(">HH6xQ", 4096, 4096, 8000 << 44 | 1 << 41 | 15 << 36 | 40_000)
COMM = struct.pack(">hIhHQ", 1, 40_000, 16, 16383 + 12, 8000 << 51)


def page_of(packet: bytes) -> bytes:
    """The first page of an Ogg stream."""
    return b"OggS" + bytes(22) + b"\1" + bytes([len(packet)]) + packet


def form(kind: bytes, body: bytes) -> bytes:
    inner = kind + b"COMM" + struct.pack(">I", len(body)) + body
    return b"FORM" + struct.pack(">I", len(inner)) + inner


ID3 = b"ID3\4\0\0\0\0\1\0" + bytes(128)
CASES = {
    "wav": (wav(1), ("wav", "pcm", 1, 8000, 16, 1.0)),
    "wav behind a tag": (ID3 + wav(1), ("wav", "pcm", 1, 8000, 16, 1.0)),
    "mp3": (MP3_FRAME * 3, ("mp3", "mp3", 1, 44100, None, None)),
    "mp3, one frame": (MP3_FRAME, ("mp3", "mp3", 1, 44100, None, None)),
    "mp3, cut": (MP3_FRAME[:100], ("mp3", "mp3", 1, 44100, None, None)),
    "mp3 behind a tag": (ID3 + MP3_FRAME * 2, ("mp3", "mp3", 1, 44100, None, None)),
    "mp3 behind a tag with its footer": (
        b"ID3\4\0\x10\0\0\0\0" + bytes(10) + MP3_FRAME, ("mp3", "mp3", 1, 44100, None, None),
    ),
    "a tag alone": (ID3, ("mp3", None, None, None, None, None)),
    "a tag longer than the file": (
        b"ID3\4\0\0\x7f\x7f\x7f\x7f" + MP3_FRAME, ("mp3", None, None, None, None, None),
    ),
    "no tag: its size is none": (b"ID3\4\0\0\xff\0\0\0", ("bin", None, None, None, None, None)),
    "no mp3: no second frame": (
        MP3_FRAME + bytes(100), ("bin", None, None, None, None, None),
    ),
    "aac": (ADTS_FRAME * 3, ("aac", "aac", None, None, None, None)),
    "no aac": (ADTS_FRAME + bytes(20), ("bin", None, None, None, None, None)),
    "flac": (
        b"fLaC\x80\0\0\x22" + STREAMINFO[:10] + STREAMINFO[10:],
        ("flac", "flac", 2, 8000, 16, 5.0),
    ),
    "flac, cut": (b"fLaC", ("flac", None, None, None, None, None)),
    "opus": (page_of(b"OpusHead\1\2" + bytes(9)), ("ogg", "opus", 2, 48000, None, None)),
    "vorbis": (
        page_of(b"\1vorbis" + bytes(4) + b"\1" + struct.pack("<I", 8000) + bytes(14)),
        ("ogg", "vorbis", 1, 8000, None, None),
    ),
    "ogg, cut": (b"OggS\0", ("ogg", None, None, None, None, None)),
    "vorbis, cut": (page_of(b"\1vorbis"), ("bin", None, None, None, None, None)),
    "amr": (b"#!AMR\n" + bytes(100), ("amr", "amr", 1, 8000, None, None)),
    "amr-wb": (b"#!AMR-WB\n" + bytes(100), ("awb", "amr_wb", 1, 16000, None, None)),
    "m4a": (b"\0\0\0\x1cftypM4A " + bytes(20), ("m4a", None, None, None, None, None)),
    "3gp": (b"\0\0\0\x1cftyp3gp4" + bytes(20), ("m4a", None, None, None, None, None)),
    "aiff": (form(b"AIFF", COMM), ("aiff", "pcm", 1, 8000, 16, 5.0)),
    "aiff-c": (form(b"AIFC", COMM + b"ulaw"), ("aiff", "mulaw", 1, 8000, 16, 5.0)),
    "aiff, cut": (b"FORM\0\0\0\0AIFF", ("aiff", None, None, None, None, None)),
    "au": (
        b".snd" + struct.pack(">IIIII", 24, 2**32 - 1, 1, 8000, 1),
        ("au", "mulaw", 1, 8000, 8, None),
    ),
    "au, cut": (b".snd", ("au", None, None, None, None, None)),
    "caf": (b"caff" + bytes(60), ("caf", None, None, None, None, None)),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(60), ("webm", None, None, None, None, None)),
    "wma": (
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(60), ("wma", None, None, None, None, None),
    ),
    "silence in G.711": (b"\xff" * 9000, ("bin", None, None, None, None, None)),
    "noise": (noise(9000), ("bin", None, None, None, None, None)),
    "nothing": (b"", ("bin", None, None, None, None, None)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_kind_is_told_by_its_first_bytes(name: str) -> None:
    data, expected = CASES[name]
    found = audio.recognise(data)
    told, findings = found.describe(len(data))
    members = ("encoding", "channels", "sample_rate_hz", "bits_per_sample", "duration_seconds")
    assert (found.type.extension, *(told[member] for member in members)) == expected
    kind = found.type
    assert ("not_wav" in findings) == (kind is not audio.WAV)
    assert ("audio_unreadable" in findings) == (kind is audio.UNKNOWN)
    assert not audio.is_error_page(data)


@pytest.mark.parametrize(
    "data",
    [
        b"<", b"{", b"[", b"<3 is no tag", b"< p>", b"<p", b"{x}", b"[5", b"<html>\0", b"<a\x01>",
        b"\xff\xfe<", b"Not found\n", b"null", b'"text"', b"\0<html>", b"x<html>",
        b"<\x55\xd5" * 200, wav(1),
    ],
)  # fmt: skip
def test_what_is_not_evidently_a_page_is_none(data: bytes) -> None:
    assert not audio.is_error_page(data)


@pytest.mark.parametrize("data", [b"null", b" true\n", b'"not ready"', b"[1, 2]", b"404"])
def test_a_short_blob_that_is_json_is_a_page(data: bytes) -> None:
    assert audio.is_error_page(data, is_whole=True)
    assert not audio.is_error_page(data + b"x", is_whole=True)


def test_a_page_in_a_japanese_encoding() -> None:
    page = "<html><body>エラー</body></html>".encode("iso2022_jp")
    assert b"\x1b" in page
    assert audio.is_error_page(page)


BEGINS = st.sampled_from([case[0][:60] for case in CASES.values()])


@given(st.tuples(BEGINS | st.just(b""), st.binary(max_size=300)), st.integers(0, 10**12))
@example((b"FORM\0\0\0\x50AIFF", b"COMM" + b"\xff" * 40), 5)
def test_any_bytes_are_something(parts: tuple[bytes, bytes], size: int) -> None:
    data = b"".join(parts)
    audio.is_error_page(data, is_whole=True)
    told, findings = audio.recognise(memoryview(data)).describe(size)
    assert findings <= FINDINGS.keys()
    assert told["duration_seconds"] is None or told["duration_seconds"] >= 0


def test_the_extensions_are_what_readers_accept() -> None:
    extensions = [one.extension for one in audio.TYPES]
    assert len(set(extensions)) == len(extensions)
    assert all(re.fullmatch("[a-z0-9]{1,8}", extension) for extension in extensions)


def test_the_work_is_bounded() -> None:
    """Five MiB of chunks without a body, of tags, and of white space."""
    for data in (
        b"RIFF\0\0\0\0WAVE" + chunk(b"junk", b"") * 600_000,
        b"FORM\0\0\0\0AIFF" + b"junk\0\0\0\0" * 600_000,
        b" " * (5 << 20),
        b"<a " * (2 << 20),
        ID3 * 30_000,
    ):
        audio.is_error_page(data)
        audio.recognise(data).describe(len(data))
