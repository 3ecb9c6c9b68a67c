"""What the archiver's speed is held to: each goal, and what was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.arena import Run
from bench.results import (
    Results,
    calls_per_second,
    cpu_per_gb,
    mb_per_second,
    peak_mb,
)


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


@dataclass(frozen=True)
class _Ratio:
    case: str
    peer: str
    figure: Callable[[Run], float]
    wanted: float
    what: str

    @property
    def at_most(self) -> bool:
        """CPU is a cost."""
        return self.figure is cpu_per_gb


_RATIOS = (
    _Ratio("tls-5m", "rclone", cpu_per_gb, 1.1, "CPU, 5 MB over TLS / rclone copy, hashsum"),
    _Ratio("tls-5m", "naive", cpu_per_gb, 0.5, "CPU, 5 MB over TLS / requests + boto3 script"),
    _Ratio("tls-5m", "rclone", mb_per_second, 0.95, "MB/s, 5 MB over TLS / rclone copy, hashsum"),
    _Ratio("tls-5m", "s5cmd", mb_per_second, 4.5, "MB/s, 5 MB over TLS / curl, s5cmd loop"),
    _Ratio("tls-60m", "rclone", cpu_per_gb, 1.1, "CPU, 60 MB over TLS / rclone copy, hashsum"),
    _Ratio("tls-60m", "rclone", mb_per_second, 1.05, "MB/s, 60 MB over TLS / rclone copy, hashsum"),
    _Ratio("tls-tiny-8", "naive", calls_per_second, 2.2, "calls/s, 100 KB over TLS / script"),
)


def goals(results: Results) -> list[Goal]:
    """Those for which everything was measured."""
    return [*_ratios(results), *_tiny(results), *_memory(results)]


def _ratios(results: Results) -> Iterator[Goal]:
    for ratio in _RATIOS:
        ours = results.median(ratio.case, "archiver", ratio.figure)
        theirs = results.median(ratio.case, ratio.peer, ratio.figure)
        if ours and theirs:
            yield Goal(ratio.what, ratio.wanted, ours / theirs, ratio.at_most)


def _tiny(results: Results) -> Iterator[Goal]:
    eight = results.median("tls-tiny-8", "archiver", calls_per_second)
    many = results.median("tls-tiny-32", "archiver", calls_per_second)
    two = results.median("tls-tiny-8", "archiver-2", calls_per_second)
    if eight:
        yield Goal("calls/s, 100 KB over TLS, 8 workers", 300, eight, at_most=False)
    if eight and many:
        yield Goal("calls/s with 32 workers / with 8", 0.8, many / eight, at_most=False)
    if eight and two:
        yield Goal("calls/s with `--processes 2` / with one", 1.0, two / eight, at_most=False)


def _memory(results: Results) -> Iterator[Goal]:
    for workers, wanted in ((8, 150), (32, 330)):
        cases = [case.name for case in results.cases if case.workers <= workers]
        peaks = [results.median(case, "archiver", peak_mb) for case in cases]
        if found := [peak for peak in peaks if peak]:
            yield Goal(f"peak memory in MB, up to {workers} workers", wanted, max(found))
