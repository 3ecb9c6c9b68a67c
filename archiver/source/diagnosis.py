"""Tells what concerns the whole source from what concerns one call: an outage, a missing scope.

Both count different calls that fail in a row, so that a few that are bad for themselves are not
taken for all, and then ask for a proof. Neither the order of the calls nor the number of workers
decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from archiver.core.clock import Clock

FAILED_IN_A_ROW = 10
"""More than the workers of a default setup, so that eight bad calls that happen to be asked for at
the same time cost no control request."""
REFUSED_IN_A_ROW = 10
PROOF_SECONDS = 30.0
"""How long an answer proves the scope before it is asked for once more."""
DENIAL_SECONDS = 1.0
"""How long workers share the result of asking in vain."""
IMPOSSIBLE_ID = "access-check"


class OutageDetector:
    """Tells an outage from one bad call. Threads share it.

    One call's request may fail for ever (500, no answer in time) while the source is well. So a
    failure is the call's own at first. Where many different calls fail, and none is answered in
    between, the control request is sent: if the source answers it, each of them failed for itself;
    if not, the source is out, and no call is blamed.
    """

    def __init__(self, control: Callable[[], None]) -> None:
        """`control` raises `SourceError` where the source does not answer it."""
        self._control = control
        self._failed: set[str] = set()
        """Calls whose requests failed since the last one that was answered."""
        self._lock = threading.Lock()

    def answered(self) -> None:
        """Some call's request was answered."""
        with self._lock:
            self._failed.clear()

    def failed(self, call_id: str, *, unreachable: bool) -> None:
        """A call's request failed for good. Returns where that is the call's own matter; raises
        `SourceError` where the source is out.

        Of an `unreachable` source that is asked at once: no call decides whether a connection can
        be made.
        """
        with self._lock:
            self._failed.add(call_id)
            many = len(self._failed) >= FAILED_IN_A_ROW
        if many or unreachable:
            self._control()
            self.answered()


class ScopeDetector:
    """Tells a missing scope from one refused call (401 and 403 to the request for a recording URL).
    Threads share it.

    A refusal is about the call where any other such request is answered: for another call, or for
    an id that cannot exist (a source that checks the scope first says 403 to that, and 404 where
    the scope is there). Without such a proof nobody can tell, so the call is not blamed. Where many
    different calls in a row are refused, and the proofs fail too, the scope is missing.
    """

    def __init__(self, ask: Callable[[str], bool | None], clock: Clock) -> None:
        """`ask` requests the recording URL of an id: True where it is answered, False where it is
        refused, None where the source failed."""
        self._ask = ask
        self._clock = clock
        self._answered_id: str | None = None
        self._proved_at: float | None = None
        self._denied_at: float | None = None
        """When every id that could prove the scope was refused."""
        self._refused: set[str] = set()
        """Calls that were refused since the last answer."""
        self._lock = threading.Lock()
        self._asking = threading.RLock()
        """Held while one worker asks for a proof; the others wait for its result."""

    def answered(self, call_id: str) -> None:
        """A request was answered with anything but a refusal: the scope is there."""
        with self._lock:
            self._answered_id, self._proved_at = call_id, self._clock.monotonic()
            self._denied_at = None
            self._refused.clear()

    def is_missing(self, call_id: str) -> bool | None:
        """After a refusal: False where it is about this call, True where the scope is missing, None
        where nobody can tell yet. Raises what asking raises.

        1. A fresh proof says that it is about this call.
        2. Else ask for the call that was answered last, and then for an id that cannot exist, until
           one is answered; unless another worker has just asked in vain.
        3. Judge by the result.
        """
        with self._lock:
            self._refused.add(call_id)
            if self._is_fresh(self._proved_at, PROOF_SECONDS):  # 1
                return False
        with self._asking:  # 2
            with self._lock:
                known = self._is_fresh(self._proved_at, PROOF_SECONDS) or self._is_fresh(
                    self._denied_at, DENIAL_SECONDS
                )
            if not known:
                self._ask_for_proof()
        with self._lock:  # 3
            if self._is_fresh(self._proved_at, PROOF_SECONDS):
                return False
            denied = self._denied_at is not None
            return True if denied and len(self._refused) >= REFUSED_IN_A_ROW else None

    def _ask_for_proof(self) -> None:
        answers = []
        for known_id in dict.fromkeys((self._answered_id or IMPOSSIBLE_ID, IMPOSSIBLE_ID)):
            answers.append(self._ask(known_id))
            if answers[-1]:
                self.answered(known_id)
                return
        with self._lock:
            self._denied_at = None if None in answers else self._clock.monotonic()

    def _is_fresh(self, at: float | None, seconds: float) -> bool:
        return at is not None and self._clock.monotonic() - at < seconds
