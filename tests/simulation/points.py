"""Crash points: whatever may go wrong once, at each request of a process in turn, none skipped.

A scenario has a world made ready, and lets a process do its work there. A calm run of it counts the
requests and shows what comes of it. Then, for each request and each kind of mishap, a fresh copy of
the world has it happen right there; the process ends of it or goes on, a new one does the same
work, and what stands then must be what the calm run left.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import structlog

from archiver.audit.hold_ledger import ArchivedHolds
from archiver.core.clock import Interrupted
from archiver.core.errors import ArchiverError, UsageError
from archiver.core.model import Retention
from archiver.manifest.event import Action
from archiver.pipeline.hold_acts import Holds
from tests.fakes.log_lines import quiet
from tests.fakes.memory_rig import HOUR, Crash, SerialWorkers, Times
from tests.simulation.faults import possible
from tests.simulation.harms import KINDS as KINDS_OF_HARM
from tests.simulation.harms import Aim
from tests.simulation.judge import Committed, check_audit, committed, read
from tests.simulation.plot import LENGTH, MINUTE, PART_BYTES, START, CallPlan
from tests.simulation.wire import CRASH_AFTER, CRASH_BEFORE, STOP, Calm, Exchange
from tests.simulation.world import SimWorld, SimWriter

TIMES = Times(window=LENGTH, settle=HOUR, give_up=2 * HOUR, relist=(3 * HOUR,))
SETTLED, AGED = START + LENGTH + HOUR + MINUTE, START + LENGTH + 3 * HOUR + MINUTE
LEAST = 1000
"""So many points there are at least."""

KINDS = {
    "before": {"store": CRASH_BEFORE, "api": CRASH_BEFORE, "blob": CRASH_BEFORE},
    "after": {"store": CRASH_AFTER, "api": CRASH_AFTER, "blob": CRASH_AFTER},
    "not applied": {"store": "unreachable", "api": "unavailable", "blob": "unavailable"},
    "applied": {"store": "lost", "api": "dropped", "blob": "cut"},
    "empty": {"store": "empty", "api": "empty", "blob": "dropped"},
    "for good": {"store": "out", "api": "out", "blob": "out"},
    "told to end": {"store": STOP, "api": STOP, "blob": STOP},
}
"""What happens at a point, by the side that it happens on. `before` and `after`: the process dies
then. `for good`: nothing answers that process any more. An empty GET is somebody's HTML."""

SURVIVED = ("not applied", "applied", "empty", "told to end")


@dataclass
class At:
    """A sky: one mishap, at the `number`-th request from now."""

    number: int
    kind: str
    met: Exchange | None = None
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def fault(self, exchange: Exchange) -> str | None:
        count = next(self._count)
        if count == self.number:
            self.met = exchange
        elif count < self.number or self.kind != "for good" or self.met is None:
            return None
        fault = KINDS[self.kind][exchange.side]
        if fault == "empty" and fault not in possible(exchange.side, exchange.operation):
            return "page" if exchange.operation == "get" else "internal"
        return fault


@dataclass(frozen=True)
class Scenario:
    """`prepare` makes a world ready, `act` works in it under the name of a process to be started,
    and does again what `act` has left undone. `spoilt`, a kind of harm, is bad for ever meanwhile
    about one call of three: the others come to what they would."""

    name: str
    prepare: Callable[[], SimWorld]
    act: Callable[[SimWorld, str], None]
    spoilt: str | None = None

    def begin(self) -> SimWorld:
        """The world, made ready, and what is bad in it."""
        world = self.prepare()
        if self.spoilt is not None:
            world.spoil(KINDS_OF_HARM[self.spoilt](Aim(PLANS[1])).harm)
        return world


# --- the worlds

PLANS = (
    CallPlan(0, START, "parts", True, False, "none", 0, None),
    CallPlan(1, START + HOUR, "whole", True, True, "none", 0, None),
    CallPlan(2, START + HOUR + MINUTE, "none", True, False, "none", 0, None),
)


def ready(lock_days: int = 0) -> SimWorld:
    """Three calls: a recording in parts, one with a survey, one without recording."""
    world = SimWorld(SETTLED, START, TIMES, random.Random(7), lock_days=lock_days)
    world.platform.add(*(plan.call for plan in PLANS))
    return world


def founded() -> SimWorld:
    world = ready()
    opened(world, "founder")
    return world


