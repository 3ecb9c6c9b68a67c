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
from archiver.manifest.record import FINDINGS
from tests.fakes.audio import ALAW, EXTENSIBLE, FLOAT, GSM, MULAW, PCM, chunk, fmt, riff
from tests.fakes.audio import wav as make_wav


def facts(data: bytes) -> tuple[str | None, int | None, int | None, float | None, set[str]]:
    """Encoding, channels, sample rate, length and findings of a whole file."""
    header = wav.parse_header(data)
    form, (seconds, findings) = header.format, header.examine(len(data))
    if form is None:
        return None, None, None, seconds, findings
    return form.encoding, form.channels, form.sample_rate_hz, seconds, findings


def length(data: bytes) -> tuple[float | None, set[str]]:
    return wav.parse_header(data).examine(len(data))


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
    assert facts(data) == (name, 1, 8000, 1.0, set())


def test_it_agrees_with_the_standard_library():
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((2, 2, 44100, 0, "NONE", ""))
        out.writeframes(bytes(44100 * 4))
    data = file.getvalue()
    assert facts(data) == ("pcm", 2, 44100, 1.0, set())
    header = wav.parse_header(data)
    assert header.format is not None
    assert (header.format.bits_per_sample, header.data_offset) == (16, 44)


def test_odd_chunks_are_padded_and_skipped():
    data = riff(
        chunk(b"LIST", b"odd"), chunk(b"fmt ", fmt()), chunk(b"junk", b""), chunk(b"data", b"1234")
    )
    header = wav.parse_header(data)
    assert data[header.data_offset :] == b"1234"
    assert header.riff_bytes == len(data)


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_rf64_takes_its_sizes_from_ds64(magic):
    audio = 5_000_000_000
    ds64 = chunk(b"ds64", struct.pack("<QQQI", audio + 72, audio, 0, 0))
    body = b"WAVE" + ds64 + chunk(b"fmt ", fmt()) + b"data" + b"\xff" * 4
    header = wav.parse_header(magic + b"\xff" * 4 + body)
    assert (header.data_bytes, header.riff_bytes) == (audio, audio + 80)
    assert header.data_offset is not None
    assert header.examine(header.data_offset + audio) == (audio / 16000, set())


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_an_empty_ds64_leaves_the_length_open(magic):
    data = riff(chunk(b"ds64", bytes(28)), chunk(b"fmt ", fmt()), magic=magic)
    data = data[:4] + b"\xff" * 4 + data[8:] + b"data" + b"\xff" * 4 + bytes(16000)
    assert length(data) == (1.0, {"header_length_unknown"})


