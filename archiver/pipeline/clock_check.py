"""Whether our own clock is right, by the `Date` of answers that came anyway.

Windows are closed, and locks and seals dated, by our clock alone, and none of that can be taken
back. So before anything is closed the clock is compared with the source's and the store's:

- Off by more than `MAX_SKEW_SECONDS` from every side that tells a `Date`: ours is wrong. Nothing is
  closed or sealed until it is right again. Calls are archived all the same.
- Off from one side while the other agrees with us: that side's clock is wrong, and we go on.
- Where no side tells a `Date`, nothing is known, and we go on.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from archiver import metrics

log = structlog.get_logger()

MAX_SKEW_SECONDS = 300.0
"""As much as S3 and signed requests commonly allow for; no network delays an answer for so long."""

Skew = Callable[[], float | None]
"""A server's clock less ours, in seconds, by its latest answer; None where it tells none."""


class ClockCheck:
    """Compares our clock with others'. Threads share it."""

    def __init__(self, source: Skew, store: Skew) -> None:
        self._sides = {"source": source, "store": store}
        self._said: tuple[bool, frozenset[str]] = (False, frozenset())
        """What the log told last: whether our clock is wrong, and which sides are off."""

    def is_right(self, *, remind: bool = False) -> bool:
        """Whether our clock is right, as far as anybody tells. The log tells of each change, and
        with `remind` of a wrong clock again."""
        told = {
            name: seconds for name, ask in self._sides.items() if (seconds := ask()) is not None
        }
        for name, seconds in told.items():
            metrics.CLOCK_SKEW.labels(name).set(seconds)
        off = frozenset(name for name, seconds in told.items() if abs(seconds) > MAX_SKEW_SECONDS)
        wrong = bool(off) and off == told.keys()
        if (wrong, off) != self._said or (wrong and remind):
            self._said = wrong, off
            self._say(off, wrong, told)
        return not wrong

    def _say(self, off: frozenset[str], wrong: bool, told: dict[str, float]) -> None:
        shown = {f"{name}_skew_seconds": round(seconds, 1) for name, seconds in told.items()}
        if wrong:
            log.error(
                "clock.wrong",
                **shown,
                action="set this machine's clock (NTP); until then calls are archived, and nothing "
                "is closed or sealed",
            )
        elif off:
            log.warning("clock.differs", of=min(off), **shown)
        else:
            log.info("clock.right", **shown)
