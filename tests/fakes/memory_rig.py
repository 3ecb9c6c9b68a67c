"""The real pipeline on fakes in memory: one thread, no sockets, no waiting, the same each time.

A `World` is a clock, a platform and a bucket. `world.writer("a")` is a process of the archiver on
them: the real lister, transfer, windows, chain, loop and backfill, with the real clients beneath.
Several writers share a world and know nothing of each other. A writer that dies (`dies`, `kill`)
never does anything again: whatever it tries raises `Crash`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, TypeVar

from archiver.audit.findings import Finding
from archiver.audit.verify import Level, Options, verify
from archiver.core.concurrency import Workers
from archiver.core.model import Retention, Window, windows_between
from archiver.manifest import layout
from archiver.manifest.signing import SigningKey
from archiver.pipeline.backfill import Backfill
from archiver.pipeline.bucket_state import SegmentIndex
from archiver.pipeline.call import CallArchiver
from archiver.pipeline.chain import Chain
from archiver.pipeline.health import ClockCheck
from archiver.pipeline.loop import Loop, Schedule
from archiver.pipeline.window import Totals, WindowArchiver
from archiver.source.api import Filter, VoiceCallsClient
from archiver.source.listing import Lister
from archiver.source.recordings import RecordingClient
from tests.fakes.clock import HandClock
from tests.fakes.memory_source import MemoryPlatform, api_client, recording_client
from tests.fakes.memory_store import MemoryStore, Request

T = TypeVar("T")
R = TypeVar("R")
HOUR = timedelta(hours=1)
COMPLETED = Filter(("Completed",))
REMEMBERED = 8
"""So few sealed segments are remembered here that the others' pointers are asked for."""


class Crash(BaseException):
    """The process is gone: nothing in it may catch this and go on."""


