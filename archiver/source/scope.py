"""Telling a missing scope from one refused call (401 and 403 to the request for a recording URL).

A refusal is about the call where any other such request is answered: for another call, or for an id
that cannot exist (a source that checks the scope first says 403, and 404 behind it). Without such a
proof nobody can tell, so the call is not blamed; where many different calls in a row are refused
and the proofs fail too, the scope is missing. Neither the order of the calls nor the number of
workers decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from archiver import hub
from archiver.clock import Clock

REFUSED_IN_A_ROW = 10
"""Different calls, so that a few that are refused for themselves are not taken for all."""
PROOF_SECONDS = 30.0
"""How long an answer proves the scope before it is asked for once more."""
DENIAL_SECONDS = 1.0
"""How long workers share the result of asking in vain."""
IMPOSSIBLE_ID = "access-check"

Ask = Callable[[str], bool | None]
"""Asks for the recording URL of an id: True where it is answered, False where it is refused, None
where the source failed and so said neither."""


class ScopeEvidence:
    """What the answers so far say about a scope. Threads share it."""

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._example: str | None = None
        """An id whose request was answered."""
        self._proved_at: float | None = None
        self._denied_at: float | None = None
        """When every id that could prove the scope was refused."""
        self._refused: set[str] = set()
        """Calls that were refused since the last answer."""
        self._lock = threading.Lock()  # held for no longer than it takes to look
        self._asking = hub.Lock()  # held while one worker asks, and the others wait for the result

    def answered(self, call_id: str) -> None:
        """A request was answered with anything but a refusal: the scope is there."""
        with self._lock:
            self._example, self._proved_at = call_id, self._clock.monotonic()
            self._denied_at = None
            self._refused.clear()

    def is_missing(self, call_id: str) -> bool | None:
        """After a refusal: False where it is about this call, True where the scope is missing, None
        where nobody can tell yet. Raises what asking raises."""
        with self._lock:
            self._refused.add(call_id)
            if self._is_fresh(self._proved_at, PROOF_SECONDS):
                return False
        with self._asking:
            if not self._is_known():
                self._look_for_proof()
        with self._lock:
            if self._is_fresh(self._proved_at, PROOF_SECONDS):
                return False
            denied = self._denied_at is not None
            return True if denied and len(self._refused) >= REFUSED_IN_A_ROW else None

    def _is_known(self) -> bool:
        """Whether another worker has just asked."""
        with self._lock:
            proved = self._is_fresh(self._proved_at, PROOF_SECONDS)
            return proved or self._is_fresh(self._denied_at, DENIAL_SECONDS)

    def _look_for_proof(self) -> None:
        """Ask for the example, then for the impossible id, until one is answered."""
        answers = []
        for known in dict.fromkeys((self._example or IMPOSSIBLE_ID, IMPOSSIBLE_ID)):
            answers.append(self._ask(known))
            if answers[-1]:
                self.answered(known)
                return
        with self._lock:
            self._denied_at = None if None in answers else self._clock.monotonic()

    def _is_fresh(self, at: float | None, seconds: float) -> bool:
        return at is not None and self._clock.monotonic() - at < seconds
