"""`python -m bench.ledger`: what reading the ledger costs; with `--write` into README.md too."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.contestants import BIN
from bench.ledger import archive, recordings
from bench.report import about, put_between
from bench.servers import BUILT, seaweedfs

RECORDING_BYTES = 5_000_000
WORKERS = 8


@dataclass(frozen=True)
class Took:
    """What a command took, children and all; of some `inner` is what it says of itself."""

    wall_s: float
    user_s: float
    system_s: float
    peak_bytes: int
    inner_wall_s: float
    inner_cpu_s: float

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s

    @property
    def peak_mb(self) -> float:
        return self.peak_bytes / 1e6


@dataclass(frozen=True)
class Goal:
    """A line of the table; `wanted` None where there is no goal."""

    what: str
    reached: str
    wanted: str = "–"
    holds: bool | None = None

    def __str__(self) -> str:
        mark = {None: "", True: "holds", False: "**missed**"}[self.holds]
        return f"| {self.what} | {self.wanted} | {self.reached} | {mark} |"


def main() -> int:
    asked = _parser().parse_args()
    here = about(1)
    lines = [
        f"{here['date']}, one run; the load when it began was {here['load']}.",
        f"{here['machine']}. Python {here['versions']['Python']}.",
        "",
        "| | wanted | reached | |",
        "| --- | ---: | ---: | --- |",
    ]
    for part in (_manifest, _bytes):
        for goal in part(asked):
            print(goal, flush=True)
            lines.append(str(goal))
    if asked.write:
        put_between("ledger", "\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger")
    parser.add_argument("--windows", type=int, default=1000, help="of 1,000 calls each, to verify")
    parser.add_argument("--recordings", type=int, default=300, help="of 5 MB, to hash")
    parser.add_argument("--write", action="store_true", help="write README.md")
    return parser


def _manifest(asked: argparse.Namespace) -> Iterator[Goal]:
    windows, calls = asked.windows, 1000
    with _store() as home:
        size = archive.make(windows, calls)
        bare = _run(home, [sys.executable, "-m", "bench.ledger.bare"])
        took = _run(home, [str(BIN / "archiver"), "verify", "--level", "manifest"])
    beside = took.cpu_s - bare.inner_cpu_s
    what = f"`verify --level manifest`, {windows * calls:,} records, {size / 1e9:.2f} GB: "
    goal = ("≤ 15", beside <= 15) if windows == 1000 else ()
    yield Goal(f"{what}CPU s beside the download", f"{beside:.1f}", *goal)
    yield Goal("… CPU s in all", f"{took.cpu_s:.1f}")
    yield Goal("… CPU s of the bare download", f"{bare.inner_cpu_s:.1f}")
    yield Goal("… seconds in all / of the bare download", f"{took.wall_s:.1f} / {bare.wall_s:.1f}")
    yield Goal("… peak memory in MB", f"{took.peak_mb:.0f}")


def _bytes(asked: argparse.Namespace) -> Iterator[Goal]:
    total = asked.recordings * RECORDING_BYTES
    with _store() as home:
        recordings.make(asked.recordings, RECORDING_BYTES)
        curl = recordings.curl(home, WORKERS)
        _run(home, curl)  # what is read first comes from a disk
        theirs = _run(home, curl)
        took = _run(home, [str(BIN / "archiver"), "verify", "--level", "bytes"])
    reached = theirs.wall_s / took.wall_s
    yield Goal(
        f"`verify --level bytes`, {asked.recordings} × 5 MB, {WORKERS} at a time: MB/s / "
        "those of `curl \\| openssl dgst -sha256`",
        f"{reached:.2f}",
        "≥ 0.9",
        reached >= 0.9,
    )
    for name, one in (("verify", took), ("curl, openssl", theirs)):
        yield Goal(
            f"… {name}: MB/s, CPU s/GB",
            f"{total / one.wall_s / 1e6:.0f}, {one.cpu_s / total * 1e9:.2f}",
        )


@contextmanager
def _store() -> Iterator[Path]:
    """An empty SeaweedFS in a home of its own, and an environment that names it."""
    memory = Path("/dev/shm")
    at = memory if memory.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=at) as name,
        seaweedfs(Path(name), "bench") as environment,
    ):
        os.environ |= environment
        os.environ |= {"ARCHIVER_LOG_LEVEL": "warning", "ARCHIVER_WORKERS": str(WORKERS)}
        archive.client.cache_clear()
        yield Path(name)


def _run(home: Path, command: list[str]) -> Took:
    """Raises `CalledProcessError` where it fails: an audit that finds something does."""
    under = [str(BUILT / "timed"), str(home / "took"), *command]
    said = subprocess.run(under, capture_output=True, text=True, check=True).stdout
    last = said.splitlines()[-1] if said else ""
    inner = json.loads(last) if last.startswith("{") else {"wall_s": 0.0, "cpu_s": 0.0}
    took = json.loads((home / "took").read_text())
    return Took(**took, inner_wall_s=inner["wall_s"], inner_cpu_s=inner["cpu_s"])


if __name__ == "__main__":
    sys.exit(main())
