"""What is measured: sizes, counts, workers, and by whom. Both legs are TLS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

START = datetime(2024, 1, 15, 8, tzinfo=UTC)
WINDOWS = 4
"""The calls lie in so many windows of an hour."""
END = START + timedelta(hours=WINDOWS)
HEADER_BYTES = 44
BYTES_PER_SECOND = 16_000  # 8 kHz, 16 bits, one channel


@dataclass(frozen=True)
class Recordings:
    """So many recordings of one size; `name` (letters and digits) is where the source has them."""

    name: str
    count: int
    bytes: int

    @property
    def ids(self) -> list[str]:
        return [f"vc_{self.name}_{number:06d}" for number in range(self.count)]


@dataclass(frozen=True)
class Case:
    """One comparison. `whole_calls` is set where the script does all of a call as well (API,
    sidecars, record), and not only its bytes; the archiver always does."""

    name: str
    recordings: Recordings
    workers: int
    contestants: tuple[str, ...]
    whole_calls: bool = False

    @property
    def title(self) -> str:
        count, size = self.recordings.count, self.recordings.bytes
        what = "whole calls of" if self.whole_calls else "×"
        unit = f"{size // 10**6} MB" if size >= 10**6 else f"{size // 1000} KB"
        return f"{count} {what} {unit}, {self.workers} workers"

    def smaller(self, count: int) -> Case:
        """The same with `count` recordings at most."""
        few = min(count, self.recordings.count)
        return replace(self, recordings=replace(self.recordings, count=few))


FIVE = Recordings("5m", 200, 5_000_000)
SIXTY = Recordings("60m", 20, 60_000_000)
WIDE = Recordings("wide", 40, 60_000_000)
TINY = Recordings("100k", 2000, 100_000)
CALLS = ("archiver", "archiver-2", "rclone", "naive")

CASES = (
    Case("tls-5m", FIVE, 4, (*CALLS, "s5cmd")),
    Case("tls-60m", SIXTY, 4, ("archiver", "rclone", "naive")),
    Case("tls-tiny-8", TINY, 8, CALLS, whole_calls=True),
    Case("tls-tiny-32", TINY, 32, CALLS, whole_calls=True),
    Case("memory-8", WIDE, 8, ("archiver", "rclone")),
    Case("memory-32", WIDE, 32, ("archiver", "rclone")),
)
QUICK = {"5m": 40, "60m": 4, "wide": 0, "100k": 200}
"""How many recordings `--quick` takes of each; 0 leaves the case out. Start-up weighs more then."""
