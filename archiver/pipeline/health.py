"""Decides whether the store is out, and whether our own clock is wrong.

`StoreHealth` distinguishes an outage of the store from objects that it refuses. A store that
refuses one key for ever must not stop the calls and windows whose keys it accepts. A store that is
out must not be asked for each of a million calls, and its outage must not be recorded as a call's
failure. So refusals in a row are counted, and then a control request decides. It is a write
(`Bucket.is_answering`), because a store that accepts no writes may still answer reads. Readers use
a read (`bucket.is_of_one_object`), because an auditor may not write.

`ClockCheck` compares our clock with the `Date` of answers that came anyway. Closing a window and
dating a lock or a seal depend on our clock alone, and cannot be undone.

- If we differ by more than `MAX_SKEW_SECONDS` from every side that sends a `Date`, our clock is
  wrong. Nothing is closed or sealed until it is right again. Calls are archived all the same.
- If we differ from one side and agree with the other, that side's clock is wrong, and we go on.
- If no side sends a `Date`, nothing is known, and we go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from archiver.core.errors import Reach, StoreError
from archiver.observability import metrics

log = structlog.get_logger()

REFUSALS_BEFORE_CONTROL = 10
"""So many refused items in a row, without a successful write, trigger the control request."""
REFUSALS_OF_OUTAGE = 100
"""So many in a row are an outage, even if the control is answered: a full store may answer it."""
MAX_SKEW_SECONDS = 300.0
"""The limit that S3 and signed requests commonly use. No network delays an answer for so long."""

Skew = Callable[[], float | None]
"""Returns a server's clock minus ours, in seconds, by its latest answer; None if it sends no
`Date`."""


class StoreHealth:
    """Judges failed requests to the store. Thread-safe."""

    def __init__(self, is_answering: Callable[[], bool]) -> None:
        """`is_answering` sends the control request: whether the store accepts an ordinary write
        now."""
        self._is_answering = is_answering
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Note a successful write: earlier refusals were about single objects."""
        with self._lock:
            self._refused.clear()

    def is_outage(self, item: str, error: StoreError) -> bool:
        """Whether `error`, raised while processing `item`, is about the whole store. If not, only
        the item is affected, and the others go on."""
        if error.reason == "unreachable":
            return not self._is_answering()
        if error.reach in (Reach.STORE, Reach.EVERYTHING):
            return True
        with self._lock:
            self._refused.add(item)
            count = len(self._refused)
            if count >= REFUSALS_OF_OUTAGE:
                self._refused.clear()  # start again: else each later refusal would be an outage
                return True
        return count % REFUSALS_BEFORE_CONTROL == 0 and not self._is_answering()


class ClockCheck:
    """Compares our clock with the source's and the store's. Thread-safe."""

    def __init__(self, source: Skew, store: Skew) -> None:
        self._sides = {"source": source, "store": store}
        self._logged: tuple[bool, frozenset[str]] = (False, frozenset())
        """What was logged last: whether our clock is wrong, and which sides differ."""

    def is_right(self, *, remind: bool = False) -> bool:
        """Whether our clock is right, as far as the sides show. Each change is logged; with
        `remind` a clock that is still wrong is logged again."""
        asked = {name: skew() for name, skew in self._sides.items()}
        skews = {name: seconds for name, seconds in asked.items() if seconds is not None}
        for name, seconds in skews.items():
            metrics.CLOCK_SKEW.labels(name).set(seconds)
        off = frozenset(name for name, seconds in skews.items() if abs(seconds) > MAX_SKEW_SECONDS)
        wrong = bool(off) and off == skews.keys()
        if (wrong, off) != self._logged or (wrong and remind):
            self._logged = wrong, off
            shown = {f"{name}_skew_seconds": round(seconds, 1) for name, seconds in skews.items()}
            if wrong:
                action = (
                    "set this machine's clock (NTP); until then calls are archived, and nothing "
                    "is closed or sealed"
                )
                log.error("clock.wrong", **shown, action=action)
            elif off:
                log.warning("clock.differs", of=min(off), **shown)
            else:
                log.info("clock.right", **shown)
        return not wrong
