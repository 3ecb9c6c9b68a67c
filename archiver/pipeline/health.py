"""Whether the store is out, and whether our own clock is wrong.

`StoreHealth` distinguishes an outage of the store from objects that it refuses. A store that
refuses one key for ever must not stop the calls and windows whose keys it takes. A store that is
out must not be asked for each of a million calls, and its outage is no call's fault. So refusals in
a row are counted, and a control request decides: a write (`Bucket.is_answering`). Readers ask by a
read (`bucket.is_of_one_object`), because an auditor may not write; and a read cannot stand for the
write, because a store that takes no writes any more may well answer reads.

`ClockCheck` compares our clock with the `Date` of answers that came anyway. Windows are closed, and
locks and seals dated, by our clock alone, and none of that can be taken back.

- Off by more than `MAX_SKEW_SECONDS` from every side that sends a `Date`: our clock is wrong.
  Nothing is closed or sealed until it is right again. Calls are archived all the same.
- Off from one side while the other agrees with us: that side's clock is wrong, and we go on.
- Where no side sends a `Date`, nothing is known, and we go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from archiver.core.errors import Reach, StoreError
from archiver.observability import metrics

log = structlog.get_logger()

SUSPICIOUS = 10
"""So many different items refused in a row, with nothing stored in between: ask the control."""
HOPELESS = 100
"""So many in a row are an outage whatever the control says: a full store answers the control."""
MAX_SKEW_SECONDS = 300.0
"""As much as S3 and signed requests commonly allow; no network delays an answer for so long."""

Skew = Callable[[], float | None]
"""A server's clock less ours, in seconds, by its latest answer; None where it sends no `Date`."""


class StoreHealth:
    """Judges failed requests to the store. Threads share it."""

    def __init__(self, is_answering: Callable[[], bool]) -> None:
        """`is_answering` is the control: whether the store takes an ordinary request now."""
        self._is_answering = is_answering
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """The store kept something: what it refused before was about single objects."""
        with self._lock:
            self._refused.clear()

    def is_outage(self, item: str, error: StoreError) -> bool:
        """Whether `error`, met while working at `item`, is about the store as a whole; otherwise
        only the item is harmed, and the others go on."""
        if error.reason == "unreachable":
            return not self._is_answering()
        if error.reach in (Reach.STORE, Reach.EVERYTHING):
            return True
        with self._lock:
            self._refused.add(item)
            count = len(self._refused)
            if count >= HOPELESS:
                self._refused.clear()  # a later retry counts anew: else one refusal would end it
                return True
        return count % SUSPICIOUS == 0 and not self._is_answering()


class ClockCheck:
    """Compares our clock with the source's and the store's. Threads share it."""

    def __init__(self, source: Skew, store: Skew) -> None:
        self._sides = {"source": source, "store": store}
        self._logged: tuple[bool, frozenset[str]] = (False, frozenset())
        """What the log said last: whether our clock is wrong, and which sides are off."""

    def is_right(self, *, remind: bool = False) -> bool:
        """Whether our clock is right, as far as anybody says. Each change is logged, and with
        `remind` a clock that is still wrong again."""
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
