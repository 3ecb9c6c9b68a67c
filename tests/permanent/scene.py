"""The world of the matrix: ten calls in three windows, one thing that is bad, and who archives.

Windows are six hours long; the third is another day's. A process begins as `App` has it begin: it
asks source and store for access, then opens the archive.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from archiver.core.errors import ArchiverError
from archiver.core.model import Window
from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from archiver.pipeline.window import Totals
from archiver.wiring import check_hosts
from tests.fakes.calls import SimulatedCall
from tests.fakes.harm import Harm, put_there
from tests.fakes.memory_rig import HOUR, Times
from tests.fakes.population import a_call
from tests.simulation.plot import LENGTH, MINUTE, PART_BYTES, START, sound
from tests.simulation.wire import Wire
from tests.simulation.world import SimWorld, SimWriter

TIMES = Times(window=LENGTH, settle=HOUR, give_up=2 * HOUR, relist=(3 * HOUR, 5 * HOUR))
WINDOWS = tuple(Window(START + n * LENGTH, START + (n + 1) * LENGTH) for n in range(3))
FIRST, SECOND, THIRD = WINDOWS
END = THIRD.end
LOCK_DAYS = 30

CALLS = {
    # id: (window, minutes after its start, recording, survey)
    "vc_a1": (FIRST, 0, "whole", True),
    "vc_a2": (FIRST, 60, "none", False),
    "vc_a3": (FIRST, 90, "parts", False),
    "vc_b1": (SECOND, 0, "parts", False),
    "vc_b2": (SECOND, 60, "whole", True),
    "4711": (SECOND, 120, "whole", True),
    "vc_b4": (SECOND, 180, "none", True),
    "vc_c1": (THIRD, 0, "whole", False),
    "vc_c2": (THIRD, 5, "parts", True),
    "vc_c3": (THIRD, 10, "whole", True),
}
"""`vc_b2` is the one that is harmed most; `vc_a1` is the first there is, `vc_c3` the newest."""

LOOP = tuple(
    THIRD.start + timedelta(minutes=minutes)
    for minutes in (
        30, 31, 47,  # the second window has not settled, the third goes on
        61, 80,  # the second window has settled
        125, 145,  # its calls are given up
        185, 305,  # it comes of its two ages
        421, 545, 665, 690,  # the same of the third
    )
)  # fmt: skip
"""When the loop has its rounds."""
AT_ONCE = 3
"""After so many rounds every call that can be had has a record."""
RESTARTED = (4, 10)
"""Before these rounds the process is replaced by another one."""
HEALED = 7
"""What is bad for a while is so until this round: after GIVE_UP, before the ages of RELIST."""
BACKFILL = (END + 6 * HOUR, END + 6 * HOUR + 20 * MINUTE, END + 7 * HOUR)
"""When it is run; what is bad for a while has been seen to before the last time."""


class YieldingWire(Wire):
    """With several workers, others go on at each request."""

    def send(self, *request: Any) -> Any:
        time.sleep(0)
        return super().send(*request)


class PlaceWorld(SimWorld):
    """A world with the calls in it."""

    def __init__(
        self, now: datetime, workers: int, sort: str, *, lock_days: int = 0, page_size: int = 100
    ) -> None:
        super().__init__(
            now, START, TIMES, random.Random(7), lock_days=lock_days, sort=sort,
            page_size_cap=page_size,
        )  # fmt: skip
        self.workers = workers
        self.wire = YieldingWire(self.clock, self.wire.turns)
        self.platform.add(*(a_call_of(call_id) for call_id in CALLS))
        # Nothing is bad yet: an archive is never begun over what looks like another one.
        founder = self.start("founder", PART_BYTES)
        founder.found()
        founder.close()


def a_call_of(call_id: str) -> SimulatedCall:
    window, minutes, audio, has_survey = CALLS[call_id]
    number = list(CALLS).index(call_id)
    made = a_call(call_id, window.start + minutes * MINUTE, audio=None)
    made.recording = None if audio == "none" else sound(number, audio == "parts", True)
    made.epa = {"score": number} if has_survey else None
    return made


def ids_of(window: Window) -> frozenset[str]:
    """The calls of a window."""
    return frozenset(call_id for call_id, row in CALLS.items() if row[0] == window)


def record_key(call_id: str) -> str:
    return layout.record_key(_day(call_id), call_id, 1)


def file_key(call_id: str, name: str) -> str:
    return layout.recording_dir(_day(call_id), call_id) + name


def _day(call_id: str) -> Any:
    window, minutes, *_ = CALLS[call_id]
    return (window.start + minutes * MINUTE).date()


def segment_name(window: Window) -> SegmentName:
    return SegmentName(window.start, 1)


@dataclass
class Run:
    """What came of it."""

    world: PlaceWorld
    harm: Harm | None
    events: list[dict[str, Any]] = field(default_factory=list)
    """Log lines of the level warning and above."""
    failed: list[str] = field(default_factory=list)
    """Rounds and starts that ended in an error."""
    exits: list[int] = field(default_factory=list)
    """What the backfills answered."""
    at_once: set[str] = field(default_factory=set)
    """The calls that had a record after the first rounds."""
    _writer: SimWriter | None = None
    _number: int = 0

    @property
    def spoilt(self) -> Harm:
        """What is bad."""
        assert self.harm is not None
        return self.harm

    def heal(self) -> None:
        """Somebody sees to it. A seal pointer is put right: nobody writes it a second time."""
        harm, store = self.spoilt, self.world.store
        self.world.heal(harm)
        for key in harm.objects:
            for one in store.objects:
                parsed = layout.parse_seal_key(one.key)
                if parsed is None or parsed[1]:
                    continue
                entries = json.loads(one.data)["segments"]
                if key in {layout.seal_pointer_key(entry["key"]) for entry in entries}:
                    put_there(store, key, f"{parsed[0]}\n".encode())

    # --- the loop

    def loop(self, moments: Sequence[datetime] = LOOP, healed: int | None = None) -> Run:
        """Rounds; what is bad is seen to before the one of this number."""
        for number, moment in enumerate(moments):
            self.world.clock.turn_to(max(moment, self.world.clock.now()))
            if number == healed:
                self.heal()
                if self.spoilt.objects:
                    self._end()  # nothing of the archiver's ever goes: it would miss it
            if number in RESTARTED:
                self._end()
            self._round()
            if number == AT_ONCE - 1:
                self.at_once = self.recorded()
        self._end()
        return self

    def _round(self) -> None:
        """As `Loop.run_forever` has it; a process that cannot start is started again later."""
        try:
            if self._writer is None:
                self._writer = self._start()
        except ArchiverError as error:
            self.failed.append(f"start: exit {error.exit_code}: {error}")
            return
        try:
            self._writer.round()
        except ArchiverError as error:
            self.failed.append(f"round: {error}")
            structlog.get_logger().error("round.failed", error=str(error))

    # --- a backfill

    def backfill(self, start: datetime = START, end: datetime = END) -> Run:
        """One of a range, by a process of its own, as the command has it."""
        try:
            self._writer = self._start()
            totals = self._writer.backfill(start, end)
            self.exits.append(exit_code(totals))
        except ArchiverError as error:
            self.failed.append(f"backfill: exit {error.exit_code}: {error}")
            self.exits.append(error.exit_code)
        finally:
            self._end()
        return self

    # --- processes

    def _start(self) -> SimWriter:
        """A process that asks for access, and opens the archive."""
        self._number += 1
        made = self.world.start(f"process-{self._number}", PART_BYTES)
        try:
            check_hosts(made._api.check_access(), self.world.blobs_of(made.name))
            made.store.check_access()
            made.found()
        except BaseException:
            made.close()
            raise
        return made

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    # --- what is there

    def recorded(self) -> set[str]:
        """The calls that have a record of their own making."""
        harmed = self.harm.objects if self.harm else {}
        keys = (key for key in self.world.store.keys if key not in harmed)
        found = (layout.parse_record_key(key) for key in keys)
        return {parsed[1] for parsed in found if parsed is not None}


def exit_code(totals: Totals) -> int:
    """As `archiver backfill` has it."""
    return 1 if totals.needs_a_person or totals.waiting else 0
