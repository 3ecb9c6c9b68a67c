"""What a seed makes of a world: its calls, what becomes of them, and what the processes do.

A world is small, so that thousands can be had a minute: one to three windows of six hours, two to
six calls, a handful of things to do. Every kind of call has its chance in each.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

from tests.fakes.audio import wav
from tests.fakes.calls import BytesRecording, SimulatedCall
from tests.fakes.memory_rig import HOUR, Times
from tests.fakes.population import a_call, stamp

START = datetime(2024, 1, 15, 12, 0, tzinfo=UTC)
"""Where the archives begin: the third window is another day's."""
LENGTH = 6 * HOUR
MINUTE, TICK = timedelta(minutes=1), timedelta(milliseconds=1)
PLACES = (timedelta(0), TICK, 2 * HOUR, 4 * HOUR, LENGTH - timedelta(seconds=1), LENGTH - TICK)
"""Where in its window a call starts."""
PART_BYTES = 500
"""Recordings of more than that come in parts: two or three of them."""
WAITS = (timedelta(0), MINUTE, 20 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR)

Event = Literal[
    "none", "late", "completes", "changes", "survey", "recording", "hides", "gone", "blinks"
]
EVENTS: tuple[Event, ...] = (
    *("none",) * 4, "late", "late", "completes", "changes", "survey", "recording", "hides", "gone",
    "blinks",
)  # fmt: skip
Action = Literal["round", "restart", "both", "backfill", "round and backfill"]
ACTIONS: tuple[Action, ...] = (
    "round", "round", "restart", "both", "both", "backfill", "round and backfill",
)  # fmt: skip


@dataclass(frozen=True)
class CallPlan:
    """A call, and what happens to it once, in the midst of `step`: with so many pages of listings
    to go, or before it."""

    number: int
    start: datetime
    audio: Literal["none", "whole", "parts"]
    has_md5: bool
    has_survey: bool
    event: Event
    step: int
    pages: int | None

    @property
    def id(self) -> str:
        return f"vc_{self.number}"

    @property
    def recording(self) -> BytesRecording | None:
        if self.audio == "none":
            return None
        return sound(self.number, self.audio == "parts", self.has_md5)

    @property
    def call(self) -> SimulatedCall:
        """As it is when it appears."""
        there = self.event != "recording"
        more = {"endTime": None, "durationSeconds": None} if self.event == "completes" else {}
        state = "InProgress" if self.event == "completes" else "Completed"
        call = a_call(self.id, self.start, audio=None, state=state, **more)
        call.recording = self.recording if there else None
        if self.has_survey and self.event != "survey":
            call.epa = {"score": self.number}
        return call

    @property
    def changes(self) -> dict[str, Any]:
        """What the event changes about it."""
        end = {"endTime": stamp(self.start + timedelta(seconds=1)), "durationSeconds": 1}
        return {
            "completes": {"state": "Completed", **end},
            "changes": {"transcript": [{"role": "agent", "text": "corrected"}]},
            "survey": {"epa": {"score": self.number}},
            "recording": {"recording": self.recording},
        }.get(self.event, {})


@dataclass(frozen=True)
class Step:
    """Wait so long, then do something."""

    wait: timedelta
    action: Action
    first: int
    """The window, from 0, that a backfill begins with."""


@dataclass
class Plot:
    """All that a seed decides beforehand."""

    seed: int
    chance: random.Random
    windows: int = 1
    times: Times = field(default_factory=Times)
    lock_days: int = 0
    haste: float = 0.5
    rate: float = 0.0
    faults: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    begins: datetime = START
    """The time at which all begins."""
    calls: list[CallPlan] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def end(self) -> datetime:
        return START + self.windows * LENGTH

    @property
    def is_patient(self) -> bool:
        """Whether nothing is ever given up while there are faults."""
        return self.times.give_up > 2 * LENGTH * self.windows


def plot(seed: int) -> Plot:
    """The same for the same seed, on every machine."""
    chance = random.Random(seed)
    windows = chance.choice((1, 1, 1, 1, 2, 2, 3))
    made = Plot(
        seed,
        chance,
        windows,
        Times(
            window=LENGTH,
            settle=HOUR,
            give_up=chance.choice((72, 72, 72, 2)) * HOUR,
            relist=chance.choice(((), (3 * HOUR,), (3 * HOUR,), (2 * HOUR, 5 * HOUR))),
        ),
        lock_days=chance.choice((0, 0, 0, 30)),
        haste=chance.choice((0.3, 0.8, 0.95)),
        rate=chance.choice((0.02, 0.05, 0.1)),
        faults=chance.choice((2, 4, 8, 16)),
        options={
            "page_size_cap": chance.choice((2, 100, 100, 100)),
            "sort": chance.choice(("-startTime", "startTime", "id")),
            "enveloped": chance.choice((True, False, "mixed")),
        },
    )
    made.begins = START + chance.choice((HOUR, LENGTH + 20 * MINUTE, LENGTH + 2 * HOUR))
    steps = chance.choice((1, 2, 2, 3))
    made.steps = [_step(chance, windows) for _ in range(steps)]
    made.calls = [
        _call(chance, n, windows, steps) for n in range(chance.choice((2, 2, 3, 3, 4, 5, 6)))
    ]
    return made


def _step(chance: random.Random, windows: int) -> Step:
    return Step(chance.choice(WAITS), chance.choice(ACTIONS), chance.randrange(windows))


def _call(chance: random.Random, number: int, windows: int, steps: int) -> CallPlan:
    """The first one's recording comes in parts."""
    audio = "parts" if number == 0 else chance.choice(("none", "whole", "whole", "parts"))
    return CallPlan(
        number,
        START + chance.randrange(windows) * LENGTH + chance.choice(PLACES),
        audio,
        has_md5=chance.random() < 0.7,
        has_survey=chance.random() < 0.5,
        event=chance.choice(EVENTS),
        step=chance.randrange(steps),
        pages=chance.choice((None, None, 1, 3)),
    )


@cache
def sound(number: int, large: bool, has_md5: bool) -> BytesRecording:
    """The recording of a call: 444 bytes, or a few hundred more."""
    seconds = 0.05 + 0.02 * (number % 3) if large else 0.025
    return BytesRecording(wav(seconds, seed=number), content_md5=has_md5)
