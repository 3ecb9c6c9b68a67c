"""What may befall a request, by the side that answers it; and weather that brings it about.

The store is strongly consistent and never lies about what it has; a connection, a proxy before it
or its front end may say anything else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.fakes.calls import APART
from tests.simulation.wire import CRASH_AFTER, CRASH_BEFORE, STOP, WRITES, Exchange, Side

READS = {"get", "head", "list", "versions", "uploads", "settings"}
EVERY = WRITES | READS
CREATES = {"put", "complete"}
ANSWERED = EVERY - {"abort"}

# --- the names; `s3.py` and `source.py` carry them out

REFUSED = {"slow_down": 503, "throttled": 429, "internal": 500, "conflict": 409, "damaged": 400}
"""The store says so, and has done nothing."""

STORE: dict[str, set[str]] = {
    "slow_down": EVERY,
    "throttled": EVERY,
    "internal": EVERY,
    "unreachable": EVERY,
    "conflict": CREATES,
    "damaged": {"put", "part"},
    "lost": EVERY,  # done, and the answer never came
    "lost_500": WRITES,  # done, and a gateway said 500
    "delayed": CREATES | {"begin", "extend"},  # no answer; done some requests later
    "empty": ANSWERED - {"get", "settings"},  # 200 without anything in it, and not done
    "empty_done": WRITES,  # the same, and done
    "page": {"get"},  # 200 with somebody's HTML
    "cut": {"get"},
    "out": EVERY,  # nothing answers for a while
}
API: dict[str, set[str]] = {
    name: {"list", "call", *APART, "url"}
    for name in (
        "throttled", "unavailable", "internal", "unreachable", "dropped", "cut", "error", "empty",
        "page", "refused", "out",
    )
}  # fmt: skip
BLOB: dict[str, set[str]] = {
    **{
        name: {"fetch", "range"}
        for name in ("throttled", "unavailable", "refused", "unreachable", "dropped", "cut", "out")
    },
    "corrupt": {"fetch", "range"},
    "whole": {"range"},  # 200 and all of it, though a part was asked for
}
ENDS = (CRASH_BEFORE, CRASH_AFTER, STOP)
BY_SIDE: dict[Side, dict[str, set[str]]] = {"store": STORE, "api": API, "blob": BLOB}
KINDS = sorted(f"{side}.{name}" for side, names in BY_SIDE.items() for name in (*names, *ENDS))
"""Every kind there is."""


def possible(side: Side, operation: str) -> list[str]:
    """What may befall such a request, in a fixed order; not how its process ends."""
    return [name for name, operations in BY_SIDE[side].items() if operation in operations]


RISK = {
    **dict.fromkeys(WRITES, 3),
    "call": 2,
    **dict.fromkeys(APART, 2),
    "url": 3,
    "fetch": 8,
    "range": 30,
}
"""How much more often than a HEAD or a listing a request meets a fault: where it matters, and what
comes about rarely."""
_POSSIBLE = {
    (side, operation): possible(side, operation)
    for side, names in BY_SIDE.items()
    for operation in sorted(set().union(*names.values()))
}


@dataclass
class Weather:
    """Faults by lot, `most` of them at most; an outage counts as one, however long it lasts."""

    chance: random.Random
    rate: float
    most: int
    deadly: float = 0.15
    """How many of the faults end the process."""
    _out: dict[Side, int] = field(default_factory=dict)

    def fault(self, exchange: Exchange) -> str | None:
        side = exchange.side
        if self._out.get(side, 0) > 0:
            self._out[side] -= 1
            return "out"
        rate = self.rate * RISK.get(exchange.operation, 1)
        if self.most <= 0 or self.chance.random() >= rate:
            return None
        self.most -= 1
        if self.chance.random() < self.deadly:
            return self.chance.choice(ENDS)
        fault = self.chance.choice(_POSSIBLE[side, exchange.operation])
        if fault == "out":
            self._out[side] = self.chance.randint(1, 12)
        return fault
