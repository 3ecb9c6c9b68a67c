"""How often each unarchived call was tried, and how long it rests before it is tried again.

Kept in memory: a process that starts anew tries at once, and counts from one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from archiver.clock import Clock
from archiver.manifest.record import Record
from archiver.model import Call

LONGEST_REST_SECONDS = 900.0
FORGOTTEN_AFTER_SECONDS = 86_400.0
"""Without a try for so long after its rest a call is nobody's any more: another writer archived it,
or its window was closed without it."""
SWEEP_SECONDS = 3_600.0
UNSAID = ("source_unavailable", "call_refused")
"""Reasons that say nothing of the call itself: the source did not answer for it."""


@dataclass(frozen=True)
class Unarchived:
    """A call without a record as yet, or an archived one that the source did not answer for in
    full, and why."""

    call: Call
    reason: str
    attempts: int
    status: int | None
    undecided: bool = False
    """Whether nobody can tell yet if the source refuses the call or the credentials."""
    amended: Record | None = None
    """The new record of an archived call, made of what the source did answer."""


@dataclass
class _Tried:
    attempts: int = 0
    last: Unarchived | None = None
    rests_until: float = 0.0


class Attempts:
    """The tries of this process. Threads share it; what is archived or given up is forgotten."""

    def __init__(self, clock: Clock, first_rest_seconds: float = 60.0) -> None:
        """The first rest is `first_rest_seconds`, each later one twice as long, up to 15 min."""
        self._clock = clock
        self._first = first_rest_seconds
        self._tried: dict[str, _Tried] = {}
        self._lock = threading.Lock()
        self._swept_at = clock.monotonic()

    def begin(self, call_id: str) -> int:
        """Count a try; which one it is, from 1."""
        now = self._clock.monotonic()
        with self._lock:
            if now >= self._swept_at + SWEEP_SECONDS:
                self._forget(now - FORGOTTEN_AFTER_SECONDS)
                self._swept_at = now
            tried = self._tried.setdefault(call_id, _Tried())
            tried.attempts += 1
            tried.rests_until = max(tried.rests_until, now)
            return tried.attempts

    def failed(self, unarchived: Unarchived) -> None:
        """The call rests from now on."""
        rest = min(LONGEST_REST_SECONDS, self._first * 2.0 ** min(unarchived.attempts - 1, 20))
        with self._lock:
            tried = self._tried.setdefault(unarchived.call.id, _Tried(unarchived.attempts))
            tried.last = unarchived
            tried.rests_until = self._clock.monotonic() + rest

    def done(self, call_id: str) -> None:
        with self._lock:
            self._tried.pop(call_id, None)

    def resting(self, call_id: str) -> Unarchived | None:
        """How the last try ended, while the call rests; None where it may be tried."""
        with self._lock:
            tried = self._tried.get(call_id)
            if tried is None or self._clock.monotonic() >= tried.rests_until:
                return None
            return tried.last

    def _forget(self, before: float) -> None:
        """The calls whose rest was over before then."""
        for call_id, tried in list(self._tried.items()):
            if tried.rests_until < before:
                del self._tried[call_id]

    def all_resting(self, call_ids: Iterable[str]) -> bool:
        return all(self.resting(call_id) for call_id in call_ids)
