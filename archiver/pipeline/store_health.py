"""Tells an outage of the store from objects that it refuses.

A store that refuses one key for good must not stop the calls and windows whose keys it takes; a
store that is out must not be asked for each of a million calls, and its outage blames no call. So
refusals in a row are counted, and a control request decides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from archiver.errors import Reach, StoreError

SUSPICIOUS = 10
"""So many different items refused in a row, with nothing stored in between: ask the control."""
HOPELESS = 100
"""So many in a row are an outage whatever the control says: a full store answers the control."""


class StoreHealth:
    """Judges failed requests to the store. Threads share it."""

    def __init__(self, is_answering: Callable[[], bool]) -> None:
        """`is_answering` is the control: whether the store takes an ordinary request now."""
        self._is_answering = is_answering
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """The store kept something: what it refused before was about single objects."""
        if self._refused:
            with self._lock:
                self._refused.clear()

    def is_outage(self, item: str, error: StoreError) -> bool:
        """Whether `error`, met while working at `item`, is about the store as a whole.

        Otherwise the item alone is harmed, and the others go on.
        """
        if error.reason == "unreachable":
            return not self._is_answering()
        if error.reach in (Reach.STORE, Reach.EVERYTHING):
            return True
        with self._lock:
            self._refused.add(item)
            count = len(self._refused)
            if count >= HOPELESS:
                # Who tries again later starts counting anew: else one refusal would end it.
                self._refused.clear()
                return True
        return count % SUSPICIOUS == 0 and not self._is_answering()
