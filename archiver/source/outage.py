"""Telling an outage of the source from one bad call, by how many calls in a row fail.

One call's request may fail for ever (500, no answer in time) while the source is well. So a failure
is the call's own at first. Only where many different calls fail, and none is answered in between,
the source itself is asked (the control request, `JsonApi.control`): if it answers, each of them
failed for itself; if it does not, the source is out, and no call is blamed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

FAILED_IN_A_ROW = 10
"""Different calls: more than the workers of a default setup, so that eight bad calls that happen to
be asked for at the same time cost no control request."""


class OutageDetector:
    """Counts the calls whose requests failed since the last one that was answered. Threads share
    it."""

    def __init__(self, control: Callable[[], None]) -> None:
        """`control` raises `SourceError` where the source does not answer it."""
        self._control = control
        self._failed: set[str] = set()
        self._lock = threading.Lock()  # held for no longer than it takes to count

    def answered(self) -> None:
        """Some call's request was answered."""
        with self._lock:
            self._failed.clear()

    def failed(self, call_id: str, *, unreachable: bool) -> None:
        """A call's request failed for good. Returns where that is the call's own matter; raises
        `SourceError` where the source is out.

        An `unreachable` source is asked at once: no call decides whether a connection comes about.
        """
        with self._lock:
            self._failed.add(call_id)
            many = len(self._failed) >= FAILED_IN_A_ROW
        if many or unreachable:
            self._control()
            self.answered()