class SerialWorkers:
    """Stands in for `Workers`: one thread, one item after the other."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        return [function(item) for item in items]

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Times:
    """The lengths of time of an archive."""

    window: timedelta = HOUR
    settle: timedelta = 2 * HOUR
    give_up: timedelta = 4 * HOUR
    relist: tuple[timedelta, ...] = (3 * HOUR, 6 * HOUR)
    poll_interval_seconds: float = 60.0

    @property
    def longest(self) -> timedelta:
        """So long after its end a window has nothing to wait for any more."""
        return max(self.settle, self.give_up, *self.relist)


@cache
def a_key() -> SigningKey:
    """One key for all: making one takes longer than many rounds."""
    return SigningKey.generate()


class World:
    """What the writers share. `watermark` is where the archive begins, `options` are those of the
    platform. `tick` numbers whatever happens to platform and bucket, one series for both."""

    retention = Retention()
    workers = 1
    """How many calls a process archives at a time; with more than one, a backfill works at some
    windows at a time too."""

    def __init__(
        self,
        now: datetime,
        watermark: datetime,
        times: Times | None = None,
        retention: Retention | None = None,
        **options: Any,
    ) -> None:
        self.clock = HandClock(now)
        self.tick = itertools.count(1).__next__
        self.watermark = watermark
        self.times = times or Times()
        self.key = a_key()
        self.platform = MemoryPlatform(clock=self.clock.now, ticks=self.tick, **options)
        self.retention = retention or self.retention
        self.store = MemoryStore(
            self.clock, writer="test", ticks=self.tick, lock_mode=retention and retention.mode
        )
        self.writers: dict[str, Writer] = {}

    def writer(self, name: str, part_bytes: int = 8 << 20) -> Writer:
        """A new process, its archive opened or begun."""
        assert name not in self.writers, "two writers of one name"
        made = self.writers[name] = Writer(self, name, part_bytes)
        made.found()
        return made

    # --- how a process of this name reaches what is outside of it

    def clock_of(self, name: str) -> Any:
        return self.clock

    def store_of(self, name: str) -> Any:
        return self.store.by(name)

    def api_of(self, name: str) -> VoiceCallsClient:
        return api_client(self.platform, self.clock_of(name), name)

    def blobs_of(self, name: str) -> RecordingClient:
        return recording_client(self.platform, self.clock_of(name), name)

    def complaints(self, level: Level = "objects") -> list[Finding]:
        """What an audit of the archive finds wrong with it now."""
        found = verify(self.store, Options(level=level, workers=1), now=self.clock.now())
        return [one for one in found.findings if one.severity != "info"]

    def finish(self) -> None:
        """Nobody has done what nobody may do."""
        self.store.finish(frozenset(n for n, writer in self.writers.items() if writer.died))
        assert self.platform.violations == [], self.platform.violations


class Writer:
    """One process: everything is wired here as `archiver/wiring.py` wires it."""

    def __init__(self, world: World, name: str, part_bytes: int) -> None:
        clock, times, keep = world.clock_of(name), world.times, world.retention
        self.name = name
        self.died = False
        self._world = world
        self.store = store = world.store_of(name)
        self.segments = segments = SegmentIndex(store)
        self._api = world.api_of(name)
        lister = Lister(self._api, COMPLETED, clock, times.window)
        tags, many = itertools.count(1), world.workers > 1
        self._workers = Workers(world.workers) if many else SerialWorkers()
        at_once = 4 if many else 1
        transfer = CallArchiver(
            self._api, world.blobs_of(name), store, clock,
            retention=keep, give_up=times.give_up, part_bytes=part_bytes,
            first_wait_seconds=times.poll_interval_seconds,
            tag=lambda: _tag(name, next(tags)),
        )  # fmt: skip
        self.windows = WindowArchiver(
            lister, transfer, store, self._workers, clock,
            segments=segments, retention=keep, settle=times.settle, relist=times.relist,
            clock_check=ClockCheck(
                self._api.latest_clock_skew_seconds, store.latest_clock_skew_seconds
            ),
            tag=lambda: _tag(name, next(tags)),
        )  # fmt: skip
        self.chain = Chain(store, world.key, clock, keep, remembered=REMEMBERED)
        self.backfiller = Backfill(self.windows, self.chain, segments, at_once=at_once)
        schedule = Schedule(
            times.window, times.settle, times.give_up, times.poll_interval_seconds, times.relist
        )
        self.loop = Loop(self.windows, self.chain, segments, clock, schedule, at_once=1)

    # --- what a process does

    def found(self) -> None:
        """Open the archive, or begin it."""
        world = self._world
        if not self.chain.open():
            pages = {layout.VERIFY_PAGE: b"how to verify\n"}
            self.chain.begin(
                capabilities={"create_once": True}, pages=pages, watermark=world.watermark
            )

    def round(self) -> Totals:
        """One round of the loop."""
        return self.loop.round()

    def round_at(self, moment: datetime) -> Totals:
        self._world.clock.turn_to(moment)
        return self.round()

    def round_after(self, pause: timedelta) -> Totals:
        self._world.clock.forward(pause)
        return self.round()

    def backfill(self, start: datetime, end: datetime) -> Totals:
        windows: list[Window] = list(windows_between(start, end, self._world.times.window))
        return self.backfiller.run(windows)

    # --- how it ends

    def dies(self, writes: int, moment: Literal["before", "after"] = "after") -> None:
        """Die at the `writes`-th request from now that writes, before or after it takes effect."""
        left = itertools.count(writes - 1, -1)

        def count(request: Request) -> None:
            if request.writes and request.moment == moment and next(left) == 0:
                self.kill()
                raise Crash(f"{self.name} died {moment} {request.operation} {request.key}")

        self.store.hooks.append(count)

    def kill(self) -> None:
        """From now on it does nothing any more."""
        self.died = True

        def dead(request: Request) -> None:
            raise Crash(f"{self.name} is dead")

        self.store.hooks.insert(0, dead)

    def close(self) -> None:
        self._workers.close()
        self._api.close()


def _tag(name: str, number: int) -> str:
    """16 hex digits that no other writer has, the same each time."""
    return hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:16]
