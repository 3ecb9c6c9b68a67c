"""Where the archiver's time goes: perf by library, py-spy by what holds the interpreter.

Threads that wait for the interpreter look busy to py-spy, and perf does not see into Python: so
perf tells the CPU time of the whole process, and py-spy divides the interpreter's share of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping

from bench.arena import Lab, execute, prepare
from bench.cases import Case
from bench.contestants import BY_NAME, PEERS

HEAPS = (
    ("imports and start-up", r"importlib|^<module> |dataclasses\.py|re/_"),
    ("S3: building, signing and reading", r"archiver/store/(direct|sigv4)\.py|botocore/|boto3/"),
    ("HTTP: the archiver's own", r"archiver/(wire|connection)\.py"),
    ("HTTP: urllib3", r"urllib3/|http/client\.py|email/"),
    ("TLS and sockets", r"\((ssl|socket|selectors)\.py"),
    ("JSON, in and out", r"json/|archiver/manifest/canonical\.py"),
    ("threads and tasks", r"\((threading|queue|concurrent/futures/\w+)\.py|archiver/hub\.py"),
    ("logs and metrics", r"structlog/|prometheus_client/|logging/|archiver/(logs|metrics)\.py"),
    ("retries: tenacity", r"tenacity/"),
    ("the archiver's own code", r"archiver/"),
)  # fmt: skip
"""By name, how a function looks that held the interpreter; the first that fits has the sample."""
LIBRARIES = (
    ("OpenSSL: TLS, SHA-256", r"libcrypto|libssl"),
    ("the Python interpreter", r"libpython|python3"),
    ("the kernel", r"kernel|vdso"),
    ("the C library: copying, memory", r"libc\.so"),
)
TOP = 12


def profile(lab: Lab, case: Case) -> str:
    """Two backfills of a case, one under perf and one under py-spy, as a section of Markdown."""
    return "\n".join([f"### {case.title}", "", *_cpu(lab, case), *_interpreter(lab, case)])


def _cpu(lab: Lab, case: Case) -> Iterator[str]:
    if shutil.which("perf") is None:
        return
    with lab.arena(case) as arena:
        prepare(BY_NAME["archiver"], arena)
        data = arena.home / "perf.data"
        record = ["perf", "record", "-q", "-F", "499", "-o", str(data), "--"]
        execute(BY_NAME["archiver"], arena, record)
        report = ["perf", "report", "-i", str(data), "--stdio", "--sort", "dso", "-g", "none"]
        said = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    shares: dict[str, float] = {}
    for percent, library in re.findall(r"^\s*([\d.]+)%\s+(\S+)", said, re.MULTILINE):
        name = _first(LIBRARIES, library)
        shares[name] = shares.get(name, 0.0) + float(percent)
    yield from _table("CPU", shares)


def _interpreter(lab: Lab, case: Case) -> Iterator[str]:
    with lab.arena(case) as arena:
        prepare(BY_NAME["archiver"], arena)
        out = arena.home / "profile"
        spy = [str(PEERS / "py-spy"), "record", "--gil", "--rate", "200", "--function"]
        execute(BY_NAME["archiver"], arena, [*spy, "--format", "raw", "--output", str(out), "--"])
        lines = out.read_text().splitlines()
    heaps, functions = Counter[str](), Counter[str]()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r"\S*site-packages/", "", frame) for frame in stack.split(";")]
        heaps[_heap(frames)] += int(count)
        functions[frames[-1]] += int(count)
    yield from _table("interpreter", heaps)
    total = sum(functions.values()) or 1
    shown = (f"`{name}` {100 * n / total:.1f} %" for name, n in functions.most_common(TOP) if name)
    yield "Most often running there: " + ", ".join(shown) + "."
    yield ""


def _table(title: str, shares: Mapping[str, float]) -> Iterator[str]:
    total = sum(shares.values()) or 1
    ordered = sorted(shares.items(), key=lambda share: -share[1])
    yield f"| {title} | |"
    yield "| --- | ---: |"
    yield from (f"| {name} | {100 * n / total:.0f} % |" for name, n in ordered)
    yield ""


def _heap(frames: list[str]) -> str:
    """By the innermost function that tells."""
    found = (_first(HEAPS, frame) for frame in reversed(frames))
    return next((name for name in found if name != "else"), "else")


def _first(patterns: tuple[tuple[str, str], ...], text: str) -> str:
    return next((name for name, pattern in patterns if re.search(pattern, text)), "else")
