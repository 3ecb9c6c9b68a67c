"""Distinguishes a failure of the whole source from one of a single call: an outage, a missing
scope.

Both detectors count different calls that fail in a row, so that a few bad calls do not count as an
outage. Then they request a proof. The result does not depend on the order of the calls or the
number of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from archiver.core.clock import Clock

FAILED_IN_A_ROW = 10
"""More than the workers of a default setup, so that eight bad calls that are requested at the same
time cost no control request."""
REFUSED_IN_A_ROW = 10
PROOF_SECONDS = 30.0
"""How long an answer proves the scope."""
DENIAL_SECONDS = 1.0
"""How long workers share the result of failed proofs."""
IMPOSSIBLE_ID = "access-check"


class OutageDetector:
    """Distinguishes an outage from one bad call. Thread-safe.

    The request for one call may always fail (500, no answer in time) while the source works. So a
    failure first counts as the call's own. After many different calls fail, with no answer in
    between, the control request is sent. If the source answers it, each call failed on its own. If
    not, the source is out, and no call is blamed.
    """

    def __init__(self, control: Callable[[], None]) -> None:
        """`control` raises `SourceError` if the source does not answer it."""
        self._control = control
        self._failed: set[str] = set()
        """Calls whose requests failed since the last answer."""
        self._lock = threading.Lock()

    def answered(self) -> None:
        """Note that the request for some call was answered."""
        with self._lock:
            self._failed.clear()

    def failed(self, call_id: str, *, unreachable: bool) -> None:
        """Note that the request for a call failed for good. Returns if the failure is the call's
        own; raises `SourceError` if the source is out.

        If the source is `unreachable`, the control request is sent at once, because no single call
        can prevent a connection.
        """
        with self._lock:
            self._failed.add(call_id)
            many = len(self._failed) >= FAILED_IN_A_ROW
        if many or unreachable:
            self._control()
            self.answered()


class ScopeDetector:
    """Distinguishes a missing scope from one refused call (401 and 403 to the request for a
    recording URL). Thread-safe.

    A refusal is about the call if another such request is answered: for another call, or for an id
    that cannot exist. (A source that checks the scope first answers 403 to that, and 404 if the
    scope is granted.) Without such a proof the refusal is undecided, and the call is not blamed. If
    many different calls in a row are refused and the proofs fail too, the scope is missing.
    """

    def __init__(self, ask: Callable[[str], bool | None], clock: Clock) -> None:
        """`ask` requests the recording URL of an id. It returns True if the request is answered,
        False if it is refused, None if the source failed."""
        self._ask = ask
        self._clock = clock
        self._answered_id: str | None = None
        self._proved_at: float | None = None
        self._denied_at: float | None = None
        """When all ids that could prove the scope were refused."""
        self._refused: set[str] = set()
        """Calls that were refused since the last answer."""
        self._lock = threading.Lock()
        self._asking = threading.RLock()
        """Held while one worker requests a proof; the others wait for its result."""

    def answered(self, call_id: str) -> None:
        """Note an answer that is not a refusal: the scope is granted."""
        with self._lock:
            self._answered_id, self._proved_at = call_id, self._clock.monotonic()
            self._denied_at = None
            self._refused.clear()

    def is_missing(self, call_id: str) -> bool | None:
        """After a refusal: False if it is about this call, True if the scope is missing, None if
        that is undecided. Raises what `ask` raises.

        1. If there is a recent proof, the refusal is about this call.
        2. Otherwise request the URL of the call that was answered last, then of an id that cannot
           exist, until one is answered. Skip this if another worker has just failed to get a proof.
        3. Decide by the result.
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
