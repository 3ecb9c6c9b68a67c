"""Recordings that threads move side by side keep their bytes to themselves."""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta

import pytest

from archiver.core.concurrency import Workers
from archiver.core.errors import CallError
from archiver.pipeline.recording import RecordingWriter
from archiver.source.recordings import BlobInfo
from archiver.store.bucket import GIVEN_UP_AFTER, ORPHANED_AFTER
from archiver.store.types import Stored
from tests.fakes.audio import wav
from tests.fakes.clock import HandClock
from tests.fakes.memory_store import MemoryStore, Request

THREADS = 4


class Slow:
    """A recording that comes in pieces, with a wait before each."""

    received = coding = None
    is_undecodable = False

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.info = BlobInfo("blobs.example.com", len(data), '"x"', None, None)

    def readinto(self, view: memoryview) -> int:
        time.sleep(0.0)
        piece = self._data[self._at : self._at + min(len(view), 5000)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


class Memory:
    """A store that waits, and then looks at what it was given."""

    read_back = False

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def put_once(self, key: str, data: memoryview, *, sha256: str, **_: object) -> Stored:
        time.sleep(0.001)
        assert hashlib.sha256(data).hexdigest() == sha256
        self.found[key] = sha256
        return Stored(key, None, len(data), sha256)


def test_threads_do_not_share_a_buffer():
    store, workers = Memory(), Workers(THREADS)
    writer = RecordingWriter(store)  # type: ignore[arg-type]
    audio = {f"{n}.wav": wav(4.0 - n / 7, seed=n) for n in range(24)}

    def move(key: str) -> None:
        writer.write(Slow(audio[key]), key, None, False, set(), is_settled=True)  # type: ignore[arg-type]

    workers.map(move, audio)
    workers.close()
    assert store.found == {key: hashlib.sha256(data).hexdigest() for key, data in audio.items()}


@pytest.mark.parametrize("days", [1.9, 7.0])
def test_a_slow_upload_is_nobodys_orphan(days):
    """Two days are what the default settings allow; what takes longer than all starts wait is given
    up before it would be taken for an orphan."""
    clock = HandClock()
    store = MemoryStore(clock, rules=False)
    audio = wav(4.0, seed=1)

    def slow(request: Request) -> None:
        if request.operation == "part" and request.moment == "before":
            clock.forward(timedelta(days=days) / (len(audio) // 4_000))

    store.hooks.append(slow)
    writer = RecordingWriter(store, 4_000, lambda: "0" * 16, clock.monotonic)
    began = clock.now()
    if days < 6:
        writer.write(Slow(audio), "recording.wav", None, False, set(), is_settled=True)  # type: ignore[arg-type]
        assert store.object(f"recording-{'0' * 16}.wav").data == audio
    else:
        with pytest.raises(CallError) as caught:
            writer.write(Slow(audio), "recording.wav", None, False, set(), is_settled=True)  # type: ignore[arg-type]
        assert caught.value.reason == "too_slow"
        assert clock.now() - began < ORPHANED_AFTER
    assert timedelta(hours=36) < GIVEN_UP_AFTER < ORPHANED_AFTER
    store.finish()
