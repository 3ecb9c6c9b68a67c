"""How often each call was tried without success, and how long it rests before the next try.

Kept in memory only: a process that starts anew tries at once, and counts from one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from archiver.core.clock import Clock
from archiver.core.model import Call
from archiver.manifest.record import Record

LONGEST_REST_SECONDS = 900.0
FORGOTTEN_AFTER_SECONDS = 86_400.0
"""A call without a try for so long after its rest was archived by another writer, or its window was
closed without it."""
SWEEP_SECONDS = 3_600.0
SOURCE_SILENT = ("source_unavailable", "call_refused")
"""Reasons of a failure that say nothing of the call: the source did not answer for it."""


@dataclass(frozen=True)
class Unarchived:
    """A call that a try left without a record, or an archived call for one of whose documents the
    source did not answer; and why."""

    call: Call
    reason: str
    attempts: int
    status: int | None
    undecided: bool = False
    """Whether nobody can tell yet if the source refuses the call or the credentials."""
    amended: Record | None = None
    """The new record of an archived call, made of what the source did answer."""


@dataclass
class _Tries:
    count: int = 0
    last: Unarchived | None = None
    rests_until: float = 0.0


class Backoff:
    """The tries of this process; what is archived or given up is forgotten. Threads share it."""

    def __init__(self, clock: Clock, first_rest_seconds: float = 60.0) -> None:
        """Each rest is twice as long as the one before, up to 15 minutes."""
        self._clock = clock
        self._first_rest_seconds = first_rest_seconds
        self._tries: dict[str, _Tries] = {}
        self._lock = threading.Lock()
        self._swept_at = clock.monotonic()

    def begin(self, call_id: str) -> int:
        """Count a try; returns its number, from 1."""
        now = self._clock.monotonic()
        with self._lock:
            if now >= self._swept_at + SWEEP_SECONDS:
                oldest = now - FORGOTTEN_AFTER_SECONDS
                self._tries = {i: t for i, t in self._tries.items() if t.rests_until >= oldest}
                self._swept_at = now
            tries = self._tries.setdefault(call_id, _Tries())
            tries.count += 1
            tries.rests_until = max(tries.rests_until, now)
            return tries.count

    def failed(self, unarchived: Unarchived) -> None:
        """The call rests from now on."""
        growth = 2.0 ** min(unarchived.attempts - 1, 20)
        rest = min(LONGEST_REST_SECONDS, self._first_rest_seconds * growth)
        with self._lock:
            tries = self._tries.setdefault(unarchived.call.id, _Tries(unarchived.attempts))
            tries.last = unarchived
            tries.rests_until = self._clock.monotonic() + rest

    def succeeded(self, call_id: str) -> None:
        with self._lock:
            self._tries.pop(call_id, None)

    def resting(self, call_id: str) -> Unarchived | None:
        """How the last try ended, while the call rests; None where it may be tried."""
        with self._lock:
            tries = self._tries.get(call_id)
            if tries is None or self._clock.monotonic() >= tries.rests_until:
                return None
            return tries.last

    def all_resting(self, call_ids: Iterable[str]) -> bool:
        return all(self.resting(call_id) for call_id in call_ids)
