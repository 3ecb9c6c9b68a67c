"""What is bad for ever in a simulated world: one or two things, in a third of the seeds.

They hold when all other faults have ended. A call that is harmed may come to something else than it
would, a window that is harmed may stay open; nothing else may, and each of them is told of.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from archiver.core.model import Window
from archiver.manifest import layout
from tests.fakes import harm
from tests.fakes.calls import APART
from tests.fakes.harm import Harm
from tests.simulation.plot import LENGTH, START, CallPlan, Plot

EVERY = 3
HARMED = 2
"""Seeds whose remainder by `EVERY` is this have something that is bad for ever."""

FOREIGN = b"these are no bytes of ours\n"
PUT = ("put", "begin", "complete")


@dataclass(frozen=True)
class Aim:
    """What a thing that is bad is about."""

    plan: CallPlan

    @property
    def window(self) -> Window:
        start = START + (self.plan.start - START) // LENGTH * LENGTH
        return Window(start, start + LENGTH)

    @property
    def record(self) -> str:
        return layout.record_key(self.plan.start.date(), self.plan.id, 1)

    def file(self, name: str) -> str:
        return layout.recording_dir(self.plan.start.date(), self.plan.id) + name


@dataclass
class Spoilt:
    """A thing that is bad, and what may suffer of it: a call, or those of a window, or of a day."""

    harm: Harm
    aim: Aim
    window: bool = False
    """Whether the window may stay open; its calls, then, need not be told of."""
    day: bool = False
    """Whether that is so of all windows of the day."""
    must_open: bool = False
    """Whether the window must stay open, once this was met."""

    def opens(self, window: Window) -> bool:
        """Whether a window may stay open for it."""
        if self.day:
            days = {window.start.date(), window.end.date()}
            return self.aim.window.start.date() in days
        return self.window and window == self.aim.window

    def suffers(self, plan: CallPlan) -> bool:
        """Whether a call may come to something else."""
        return plan.id == self.aim.plan.id or self.opens(Aim(plan).window)


Make = Callable[[Aim], Spoilt]


def _call(operation: str, code: int) -> Make:
    def make(aim: Aim) -> Spoilt:
        answer = harm.status(code)
        return Spoilt(harm.of_call(aim.plan.id, operation, answer, str(code)), aim)

    return make


def _window(answer: harm.Answer, kind: str) -> Make:
    def make(aim: Aim) -> Spoilt:
        return Spoilt(harm.listing(aim.window, answer, kind), aim, window=True, must_open=True)

    return make


def _key(kind: str, code: int, key: Callable[[Aim], str]) -> Make:
    """A key that the store refuses to write."""

    def make(aim: Aim) -> Spoilt:
        return Spoilt(harm.refused(kind, code, PUT, key(aim), (aim.plan.id,)), aim)

    return make


def _segment(aim: Aim) -> Spoilt:
    key = layout.SegmentName(aim.window.start, 1).jsonl
    names = (key, *harm.names_of(aim.window))
    made = harm.refused("segment 403", 403, PUT, key, names)
    return Spoilt(made, aim, window=True, must_open=True)


def _prefix(aim: Aim) -> Spoilt:
    prefix = layout.record_prefix(aim.window.start.date())
    starts = [aim.window.start + n * LENGTH for n in (-1, 0, 1)]
    windows = [Window(start, start + LENGTH) for start in starts]
    names = (prefix, *(name for window in windows for name in harm.names_of(window)))
    return Spoilt(harm.refused("prefix 403", 403, ("list",), prefix, names), aim, True, day=True)


KINDS: dict[str, Make] = {
    "listing 500": _window(harm.status(500), "500"),
    "listing object": _window(harm.document({"calls": []}), "object"),
    "page 500": lambda aim: Spoilt(
        harm.page(aim.window, 2, harm.status(500), "500"), aim, window=True
    ),
    "entry null": lambda aim: Spoilt(
        harm.entry(aim.plan.id, aim.window, lambda row: None, "null"), aim
    ),
    "call 500": _call("call", 500),
    **{f"{kind} 403": _call(kind, 403) for kind in APART},
    "url 403": _call("url", 403),
    "url 500": _call("url", 500),
    "blob 404": _call("blob", 404),
    "blob 500": _call("blob", 500),
    "object foreign": lambda aim: Spoilt(
        harm.foreign(aim.record, FOREIGN, "foreign", aim.plan.id), aim
    ),
    "recording 400": _key("recording 400", 400, lambda aim: aim.file("recording")),
    "transcript 500": _key("transcript 500", 500, lambda aim: aim.file("transcript")),
    "record 403": _key("record 403", 403, lambda aim: aim.record),
    "segment 403": _segment,
    "prefix 403": _prefix,
}


def draw(plot: Plot) -> dict[str, Spoilt]:
    """What is bad for ever in a seed's world, by its kind; the same for the same seed."""
    if plot.seed % EVERY != HARMED:
        return {}
    chance = random.Random(f"harm {plot.seed}")
    kinds = chance.sample(sorted(KINDS), chance.choice((1, 1, 2)))
    return {kind: KINDS[kind](Aim(chance.choice(plot.calls))) for kind in kinds}
