"""One run of one contestant: servers, an empty home, what it took, whether all of it came."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import material
from bench.cases import Case, Recordings
from bench.contestants import Arena, Contestant
from bench.servers import BUILT, SeaweedFS, Sink, Source

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

    def document(self) -> dict[str, Any]:
        return asdict(self)


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
        """Raises `RuntimeError` where it fails, or has not stored everything."""
        with self.arena(case) as arena:
            prepare(contestant, arena)
            before = arena.store.stats()
            execute(contestant, arena, [str(BUILT / "timed"), "took"])
            took = json.loads((arena.home / "took").read_text())
            calls = min(contestant.most, case.recordings.count)
            stored = calls * case.recordings.bytes
            after = arena.store.stats()
            _check_stored(contestant, before, after, calls, stored)
        # The question itself is a request, too. SeaweedFS does not count them.
        asked = after.get("requests", 0) - before.get("requests", 0)
        return Run(**took, calls=calls, bytes=stored, store_requests=max(asked - 1, 0))

    @contextmanager
    def arena(self, case: Case) -> Iterator[Arena]:
        """The servers of a case, with an empty store."""
        with (
            tempfile.TemporaryDirectory(dir=self.home) as home,
            self._store(case, Path(home)) as store,
        ):
            yield Arena(case, self.source, store, Path(home), self.certificate[0])

    def _store(self, case: Case, home: Path) -> Sink | SeaweedFS:
        if case.store == "weed":
            return SeaweedFS(home)
        return Sink(home, self.certificate if case.tls else None)


def _check_stored(contestant: Contestant, before: Any, after: Any, calls: int, size: int) -> None:
    objects, sent = after["objects"] - before["objects"], after["bytes"] - before["bytes"]
    if objects < calls or sent < size:
        raise RuntimeError(
            f"{contestant.name} stored {objects} objects, {sent} bytes: {calls}, {size} wanted"
        )


def prepare(contestant: Contestant, arena: Arena) -> None:
    """What comes before, and is not measured."""
    env = {**arena.environment, **contestant.environment(arena)}
    for command in contestant.prepare(arena):
        _check(command, arena.home, env)


def execute(contestant: Contestant, arena: Arena, under: list[str]) -> None:
    """Run it to its end, as an argument of the command `under`."""
    env = {**arena.environment, **contestant.environment(arena)}
    _check([*under, *contestant.command(arena)], arena.home, env)


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
