"""A seed's history, from its first request to the day on which all must be well."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from archiver.core.clock import Interrupted
from archiver.core.errors import ArchiverError, UsageError
from archiver.pipeline.relist import SCAN_SECONDS
from archiver.store.bucket import ORPHANED_AFTER
from tests.fakes.log_lines import refuse_secrets
from tests.fakes.memory_rig import HOUR, Crash
from tests.simulation.faults import Weather
from tests.simulation.harms import draw
from tests.simulation.plot import LENGTH, MINUTE, PART_BYTES, START, CallPlan, Plot, Step, plot
from tests.simulation.wire import WRITES, Calm
from tests.simulation.world import SimWorld, SimWriter

SCAN = timedelta(seconds=SCAN_SECONDS) + MINUTE
MOST_ROUNDS = 20
"""Everything must have come to rest after so many rounds without faults."""
MOST_REQUESTS = 4000
"""No world has a history as long as that."""
LINES: list[dict[str, Any]] = []
"""What the log told of at the level warning and above, since a story began."""


class Story:
    """One world, and what happens in it."""

    def __init__(self, seed: int) -> None:
        self.plot: Plot = plot(seed)
        self.world = SimWorld(
            self.plot.begins, START, self.plot.times, self.plot.chance,
            lock_days=self.plot.lock_days, haste=self.plot.haste, **self.plot.options,
        )  # fmt: skip
        self.wire, self.platform = self.world.wire, self.world.platform
        self.spoilt = draw(self.plot)
        """What is bad for ever, by its kind."""
        self.ended: set[str] = set()
        """The processes that are no more."""
        self.changed: dict[str, datetime] = {}
        """call id → when its event happened."""
        self._loops: dict[str, SimWriter | None] = {"main": None}
        self._number = 0

    def run(self) -> None:
        """All of it but the last word, which is `judge.py`'s."""
        made = self.plot
        random.seed(made.seed)  # the jitter of tries, and nothing else
        LINES.clear()
        for one in self.spoilt.values():
            if not one.harm.objects:
                self.world.spoil(one.harm)
        self.wire.sky = Weather(made.chance, made.rate, made.faults)
        for number, step in enumerate(made.steps):
            self.world.clock.forward(step.wait)
            self._appear(number)
            self._do(step)
        self._calm_down()

    # --- the source

    def _appear(self, step: int) -> None:
        """What happens to calls at this step; a call is there once it has begun."""
        now = self.world.clock.now()
        for plan in self.plot.calls:
            known = plan.id in self.platform.all
            if not known and plan.start <= now and (plan.event != "late" or plan.step <= step):
                self.platform.add(plan.call)
                known = True
            if known and plan.event not in ("none", "late") and plan.id not in self.changed:
                if plan.step == step and plan.pages is not None:
                    self.platform.later("page", plan.pages, lambda plan=plan: self._happen(plan))
                elif plan.step <= step:
                    self._happen(plan)

    def _happen(self, plan: CallPlan) -> None:
        if plan.id in self.changed:
            return
        self.changed[plan.id] = self.world.clock.now()
        if plan.changes:
            self.platform.change(plan.id, **plan.changes)
        elif plan.event == "gone":
            self.platform.gone.add(plan.id)
        elif plan.event in ("hides", "blinks"):
            self.platform.hidden.add(plan.id)

    # --- the archiver

    def _do(self, step: Step) -> None:
        main, second = self._work("main"), self._work("second")
        match step.action:
            case "round":
                self._together(main)
            case "restart":
                self._replace("main")
                self._together(main)
            case "both":
                self._together(main, second)
            case "backfill":
                self._together(self._backfill(step.first))
            case "round and backfill":
                self._together(main, self._backfill(step.first))
        for who, writer in list(self._loops.items()):
            if writer is not None and writer.process.clock.stopped:
                self._replace(who)  # its last request was answered by an error

    def _together(self, *works: Callable[[], None]) -> None:
        if len(works) == 1:
            works[0]()
        else:
            self.wire.turns.together(works)

    def _work(self, who: str) -> Callable[[], None]:
        """A round of a loop; of a process that is started for it, should there be none."""

        def work() -> None:
            writer = self._loops.get(who)
            with self._may_end(who):
                if writer is None:
                    writer = self._open(who)
                writer.round()

        return work

    def _backfill(self, first: int) -> Callable[[], None]:
        """A process of its own."""

        def work() -> None:
            with self._may_end("backfill"):
                writer = self._start("backfill")
                try:
                    self._found(writer)
                    start = START + first * LENGTH
                    end = min(self.plot.end, self.world.clock.now())
                    writer.backfill(start, max(end, start + HOUR))
                finally:
                    self.ended.add(writer.name)
                    writer.close()

        return work

    @contextmanager
    def _may_end(self, who: str) -> Iterator[None]:
        """A loop survives whatever can be tried again; a process that begins does not."""
        try:
            yield
        except (Crash, Interrupted):
            self._replace(who)
        except UsageError:
            raise
        except ArchiverError as error:
            refuse_secrets(str(error))

    def _replace(self, who: str) -> None:
        writer = self._loops.get(who)
        if writer is not None:
            self.ended.add(writer.name)
            writer.close()
            self._loops[who] = None

    def _open(self, who: str) -> SimWriter:
        """A loop that begins; one that does not get its archive open ends at once."""
        writer = self._start(who)
        self.ended.add(writer.name)
        self._found(writer)
        self.ended.discard(writer.name)
        self._loops[who] = writer
        return writer

    def _found(self, writer: SimWriter) -> None:
        """Once there is an archive, somebody else may put something into it."""
        writer.found()
        for one in self.spoilt.values():
            waits = bool(one.harm.objects) and one.harm not in self.wire.harms.all
            if waits and one.harm.objects.keys().isdisjoint(self.world.store.keys):
                self.world.spoil(one.harm)

    def _start(self, who: str) -> SimWriter:
        self._number += 1
        return self.world.start(f"{who}-{self._number}", PART_BYTES)

    # --- how it ends

    def _calm_down(self) -> None:
        """No faults any more, and no drift; what is on its way arrives while the loops go on."""
        self.wire.sky = Calm()
        self.platform.calm()
        self.world.clock.turn_to(max(self.world.clock.now(), self.plot.end + MINUTE))
        self._appear(len(self.plot.steps))
        for plan in self.plot.calls:
            if plan.event == "blinks":
                self.platform.hidden.discard(plan.id)
        times = self.world.times
        waits = [times.settle, *times.relist, *([] if self.plot.is_patient else [times.give_up])]
        self._round()
        self.wire.land_all()
        rest = self.plot.end + max(waits) + MINUTE
        # By then each loop has looked at what others may have left unsealed.
        self.world.clock.turn_to(max(self.world.clock.now() + SCAN, rest))
        self._come_to_rest()

    def _come_to_rest(self) -> None:
        """The loops go on until they have nothing left to do, and nothing that rests."""
        for _ in range(MOST_ROUNDS):
            if not self._round():
                return
            self.world.clock.forward(16 * MINUTE)
        raise AssertionError(f"no rest after {MOST_ROUNDS} rounds without faults")

    def _round(self) -> bool:
        """A round of each loop; whether anything was written. Where something is bad for ever, that
        is tried again and again, and only what is new counts."""
        before, keys = len(self.wire.trace), self._lasting()
        for who in sorted(self._loops):
            (self._loops[who] or self._open(who)).round()
        if self.spoilt:
            return keys != self._lasting()
        return any(
            one.exchange.operation in WRITES and one.exchange.key != "manifest/probe"
            for one in self.wire.trace[before:]
        )

    def _lasting(self) -> set[str]:
        """The keys in the bucket, but for what a call leaves that is tried again."""
        return {key for key in self.world.store.keys if "/recording-" not in key}

    def last(self) -> None:
        """A week later somebody looks at every window once more, and at what was left lying."""
        self.world.clock.forward(ORPHANED_AFTER + HOUR)
        writer = self._start("last")
        self._found(writer)
        writer.backfill(START, self.plot.end)
        writer.close()
        assert len(self.wire.trace) < MOST_REQUESTS, "no end of requests"