def wave64(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """A Wave64 file: names of 16 bytes, sizes that count their own header, aligned to 8 bytes."""
    guid = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    body = b"".join(
        name + guid + struct.pack("<Q", 24 + len(data)) + data + bytes(-len(data) % 8)
        for name, data in chunks
    )
    whole = 40 + len(body) if size is None else size
    riff_guid = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
    return riff_guid + struct.pack("<Q", whole) + b"wave" + guid + body


@pytest.mark.parametrize(
    ("size", "findings"),
    [
        (None, set()),
        (0, set()),
        (2**64 - 1, set()),
        (10**6, {"header_length_mismatch"}),
    ],
)
def test_wave64_has_wide_sizes_that_count_themselves(size, findings):
    data = wave64((b"junk", b"odd"), (b"fmt ", fmt()), (b"data", bytes(16000)), size=size)
    assert facts(data) == ("pcm", 1, 8000, 1.0, findings)


def test_sox_writes_a_second_header_into_a_pipe():
    """Wave64 whose data has the impossible size 23, and then all over again."""
    again = wave64((b"fmt ", fmt()), (b"data", b""), size=0)
    data = bytearray(again + again + bytes(16000 - len(again)))
    data[len(again) - 8] = 23
    assert length(bytes(data)) == (1.0, {"header_length_unknown"})


def test_rifx_is_big_endian():
    form = struct.pack(">HHIIHH", PCM, 1, 8000, 16000, 2, 16)
    body = b"WAVE" + b"fmt " + struct.pack(">I", 16) + form + b"data" + struct.pack(">I", 16000)
    data = b"RIFX" + struct.pack(">I", len(body) + 16000) + body + bytes(16000)
    assert facts(data) == ("pcm", 1, 8000, 1.0, set())


OPEN = {"header_length_unknown"}
OTHER = {"header_length_mismatch"}
UNCERTAIN = {"duration_uncertain"}
TAIL = {"trailing_bytes"}


def sized(data: int, riff_size: int = 16036, there: int = 16000, after: bytes = b"") -> bytes:
    """A second of PCM whose header says these sizes."""
    head = b"RIFF" + struct.pack("<I", riff_size) + b"WAVE" + chunk(b"fmt ", fmt())
    return head + b"data" + struct.pack("<I", data) + bytes(there) + after


@pytest.mark.parametrize("size", [
    0, 0x7FFFFFFF, 0x7FFFF000, 0x7FFFFFDB, 0x80000000, 0xFFFFFF00, 0xFFFFFFDB, 0xFFFFFFFF,
])  # fmt: skip
@pytest.mark.parametrize("riff_size", [None, "same", 0])
def test_a_length_left_open_is_taken_from_the_file(size, riff_size):
    told = {None: 16036, "same": min(size + 36, 2**32 - 1)}.get(riff_size, riff_size)
    assert length(sized(size, told)) == (1.0, OPEN)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (sized(16000), (1.0, set())),
        (sized(16000, 0), (1.0, set())),
        (sized(16000, 0xFFFFFFFF), (1.0, set())),
        # More than is there: the audio is what is there.
        (sized(16001), (1.0, OTHER)),
        (sized(16016), (1.0, OTHER)),
        (sized(16044), (1.0, OTHER)),
        (sized(32000), (1.0, OTHER)),
        (sized(32000, 32036), (1.0, OTHER)),
        (sized(0x70000000), (1.0, OTHER)),
        (sized(0x90000000), (1.0, OTHER)),
        (sized(16000, 16044), (1.0, OTHER)),
        (sized(16000, 36), (1.0, OTHER)),
        (sized(16000, there=15900), (0.994, OTHER)),
        # Less than is there, and no chunk after it.
        (sized(8000), (None, OTHER | UNCERTAIN)),
        (sized(8000, 0xFFFFFFFF), (None, OTHER | UNCERTAIN)),
        (sized(8000, 8036), (0.5, TAIL)),
        (sized(16000, 16036, after=b"tail"), (1.0, TAIL)),
        (sized(16000, 16036, after=chunk(b"LIST", b"abcd")), (1.0, TAIL)),
        (sized(16000, 16048, after=chunk(b"LIST", b"abcd")), (1.0, set())),
        (sized(16000, 16048, after=b"LIST\xff\0\0\0abcd"), (None, OTHER | UNCERTAIN)),
        # No audio at all.
        (sized(0, 36, there=0), (0.0, {"audio_empty"})),
        (sized(0, 48, there=0, after=chunk(b"LIST", b"abcd")), (0.0, {"audio_empty"})),
        (sized(16000, there=0), (0.0, OTHER | {"audio_empty"})),
        (sized(0, 36), (1.0, OPEN)),
    ],
)
def test_sizes_are_held_against_the_file_and_each_other(data, expected):
    assert length(data) == expected


def test_the_end_of_a_long_file_is_not_seen():
    """Only the first bytes are parsed: a little after the audio is taken for metadata."""
    header = wav.parse_header(sized(8_000_000, 0xFFFFFFFF, there=1000))
    assert header.examine(44 + 8_000_000 + (1 << 20)) == (500.0, set())
    assert header.examine(44 + 8_000_000 + (1 << 20) + 1) == (None, OTHER | UNCERTAIN)


