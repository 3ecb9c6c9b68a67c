"""One run of one contestant: servers, an empty home, what it took, whether all of it came."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import material
from bench.cases import Case, Recordings
from bench.contestants import Arena, Contestant
from bench.servers import BUILT, Sink, Source

ROOM_BYTES = 4 << 30
TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Run:
    """What one run took: the contestant's processes alone."""

    wall_s: float
    user_s: float
    system_s: float
    peak_bytes: int
    calls: int
    bytes: int
    store_requests: int

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s


class Lab:
    """A directory in memory with the material, nginx over it, and a certificate."""

    def __init__(self, home: Path, kinds: set[Recordings]) -> None:
        self.home = home
        self.certificate = material.make_certificate(home)
        root = home / "source"
        root.mkdir()
        for recordings in kinds:
            material.make(root, recordings)
        self.source = Source(root, home, self.certificate)

    def run(self, contestant: Contestant, case: Case) -> Run:
        """One run with an empty store. Raises `RuntimeError` where it fails, or has not stored
        everything. What is prepared is not measured."""
        with (
            tempfile.TemporaryDirectory(dir=self.home) as name,
            Sink(Path(name), self.certificate) as store,
        ):
            home = Path(name)
            arena = Arena(case, self.source, store, home, self.certificate.root)
            env = {**arena.environment, **contestant.environment(arena)}
            for command in contestant.prepare(arena):
                _check(command, home, env)
            before = store.stats()
            _check([str(BUILT / "timed"), "took", *contestant.command(arena)], home, env)
            after = store.stats()
            took = json.loads((home / "took").read_text())
        calls = min(contestant.most, case.recordings.count)
        size = calls * case.recordings.bytes
        objects, sent = (after[name] - before[name] for name in ("objects", "bytes"))
        if objects < calls or sent < size:
            raise RuntimeError(
                f"{contestant.name} stored {objects} objects, {sent} bytes: {calls}, {size} wanted"
            )
        # The question itself is a request, too.
        requests = after["requests"] - before["requests"] - 1
        return Run(**took, calls=calls, bytes=size, store_requests=requests)


@contextmanager
def lab(kinds: set[Recordings]) -> Iterator[Lab]:
    """In memory where there is room for it."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="bench-", dir=memory if roomy else None) as home:
        made = Lab(Path(home), kinds)
        with made.source:
            yield made


def _check(command: list[str], home: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout)[-2000:]
        raise RuntimeError(f"{' '.join(command[:6])} ended with {done.returncode}: {said}")
