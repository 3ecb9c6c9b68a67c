"""Recordings as the world makes them: by sox, by ffmpeg, and by hand.

All have the same tone, `SECONDS` long, unless their name says otherwise. What is made by hand is
what programs leave that cannot seek, count wrongly, or come from another machine.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.audio import ALAW, EXTENSIBLE, FLOAT, MULAW, PCM, chunk, fmt, noise, riff

SECONDS = 5.0
TOOLS = ("sox", "ffmpeg", "ffprobe")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
SKIP = bool(MISSING) and os.environ.get("CI") != "true"
"""Whoever has not got the tools passes by what needs them; CI never does."""

FFMPEG = {
    **{f"pcm-{bits}-{rate}-{channels}.wav": f"-c:a pcm_{bits} -ar {rate} -ac {channels}"
       for bits in ("u8", "s16le", "s24le", "s32le", "f32le", "f64le")
       for rate, channels in ((8000, 1), (16000, 2))},
    "pcm-44100.wav": "-ar 44100",
    "pcm-6-channels.wav": "-ar 48000 -ac 6",
    "mulaw.wav": "-c:a pcm_mulaw -ar 8000",
    "mulaw-2.wav": "-c:a pcm_mulaw -ar 8000 -ac 2",
    "alaw.wav": "-c:a pcm_alaw -ar 8000",
    "adpcm-ms.wav": "-c:a adpcm_ms -ar 8000",
    "adpcm-ms-2.wav": "-c:a adpcm_ms -ar 22050 -ac 2",
    "adpcm-ima.wav": "-c:a adpcm_ima_wav -ar 8000",
    "adpcm-ima-2.wav": "-c:a adpcm_ima_wav -ar 16000 -ac 2",
    "adpcm-yamaha.wav": "-c:a adpcm_yamaha -ar 11025",
    "g722.wav": "-c:a g722 -ar 16000",
    "g723.wav": "-c:a g723_1 -b:a 6300 -ar 8000",
    "g726-16.wav": "-c:a g726 -b:a 16k -ar 8000",
    "g726-32.wav": "-c:a g726 -b:a 32k -ar 8000",
    "gsm.wav": "-c:a libgsm_ms -ar 8000",
    "mp3-in.wav": "-c:a libmp3lame -ar 8000 -f wav",
    "mp3-in-44100.wav": "-c:a libmp3lame -ar 44100 -ac 2 -f wav",
    "aac-in.wav": "-c:a aac -ar 16000",
    "ac3-in.wav": "-c:a ac3 -ar 48000",
    "wma-in.wav": "-c:a wmav2 -ar 16000",
    "flac-in.wav": "-c:a flac -ar 16000",
    "rf64.wav": "-rf64 always -ar 8000",
    "rf64-auto.wav": "-rf64 auto -ar 8000",
    "bext.wav": "-write_bext 1 -ar 8000 -metadata description=call",
    "peak.wav": "-write_peak on -ar 8000",
    "peak-only-rf64.wav": "-write_peak on -rf64 always -ar 8000",
    "a.w64": "-ar 8000",
    "mulaw.w64": "-c:a pcm_mulaw -ar 8000",
    "plain.mp3": "-ar 44100 -ac 2",
    "8000.mp3": "-ar 8000",
    "no-tag.mp3": "-ar 8000 -id3v2_version 0 -write_xing 0",
    "variable.mp3": "-ar 16000 -q:a 4",
    "opus.ogg": "-c:a libopus -ar 48000",
    "opus-2.ogg": "-c:a libopus -ar 16000 -ac 2",
    "vorbis.ogg": "-c:a libvorbis -ar 16000",
    "speex.ogg": "-c:a libspeex -ar 8000",
    "flac.ogg": "-c:a flac -ar 8000",
    "plain.flac": "-ar 8000",
    "24.flac": "-ar 48000 -ac 2 -c:a flac -sample_fmt s32",
    "plain.m4a": "-c:a aac -ar 16000",
    "fast-start.m4a": "-c:a aac -ar 16000 -movflags faststart",
    "adts.aac": "-c:a aac -ar 16000",
    "plain.mka": "-c:a libopus",
    "plain.webm": "-c:a libopus",
    "plain.wma": "-c:a wmav2 -ar 16000",
    "plain.caf": "-ar 8000",
    "plain.aiff": "-ar 8000",
    "plain.au": "-ar 8000",
    "mulaw.au": "-c:a pcm_mulaw -ar 8000",
    "raw.gsm": "-c:a libgsm -ar 8000",
    "raw.g722": "-c:a g722 -ar 16000",
}  # fmt: skip
"""File → how ffmpeg makes it, from a tone."""
FFMPEG_PIPE = {
    "pipe-pcm.wav": "-ar 8000 -f wav",
    "pipe-mulaw.wav": "-c:a pcm_mulaw -ar 8000 -f wav",
    "pipe-adpcm.wav": "-c:a adpcm_ima_wav -ar 8000 -f wav",
    "pipe-rf64.wav": "-rf64 always -ar 8000 -f wav",
    "pipe.w64": "-ar 8000 -f w64",
    "pipe.flac": "-ar 8000 -f flac",
    "pipe.mp3": "-ar 8000 -f mp3",
    "pipe.au": "-ar 8000 -f au",
}
"""The same, written to a pipe: ffmpeg cannot come back to the header."""
SOX = {
    "sox-pcm.wav": "",
    "sox-u8.wav": "-b 8",
    "sox-24.wav": "-b 24",
    "sox-pcm.wavpcm": "-t wavpcm",
    "sox-mulaw.wav": "-e mu-law",
    "sox-alaw.wav": "-e a-law",
    "sox-adpcm-ms.wav": "-e ms-adpcm",
    "sox-adpcm-ima.wav": "-e ima-adpcm",
    "sox-gsm.wav": "-e gsm-full-rate",
    "sox-float.wav": "-e floating-point -b 32",
    "sox-rifx.wav": "-B",
    "sox-rifx-24.wav": "-B -b 24",
    "sox.w64": "",
    "sox.flac": "",
    "sox.ogg": "",
    "sox.amr-nb": "",
    "sox.aiff": "",
    "sox.aifc": "",
    "sox.au": "",
    "sox.caf": "",
    "sox.raw": "",
}
"""File → how sox makes it, from the tone in 16 bits at 8 kHz."""
SOX_PIPE = {"sox-pipe.w64": "-t w64", "sox-pipe.wav": "-t wav", "sox-pipe.au": "-t au"}
OPEN = (0, 0x7FFFFFFF, 0x7FFFF000, 0x7FFFFFDB, 0x80000000, 0xFFFFFF00, 0xFFFFFFDB, 0xFFFFFFFF)
"""What programs write for a size that they do not know yet."""
TONE = noise(80_000)
MIB = 1 << 20


def wave(
    data: int | None = None, size: int | None = None, form: bytes = fmt(), body: bytes = TONE
) -> bytes:
    """A WAV file; `data` and `size` stand in its header in place of the right sizes."""
    whole = bytearray(riff(chunk(b"fmt ", form)) + chunk(b"data", body))
    struct.pack_into("<I", whole, 4, len(whole) - 8 if size is None else size)
    if data is not None:
        struct.pack_into("<I", whole, 20 + len(form) + 4, data)
    return bytes(whole)


def by_hand() -> Iterator[tuple[str, bytes]]:
    """Names and bytes. All whole, and most of them odd."""
    whole, length = wave(), len(TONE)
    form, audio = chunk(b"fmt ", fmt()), chunk(b"data", TONE)
    yield "plain.wav", whole
    for more in (1, 2, 16, 44, length):
        yield f"data-plus-{more}.wav", wave(data=length + more)
        yield f"riff-plus-{more}.wav", wave(size=len(whole) - 8 + more)
        yield f"both-plus-{more}.wav", wave(data=length + more, size=len(whole) - 8 + more)
    for size in OPEN:
        yield f"open-data-{size:08x}.wav", wave(data=size)
        yield f"open-both-{size:08x}.wav", wave(data=size, size=(size + 36) & 0xFFFFFFFF)
        yield f"open-riff-{size:08x}.wav", wave(size=size)
    yield "never-finished.wav", wave(data=0, size=36)
    yield "data-half.wav", wave(data=length // 2)
    yield "riff-of-header.wav", wave(size=36)
    for name in (b"LIST", b"ID3 ", b"id3 ", b"JUNK", b"bext", b"PAD "):
        label = name.decode().strip()
        yield f"{label}-before.wav", riff(form, chunk(name, bytes(MIB)), audio)
        yield f"{label}-after.wav", riff(form, audio, chunk(name, bytes(3000)))
    yield "junk-4-mib.wav", riff(form, chunk(b"JUNK", bytes(4 * MIB)), audio)
    yield "junk-6-mib.wav", riff(form, chunk(b"JUNK", bytes(6 * MIB)), audio)
    yield "many-chunks.wav", riff(form, *[chunk(b"JUNK", b"")] * 5000, audio)
    yield "tagged-before.wav", b"ID3\4\0\0\0\0\7\x68" + bytes(1000) + whole
    yield "fmt-after.wav", riff(audio, form)
    yield "fmt-last.wav", riff(audio, chunk(b"LIST", bytes(100)), form)
    yield "no-fmt.wav", riff(audio)
    yield "no-data.wav", riff(form)
    yield "fmt-14.wav", riff(chunk(b"fmt ", fmt()[:14]), audio)
    yield "fmt-18.wav", riff(chunk(b"fmt ", fmt() + bytes(2)), audio)
    yield "fmt-twice.wav", riff(form, form, audio)
    for offset, name in ((2, "channels"), (4, "rate"), (8, "byte-rate"), (12, "align")):
        changed = bytearray(fmt())
        struct.pack_into("<I" if offset in (4, 8) else "<H", changed, offset, 0)
        yield f"{name}-0.wav", wave(form=bytes(changed))
    yield "bits-0.wav", wave(form=fmt()[:14] + bytes(2))
    yield "byte-rate-doubled.wav", wave(form=fmt()[:8] + struct.pack("<I", 32_000) + fmt()[12:])
    yield "mulaw-told-16-bit.wav", wave(form=fmt(MULAW, bits=8)[:14] + b"\x10\0", body=TONE[:40000])
    sub = struct.pack("<HHIH", 22, 16, 4, PCM) + bytes.fromhex("000000001000800000aa00389b71")
    yield "extensible.wav", wave(form=fmt(EXTENSIBLE) + sub)
    sub = struct.pack("<HHIH", 22, 8, 4, MULAW) + bytes.fromhex("000000001000800000aa00389b71")
    yield "extensible-mulaw.wav", wave(form=fmt(EXTENSIBLE, bits=8) + sub, body=TONE[:40000])
    yield "float.wav", wave(form=fmt(FLOAT, bits=32), body=TONE * 2)
    yield "unknown-code.wav", wave(form=fmt(0x1234))
    yield "fact.wav", riff(form, chunk(b"fact", struct.pack("<I", 40_000)), audio)
    yield "fact-wrong.wav", riff(form, chunk(b"fact", struct.pack("<I", 99_000)), audio)
    yield "fact-open.wav", riff(form, chunk(b"fact", b"\xff" * 4), audio)
    fact = chunk(b"fact", struct.pack("<I", 40_000))
    mulaw = chunk(b"fmt ", fmt(MULAW, bits=8)), fact, chunk(b"data", TONE[:40_000])
    yield "fact-cut.wav", riff(*mulaw)[:-20_000]
    yield "fact-0.wav", riff(form, chunk(b"fact", bytes(4)), audio)
    yield "odd-no-pad.wav", wave(form=fmt(ALAW, bits=8), body=TONE[:39_999])[:-1]
    yield "odd-padded.wav", wave(form=fmt(ALAW, bits=8), body=TONE[:39_999])
    yield "zeros-after.wav", whole + bytes(512)
    yield "text-after.wav", whole + b"recorded by example\n"
    yield "two-files.wav", whole + whole
    yield "zeros-inside.wav", riff(form, audio + bytes(512))
    ds64 = struct.pack("<QQQI", length + 72, length, length // 2, 0)
    for magic in (b"RF64", b"BW64"):
        for label, sizes in (("", ds64), ("-empty", bytes(28)), ("-wrong", b"\x11" * 28)):
            whole64 = riff(chunk(b"ds64", sizes), form, audio, magic=magic)
            opened = whole64[:4] + b"\xff" * 4 + whole64[8:]
            at = opened.index(b"data") + 4
            name = magic.decode().lower() + label
            yield f"hand-{name}.wav", opened[:at] + b"\xff" * 4 + opened[at + 4 :]
        yield f"{magic.decode().lower()}-no-ds64.wav", riff(form, audio, magic=magic)
    # What is nothing that anybody knows is kept too.
    yield "magic-only.bin", b"RIFF"
    yield "header-cut.wav", whole[:20]
    yield "header-only.wav", riff(form, chunk(b"data", b""))
    yield "header-only-open.wav", wave(data=0xFFFFFFFF, size=0xFFFFFFFF, body=b"")
    yield "avi.bin", b"RIFF" + struct.pack("<I", 1000) + b"AVI " + bytes(1000)
    yield "raw-mulaw.bin", b"\xff" * 40_000
    yield "raw-alaw.bin", b"\xd5" * 40_000
    yield "raw-pcm.bin", TONE
    yield "zeros.bin", bytes(1000)
    yield "one-byte.bin", b"<"
    yield "words.bin", b"The recording is being prepared. Please come back later.\n"
    yield "gzip.bin", b"\x1f\x8b\x08\0" + noise(1000)
    yield "id3-only.mp3", b"ID3\4\0\0\0\0\7\x76" + bytes(1000)


MADE_BY_TOOLS = (*FFMPEG, *FFMPEG_PIPE, *SOX, *SOX_PIPE)


def make(folder: Path) -> dict[str, Path]:
    """Make those of sox and ffmpeg in a folder. Raises where a tool fails."""
    tone = "ffmpeg -v error -f lavfi -i sine=frequency=440:duration=5"
    base = folder / "base-of-sox.wav"
    outputs = " ".join(f"{how} {folder / name}" for name, how in FFMPEG.items())
    jobs = [f"{tone} -ar 8000 {base} {outputs}"]
    jobs += [f"{tone} {how} - | cat >{folder / name}" for name, how in FFMPEG_PIPE.items()]
    jobs += [f"sox {base} {how} {folder / name}" for name, how in SOX.items()]
    jobs += [f"sox {base} {how} - | cat >{folder / name}" for name, how in SOX_PIPE.items()]
    subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(jobs)], check=True, timeout=300)
    return {name: folder / name for name in MADE_BY_TOOLS}