def in_time() -> SimWorld:
    """The window is open yet."""
    world = SimWorld(START + 2 * HOUR, START, TIMES, random.Random(7))
    world.platform.add(*ready().platform.calls)
    opened(world, "founder")
    return world


def sealed(lock_days: int = 0) -> SimWorld:
    world = ready(lock_days)
    opened(world, "founder").round()
    return world


def amended() -> SimWorld:
    """Much has changed since the window was sealed; now it has come of age."""
    world = sealed()
    late = CallPlan(3, START + 2 * HOUR, "whole", True, False, "none", 0, None)
    found = CallPlan(2, START, "whole", True, False, "none", 0, None)
    world.platform.add(late.call)
    world.platform.change("vc_0", epa={"score": 5})
    world.platform.change("vc_1", transcript=[{"role": "agent", "text": "corrected"}])
    world.platform.change("vc_2", recording=found.recording)
    world.clock.turn_to(AGED)
    return world


def without_blob(at: timedelta) -> SimWorld:
    """A call's recording was not to be had when the window was closed, and is there now."""
    world = ready()
    world.clock.turn_to(START + LENGTH + at)
    world.platform.status["blob"]["vc_1"] = 404
    opened(world, "founder").round()
    world.platform.status["blob"].clear()
    return world


def untold() -> SimWorld:
    """Calls were archived by a process that is dead now, and are not listed any more."""
    world = in_time()
    opened(world, "dead").round()
    world.platform.hidden.add("vc_0")
    world.platform.gone.add("vc_1")
    world.clock.turn_to(SETTLED)
    return world


def short() -> SimWorld:
    """Sealed under a policy that was shorter than today's."""
    world = sealed(lock_days=30)
    world.retention = Retention("GOVERNANCE", 60)
    world.clock.turn_to(AGED)
    return world


def held() -> SimWorld:
    world = sealed(lock_days=30)
    hold(world, "officer", "add")
    return world


def copied(world: SimWorld) -> SimWorld:
    """The same, so that what happens to the one is nothing to the other."""
    made = SimWorld(world.clock.now(), START, TIMES, random.Random(7), haste=0.8)
    made.retention = world.retention
    made.store = world.store.copied(made.clock)
    made.uploads.composite |= world.uploads.composite
    platform = made.platform
    platform.add(*world.platform.all.values())
    platform.hidden |= world.platform.hidden
    platform.gone |= world.platform.gone
    if world.wire.harms.all:
        # What somebody has put into the bucket lies in the copy too.
        made.wire.harms.all = [replace(one, met=0) for one in world.wire.harms.all]
        platform.spoilt = made.wire.harms.answer
    return made


# --- what is done in them


def opened(world: SimWorld, name: str) -> SimWriter:
    writer = world.start(name, PART_BYTES)
    writer.found()
    return writer


def backfill(world: SimWorld, name: str) -> None:
    opened(world, name).backfill(START, START + LENGTH)


def round_(world: SimWorld, name: str) -> None:
    opened(world, name).round()


def two_rounds(world: SimWorld, name: str) -> None:
    """One that archives, and one that closes the window."""
    writer = opened(world, name)
    writer.round()
    world.clock.turn_to(max(world.clock.now(), SETTLED))
    writer.round()


def rivals(world: SimWorld, name: str) -> None:
    """Two at once; whatever becomes of the one, the other goes on."""

    def one(who: str) -> Callable[[], None]:
        def work() -> None:
            with _may_end():
                backfill(world, f"{name} {who}")

        return work

    world.wire.turns.together([one("A"), one("B")])


def hold(world: SimWorld, name: str, action: Action) -> None:
    """A command about legal holds; given again after it was done, it has nothing to do."""
    writer = world.start(name)
    clock: Any = writer.process.clock
    assert writer.chain.open()
    told = ArchivedHolds(writer.store, 1)
    holds = Holds(writer.store, writer.chain, told, SerialWorkers(), clock, world.retention)  # type: ignore[arg-type]
    try:
        holds.act(action, ["vc_0", "vc_1"], "J. Doe", "Case 1")
    except UsageError as error:
        if action != "remove" or "no hold is on" not in str(error):
            raise


def add_hold(world: SimWorld, name: str) -> None:
    hold(world, name, "add")


