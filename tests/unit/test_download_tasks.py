"""Recordings that tasks move side by side, on one thread, keep their bytes to themselves."""

from __future__ import annotations

import hashlib
from datetime import datetime

from archiver import hub
from archiver.hub import Hub
from archiver.pipeline.download import Download
from archiver.source.recording import BlobInfo
from archiver.store.objects import Stored
from tests.fakes.audio import wav

TASKS = 4


class Slow:
    """A recording that comes in pieces, with a wait before each."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.info = BlobInfo("blobs.example.com", len(data), '"x"', None, None)

    def readinto(self, view: memoryview) -> int:
        hub.sleep(0.0)
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
        hub.sleep(0.001)
        assert hashlib.sha256(data).hexdigest() == sha256
        self.found[key] = sha256
        return Stored(key, None, len(data), sha256)


def test_tasks_do_not_share_a_buffer() -> None:
    store, tasks = Memory(), Hub(TASKS)
    download = Download(store)  # type: ignore[arg-type]
    audio = {f"{n}.wav": wav(4.0 - n / 7, seed=n) for n in range(24)}

    def move(key: str, until: datetime | None = None) -> None:
        download.run(Slow(audio[key]), key, until, False)  # type: ignore[arg-type]

    for future in [tasks.submit(move, key) for key in audio]:
        future.result(10)
    tasks.shutdown()
    assert store.found == {key: hashlib.sha256(data).hexdigest() for key, data in audio.items()}
