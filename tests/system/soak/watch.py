"""What a process takes of its machine, as the kernel tells it: memory, threads, open files."""

from __future__ import annotations

import contextlib
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """One look at a process. `files` are those in a file system, devices aside, deleted or not;
    `others` are pipes and the like."""

    at: float
    rss_bytes: int
    threads: int
    sockets: int
    files: int
    others: int

    @classmethod
    def of(cls, pid: int) -> Sample | None:
        """None where the process is gone."""
        process = Path(f"/proc/{pid}")
        try:
            status = (process / "status").read_text()
            descriptors = list((process / "fd").iterdir())
        except OSError:
            return None
        names = []
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # closed meanwhile
                names.append(str(descriptor.readlink()))
        sockets = sum(name.startswith("socket:") for name in names)
        files = sum(name[0] == "/" and not name.startswith("/dev/") for name in names)
        return cls(
            time.monotonic(),
            _number(status, "VmRSS") * 1024,
            _number(status, "Threads"),
            sockets,
            files,
            len(names) - sockets - files,
        )


def _number(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0


@dataclass
class Watch:
    """Samples of one process, from `start` to `stop`."""

    pid: int
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_SECONDS):
            sample = Sample.of(self.pid)
            if sample is None:
                return
            self.samples.append(sample)

    def thirds(self) -> tuple[list[Sample], list[Sample], list[Sample]]:
        third = len(self.samples) // 3
        return self.samples[:third], self.samples[third : 2 * third], self.samples[2 * third :]


def mean(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return statistics.fmean(map(value, samples))