def built(form: bytes, audio: int, samples: int | None = None) -> bytes:
    fact = [] if samples is None else [chunk(b"fact", struct.pack("<I", samples))]
    return riff(chunk(b"fmt ", form), *fact, chunk(b"data", bytes(audio)))


def form_of(code: int, rate: int, byte_rate: int, align: int, bits: int, samples: int = 0) -> bytes:
    plain = struct.pack("<HHIIHH", code, 1, rate, byte_rate, align, bits)
    return plain + (struct.pack("<HH", 2, samples) if samples else b"")


IMA, G722, MP3 = 0x11, 0x28F, 0x55


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # sox counts right: 80 blocks, the last one not full.
        (built(form_of(IMA, 8000, 4055, 256, 4, 505), 20480, 40000), (5.0, set())),
        (built(form_of(IMA, 8000, 4055, 256, 4, 505), 20480), (5.05, set())),
        # ffmpeg states a byte rate that is not the encoding's.
        (built(form_of(IMA, 8000, 16000, 1024, 4, 2041), 20480, 40820), (None, UNCERTAIN)),
        (built(form_of(G722, 16000, 16000, 1, 4), 40000, 80000), (None, UNCERTAIN)),
        (built(form_of(G722, 16000, 8000, 1, 4), 40000, 80000), (5.0, set())),
        (built(form_of(GSM, 8000, 1625, 65, 0, 320), 8125, 40000), (5.0, set())),
        (built(form_of(MP3, 8000, 0, 576, 0), 5184, 41105), (5.138, set())),
        (built(form_of(MP3, 8000, 0, 576, 0), 5184), (None, UNCERTAIN)),
        (built(form_of(MP3, 8000, 1000, 1, 0), 5184), (5.184, set())),
        (built(form_of(PCM, 8000, 32000, 2, 16), 80000), (None, UNCERTAIN)),
        (built(form_of(PCM, 8000, 0, 2, 16), 80000), (5.0, set())),
        (built(form_of(PCM, 8000, 0, 0, 16), 80000), (5.0, set())),
        (built(form_of(PCM, 8000, 16000, 1, 16), 80000), (None, UNCERTAIN)),
        (built(form_of(PCM, 8000, 16000, 2, 0), 80000), (5.0, {"audio_unreadable"})),
        (built(form_of(PCM, 8000, 16000, 2, 16), 80000, 99000), (None, UNCERTAIN)),
        (built(form_of(PCM, 8000, 16000, 2, 16), 80000, 0), (5.0, set())),
        (built(form_of(PCM, 8000, 16000, 2, 16), 80000, 0xFFFFFFFF), (5.0, set())),
        (built(form_of(MULAW, 8000, 8000, 1, 16), 40000), (5.0, set())),
    ],
)
def test_the_length_is_told_if_all_that_the_header_says_of_it_agrees(data, expected):
    assert length(data) == expected


def test_of_a_cut_file_fact_says_nothing():
    """It counts the samples that were announced."""
    whole = built(fmt(MULAW, bits=8), 16_000, samples=16_000)
    assert length(whole) == (2.0, set())
    assert length(whole[:-8_000]) == (1.0, {"header_length_mismatch"})


@pytest.mark.parametrize("samples", [4 * 10**18, 9 * 10**12])
def test_a_length_of_centuries_is_none(samples):
    """`fact` alone says it; nothing else in the header tells how long MP3 lasts."""
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 300, 100, samples, 0))
    form = chunk(b"fmt ", form_of(0x55, 8000, 0, 1, 0))
    data = riff(ds64, form, chunk(b"fact", b"\xff" * 4), chunk(b"data", bytes(100)), magic=b"RF64")
    assert length(data)[0] is None
    assert "duration_uncertain" in length(data)[1]


