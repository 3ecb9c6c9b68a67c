"""WAV headers: every encoding that telephony uses, and whatever else bytes can be."""

from __future__ import annotations

import io
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.core import wav
from archiver.core.errors import FormatError
from tests.fakes.audio import ALAW, EXTENSIBLE, FLOAT, GSM, MULAW, PCM, chunk, fmt, riff
from tests.fakes.audio import wav as make_wav


def parse(data: bytes) -> wav.WavHeader:
    header = wav.parse_header(data, complete=True)
    assert header is not None
    return header


SUB_FORMAT = struct.pack("<HHI", 22, 16, 4) + struct.pack("<H", MULAW) + bytes(14)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (fmt(PCM, bits=8), "pcm"),
        (fmt(FLOAT, bits=8), "ieee_float"),
        (fmt(ALAW, bits=8), "alaw"),
        (fmt(MULAW, bits=8), "mulaw"),
        (fmt(GSM, bits=8), "gsm610"),
        (fmt(0x1234, bits=8), "0x1234"),
        (fmt(EXTENSIBLE, bits=8) + SUB_FORMAT, "mulaw"),
    ],
)
def test_encodings_are_named_and_unknown_ones_keep_their_number(form, name):
    data = riff(chunk(b"fmt ", form), chunk(b"data", bytes(8000)))
    header = parse(data)
    assert (header.encoding, header.channels, header.sample_rate_hz) == (name, 1, 8000)
    assert header.duration_seconds(len(data)) == 1.0
    assert header.missing_bytes(len(data)) == 0


def test_it_agrees_with_the_standard_library():
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((2, 2, 44100, 0, "NONE", ""))
        out.writeframes(bytes(44100 * 4))
    data = file.getvalue()
    header = parse(data)
    assert (header.channels, header.sample_rate_hz, header.bits_per_sample) == (2, 44100, 16)
    assert header.data_offset == 44
    assert header.duration_seconds(len(data)) == 1.0


def test_odd_chunks_are_padded_and_skipped():
    data = riff(
        chunk(b"LIST", b"odd"), chunk(b"fmt ", fmt()), chunk(b"junk", b""), chunk(b"data", b"1234")
    )
    header = parse(data)
    assert data[header.data_offset :] == b"1234"
    assert header.riff_bytes == len(data)


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_rf64_takes_its_sizes_from_ds64(magic):
    audio = 5_000_000_000
    ds64 = chunk(b"ds64", struct.pack("<QQQI", audio + 72, audio, 0, 0))
    body = b"WAVE" + ds64 + chunk(b"fmt ", fmt()) + b"data" + b"\xff" * 4
    header = parse(magic + b"\xff" * 4 + body)
    assert header.data_bytes == audio
    assert header.riff_bytes == audio + 80
    assert header.duration_seconds(header.data_offset + audio) == audio / 16000


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_length_left_open_is_taken_from_the_file(size):
    data = riff(chunk(b"fmt ", fmt())) + b"data" + struct.pack("<I", size) + bytes(16000)
    header = parse(data)
    assert header.data_bytes is None
    assert header.duration_seconds(len(data)) == 1.0
    assert header.missing_bytes(len(data)) == 0


def test_a_file_that_is_cut_short_says_how_much_is_missing():
    data = make_wav(1)
    assert parse(data).missing_bytes(len(data) - 100) == 100


def test_more_bytes_are_asked_for_while_the_header_is_not_all_there():
    data = make_wav(1)
    for count in range(43):
        assert wav.parse_header(data[:count], complete=False) is None
        with pytest.raises(FormatError):
            wav.parse_header(data[:count], complete=True)
    assert wav.parse_header(data[:44], complete=False) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!doctype html><title>no</title>" * 4,
        b"ID3\x04" + bytes(100),
        b"OggS" + bytes(100),
        b"RIFF\x24\0\0\0AVI " + bytes(100),
        riff(chunk(b"data", b"1234"), chunk(b"fmt ", fmt())),
        riff(chunk(b"fmt ", fmt()[:14]), chunk(b"data", b"")),
        riff(chunk(b"fmt ", fmt(channels=0)), chunk(b"data", b"")),
        riff(chunk(b"fmt ", fmt(rate=0)), chunk(b"data", b"")),
        riff(chunk(b"fmt ", fmt()), b"junk" + b"\xff" * 4 + b"data"),
        riff(chunk(b"fmt ", fmt()), chunk(b"junk", bytes(wav.MAX_HEADER_BYTES))),
        riff(chunk(b"fmt ", fmt()), *[chunk(b"junk", b"")] * 200_000),
    ],
)
def test_what_is_no_wav_is_refused(data):
    with pytest.raises(FormatError):
        wav.parse_header(data, complete=True)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_format_error(data):
    with_magic = b"RIFF" + data[:4] + b"WAVE" + data[4:]
    for head in (data, with_magic, b"RF64" + with_magic[4:]):
        try:
            header = parse(head)
        except FormatError:
            continue
        assert header.duration_seconds(len(head)) >= 0


@given(st.data())
def test_a_good_header_with_changed_bytes_is_a_header_or_a_format_error(data):
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 80, 16, 0, 0))
    good = bytearray(riff(ds64, chunk(b"LIST", b"abc"), chunk(b"fmt ", fmt()), chunk(b"data", b"")))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parse(bytes(good))
    except FormatError:
        return
    assert header.duration_seconds(10**6) >= 0
    assert header.missing_bytes(10**6) >= 0
