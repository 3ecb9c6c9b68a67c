"""Whatever is whole is kept: recordings by sox, ffmpeg and by hand go through the real pipeline
into an archive that is verified, and their records say of the audio what ffprobe says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from archiver.core import audio
from archiver.core.checksums import sha256_hex
from archiver.manifest.record import FINDINGS
from tests.fakes import corpus
from tests.fakes.memory_rig import HOUR, World
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import Archive

BY_HAND = dict(corpus.by_hand())
UNTOLD = {"audio_unreadable", "duration_uncertain", "not_wav"}
"""The findings that excuse a member of `audio` that is null."""
CONTENT_TYPES = {one.extension: one.content_type for one in audio.TYPES}
ODD_NAMES = {
    "sox-pcm.wavpcm": "wav", "plain.mka": "webm", "sox.amr-nb": "amr", "sox.aifc": "aiff",
    "sox.raw": "bin", "raw.gsm": "bin", "raw.g722": "bin",
}  # fmt: skip
"""Files whose name does not have the extension that their recording is to have."""
TRUE_SECONDS = {
    "data-half.wav": None, "header-only.wav": 0.0, "header-only-open.wav": 0.0,
    "fact-cut.wav": 2.5,
}  # fmt: skip
"""Files with other audio than that of `corpus.SECONDS`."""
FFPROBE_BELIEVES = {"hand-rf64-wrong.wav", "hand-bw64-wrong.wav", "fact-cut.wav"}
"""Files whose ds64 announces five million years, or whose `fact` announces the audio that was cut
off: ffprobe takes that for true."""

needs_tools = [
    pytest.mark.skipif(corpus.SKIP, reason=f"needs {', '.join(corpus.MISSING)}"),
    pytest.mark.timeout(900),  # hundreds of short processes
]


def made_by_tools(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in corpus.make(folder).items()}


def made_by_hand(_: Path) -> dict[str, bytes]:
    return BY_HAND


def probed(data: Mapping[str, bytes], folder: Path) -> dict[str, dict[str, Any]]:
    """What ffprobe says of the first stream of each file; nothing where it makes nothing of it."""

    def probe(name: str) -> dict[str, Any]:
        path = folder / name
        path.write_bytes(data[name])
        command = ["ffprobe", "-v", "quiet", "-of", "json", "-show_streams", str(path)]
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        # Where it fails it leaves half of its JSON.
        return {} if done.returncode else dict(json.loads(done.stdout)["streams"][0])

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(data, pool.map(probe, data), strict=True))


def archived(data: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Archive each as the recording of a call, and verify the archive; returns the records."""
    world = World(TEN + 4 * HOUR, TEN)
    ids = {name: f"vc_{number}" for number, name in enumerate(data)}
    for number, (name, content) in enumerate(data.items()):
        at = TEN + timedelta(seconds=number)
        world.platform.add(a_call(ids[name], at, seconds=5, audio=content))
    writer = world.writer("a", part_bytes=5 << 20)
    writer.backfill(TEN, TEN + HOUR)
    writer.close()
    world.finish()
    assert world.complaints("bytes") == []
    look = Archive(world.store)  # type: ignore[arg-type]
    found = {name: look.records[ids[name]] for name in data}
    assert {name: record["outcome"] for name, record in found.items()} == dict.fromkeys(
        data, "archived"
    )
    for name, record in found.items():
        file = record["files"][0]
        stored = world.store.object(file["key"])
        assert stored.data == data[name], name
        assert stored.content_type == file["content_type"]
        assert (file["bytes"], file["sha256"]) == (len(data[name]), sha256_hex(data[name])), name
    return found


@pytest.mark.parametrize("made", [made_by_hand, pytest.param(made_by_tools, marks=needs_tools)])
def test_whatever_is_whole_is_archived_under_the_extension_of_what_it_is(
    made: Callable[[Path], dict[str, bytes]], tmp_path: Path
) -> None:
    records = archived(made(tmp_path))
    for name, record in records.items():
        file = record["files"][0]
        extension = ODD_NAMES.get(name) or name.rpartition(".")[2]
        assert file["key"].rpartition(".")[2] == extension, name
        assert file["content_type"] == CONTENT_TYPES[extension], name
        assert set(record["findings"]) <= FINDINGS.keys()
        assert ("not_wav" in record["findings"]) == (extension != "wav"), name
        told, true = record["audio"], TRUE_SECONDS.get(name, corpus.SECONDS)
        if told["duration_seconds"] is not None:
            assert true is not None, name
            assert abs(told["duration_seconds"] - true) < 0.3, name
            assert ("duration_mismatch" in record["findings"]) == (true != corpus.SECONDS), name
        excused = UNTOLD.intersection(record["findings"])
        members = (told["duration_seconds"], told["channels"], told["sample_rate_hz"])
        assert excused or None not in members, name


@pytest.mark.parametrize(
    "made", [pytest.param(made, marks=needs_tools) for made in (made_by_hand, made_by_tools)]
)
def test_what_is_told_of_the_audio_is_what_ffprobe_tells(
    made: Callable[[Path], dict[str, bytes]], tmp_path: Path
) -> None:
    data, differ = made(tmp_path), []
    for name, other in probed(data, tmp_path).items():
        head, length = data[name][: 5 << 20], len(data[name])
        told, findings = audio.recognise(head).describe(length)
        seconds = float(other["duration"]) if "duration" in other else None
        bits = int(other.get("bits_per_sample") or other.get("bits_per_raw_sample") or 0) or None
        pairs = {
            "sample_rate_hz": int(other["sample_rate"]) if other.get("sample_rate") else None,
            "channels": other.get("channels") or None,
            "bits_per_sample": bits,
            "duration_seconds": seconds,
        }
        for member, theirs in pairs.items():
            ours = told[member]
            if theirs is None:
                continue  # ffprobe cannot tell either
            if ours is None:
                agree = bool(UNTOLD & findings)
            elif member == "duration_seconds":
                agree = abs(ours - theirs) <= max(0.1, 0.01 * theirs)
            else:
                agree = ours == theirs
            if not agree and not (name in FFPROBE_BELIEVES and member == "duration_seconds"):
                differ.append((name, member, ours, theirs))
    assert differ == []


def test_the_corpus_is_as_large_as_it_is_to_be() -> None:
    names = [*corpus.MADE_BY_TOOLS, *BY_HAND]
    assert len(names) == len(set(names)) >= 200