def test_a_chunk_after_the_audio_must_be_whole():
    """Where RIFF leaves its size open, it is what tells where the file ends."""
    form, audio = chunk(b"fmt ", fmt()), chunk(b"data", bytes(16_000))
    data = riff(form, audio, chunk(b"LIST", bytes(16)))
    opened = data[:4] + bytes(4) + data[8:]
    assert length(opened) == (1.0, set())
    for lacking in (1, 8, 15):
        assert length(opened[:-lacking])[1] >= {"header_length_mismatch"}


@pytest.mark.parametrize("name", [b"LIST", b"ID3 ", b"JUNK"])
def test_megabytes_before_the_audio_are_passed_over(name):
    data = riff(chunk(b"fmt ", fmt()), chunk(name, bytes(4 << 20)), chunk(b"data", bytes(16000)))
    assert length(data) == (1.0, set())


def test_the_format_may_stand_after_the_audio():
    data = riff(chunk(b"data", bytes(16000)), chunk(b"LIST", b"abc"), chunk(b"fmt ", fmt()))
    assert facts(data) == ("pcm", 1, 8000, 1.0, set())


UNREADABLE = {"audio_unreadable"}


@pytest.mark.parametrize(
    "data",
    [
        riff(),
        riff(chunk(b"fmt ", fmt())),
        riff(chunk(b"data", bytes(100))),
        riff(chunk(b"fmt ", fmt()[:14]), chunk(b"data", bytes(100))),
        riff(chunk(b"fmt ", fmt(channels=0)), chunk(b"data", bytes(100))),
        riff(chunk(b"fmt ", fmt(rate=0)), chunk(b"data", bytes(100))),
        riff(chunk(b"fmt ", fmt()), b"junk" + b"\xf0" * 4 + b"data"),
        riff(chunk(b"fmt ", fmt()), *[chunk(b"junk", b"")] * 200_000),
    ],
)
def test_what_has_no_audio_or_no_format_says_so(data):
    seconds, findings = length(data)
    assert seconds is None
    assert findings >= UNREADABLE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        b"ID3\x04" + bytes(100),
        b"OggS" + bytes(100),
        b"RIFF\x24\0\0\0AVI " + bytes(100),
    ],
)
def test_what_is_no_wav_is_none(data):
    with pytest.raises(FormatError):
        wav.parse_header(data)


def test_each_begin_of_a_file_is_parsed():
    for data in (make_wav(0.01), wave64((b"fmt ", fmt()), (b"data", bytes(160)))):
        for count in range(len(data)):
            try:
                wav.parse_header(data[:count]).examine(len(data))
            except FormatError:
                assert count < 40


MAGICS = [b"RIFF", b"RIFX", b"RF64", b"BW64"]
SIZES = st.integers(0, 2**64) | st.integers(0, 10**6)


@given(st.binary(max_size=200), SIZES)
def test_any_bytes_are_a_header_or_a_format_error(data, size):
    heads = [
        data,
        *(magic + data[:4] + b"WAVE" + data[4:] for magic in MAGICS),
        wave64()[:40] + data,
    ]
    for head in heads:
        try:
            header = wav.parse_header(head)
        except FormatError:
            continue
        seconds, findings = header.examine(size)
        assert seconds is None or seconds >= 0
        assert findings <= FINDINGS.keys()


@given(st.data())
def test_a_good_header_with_changed_bytes_is_a_header_or_a_format_error(data):
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 80, 16, 0, 0))
    good = bytearray(
        riff(ds64, chunk(b"LIST", b"abc"), chunk(b"fmt ", fmt()), chunk(b"fact", b"\x08\0\0\0"),
             chunk(b"data", b""))
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        seconds, findings = wav.parse_header(bytes(good)).examine(data.draw(SIZES))
    except FormatError:
        return
    assert seconds is None or seconds >= 0
    assert findings <= FINDINGS.keys()
