"""A source whose calls come wave by wave: the simulated platform as a process of its own.

Half of a slice's calls come a wave before the others, so that there is something to archive in a
window that is sealed only later. `SIGUSR1` brings the next wave.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from tests.fakes.calls import NoiseRecording, make_calls
from tests.fakes.platform import Platform
from tests.system.servers import SimulatedSource

BIG_SECONDS = 560
"""16 kB each: more than 8 MiB, so such a recording is uploaded in parts."""


@dataclass(frozen=True)
class Plan:
    """`slices` times `windows` windows, each with `calls` calls; `big` of the slices have a call
    with a recording that takes several parts."""

    start: datetime
    length: timedelta
    slices: int
    windows: int = 2
    calls: int = 3
    big: int = 3
    seed: str = "1"

    @classmethod
    def until(cls, now: datetime, length: timedelta, slices: int, seed: str) -> Self:
        """One whose last slice ended a window ago: all of it lies in the past."""
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        last = now - (now - today) % length - length
        return cls(last - slices * cls.windows * length, length, slices, seed=seed)

    def slice(self, number: int) -> tuple[datetime, datetime]:
        """Where a slice begins and ends, also of one before the first or after the last."""
        number = min(max(number, 0), self.slices - 1)
        begin = self.start + number * self.windows * self.length
        return begin, begin + self.windows * self.length

    @property
    def end(self) -> datetime:
        return self.slice(self.slices - 1)[1]

    def to_json(self) -> str:
        seconds = self.length.total_seconds()
        return json.dumps({**vars(self), "start": self.start.isoformat(), "length": seconds})

    @classmethod
    def from_json(cls, text: str) -> Self:
        told = json.loads(text)
        told["start"] = datetime.fromisoformat(told["start"])
        return cls(**{**told, "length": timedelta(seconds=told["length"])})


class Waves(SimulatedSource):
    """The source over a plan's calls; `truth` is what it serves once all waves have come."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        super().__init__(directory, "tests.system.waves", plan.to_json())
        self.truth = {call["id"]: call for call in self.addresses.pop("truth")}

    def next(self) -> None:
        """Have the next wave listed; back when it is."""
        self._served.send_signal(signal.SIGUSR1)
        self._answer()


def _serve(plan: Plan) -> None:
    count = plan.slices * plan.windows * plan.calls
    calls = make_calls(count, plan.start, plan.end, plan.seed, short=True)
    waves: list[list[Any]] = [[] for _ in range(plan.slices)]
    per_slice = plan.windows * plan.calls
    for number, call in enumerate(calls):
        home = number // per_slice
        waves[max(0, home - 1) if number % 2 else home].append(call)
    for number in range(plan.big):
        home = (2 * number + 1) * plan.slices // (2 * plan.big)
        call = next(call for call in waves[home] if call.recording is not None)
        call.recording = NoiseRecording(call.id, BIG_SECONDS, content_md5=False)
        call.document["durationSeconds"] = BIG_SECONDS
    # Both are for this thread alone, and are inherited as blocked by those that serve.
    awaited = {signal.SIGUSR1, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    with Platform() as platform:
        told = {
            "api_url": platform.api_url,
            "token": platform.token,
            "blob_host": platform.blob_host,
            "truth": [call.truth() for call in calls],
        }
        print(json.dumps(told), flush=True)
        coming = iter(waves)
        while signal.sigwait(awaited) == signal.SIGUSR1:
            platform.add(*next(coming))
            print(json.dumps("listed"), flush=True)


if __name__ == "__main__":
    _serve(Plan.from_json(sys.argv[1]))
