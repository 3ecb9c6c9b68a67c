"""The network that all processes of a simulated world share: where everything can go wrong.

Each request passes `Wire.send` on its way out and `Wire.done` on its way back. In between a `Sky`
says what befalls it. Nothing else is a boundary: what a process does between two requests nobody
can see. All that passes is kept in `trace`, by which a run is told from another.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from archiver.core.clock import Interrupted
from tests.fakes.clock import HandClock
from tests.fakes.harm import Harms
from tests.fakes.memory_rig import Crash

Side = Literal["store", "api", "blob"]
Effect = Callable[[], object]
CRASH_BEFORE, CRASH_AFTER, STOP = "crash_before", "crash_after", "stop"
WRITES = {"put", "begin", "part", "complete", "abort", "extend", "hold"}


@dataclass(frozen=True)
class Exchange:
    """A request, the `number`-th of its world. `key` is an object's, a prefix, or a call's id."""

    number: int
    process: str
    side: Side
    operation: str
    key: str


class Sky(Protocol):
    """What befalls a request: the name of a fault (`faults.py`), or None."""

    def fault(self, exchange: Exchange) -> str | None: ...


class Calm:
    """Nothing ever happens."""

    def fault(self, exchange: Exchange) -> str | None:
        return None


class ProcessClock:
    """The world's time, and one process's request to end."""

    def __init__(self, world: HandClock) -> None:
        self._world = world
        self.stopped = False
        self.now = world.now
        self.monotonic = world.monotonic

    def sleep(self, seconds: float) -> None:
        self.check()
        self._world.sleep(seconds)
        self.check()

    def check(self) -> None:
        if self.stopped:
            raise Interrupted

    def stop(self) -> None:
        self.stopped = True


@dataclass
class Process:
    """Whom a request comes from. One that is `dead` never does anything again."""

    name: str
    clock: ProcessClock
    dead: bool = False


@dataclass(frozen=True)
class Passed:
    """What became of a request."""

    at: datetime
    exchange: Exchange
    fault: str | None
    outcome: str

    def __str__(self) -> str:
        one, fault = self.exchange, f"  !! {self.fault}" if self.fault else ""
        where = f"{one.side:5} {one.operation:8} {one.key}"
        return (
            f"{one.number:5} {self.at:%d %H:%M:%S} {one.process:12} {where} → {self.outcome}{fault}"
        )


@dataclass
class Wire:
    """`hit` counts the faults, as `side.name`."""

    clock: HandClock
    turns: Turns
    sky: Sky = field(default_factory=Calm)
    trace: list[Passed] = field(default_factory=list)
    hit: Counter[str] = field(default_factory=Counter)
    harms: Harms = field(default_factory=Harms)
    """What is bad for ever, whatever else befalls a request."""
    _on_its_way: list[tuple[int, Effect]] = field(default_factory=list)
    _count: int = 0

    def send(
        self, process: Process, side: Side, operation: str, key: str
    ) -> tuple[Exchange, str | None]:
        """A request goes out; what befalls it. Raises `Crash` where its process is dead by then."""
        self.turns.next()
        if process.dead:
            raise Crash(f"{process.name} is dead")
        self._count += 1
        self._land()
        exchange = Exchange(self._count, process.name, side, operation, key)
        fault = self.sky.fault(exchange)
        if fault is not None:
            self.hit[f"{side}.{fault}"] += 1
        if fault == CRASH_BEFORE:
            self._die(process, exchange, fault)
        if fault == STOP:
            process.clock.stop()
        return exchange, fault

    def done(self, process: Process, exchange: Exchange, fault: str | None, outcome: str) -> None:
        """Its answer is there, whatever it says; `Crash` where the process never hears of it."""
        if fault == CRASH_AFTER:
            self._die(process, exchange, fault)
        if self.harms.last is not None:
            fault, self.harms.last = f"for ever: {self.harms.last.kind}", None
        self.trace.append(Passed(self.clock.now(), exchange, fault, outcome))

    def later(self, requests: int, effect: Effect) -> None:
        """Have something take effect when so many more requests have passed."""
        self._on_its_way.append((self._count + requests, effect))

    def land_all(self) -> None:
        """What is still on its way arrives."""
        due, self._on_its_way = self._on_its_way, []
        for _, effect in due:
            effect()

    def digest(self) -> str:
        """Of everything that passed, in its order."""
        return hashlib.sha256("\n".join(map(str, self.trace)).encode()).hexdigest()

    def _land(self) -> None:
        due = [effect for number, effect in self._on_its_way if number <= self._count]
        if due:
            left = [item for item in self._on_its_way if item[0] > self._count]
            self._on_its_way = left
            for effect in due:
                effect()

    def _die(self, process: Process, exchange: Exchange, fault: str) -> None:
        process.dead = True
        self.trace.append(Passed(self.clock.now(), exchange, fault, "dead"))
        raise Crash(f"{process.name} died: {fault} {exchange.operation} {exchange.key}")


class Turns:
    """Several processes at once, one at a time: at each request somebody else may go on.

    Each runs on a thread of its own and waits for its turn; whose turn it is is drawn by lot, so
    that the same lots make the same history. `haste` is how rarely the turn passes on, 0 to 1.
    """

    def __init__(self, chance: random.Random, haste: float = 0.5) -> None:
        self._chance = chance
        self._haste = haste
        self._running: list[_Turn] = []
        self._mine = threading.local()
        self._all_done = threading.Semaphore(0)
        self.passed = 0
        """How often somebody else went on."""

    def together(self, works: Sequence[Callable[[], None]]) -> None:
        """Run all of them to their ends; the first exception, if there is one, is raised then."""
        turns = [_Turn(work) for work in works]
        self._running = list(turns)
        threads = [threading.Thread(target=self._run, args=(turn,)) for turn in turns]
        for thread in threads:
            thread.start()
        self._lot().go.release()
        self._all_done.acquire()
        for thread in threads:
            thread.join()
        for turn in turns:
            if turn.error is not None:
                raise turn.error

    def next(self) -> None:
        """Called at each request: perhaps it is another's turn."""
        if len(self._running) < 2 or self._chance.random() < self._haste:
            return
        mine, other = self._mine.turn, self._lot()
        if other is not mine:
            self.passed += 1
            other.go.release()
            mine.go.acquire()

    def _lot(self) -> _Turn:
        return self._running[self._chance.randrange(len(self._running))]

    def _run(self, turn: _Turn) -> None:
        self._mine.turn = turn
        turn.go.acquire()
        try:
            turn.work()
        except BaseException as error:
            turn.error = error
        self._running.remove(turn)
        (self._lot().go if self._running else self._all_done).release()


@dataclass(eq=False)
class _Turn:
    work: Callable[[], None]
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    error: BaseException | None = None