def remove_hold(world: SimWorld, name: str) -> None:
    hold(world, name, "remove")


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("init and backfill", ready, backfill),
        Scenario("loop", in_time, two_rounds),
        Scenario("listed again", amended, round_),
        Scenario("pending before", lambda: without_blob(HOUR + MINUTE), round_),
        Scenario("failed before", lambda: without_blob(3 * HOUR), backfill),
        Scenario("untold", untold, round_),
        Scenario("kept longer", short, round_),
        Scenario("hold", lambda: sealed(30), add_hold),
        Scenario("hold taken off", held, remove_hold),
        Scenario("two at once", founded, rivals),
        Scenario("loop, no survey for ever", in_time, two_rounds, "epa 403"),
        Scenario("loop, no URL for ever", in_time, two_rounds, "url 403"),
        Scenario("loop, an entry null for ever", in_time, two_rounds, "entry null"),
        Scenario("loop, a record refused for ever", in_time, two_rounds, "record 403"),
        Scenario("loop, a foreign record for ever", in_time, two_rounds, "object foreign"),
        Scenario("backfill, no recording for ever", founded, backfill, "blob 404"),
        Scenario("backfill, a file refused for ever", founded, backfill, "transcript 500"),
    )
}


# --- one point


@dataclass
class Calmly:
    """What a scenario comes to without any mishap."""

    start: SimWorld
    requests: int
    committed: Committed
    held: set[str]


def calmly(scenario: Scenario) -> Calmly:
    start = scenario.begin()
    world = copied(start)
    scenario.act(world, "calm")
    return Calmly(start, len(world.wire.trace), *_state(world))


def point(
    scenario: Scenario, calm: Calmly, number: int, kind: str, *, verbose: bool = False
) -> Exchange:
    """Have it happen; raises `AssertionError` where the world is not what it should be then."""
    world = copied(calm.start)
    world.wire.sky = sky = At(number, kind)
    try:
        with _may_end():
            scenario.act(world, "first")
        assert sky.met is not None, f"{scenario.name} has no request {number}"
        world.wire.sky = Calm()
        scenario.act(world, "second")  # a new process does the same
        _check(world, calm, kind, sky.met)
    finally:
        if verbose:
            print(*world.wire.trace, sep="\n")
    return sky.met


def _check(world: SimWorld, calm: Calmly, kind: str, met: Exchange) -> None:
    found, held = _state(world)
    assert found == calm.committed, "not what stands without a mishap"
    assert held == calm.held, f"{held} are held"
    check_audit(world)
    # Of an upload whose beginning was not answered, or whose end, nobody can know.
    if kind in SURVIVED and met.operation not in ("begin", "abort"):
        assert not world.uploads.open, "an upload was left open"


def _state(world: SimWorld) -> tuple[Committed, set[str]]:
    """What the archive vouches for, and which calls are held. What is bad may be pending."""
    ledger = read(world)
    harmed = {name for one in world.wire.harms.all for name in one.names}
    assert ledger.pending <= harmed
    assert not ledger.unsealed, "records that no segment tells of"
    return committed(ledger), {one.key.split("/")[2] for one in world.store.objects if one.held}


@contextmanager
def _may_end() -> Iterator[None]:
    try:
        yield
    except (Crash, Interrupted):
        pass
    except UsageError:
        raise
    except ArchiverError:
        pass


def all_of(scenario: Scenario, kind: str) -> int:
    """Every request of a scenario; how many there were."""
    random.seed(1)
    calm = calmly(scenario)
    for number in range(1, calm.requests + 1):
        try:
            point(scenario, calm, number, kind)
        except Exception as error:
            error.add_note(f"make crash-points POINT='{scenario.name}/{kind}/{number}'")
            raise
    return calm.requests


def main(arguments: list[str] | None = None) -> int:
    """`make crash-points`: all of them, or one with everything that passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.points")
    parser.add_argument("--point", help="SCENARIO/KIND/NUMBER")
    asked = parser.parse_args(arguments)
    structlog.configure(**quiet([]))
    if asked.point:
        name, kind, number = asked.point.split("/")
        random.seed(1)
        scenario = SCENARIOS[name]
        point(scenario, calmly(scenario), int(number), kind, verbose=True)
        return 0
    total, began = 0, time.process_time()
    for scenario in SCENARIOS.values():
        counts = [all_of(scenario, kind) for kind in KINDS]
        print(f"{sum(counts):6} points: {scenario.name}: {counts[0]} requests", flush=True)
        total += sum(counts)
    seconds = time.process_time() - began
    print(f"{total:6} points in {seconds:.0f} s of one core, all well")
    return 0 if total >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
